"""The methods that replace Transformers' on one model instance.

Each hook is a bound method of a small object that owns one module, so that a patched module still pickles and
deep-copies, and the copy is patched too. Names and signatures are those of the methods they replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    BarkEosPrioritizerLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from bark_accel.generators import fork
from bark_accel.report import FallbackKind
from bark_accel.sampling import SamplingConfig
from bark_accel.spec import ENDED, CoarseSpec, FineSpec, SemanticSpec
from bark_accel.stages.coarse import CoarseHistory, CoarseStage, history_lengths, row_lengths
from bark_accel.stages.coarse_rows import CoarseRows
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.fine import FineSampling, FineStage, row_frames
from bark_accel.stages.semantic import SemanticStage, SemanticState
from bark_accel.weights import TransformerWeights

from . import extract
from .compat import prompt_argument
from .fallback import Fallback
from .hook import CausalHook, Hook
from .inputs import check_input_ids, read_histories
from .resolve import resolve_sampling

# input_ids, attention_mask, and the history: one for all rows, or one (or None) for each.
SemanticPrompt = tuple[Tensor, Tensor | None, Tensor | list[Tensor | None] | None]


class SemanticHook(CausalHook):
    stage = "semantic"

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        semantic_generation_config: Any = None,
        history_prompt: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkSemanticModel.generate`."""
        config = semantic_generation_config
        if config is None:
            return self.stock(input_ids, config, history_prompt, attention_mask, **kwargs)
        check_input_ids(input_ids, attention_mask, config.max_input_semantic_length)
        self.settings.traps.check_text(input_ids, attention_mask, config.max_input_semantic_length)
        batch_size = input_ids.shape[0]
        history = read_histories(history_prompt, "semantic_prompt", batch_size, rows=0, ids=semantic_ids(config))
        try:
            weights, spec, sampling = self.prepare(config, batch_size, kwargs)
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            return self._stock_rows(input_ids, config, history, attention_mask, kwargs)
        return self._run(weights, spec, sampling, (input_ids, attention_mask, history), kwargs.get("streamer"))

    def _stock_rows(
        self, input_ids: Tensor, config: Any, history: Any, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor:
        """Transformers' own method; row after row where each has a voice preset of its own."""
        if not isinstance(history, list):
            preset = preset_on(self.module, semantic_prompt=history)
            return self.stock(input_ids, config, preset, attention_mask, **kwargs)
        rows = []
        for row, part in enumerate(history):
            mask = None if attention_mask is None else attention_mask[row : row + 1]
            preset = preset_on(self.module, semantic_prompt=part)
            rows.append(self.stock(input_ids[row : row + 1], config, preset, mask, **kwargs))
        return _join_rows(rows, config.semantic_pad_token)

    def prepare(
        self, config: Any, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SemanticSpec, SamplingConfig]:
        """What a generation of `rows` needs; raises `Fallback` where Transformers has to run it."""
        weights, spec = self._ready_weights(), extract.semantic_spec(config)
        pad = spec.pad_token
        if not isinstance(pad, int) or config.eos_token_id != pad or pad >= self.module.config.output_vocab_size:
            detail = f"eos_token_id={config.eos_token_id}, semantic_pad_token={spec.pad_token}"
            raise Fallback(self.stage, FallbackKind.TOKEN_LAYOUT, detail)
        # A key set to None counts: BarkModel.generate always passes it, so the config's value is never used there.
        min_eos_p = kwargs.get("min_eos_p", config.min_eos_p)
        rules = [
            SuppressTokensLogitsProcessor([]),
            BarkEosPrioritizerLogitsProcessor(config.eos_token_id, min_eos_p),
        ]
        sampling = resolve_sampling(
            self.stage,
            self.module,
            torch.ones((rows, spec.prompt_tokens), dtype=torch.int, device=weights.device),
            generation_config=config,
            token_rules=rules,
            kwargs=kwargs,
            **{prompt_argument(self.module): weights.positions.new_empty(1).expand(rows, spec.prompt_tokens, 1)},
        )
        return weights, spec, replace(sampling, min_eos_p=min_eos_p or 0.0)

    def _run(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
        streamer: Any,
    ) -> Tensor:
        if streamer is not None:
            streamer.put(torch.ones((prompt[0].shape[0], spec.prompt_tokens), dtype=torch.int))
        with self.started(weights, spec, sampling, prompt) as (stage, state):
            while not state.done:
                tokens = stage.step(state)
                if streamer is not None:
                    streamer.put(tokens.cpu())
        if streamer is not None:
            streamer.end()
        return state.result()

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: SemanticSpec,
        sampling: SamplingConfig,
        prompt: SemanticPrompt,
    ) -> Iterator[tuple[SemanticStage, SemanticState]]:
        """A generation of a prompt, and a cache for it."""
        model = self.model(weights)
        stage = SemanticStage(model, spec)
        input_ids, attention_mask, history = (_on(weights.device, part) for part in prompt)
        rows = input_ids.shape[0]
        with (
            self.settings.pool.borrow(model.spec, rows, model.weights.cache_dtype, weights.device) as cache,
            self.lookahead(model, weights, cache) as lookahead,
        ):
            yield stage, stage.start(input_ids, attention_mask, history, sampling, cache, lookahead)


