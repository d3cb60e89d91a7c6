"""The voices of a batch, checked once where they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .preset import PRESET_DIMENSIONS, CodeLimits, check_codes


@dataclass(frozen=True)
class Voices:
    """Checked voice presets, int64 tensors: one (or None) for each row, or one that is `shared` by all.

    Rows with presets of their own end where they would alone; rows that share one go on to the end of the longest, as
    in Transformers, which knows no others.
    """

    presets: tuple[dict[str, Tensor] | None, ...]
    shared: bool

    @classmethod
    def read(
        cls,
        given: object,
        rows: int,
        limits: Mapping[str, CodeLimits],
        *,
        name: str = "history_prompt",
        several: bool = False,
    ) -> Voices:
        """Check what a caller passes.

        Parameters
        ----------
        given : mapping, sequence of mappings, or None
            A voice preset, or a list (or tuple) with one (or None) for each row: arrays or tensors of any integer
            dtype (the preset `announcer` of suno's is uint16).
        rows : int
            Rows of the batch.
        limits : mapping
            By the part's key; other parts are left out.
        name : str
            Of `given`, for errors.
        several : bool
            Whether a list may have one preset for as many rows each, one after the other (`num_return_sequences`).

        Raises
        ------
        TypeError, ValueError
            Name the part, what was expected and what came.
        """
        if not isinstance(given, (list, tuple)):
            return cls((_read_preset(given, limits, name),), shared=True)
        each = rows // len(given) if several and given and rows % len(given) == 0 else 1
        if each * len(given) != rows:
            raise ValueError(
                f"{name}: expected one voice preset, or a list with one (or None) for each of {rows} rows, "
                f"got a list of {len(given)}"
            )
        presets = [_read_preset(preset, limits, f"{name}[{row}]") for row, preset in enumerate(given)]
        return cls(tuple(preset for preset in presets for _ in range(each)), shared=False)

    @property
    def semantic(self) -> list[Tensor | None]:
        """`semantic_prompt` [T] of each preset."""
        return self._parts("semantic_prompt")

    @property
    def coarse(self) -> list[tuple[Tensor, Tensor] | None]:
        """`semantic_prompt` [T] and `coarse_prompt` [n_codebooks, T'] of each preset."""
        return [None if p is None else (p["semantic_prompt"], p["coarse_prompt"]) for p in self.presets]

    @property
    def fine(self) -> list[Tensor | None]:
        """`fine_prompt` [n_codebooks, T] of each preset."""
        return self._parts("fine_prompt")

    def _parts(self, key: str) -> list[Tensor | None]:
        return [None if preset is None else preset[key] for preset in self.presets]

    def of_row(self, row: int) -> Voices:
        """The voice of one row, shared by all of a batch of one."""
        return Voices((self.presets[0 if self.shared else row],), shared=True)

    def alike(self) -> Iterator[tuple[slice, Voices]]:
        """The rows that Transformers can run as one batch, and their one voice."""
        if self.shared:
            yield slice(None), self
            return
        for row in range(len(self.presets)):
            yield slice(row, row + 1), self.of_row(row)

    def to(self, device: torch.device) -> Voices:
        """The same on a device."""
        moved = (None if p is None else {key: part.to(device) for key, part in p.items()} for p in self.presets)
        return Voices(tuple(moved), self.shared)

    def argument(self) -> Any:
        """The `history_prompt` that means these voices: Transformers' own methods take that of shared ones."""
        return self.presets[0] if self.shared else [*self.presets]


def _read_preset(given: object, limits: Mapping[str, CodeLimits], name: str) -> dict[str, Tensor] | None:
    if given is None:
        return None
    if isinstance(given, str):
        raise TypeError(
            f"{name}: expected a mapping with {next(iter(limits))!r}, got str {given!r}; the processor knows voices by "
            f"name: processor(text, voice_preset={given!r}), or in a pipeline's call "
            f"preprocess_params={{'voice_preset': {given!r}}}"
        )
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping with {next(iter(limits))!r}, got {type(given).__name__}")
    if not limits.keys() <= given.keys():
        raise ValueError(f"{name}: expected the keys {', '.join(PRESET_DIMENSIONS)}, got {', '.join(map(str, given))}")
    preset = {key: _as_int64(f"{name}[{key!r}]", given[key]) for key in limits}
    for key, part in preset.items():
        check_codes(name, key, part, limits[key])
    return preset


def _as_int64(name: str, value: object) -> Tensor:
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(f"{name}: expected an array or tensor, got {type(value).__name__}")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got {value.dtype}")
        return torch.from_numpy(value.astype(np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    return value.to(torch.int64)
