"""Text ids -> semantic tokens, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Ops
from ..gpt import causal_forward, embed, head_logits, positions
from ..kv_cache import KVCache
from ..sampling import Sampler, SamplingConfig, TokenRange
from ..spec import SemanticSpec, TransformerSpec
from ..weights import TransformerWeights


@dataclass
class SemanticState:
    """One batch of utterances. `tokens`: one [B] int64 tensor a step; `unfinished`: [B] bool on the host."""

    cache: KVCache
    sampler: Sampler
    prompt: Tensor | None
    unfinished: list[bool]
    tokens: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return not any(self.unfinished) or len(self.tokens) >= self.sampler.config.max_new_tokens

    def result(self) -> Tensor:
        """Semantic tokens [B, T] int64, rows padded after their end."""
        return torch.stack(self.tokens, dim=1)


class SemanticStage:
    """The loop of `BarkSemanticModel.generate` over a static cache."""

    def __init__(self, weights: TransformerWeights, transformer: TransformerSpec, spec: SemanticSpec, ops: Ops):
        self._weights = weights
        self._transformer = transformer
        self._spec = spec
        self._ops = ops
        pad = spec.pad_token
        self._allowed = TokenRange(0, min(spec.vocab_size, pad), eos=pad)

    def start(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        history: Tensor | None,
        sampling: SamplingConfig,
        cache: KVCache,
    ) -> SemanticState:
        """Begin a generation.

        Parameters
        ----------
        input_ids : Tensor [B, max_input_tokens] int
            Text ids as the tokenizer gives them; longer rows are cut, as Transformers does.
        attention_mask : Tensor [B, max_input_tokens], optional
            0 marks padding.
        history : Tensor [T] int, optional
            `semantic_prompt` of a voice preset.
        """
        rows = input_ids.shape[0]
        vocab_size = self._transformer.output_vocab_size
        sampler = Sampler(sampling, vocab_size, self._ops)
        return SemanticState(cache, sampler, self._prompt(input_ids, attention_mask, history), [True] * rows)

    def step(self, state: SemanticState) -> Tensor:
        """Generate the next token [B] int64 of every row."""
        hidden = causal_forward(self._weights, self._transformer, self._next_input(state), state.cache, self._ops)
        logits = head_logits(hidden, self._weights.heads[0][self._allowed.head_rows])
        tokens = state.sampler.draw(logits, self._allowed)
        config = state.sampler.config
        if config.stop_tokens:
            tokens = _pad_finished(tokens, state.unfinished, config.pad_token)
            ids = tokens.tolist()
            state.unfinished = [u and t not in config.stop_tokens for u, t in zip(state.unfinished, ids, strict=True)]
        state.tokens.append(tokens)
        return tokens

    def _next_input(self, state: SemanticState) -> Tensor:
        if state.prompt is not None:
            prompt, state.prompt = state.prompt, None
            return prompt
        hidden = embed(self._weights.token_tables[0], state.tokens[-1][:, None])
        return hidden + positions(self._weights, state.cache.position, 1)

    def _prompt(self, input_ids: Tensor, attention_mask: Tensor | None, history: Tensor | None) -> Tensor:
        spec = self._spec
        text = input_ids + spec.text_encoding_offset
        if attention_mask is not None:
            text = text.masked_fill((1 - attention_mask).bool(), spec.text_pad_token)
        text = text[:, : spec.max_input_tokens]
        if history is None:
            history = text.new_empty(0)
        history = history[-spec.max_input_tokens :]
        history = F.pad(history, (0, spec.max_input_tokens - history.shape[0]), value=spec.pad_token)
        table = self._weights.token_tables[0]
        infer = torch.full((text.shape[0], 1), spec.infer_token, device=text.device)
        tokens = torch.cat([embed(table, text) + embed(table, history)[None], embed(table, infer)], dim=1)
        return tokens + positions(self._weights, 0, spec.prompt_tokens)


def _pad_finished(tokens: Tensor, unfinished: list[bool], pad_token: int | None) -> Tensor:
    if all(unfinished) or pad_token is None:
        return tokens
    keep = torch.tensor(unfinished, device=tokens.device)
    return torch.where(keep, tokens, pad_token)
