"""Semantic tokens -> the first EnCodec codebooks, window by window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.decoding.active_rows import ActiveRows
from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange, drawing
from bark_accel.decoding.token_source import TokenSource
from bark_accel.transformer.causal import CausalModel, Feed
from bark_accel.transformer.kv_cache import KVCache

from .ragged import pad_ended
from .spec import ENDED, CoarseSpec


@dataclass
class Prompt:
    """Start of a window: semantic [B, max_input_tokens], then the coarse tokens from `coarse_start` on.

    `semantic_start` and `semantic_tokens` say which those are, but for the padding.
    """

    semantic: Tensor
    semantic_start: int
    semantic_tokens: int
    coarse_start: int

    def extends(self, other: Prompt) -> bool:
        """Tell whether it begins with all of another one of the same generation."""
        places = [(p.semantic_start, p.semantic_tokens, p.coarse_start) for p in (self, other)]
        return places[0] == places[1]


@dataclass
class CoarseState:
    """One batch of utterances.

    `semantic` [B, T] and `coarse` [B, T'] start with the voice preset's share (`semantic_history`, `coarse_history`
    tokens of it); `window` holds the [B] tokens of the current window, `coarse` those of the windows before. Criteria
    end a window early, once they have said of each row that it ends: `unfinished` are the others.
    """

    cache: KVCache
    sampler: Sampler
    semantic: Tensor
    coarse: Tensor
    semantic_history: int
    coarse_history: int
    rows: ActiveRows
    token_source: TokenSource | None = None
    final: bool = False
    row_lengths: list[int] = field(default_factory=list)
    prompt: Prompt | None = None
    window_tokens: int = 0
    window: list[Tensor] = field(default_factory=list)
    windows: int = 0
    unfinished: list[bool] = field(default_factory=list)

    @property
    def length_tokens(self) -> int:
        """Number of tokens of the longest row."""
        return max(self.row_lengths, default=0)

    @property
    def generated_tokens(self) -> int:
        return self.coarse.shape[1] - self.coarse_history + len(self.window)

    def result(self) -> Tensor:
        """Coarse tokens [B, T] int64: the codebooks interleaved, ids offset as the model predicts them."""
        return torch.cat([self.coarse, *(t[:, None] for t in self.window)], dim=1)[:, self.coarse_history :]


class CoarseStage:
    """The windows of `BarkCoarseModel.generate` over a static cache.

    Transformers prefills every window from scratch. While neither the semantic slice nor the start of the coarse
    history moves, a window's prompt extends the one before at the same positions: then the cache is kept and only
    what is missing is fed.
    """

    def __init__(self, model: CausalModel, spec: CoarseSpec):
        self._model = model
        self._spec = spec
        self._allowed = token_ranges(spec, model.spec.output_vocab_size)

    @property
    def model(self) -> CausalModel:
        return self._model

    def start(
        self,
        batch_size: int,
        histories: Sequence[tuple[Tensor, Tensor] | None],
        sampling: SamplingConfig,
        cache: KVCache,
        token_source: TokenSource | None = None,
    ) -> CoarseState:
        """Begin a generation.

        Parameters
        ----------
        histories : sequence of (Tensor [T] int, Tensor [n_codebooks, T'] int) or None
            `semantic_prompt` and `coarse_prompt` of voice presets: `batch_size` of them, of equal `history_lengths`, or
            one that all rows have.
        """
        trimmed = [trim_history(self._spec, h, self._model.weights.device) for h in histories]
        semantic, coarse = (torch.cat(parts).expand(batch_size, -1) for parts in zip(*trimmed, strict=True))
        sampler, rows = Sampler.of(self._model, sampling), ActiveRows(cache, batch_size)
        return CoarseState(cache, sampler, semantic, coarse, semantic.shape[1], coarse.shape[1], rows, token_source)

    def push(self, state: CoarseState, semantic_tokens: Tensor, *, final: bool) -> None:
        """Add semantic tokens [B, T]; ended rows are filled with the spec's `semantic_pad_token`."""
        state.semantic = torch.cat([state.semantic, semantic_tokens.to(state.semantic.device)], dim=1)
        state.final = final
        state.row_lengths = self.row_lengths(state.semantic[:, state.semantic_history :]).tolist()

    def row_lengths(self, semantic_tokens: Tensor) -> Tensor:
        """Coarse tokens [B] int32 that each row of semantic tokens [B, T] asks for."""
        return row_lengths(self._spec, semantic_tokens)

    def ready(self, state: CoarseState) -> bool:
        """Tell whether the tokens pushed so far settle the next coarse token."""
        if len(state.window) < state.window_tokens:
            return True
        remaining = state.length_tokens - state.generated_tokens
        if state.sampler.config.ends and state.windows >= math.ceil(state.length_tokens / self._spec.window_tokens):
            return False  # what a window lacks no other one makes up for
        if state.final:
            return remaining > 0
        slice_end = self._semantic_start(state) + self._spec.max_input_tokens
        return remaining >= self._longest_window(state) and state.semantic.shape[1] >= slice_end

    def needed_semantic(self, state: CoarseState) -> int:
        """Return how many semantic tokens, a preset's not counted, a next token waits for at least, unless they end."""
        if len(state.window) < state.window_tokens:
            return 0
        slice_end = self._semantic_start(state) + self._spec.max_input_tokens - state.semantic_history
        window_end = state.generated_tokens + self._longest_window(state)
        return max(slice_end, math.floor(window_end / self._spec.tokens_per_semantic))

    def step(self, state: CoarseState) -> Tensor:
        """Generate the next token [B] int64 of every row; `ENDED` in those that have, where the spec ends them."""
        done = len(state.window)
        if state.token_source is None or done == state.window_tokens:
            return self.note(state, self.draw(state, self._model.logits(self.feed(state), state.cache)))
        with drawing("coarse", self._model.weights.cache_dtype):
            tokens = state.token_source.next_token(
                state.window[-1],
                state.cache,
                state.sampler,
                lambda i: self._allowed[(done + i) % 2],
                state.window_tokens - done,
            )
        return self.note(state, tokens)

    def feed(self, state: CoarseState) -> Feed:
        """Say what the model is to be fed, as a part of a step; `draw` and `note` are the others. May open a window."""
        opens = len(state.window) == state.window_tokens
        fed = self._open_window(state) if opens else state.window[-1].unsqueeze(1)
        active = self._active_rows(state)
        if active is not None and state.token_source is None and state.sampler.processing is None:
            state.rows.keep(active)
        rows = state.sampler.head_rows(self._allowed[len(state.window) % 2])
        return Feed(state.rows.select(fed), rows)

    def draw(self, state: CoarseState, logits: Tensor) -> Tensor:
        """Draw the next token [B] int64 of every row from the logits of what was fed."""
        with drawing("coarse", self._model.weights.cache_dtype):
            return state.sampler.draw(state.rows.expand(logits), self.allowed(state))

    def allowed(self, state: CoarseState) -> TokenRange:
        """Ids that `draw` draws from."""
        return self._allowed[len(state.window) % 2]

    def note(self, state: CoarseState, tokens: Tensor) -> Tensor:
        """Add what was drawn to the window, `ENDED` in rows that have, padded in those that criteria have ended."""
        processing, pad = state.sampler.processing, state.sampler.config.pad_token
        if processing is not None and pad is not None:
            tokens = pad_ended(tokens, state.unfinished, pad)
            processing.pad(tokens)
        active = self._active_rows(state)
        if active is not None:
            tokens = pad_ended(tokens, active, ENDED)
        state.window.append(tokens)
        if processing is not None and state.sampler.config.ends:
            state.unfinished = [u and not e for u, e in zip(state.unfinished, processing.ended(), strict=True)]
            if not any(state.unfinished):
                state.window_tokens = len(state.window)
                if state.token_source is not None:
                    state.token_source.forget(state.cache)
        return tokens

    def _active_rows(self, state: CoarseState) -> list[bool] | None:
        """Which rows go on; None where all do, or rows do not end."""
        if not self._spec.rows_end:
            return None
        generated = state.generated_tokens
        active = [generated < length for length in state.row_lengths]
        return None if all(active) else active

    def _semantic_start(self, state: CoarseState) -> int:
        return self._spec.semantic_start(state.semantic_history, state.generated_tokens)

    def _longest_window(self, state: CoarseState) -> int:
        return self._spec.longest_window(state.semantic_history, state.coarse_history, state.generated_tokens)

    def _open_window(self, state: CoarseState) -> Tensor:
        """The ids [B, T] that the cache still lacks of the next window's prompt."""
        spec = self._spec
        state.coarse = torch.cat([state.coarse, *(t[:, None] for t in state.window)], dim=1)
        state.window = []
        state.windows += 1
        state.unfinished = [True] * len(state.coarse)
        state.window_tokens = min(self._longest_window(state), state.length_tokens - state.generated_tokens)
        start = self._semantic_start(state)
        semantic = state.semantic[:, start : start + spec.max_input_tokens]
        count = semantic.shape[1]
        semantic = F.pad(semantic, (0, spec.max_input_tokens - count), value=spec.semantic_pad_token)
        coarse_start = state.coarse.shape[1] - spec.prompt_coarse_tokens(state.coarse.shape[1])
        previous, state.prompt = state.prompt, Prompt(semantic, start, count, coarse_start)
        if state.sampler.sees_tokens:
            state.sampler.begin(self.prompt_ids(state), state.window_tokens)
        if previous is not None and state.prompt.extends(previous):
            fed = state.cache.position - spec.max_input_tokens - 1
            return state.coarse[:, coarse_start + fed :].contiguous()
        state.cache.truncate(0)
        return self.prompt_ids(state)

    def prompt_ids(self, state: CoarseState) -> Tensor:
        """The whole prompt [B, T] of the current window, as Transformers would prefill it."""
        prompt = state.prompt
        if prompt is None:
            raise ValueError("coarse: expected a state whose first window is open, got one before its first step")
        infer = prompt.semantic.new_full((prompt.semantic.shape[0], 1), self._spec.infer_token)
        return torch.cat([prompt.semantic, infer, state.coarse[:, prompt.coarse_start :]], dim=1)


def token_ranges(spec: CoarseSpec, vocab_size: int) -> tuple[TokenRange, TokenRange]:
    """The ids of each codebook among `vocab_size`.

    Without `codes_only`, the second one's go on to the end: `AlternatingCodebooksLogitsProcessor` of Transformers.
    """
    first = spec.semantic_vocab_size
    second = first + spec.codebook_size
    end = second + spec.codebook_size if spec.codes_only else vocab_size
    return TokenRange(first, second), TokenRange(second, min(end, vocab_size))


def prompts(spec: CoarseSpec, semantic_history: int, coarse_history: int) -> Iterator[tuple[int, int]]:
    """Tokens of each window of a generation without an end, and of its prompt those that the cache lacks."""
    generated, previous = 0, None
    while True:
        past = coarse_history + generated
        coarse = spec.prompt_coarse_tokens(past)
        place = spec.semantic_start(semantic_history, generated), past - coarse
        # The last token of a window has not been fed when the next one begins.
        fed = 1 if place == previous else spec.max_input_tokens + 1 + coarse
        window = spec.longest_window(semantic_history, coarse_history, generated)
        yield window, fed
        generated, previous = generated + window, place


def row_lengths(spec: CoarseSpec, semantic_tokens: Tensor) -> Tensor:
    """Coarse tokens [B] int32 that each row of semantic tokens [B, T] asks for.

    Counted in float32; Transformers counts in torch's default dtype, and in 16 bits miscounts.
    """
    semantic = (semantic_tokens != spec.semantic_pad_token).sum(1).float()
    frames = torch.floor(semantic * spec.tokens_per_semantic / spec.num_codebooks)
    return torch.round(frames * spec.num_codebooks).int()


def history_lengths(spec: CoarseSpec, history: tuple[Tensor, Tensor] | None) -> tuple[int, int]:
    """Semantic and coarse tokens that are used of a voice preset: rows that differ cannot be one batch."""
    semantic, coarse = trim_history(spec, history, torch.device("cpu"))
    return semantic.shape[1], coarse.shape[1]


def trim_history(
    spec: CoarseSpec, history: tuple[Tensor, Tensor] | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Semantic [1, T] and interleaved, offset coarse [1, T'] history: `BarkCoarseModel.preprocess_histories`."""
    if history is None:
        empty = torch.empty((1, 0), dtype=torch.int64, device=device)
        return empty, empty
    semantic, codes = (h.to(device=device, dtype=torch.int64) for h in history)
    offsets = torch.arange(codes.shape[0], dtype=torch.int64, device=device)[:, None] * spec.codebook_size
    coarse = (codes + offsets).T.reshape(1, -1) + spec.semantic_vocab_size
    ratio = spec.tokens_per_semantic
    semantic_tokens = min(
        spec.max_semantic_history_tokens,
        semantic.shape[0] - semantic.shape[0] % 2,
        math.floor(coarse.shape[1] / ratio),
    )
    coarse_tokens = round(semantic_tokens * ratio)
    # -0 keeps everything, as the same slices do in Transformers; the last frame is dropped for time alignment.
    return semantic[None, -semantic_tokens:], coarse[:, -coarse_tokens:][:, :-2]
