"""Drawing the next token: Bark's token rules and the usual sampling options, on Transformers' own random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from bark_accel.ops.backend import Ops
from bark_accel.ops.device import options_dtype
from bark_accel.ops.graph_draw import NextStep
from bark_accel.ops.token_run import TokenRun
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache

from .edits import LogitsEditor, LogitsEdits
from .processors import Processing, ProcessorPlan
from .rng import default_generator


@dataclass(frozen=True)
class SamplingConfig:
    """Resolved options of one stage.

    `top_k` 0, `top_p` 1.0 and `min_eos_p` 0.0 mean off; `renormalize` is Transformers' `renormalize_logits`, which
    changes roundings; `stop_tokens` end a row, and none is drawn among the first `min_new_tokens`; rows that have ended
    are filled with `pad_token`. `edits` come before all of it, and what `processors` call before these. `unneeded`
    names options that change nothing, for a report.
    """

    do_sample: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_eos_p: float = 0.0
    renormalize: bool = False
    min_new_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()
    pad_token: int | None = None
    edits: LogitsEdits = field(default_factory=LogitsEdits)
    processors: ProcessorPlan | None = None
    unneeded: tuple[str, ...] = field(default=(), compare=False)

    @property
    def calls_others(self) -> bool:
        """Tell whether criteria are called, or processors that may have a state or draw random numbers of their own."""
        return self.ends or (self.processors is not None and not self.processors.guesses_all)

    @property
    def calls_processors(self) -> bool:
        """Tell whether processors are called before the sampler's own options."""
        return self.processors is not None and bool(self.processors.names)

    @property
    def ends(self) -> bool:
        """Tell whether criteria are called that may end a generation after any token."""
        return self.processors is not None and bool(self.processors.criteria)

    def sampler(self, vocab_size: int, ops: Ops) -> Sampler:
        """Make a sampler of these options."""
        return Sampler(self, vocab_size, ops)


@dataclass(frozen=True)
class TokenRange:
    """Ids a step may produce: `begin`..`end` - 1 and, where it is not -1, `eos`."""

    begin: int
    end: int
    eos: int = -1

    @property
    def head_rows(self) -> slice:
        """The rows of the head that can matter."""
        return slice(self.begin, max(self.end, self.eos + 1))