class CoarseHook(CausalHook):
    stage = "coarse"

    @torch.no_grad()
    def generate(
        self,
        semantic_output: Tensor,
        semantic_generation_config: Any = None,
        coarse_generation_config: Any = None,
        codebook_size: int = 1024,
        history_prompt: Any = None,
        return_output_lengths: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `BarkCoarseModel.generate`. Like it, replaces the padding of `semantic_output` in place.

        Where `history_prompt` is a list, or "batch_tails" is fixed, rows are filled with 0 after their own end.
        """
        semantic, coarse = semantic_generation_config, coarse_generation_config
        if semantic is None or coarse is None:
            return self.stock(semantic_output, semantic, coarse, **kwargs)
        rows, streamer = semantic_output.shape[0], kwargs.get("streamer")
        history = coarse_history(history_prompt, rows, semantic, coarse, codebook_size)
        check_coarse_streamer(streamer, history)
        spec = self.spec(semantic, coarse, codebook_size, history_prompt)
        try:
            weights, sampling = self.prepare(semantic, coarse, codebook_size, rows, kwargs)
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            if self.codes_only:
                kwargs = {**kwargs, "suppress_tokens": self._suppressed(semantic, coarse, codebook_size, kwargs)}
            tokens, lengths = self._stock_rows(semantic_output, (semantic, coarse, codebook_size), history, kwargs)
            if spec.rows_end:
                ended = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
                tokens = tokens.masked_fill(ended, ENDED)
            return (tokens, lengths) if return_output_lengths else tokens
        semantic_output.masked_fill_(semantic_output == semantic.semantic_pad_token, coarse.coarse_semantic_pad_token)
        with self.started(weights, spec, sampling, rows, history) as run:
            run.push(semantic_output.to(weights.device, torch.int64), final=True)
            _run_coarse(run, streamer)
        lengths = row_lengths(spec, semantic_output)
        return (run.result(), lengths) if return_output_lengths else run.result()

    def _stock_rows(
        self, semantic_output: Tensor, configs: tuple[Any, Any, int], history: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Transformers' own method, with lengths; row after row where each has a voice preset of its own."""
        if not isinstance(history, list):
            return self.stock(semantic_output, *configs, self._preset(history), True, **kwargs)
        results = [
            self.stock(semantic_output[row : row + 1], *configs, self._preset(part), True, **kwargs)
            for row, part in enumerate(history)
        ]
        tokens, lengths = zip(*results, strict=True)
        return _join_rows(list(tokens), ENDED), torch.cat(lengths)

    def _preset(self, history: CoarseHistory) -> dict[str, Tensor] | None:
        semantic, coarse = history or (None, None)
        return preset_on(self.module, semantic_prompt=semantic, coarse_prompt=coarse)

    def prepare(
        self, semantic: Any, coarse: Any, codebook_size: int, rows: int, kwargs: dict[str, Any]
    ) -> tuple[TransformerWeights, SamplingConfig]:
        """What a generation of `rows` needs; raises `Fallback` where Transformers has to run it."""
        weights = self._ready_weights()
        # The prompt's length and ids decide nothing that the loop can do: what depends on them (a padding mask)
        # shows in the config.
        prompt = torch.full((rows, 1), coarse.coarse_infer_token, device=weights.device)
        rules = [AlternatingCodebooksLogitsProcessor(1, semantic.semantic_vocab_size, codebook_size)]
        sampling = resolve_sampling(
            self.stage,
            self.module,
            prompt,
            generation_config=coarse,
            token_rules=rules,
            kwargs=kwargs,
            max_new_tokens=coarse.sliding_window_len,
        )
        if sampling.stop_tokens or sampling.pad_token is not None:
            detail = f"eos_token_id={sampling.stop_tokens}, pad_token_id={sampling.pad_token}, expected none"
            raise Fallback(self.stage, FallbackKind.TOKEN_LAYOUT, detail)
        return weights, sampling

    @property
    def codes_only(self) -> bool:
        return self.settings.traps.fixes("codes_beyond_codebook")

    def spec(self, semantic: Any, coarse: Any, codebook_size: int, history_prompt: Any) -> CoarseSpec:
        spec = extract.coarse_spec(semantic, coarse, codebook_size)
        return replace(spec, codes_only=self.codes_only, rows_end=self.rows_end(history_prompt))

    def _suppressed(self, semantic: Any, coarse: Any, codebook_size: int, kwargs: dict[str, Any]) -> list[int]:
        """The caller's suppressed tokens and the ids beyond the last codebook, for Transformers' own loop."""
        end = semantic.semantic_vocab_size + coarse.n_coarse_codebooks * codebook_size
        given = kwargs.get("suppress_tokens", coarse.suppress_tokens)
        return [*(given or []), *range(end, self.module.config.output_vocab_size)]

    @contextmanager
    def started(
        self,
        weights: TransformerWeights,
        spec: CoarseSpec,
        sampling: SamplingConfig,
        rows: int,
        history: CoarseHistory | list[CoarseHistory],
        *,
        own_generator: bool = False,
    ) -> Iterator[CoarseRows]:
        """A generation of `rows` utterances, and caches for it.

        Histories of several lengths make several groups of rows, each of which draws from a generator of its own, as
        `own_generator` has it for one.
        """
        model = self.model(weights)
        stage = CoarseStage(model, spec)
        groups = _groups_of_rows(spec, rows, history)
        states = []
        with ExitStack() as held:
            for index, members in enumerate(groups):
                part = [history[row] for row in members] if isinstance(history, list) else history
                cache = held.enter_context(
                    self.settings.pool.borrow(model.spec, len(members), model.weights.cache_dtype, weights.device)
                )
                lookahead = held.enter_context(self.lookahead(model, weights, cache))
                state = stage.start(len(members), part, sampling, cache, lookahead)
                if own_generator or len(groups) > 1:
                    state.sampler.generator = fork(weights.device, f"coarse {index}" if index else "coarse")
                states.append((members, state))
            yield CoarseRows(stage, states, spec.semantic_pad_token)


def _groups_of_rows(spec: CoarseSpec, rows: int, history: CoarseHistory | list[CoarseHistory]) -> list[list[int]]:
    """The rows whose histories have equal lengths."""
    if not isinstance(history, list):
        return [list(range(rows))]
    groups: dict[tuple[int, int], list[int]] = {}
    for row, part in enumerate(history):
        groups.setdefault(history_lengths(spec, part), []).append(row)
    return list(groups.values())


def _run_coarse(run: CoarseRows, streamer: Any) -> None:
    while run.ready:
        tokens = run.step()
        if streamer is None:
            continue
        prompt = run.prompt_ids()
        if prompt is not None:
            streamer.put(prompt.cpu())
        streamer.put(tokens.cpu())
        if run.window_ended:
            streamer.end()


class FineHook(Hook):
    stage = "fine"

    @torch.no_grad()
    def generate(
        self,
        coarse_output: Tensor,
        semantic_generation_config: Any = None,
        coarse_generation_config: Any = None,
        fine_generation_config: Any = None,
        codebook_size: int = 1024,
        history_prompt: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `BarkFineModel.generate`. No frames in give no frames out, where Transformers fails.

        Where `history_prompt` is a list, or "batch_tails" is fixed, rows end where the coarse stage has padded them,
        and their codes are 0 from there on.
        """
        semantic, coarse, fine = semantic_generation_config, coarse_generation_config, fine_generation_config
        if semantic is None or coarse is None or fine is None:
            return self.stock(coarse_output, semantic, coarse, fine, **kwargs)
        temperature = self.settings.traps.fine_temperature(fine, kwargs)
        rows, codebooks = coarse_output.shape[0], fine.n_fine_codebooks
        history = read_histories(history_prompt, "fine_prompt", rows, rows=codebooks, ids=codebook_size)
        if coarse_output.shape[1] == 0:
            return coarse_output.new_zeros(rows, codebooks, 0)
        spec = self.spec(semantic, coarse, fine, codebook_size, history_prompt)
        try:
            weights = self.prepare()
        except Fallback as fallback:
            self.settings.log.record(fallback.reason)
            kwargs = {**kwargs, "temperature": temperature}
            return self._stock_rows(coarse_output, spec, (semantic, coarse, fine, codebook_size), history, kwargs)
        stage = self.ready_stage(weights, spec)
        return stage.run(coarse_output.to(weights.device), history, FineSampling(temperature))

    def spec(self, semantic: Any, coarse: Any, fine: Any, codebook_size: int, history_prompt: Any) -> FineSpec:
        spec = extract.fine_spec(semantic, coarse, fine, codebook_size)
        return replace(spec, rows_end=self.rows_end(history_prompt))

    def _stock_rows(
        self, coarse_output: Tensor, spec: FineSpec, configs: tuple[Any, ...], history: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        """Transformers' own method; row after row where each has an end or a voice preset of its own."""
        if not spec.rows_end:
            return self.stock(coarse_output, *configs, preset_on(self.module, fine_prompt=history), **kwargs)
        rows = []
        for row, frames in enumerate(row_frames(spec, coarse_output)):
            tokens = coarse_output[row : row + 1, : frames * spec.num_coarse_codebooks]
            preset = preset_on(self.module, fine_prompt=history[row] if isinstance(history, list) else history)
            codes = self.stock(tokens, *configs, preset, **kwargs) if frames else tokens[:, None]
            rows.append(codes.expand(-1, spec.num_codebooks, -1))
        return _join_rows(rows, 0)

    def prepare(self) -> TransformerWeights:
        """What a generation needs; raises `Fallback` where Transformers has to run it."""
        return self._ready_weights()

    def ready_stage(self, weights: TransformerWeights, spec: FineSpec) -> FineStage:
        """The stage on the weights that `prepare` gave."""
        return FineStage(self.converted(weights), extract.transformer_spec(self.module), spec, self.ops(weights.device))


class CodecHook(Hook):
    """Decodes for `BarkModel.codec_decode`; owns the codec."""

    stage = "codec"

    def ops_name(self, device: torch.device) -> str:
        """The codec runs on torch's own matrix products."""
        return "torch"

    def precision_name(self, dtype: torch.dtype) -> str:
        """The codec computes in float32."""
        return "float32"

    def _read_weights(self) -> Any:
        return extract.codec_weights(self.module)

    def ready_stage(self) -> CodecStage:
        """A stage with the codec's weights as they are now; raises `Fallback` where they cannot be used."""
        weights = self._ready_weights()
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.module.parameters()):
            raise Fallback(self.stage, FallbackKind.GRADIENTS, "codec_decode outside torch.no_grad()")
        return CodecStage(weights)


def coarse_history(
    history: Any, batch_size: int, semantic: Any, coarse: Any, codebook_size: int
) -> CoarseHistory | list[CoarseHistory]:
    """What the coarse stage needs of a voice preset, or of each row's."""
    ids = semantic_ids(semantic)
    first = read_histories(history, "semantic_prompt", batch_size, rows=0, ids=ids)
    second = read_histories(history, "coarse_prompt", batch_size, rows=coarse.n_coarse_codebooks, ids=codebook_size)
    if isinstance(first, list) and isinstance(second, list):
        return [_both(*parts) for parts in zip(first, second, strict=True)]
    return _both(first, second)


def _both(semantic: Any, coarse: Any) -> CoarseHistory:
    return None if semantic is None or coarse is None else (semantic, coarse)


def check_coarse_streamer(streamer: Any, history: Any) -> None:
    """Raise `ValueError` for a streamer of coarse tokens where each row has a history, and so windows, of its own."""
    if streamer is not None and isinstance(history, list):
        raise ValueError("coarse streamer: expected none with a list of voice presets; semantic_streamer= works")


def _join_rows(rows: list[Tensor], padding: int) -> Tensor:
    """[B, ..., T] of B tensors [1, ..., T_i], padded at the end."""
    longest = max(row.shape[-1] for row in rows)
    return torch.cat([F.pad(row, (0, longest - row.shape[-1]), value=padding) for row in rows])


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, list):
        return [_on(device, part) for part in value]
    return None if value is None else value.to(device)


def semantic_ids(config: Any) -> int:
    """Exclusive bound of the ids in a semantic history: a preset made of generated tokens may end in padding."""
    return max(config.semantic_vocab_size, config.semantic_pad_token + 1)


def preset_on(module: Any, **parts: Any) -> dict[str, Tensor] | None:
    """A voice preset for Transformers' own method, on the module's device."""
    return {key: part.to(module.device) for key, part in parts.items() if part is not None} or None
