"""Every rate, offset and window length of a Bark model, read once from its configs and frozen.

Nothing here has a default: the numbers of suno's checkpoints live in their own generation configs, and a small or
retrained Bark has other ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STAGES = ("semantic", "coarse", "fine", "codec")
TOKEN_STAGES = STAGES[:3]
# Filler after the end of a finished row. 0 is a semantic id, so it cannot be taken for a codec token.
ENDED = 0
# Fitting windows: frames of padding at least; their lengths are multiples of a whole window's part.
FIT_PADDING = 8
FIT_PARTS = 16


@dataclass(frozen=True)
class SemanticSpec:
    """Token layout of the text -> semantic stage."""

    vocab_size: int
    pad_token: int
    infer_token: int
    text_encoding_offset: int
    text_pad_token: int
    max_input_tokens: int
    rate_hz: float

    @property
    def prompt_tokens(self) -> int:
        """Positions taken by the prompt: the text (summed with the history) and the infer token."""
        return self.max_input_tokens + 1


@dataclass(frozen=True)
class CoarseSpec:
    """Token layout of the semantic -> coarse stage."""

    semantic_vocab_size: int
    semantic_pad_token: int
    semantic_rate_hz: float
    infer_token: int
    codebook_size: int
    num_codebooks: int
    rate_hz: float
    max_input_tokens: int
    max_history_tokens: int
    window_tokens: int
    codes_only: bool = False
    """The last codebook's ids end with its codes; in Transformers, they end with the vocabulary."""
    rows_end: bool = False
    """A row ends where its own semantic tokens do, filled with `ENDED` from there on.

    In Transformers, all rows go on to the end of the longest.
    """
    fill_positions: int | None = None
    """A window goes on for as many of Transformers' as so many positions have room for, and its semantic tokens.

    In Transformers, it ends after `window_tokens`.
    """

    @property
    def tokens_per_semantic(self) -> float:
        """Coarse tokens per semantic token (3.006 for suno's models), computed in the order Transformers uses."""
        return self.rate_hz / self.semantic_rate_hz * self.num_codebooks

    @property
    def max_semantic_history_tokens(self) -> int:
        return math.floor(self.max_history_tokens / self.tokens_per_semantic)

    def semantic_start(self, semantic_history: int, generated_tokens: int) -> int:
        """First semantic token, counted with the voice preset's, that a window after `generated_tokens` is fed."""
        index = semantic_history + round(generated_tokens / self.tokens_per_semantic)
        return max(0, index - self.max_semantic_history_tokens)

    def prompt_coarse_tokens(self, past_tokens: int) -> int:
        """Coarse tokens of a window's prompt, where so many came before it."""
        # Of 0, the same slice keeps everything in Transformers.
        return min(past_tokens, self.max_history_tokens) if self.max_history_tokens else past_tokens

    def longest_window(self, semantic_history: int, coarse_history: int, generated_tokens: int) -> int:
        """Tokens of the window after `generated_tokens`, if the speech goes on for so long.

        Both histories are tokens of a voice preset.
        """
        if self.fill_positions is None:
            return self.window_tokens
        fed = self.max_input_tokens + 1 + self.prompt_coarse_tokens(coarse_history + generated_tokens)
        semantic = self.semantic_start(semantic_history, generated_tokens) + self.max_input_tokens - semantic_history
        # A window's last token is not fed.
        room = min(self.fill_positions - fed + 1, math.floor(semantic * self.tokens_per_semantic) - generated_tokens)
        return max(self.window_tokens, room - room % self.window_tokens)


@dataclass(frozen=True)
class FineSpec:
    """Frame layout of the coarse -> fine stage."""

    semantic_vocab_size: int
    codebook_size: int
    num_coarse_codebooks: int
    num_codebooks: int
    max_history_frames: int
    max_input_frames: int
    rows_end: bool = False
    """A row ends where its coarse tokens are `ENDED`."""
    fit_windows: bool = False
    """A window ends soon after its last frame; in Transformers, none has fewer than `max_input_frames`."""

    def window_frames(self, frames: int) -> int:
        """Length of a window that has to hold so many frames and padding."""
        if not self.fit_windows:
            return self.max_input_frames
        multiple = self.window_multiple
        return min(self.max_input_frames, math.ceil((frames + FIT_PADDING) / multiple) * multiple)

    @property
    def window_multiple(self) -> int:
        """Length that divides those of fitting windows."""
        return math.ceil(self.max_input_frames / FIT_PARTS)