@dataclass(frozen=True)
class SampleRules:
    """Arguments of the samplers beside logits and noise, on their device: one entry for all rows, or one for each row.

    Made once and used for many tokens. See `bark_accel.ops.fused_sample` for the fields; None is off for all rows.
    """

    first_id: int
    allowed: Tensor
    min_eos_p: Tensor | None
    temperature: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None
    renormalize: bool

    @classmethod
    def of(cls, rows: Sequence[tuple[SamplingConfig, TokenRange]], device: torch.device) -> SampleRules:
        """Build the rules from one entry for all rows, or one for each row.

        Column 0 of the logits is the smallest id that any row may produce.

        Raises
        ------
        ValueError
            Rows that differ in `renormalize`.
        """
        configs = [config for config, _ in rows]
        renormalize = {config.renormalize for config in configs}
        if len(renormalize) != 1:
            raise ValueError(f"renormalize: expected one value for all rows, got {sorted(renormalize)}")

        def options(name: str, off: float, dtype: torch.dtype) -> Tensor | None:
            values = [getattr(config, name) for config in configs]
            return None if all(v == off for v in values) else torch.tensor(values, dtype=dtype, device=device)

        real = options_dtype(device)
        return cls(
            min(allowed.head_rows.start for _, allowed in rows),
            torch.tensor([[r.begin, r.end, r.eos] for _, r in rows], dtype=torch.int64, device=device),
            options("min_eos_p", 0.0, real),
            options("temperature", 1.0, real),
            options("top_k", 0, torch.int64),
            options("top_p", 1.0, real),
            renormalize.pop(),
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Return the fields in the order in which the samplers take them."""
        return tuple(getattr(self, field.name) for field in fields(self))


@contextmanager
def drawing(stage: str, dtype: torch.dtype) -> Iterator[None]:
    """Let a `ValueError` about logits that cannot be drawn from say whose they are, and why they may be so.

    `dtype` is that of the stage's products.
    """
    try:
        yield
    except ValueError as error:
        if "without NaN" not in str(error):
            raise
        cause = "its weights hold NaN or infinity, or its temperature is too close to 0"
        cause += ", or float16 has overflowed: try bfloat16 or float32" if dtype == torch.float16 else ""
        raise ValueError(f"{stage} stage of the Bark model: {error}; {cause}") from None


class Sampler:
    """Draws one token per row.

    The draw advances torch's default generator past the full vocabulary, as Transformers' `torch.multinomial` does,
    so that the same seed gives the same token while only the allowed rows of the head are computed.
    """

    draws_all_ids = True
    """Noise is drawn for the whole vocabulary, as `draw_next` does."""

    def __init__(self, config: SamplingConfig, vocab_size: int, ops: Ops):
        self.config = config
        self._vocab_size = vocab_size
        self.generator: torch.Generator | None = None
        """Drawn from instead of torch's default generator, where a generation leaves Transformers' order."""
        self._ops = ops
        self._rules: dict[tuple[TokenRange, torch.device], SampleRules] = {}
        self.editor = LogitsEditor(config.edits, vocab_size)
        self.processing = None if config.processors is None else Processing(config.processors)

    @property
    def sees_tokens(self) -> bool:
        """Tell whether what is drawn depends on the tokens before, so that `begin` has to tell them."""
        return self.processing is not None or not self.editor.idle

    def begin(self, prompt: Tensor, new_tokens: int | None = None) -> None:
        """Begin a generation after a prompt [B, T] int, of `new_tokens` where prompts differ in their number."""
        self.editor.begin(prompt)
        if self.processing is not None:
            self.processing.begin(prompt, new_tokens)

    def head_rows(self, allowed: TokenRange, *, draft: bool = False) -> slice:
        """The rows of the head whose logits `draw` takes: all of them where processors are called."""
        return slice(0, self._vocab_size) if self._calls(draft) else allowed.head_rows

    def _calls(self, draft: bool) -> bool:
        plan = self.config.processors
        return plan.guesses if draft and plan is not None else self.config.calls_processors

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Forget afterwards which tokens were drawn inside."""
        with self.editor.rewound(), nullcontext() if self.processing is None else self.processing.rewound():
            yield

    def rules(self, allowed: TokenRange, device: torch.device) -> SampleRules:
        """Return the rules for sampling from `allowed`; kept, because CUDA graphs read them by address."""
        key = allowed, device
        if key not in self._rules:
            self._rules[key] = SampleRules.of([(self.config, allowed)], device)
        return self._rules[key]

    @classmethod
    def of(cls, model: CausalModel, config: SamplingConfig) -> Sampler:
        """Make the config's own sampler, which draws from a model's logits."""
        return config.sampler(model.spec.output_vocab_size, model.ops)

    def draw(
        self,
        logits: Tensor,
        allowed: TokenRange,
        generator: torch.Generator | None = None,
        factors: Tensor | None = None,
        *,
        draft: bool = False,
    ) -> Tensor:
        """Token ids [B] int64 from `logits` [B, `head_rows`], which are remembered.

        `generator` replaces the sampler's own, `factors` the editor's; a `draft` is not sure to come.
        """
        factors = self.editor.factors if factors is None else factors
        processing, generator = self.processing, generator or self.generator
        if processing is not None and self._calls(draft):
            tokens = self._processed(processing, logits, allowed, generator, factors, draft=draft)
            self.editor.note(tokens[:, None], factors)
        else:
            tokens = self.draw_ahead(logits, allowed, generator, factors)
        if processing is not None:
            processing.note(tokens)
        return tokens

    def draw_ahead(
        self, logits: Tensor, allowed: TokenRange, generator: torch.Generator | None, factors: Tensor | None
    ) -> Tensor:
        """Draw as `draw` does without processors, for a token that comes later: criteria hear of it by `note`."""
        tokens = self._edited(logits, allowed, generator, factors)
        self.editor.note(tokens[:, None], factors)
        return tokens

    def note(self, tokens: Tensor) -> None:
        """Remember tokens [B] int64 that were drawn ahead and have come."""
        self.editor.note(tokens[:, None], self.editor.factors)
        if self.processing is not None:
            self.processing.note(tokens)

    def _edited(
        self, logits: Tensor, allowed: TokenRange, generator: torch.Generator | None, factors: Tensor | None
    ) -> Tensor:
        if not self.editor.idle:
            logits = self.editor.edit(logits, allowed.head_rows, factors)
        return self._drawn(logits, allowed, generator)

    def _processed(
        self,
        processing: Processing,
        logits: Tensor,
        allowed: TokenRange,
        generator: torch.Generator | None,
        factors: Tensor | None,
        *,
        draft: bool,
    ) -> Tensor:
        """Draw from what processors leave: as Transformers does, where a caller's leave scores that we do not have."""
        scores = processing.scores(logits, draft=draft)
        if (scores.dtype, scores.shape) != (torch.float32, logits.shape):
            return self._as_torch(processing.all_scores(scores), generator)
        if processing.plan.has_rules:
            allowed = TokenRange(0, self._vocab_size)
        source = (generator or default_generator(scores.device)) if self.config.do_sample else None
        state = None if source is None else source.get_state()
        try:
            return self._edited(scores[:, allowed.head_rows], allowed, generator, factors)
        except ValueError:  # infinity, NaN or no token at all; a layout that the ops do not read
            if source is not None and state is not None:
                source.set_state(state)
        return self._as_torch(processing.all_scores(scores), generator)

    def draw_next(
        self, logits: Tensor, allowed: TokenRange, philox: Tensor, step: NextStep, factors: Tensor | None
    ) -> None:
        """Draw as `draw` does, with torch's noise after the state `philox` [2] int64, and move `step` on.

        Only with ops that have a `draw_next`, and where `draws_all_ids`.
        """
        assert self._ops.draw_next is not None
        if not self.editor.idle:
            logits = self.editor.edit(logits, allowed.head_rows, factors)
        rules = self.rules(allowed, logits.device).arguments
        noise = philox if self.config.do_sample else None
        tokens = self._ops.draw_next(logits, noise, self._vocab_size, step, *rules)
        self.editor.note(tokens[:, None], factors)

    def draw_tokens(
        self,
        model: CausalModel,
        ranges: Sequence[TokenRange],
        cache: KVCache,
        philox: Tensor,
        step: NextStep,
        limit: Tensor,
    ) -> None:
        """Draw up to `limit` [1] tokens of `ranges`, one or two that take turns, and up to the end of speech.

        Only where `model.draws_tokens`, `draws_all_ids` and `draws_alone`.
        """
        stop = (*self.config.stop_tokens, -1)[0]
        run = TokenRun(limit, stop, philox if self.config.do_sample else None, self._vocab_size)
        rules = [self.rules(allowed, step.ids.device).arguments for allowed in ranges]
        model.draw_tokens([allowed.head_rows for allowed in ranges], cache, step, run, rules)

    @property
    def draws_alone(self) -> bool:
        """Tell whether draws need nothing but scores and rules, and at most one token ends a row."""
        return not self.sees_tokens and len(self.config.stop_tokens) <= 1

    @property
    def shares_draws(self) -> bool:
        """Tell whether nothing but scores, rules and its own generator decides: then one op can draw for several."""
        is_drawn = self.config.do_sample and self.generator is not None
        return is_drawn and self.draws_all_ids and not self.sees_tokens

    def _drawn(self, logits: Tensor, allowed: TokenRange, generator: torch.Generator | None) -> Tensor:
        rules = self.rules(allowed, logits.device).arguments
        if not self.config.do_sample:
            return self._ops.fused_sample(logits, None, *rules)
        return self._ops.fused_multinomial(logits, generator, self._vocab_size, *rules)

    def _as_torch(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose from all scores [B, ids], or raise, as Transformers does."""
        if not self.config.do_sample:
            return scores.argmax(1)
        return torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
