"""Result of one generation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bark_accel.voices.preset import VoicePreset


@dataclass(frozen=True)
class Utterance:
    """Audio, and the codes it was decoded from.

    Parameters
    ----------
    audio : Tensor
        [S] float32 on the CPU.
    preset : dict, optional
        The voice preset it makes, arrays of int64 (`semantic_prompt` [T], `coarse_prompt` [2, F], `fine_prompt`
        [K, F]); None where the fine codebooks were not generated.
    cut : bool
        It is as long as it was allowed to be: the end of the text may be missing.
    """

    audio: Tensor
    preset: VoicePreset | None
    cut: bool
