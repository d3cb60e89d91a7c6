"""Text ids -> semantic tokens, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bark_accel.decoding.active_rows import ActiveRows
from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange, drawing
from bark_accel.decoding.token_source import TokenSource
from bark_accel.transformer.causal import CausalModel, Feed
from bark_accel.transformer.kv_cache import KVCache

from .ragged import pad_ended
from .spec import SemanticSpec

# Tokens that may be drawn at once where somebody waits for each of them.
HEARD_TOKENS = 64


@dataclass
class SemanticState:
    """One batch of utterances, looked at on the host: `tokens`, one [B] int64 a step, and `unfinished`, [B] bool.

    `last` are the newest tokens where they were drawn; None where they are on the host alone. `heard`: somebody waits
    for each token, and not only for the last one.
    """

    cache: KVCache
    sampler: Sampler
    prompt: Tensor | None
    unfinished: list[bool]
    rows: ActiveRows
    token_source: TokenSource | None = None
    heard: bool = True
    last: Tensor | None = None
    tokens: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return not any(self.unfinished) or len(self.tokens) >= self.sampler.config.max_new_tokens

    def result(self) -> Tensor:
        """Semantic tokens [B, T] int64 on the model's device, rows padded after their end."""
        return torch.stack(self.tokens, dim=1).to(self.cache.length.device)


class SemanticStage:
    """The loop of `BarkSemanticModel.generate` over a static cache."""

    def __init__(self, model: CausalModel, spec: SemanticSpec):
        self._model = model
        self._spec = spec
        pad = spec.pad_token
        self._allowed = TokenRange(0, min(spec.vocab_size, pad), eos=pad)
        self._allowed_before_end = replace(self._allowed, eos=-1)

    @property
    def model(self) -> CausalModel:
        return self._model

    def start(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        histories: Sequence[Tensor | None],
        sampling: SamplingConfig,
        cache: KVCache,
        token_source: TokenSource | None = None,
    ) -> SemanticState:
        """Begin a generation.

        Parameters
        ----------
        input_ids : Tensor [B, max_input_tokens] int
            Text ids as the tokenizer gives them; longer rows are cut, as Transformers does.
        attention_mask : Tensor [B, max_input_tokens], optional
            0 marks padding.
        histories : sequence of Tensor [T] int or None
            `semantic_prompt` of voice presets: B of them, or one that all rows have.
        """
        prompt = self._prompt(input_ids, attention_mask, histories)
        rows = input_ids.shape[0]
        sampler = Sampler.of(self._model, sampling)
        # Transformers lets ones stand for the prompt.
        sampler.begin(torch.ones((rows, prompt.shape[1]), dtype=torch.int, device=prompt.device))
        return SemanticState(cache, sampler, prompt, [True] * rows, ActiveRows(cache, rows), token_source)

    def step(self, state: SemanticState) -> Tensor:
        """Generate the next token [B] int64 of every row, on the host."""
        if state.token_source is None or state.prompt is not None:
            drawn = self.draw(state, self._model.logits(self.feed(state), state.cache))
            return self.note(state, drawn, drawn.cpu())
        config, done = state.sampler.config, len(state.tokens)
        ahead, limit = lambda i: self._allowed_after(state, done + i), config.max_new_tokens - done
        if state.heard:
            limit = min(limit, HEARD_TOKENS)
        with drawing("semantic", self._model.weights.cache_dtype):
            tokens = state.token_source.next_token(state.tokens[-1], state.cache, state.sampler, ahead, limit)
        state.last = None  # a source may write to its tokens
        return self._ended(state, tokens.cpu())

    def feed(self, state: SemanticState) -> Feed:
        """Say what the model is to be fed, as a part of a step; `draw` and `note` are the others."""
        rows = state.sampler.head_rows(self._allowed_after(state, len(state.tokens)))
        if state.prompt is not None:
            prompt, state.prompt = state.prompt, None
            return Feed(prompt, rows)
        if state.sampler.processing is None:
            state.rows.keep(state.unfinished)
        last = state.tokens[-1].to(self._model.weights.device) if state.last is None else state.last
        return Feed(state.rows.select(last).unsqueeze(1), rows)

    def draw(self, state: SemanticState, logits: Tensor) -> Tensor:
        """Draw the next token [B] int64 of every row, on the model's device, from the logits of what was fed."""
        with drawing("semantic", self._model.weights.cache_dtype):
            return state.sampler.draw(state.rows.expand(logits), self.allowed(state))

    def allowed(self, state: SemanticState) -> TokenRange:
        """Ids that `draw` draws from."""
        return self._allowed_after(state, len(state.tokens))

    def note(self, state: SemanticState, drawn: Tensor, tokens: Tensor) -> Tensor:
        """Go on by what was drawn, and is on the host now (`tokens`); the latter, padded in rows that had ended."""
        noted = self._ended(state, tokens)
        state.last = drawn if noted is tokens else None
        return noted

    def _ended(self, state: SemanticState, tokens: Tensor) -> Tensor:
        """Note which rows have ended, and pad those that had before."""
        config = state.sampler.config
        processing = state.sampler.processing
        if config.stop_tokens:
            tokens = pad_ended(tokens, state.unfinished, config.pad_token)
            if processing is not None and not all(state.unfinished):
                processing.pad(tokens)
            ids = tokens.tolist()
            state.unfinished = [u and t not in config.stop_tokens for u, t in zip(state.unfinished, ids, strict=True)]
        if processing is not None and config.ends:
            state.unfinished = [u and not e for u, e in zip(state.unfinished, processing.ended(), strict=True)]
        state.tokens.append(tokens)
        return tokens

    def _allowed_after(self, state: SemanticState, tokens: int) -> TokenRange:
        return self._allowed_before_end if tokens < state.sampler.config.min_new_tokens else self._allowed

    def _prompt(self, input_ids: Tensor, attention_mask: Tensor | None, histories: Sequence[Tensor | None]) -> Tensor:
        spec = self._spec
        text = input_ids + spec.text_encoding_offset
        if attention_mask is not None:
            text = text.masked_fill((1 - attention_mask).bool(), spec.text_pad_token)
        text = text[:, : spec.max_input_tokens]
        none = torch.empty(0, dtype=torch.int64, device=text.device)
        history = torch.stack([self._padded(none if h is None else h) for h in histories])
        embed = self._model.embed
        infer = torch.full((text.shape[0], 1), spec.infer_token, dtype=torch.int64, device=text.device)
        tokens = torch.cat([embed(text) + embed(history), embed(infer)], dim=1)
        return tokens + self._model.positions(0, spec.prompt_tokens)

    def _padded(self, history: Tensor) -> Tensor:
        history = history[-self._spec.max_input_tokens :]
        return F.pad(history, (0, self._spec.max_input_tokens - history.shape[0]), value=self._spec.pad_token)
