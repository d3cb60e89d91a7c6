"""Generation arguments -> SamplingConfig, or the reason why Transformers' own loop has to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.configuration_utils import GenerationMode

from bark_accel._arguments import name_of
from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.hf.compat import prepare_generation, takes_return_dict
from bark_accel.hf.transformer import transformer_spec
from bark_accel.report import Fallback, FallbackKind, TokenChoice

from .called import Prepared, fills
from .edits import ReadEdits

# Handled by the patches themselves, without effect on the tokens, or objects that become part of Transformers' lists.
_KNOWN_ARGUMENTS = {"streamer", "min_eos_p", "tokenizer", "stopping_criteria", "prefix_allowed_tokens_fn"}
_KNOWN_ARGUMENTS |= {"logits_processor"}
# Without effect where they are off.
_SWITCHES = {"synced_gpus", "trust_remote_code"}
# How tokens are chosen where the model is only asked for the logits after the last one.
_MODES = {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE}
_MODES |= {GenerationMode.GROUP_BEAM_SEARCH, GenerationMode.CONSTRAINED_BEAM_SEARCH}
_CACHES = {None, "dynamic", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window"}


# More tokens than any model has positions.
_FOREVER = 2**31
_DEFAULTS = GenerationConfig()
# Of numbers beyond these, Transformers' are float32's infinity or 0, logits divided by them too, or no int64.
_LIMITS = {"temperature": (1e-30, 1e30), "top_k": (0, _FOREVER), "top_p": (0.0, 1.0)}


def resolve_sampling(
    stage: str,
    module: nn.Module,
    prompt: Tensor,
    *,
    generation_config: GenerationConfig,
    token_rules: Callable[[Tensor], Sequence[LogitsProcessor]],
    kwargs: dict[str, Any],
    windows: bool = False,
    **fixed: Any,
) -> SamplingConfig:
    """Resolve what a call of `GenerationMixin.generate` would do.

    Parameters
    ----------
    prompt : Tensor [B, T] int
        The ids of that call. Their length and values may be other ones than those of the generation.
    token_rules : callable
        Makes Bark's own processors, which the stage implements, for a prompt.
    kwargs : dict
        The caller's arguments. A `logits_processor` among them follows Bark's own.
    windows : bool
        Whether the stage calls `GenerationMixin.generate` once for each window of tokens: with prompts of ids, which
        Transformers masks where they are the pad token, a length that Bark sets, and no end of its own.
    fixed
        Further arguments of that call that Bark sets itself.

    Raises
    ------
    TokenChoice
        Transformers' own loop has to choose the tokens; our steps can give it the logits.
    Fallback
        Transformers' own model has to run. Whatever Transformers raises for bad arguments passes through.
    """
    _check_arguments(stage, generation_config, kwargs, fixed)
    passed = {k: v for k, v in kwargs.items() if k not in ("streamer", "logits_processor")}
    extra = list(kwargs.get("logits_processor") or [])
    end_token = None if windows else generation_config.eos_token_id

    def prepare(ids: Tensor, new_tokens: int | None = None) -> Prepared:
        own = token_rules(ids)
        given = fixed if new_tokens is None else {**fixed, "max_new_tokens": new_tokens}
        arguments = prepare_generation(
            module, ids, generation_config=generation_config, logits_processor=list(own), **given, **passed
        )
        found = list(arguments["logits_processor"])
        after = 1 + next(i for i, p in enumerate(found) if p is own[-1])
        return Prepared(arguments, [*found[:after], *extra, *found[after:]], own, end_token)

    prepared = prepare(prompt)
    config = prepared.arguments["generation_config"]
    _check_steps(stage, config, prepared.arguments, kwargs)
    chunk = getattr(config, "prefill_chunk_size", None)
    if chunk is not None and (chunk <= 0 or {"inputs_embeds", "input_embeds"} & set(fixed)):
        # Transformers feeds the ids that stand for the text, or fails.
        raise Fallback(stage, FallbackKind.ARGUMENTS, f"prefill_chunk_size={chunk}")
    if not config.use_cache and "input_embeds" in fixed:
        # Under its old name, the prompt is read only by generations that use a cache.
        raise Fallback(stage, FallbackKind.ARGUMENTS, "use_cache=False")
    if windows and _may_mask(config):
        detail = f"pad_token_id={int(config._pad_token_tensor)}, which may mask a part of the prompt"
        raise Fallback(stage, FallbackKind.TOKEN_LAYOUT, detail)
    ends = prepared.arguments["stopping_criteria"]
    _check_lists(stage, logits_processor=prepared.processors, stopping_criteria=ends)
    try:
        _check_mode(stage, config)
        max_length, stop_tokens = _read_criteria(stage, prepared, kwargs.get("stopping_criteria"), windows=windows)
    except TokenChoice as choice:
        if config.use_cache:
            raise
        raise Fallback(stage, choice.reason.kind, f"{choice.reason.detail}, with use_cache=False") from None
    called, read, warpers = _read_processors(prepared, transformer_spec(module).output_vocab_size)
    pad = config._pad_token_tensor if stop_tokens or prepared.pads() else None
    if pad is None and prepared.pads():
        raise Fallback(stage, FallbackKind.TOKEN_LAYOUT, "an end of rows without a pad token, with which stock fails")
    return SamplingConfig(
        do_sample=config.do_sample,
        max_new_tokens=_whole(max(1, max_length - prepared.prompt.shape[1])),  # it is asked after a token
        min_new_tokens=read.min_new_tokens,
        edits=read.edits,
        processors=prepared.plan(called, prepare),
        stop_tokens=stop_tokens,
        pad_token=None if pad is None else int(pad),
        unneeded=_unneeded(config, kwargs),
        **(warpers if config.do_sample else {}),
    )


def _unneeded(config: GenerationConfig, kwargs: dict[str, Any]) -> tuple[str, ...]:
    """Name the options of how Transformers would compute: a static cache, in compiled steps, is ours anyway."""
    # It turns the cache on by itself where a prompt is embeddings.
    off = kwargs.get("use_cache") is False or not config.use_cache
    names = ["use_cache=False"] if off else []
    for name in ("cache_implementation", "compile_config"):
        value = getattr(config, name, None)
        if value not in (None, getattr(_DEFAULTS, name, None)):  # Transformers 4.49 has a compile_config in all
            names.append(f"{name}={value if isinstance(value, str) else name_of(value)}")
    return tuple(names)


def _whole(tokens: float) -> int:
    """The count at which a loop that compares with `tokens` stops, which may be any number."""
    return math.ceil(min(tokens, _FOREVER))


def _check_arguments(stage: str, config: GenerationConfig, kwargs: dict[str, Any], fixed: dict[str, Any]) -> None:
    off = {k for k in _SWITCHES & kwargs.keys() if kwargs[k] is False}
    given = {k for k, v in kwargs.items() if v is not None} - _KNOWN_ARGUMENTS - off
    unknown = sorted(k for k in given if not hasattr(config, k) or k in fixed)
    if unknown:
        raise Fallback(stage, FallbackKind.ARGUMENTS, ", ".join(unknown))


def _check_mode(stage: str, config: GenerationConfig) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or config.num_return_sequences != 1:
        detail = f"{mode.value}, num_return_sequences={config.num_return_sequences}"
        raise TokenChoice(stage, FallbackKind.GENERATION_MODE, detail)


def _check_lists(stage: str, **lists: Sequence[Any]) -> None:
    """Raise `Fallback` for a processor or criterion that holds a model to call, as classifier-free guidance does.

    Other modules (an embedding, a scorer) are its own business.
    """
    for kind, parts in lists.items():
        for part in parts:
            if any(isinstance(value, PreTrainedModel) for value in getattr(part, "__dict__", {}).values()):
                raise Fallback(stage, FallbackKind[kind.upper()], f"{name_of(part)} calls the model itself")


def _check_steps(stage: str, config: GenerationConfig, prepared: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Raise `Fallback` where more is asked of the model than logits after the last token of a whole prompt."""
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise Fallback(stage, FallbackKind.GENERATION_MODE, mode.value)
    if config.low_memory and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        # Transformers 4 takes the model's cache apart, a beam at a time; 5 refuses.
        raise Fallback(stage, FallbackKind.ARGUMENTS, f"{mode.value} with low_memory=True")
    # As an argument it changes nothing: Bark's stages unpack the tokens and drop the rest.
    if config.return_dict_in_generate and not (kwargs.get("return_dict_in_generate") and takes_return_dict()):
        raise Fallback(stage, FallbackKind.EXTRA_OUTPUTS, "return_dict_in_generate=True")
    if config.cache_implementation not in _CACHES:
        raise Fallback(stage, FallbackKind.ARGUMENTS, f"cache_implementation={config.cache_implementation!r}")
    if config.token_healing:
        raise Fallback(stage, FallbackKind.ARGUMENTS, "token_healing=True")
    mask = prepared.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise Fallback(stage, FallbackKind.TOKEN_LAYOUT, "pad_token_id masks a part of the prompt")


def _may_mask(config: GenerationConfig) -> bool:
    """Tell whether Transformers masks the pad token in a prompt: it does unless that token ends rows as well."""
    pad, ends = config._pad_token_tensor, config._eos_token_tensor
    return pad is not None and (ends is None or not torch.isin(ends, pad).any())


class _Unread(Exception):
    """Raised for processors that our sampler does not have, or has in another order."""


def _read_processors(prepared: Prepared, vocab_size: int) -> tuple[int, ReadEdits, dict[str, Any]]:
    """Read the longest end of the list that our sampler has: how many are called before it, its edits and options."""
    found = prepared.processors
    for called in range(len(found)):
        read = ReadEdits(prepared.prompt.shape[1], vocab_size, prepared.end_token)
        own = [p for p in found[called:] if prepared.is_own(p)]
        with suppress(_Unread):
            if len(own) not in (0, len(prepared.own)):
                raise _Unread
            rest = read.take(found[called:], own) if own else found[called:]
            return called, read, _read_warpers(rest, own)
    return len(found), ReadEdits(prepared.prompt.shape[1], vocab_size, prepared.end_token), {}


def _read_warpers(found: list[LogitsProcessor], own: Sequence[LogitsProcessor]) -> dict[str, Any]:
    """Options of the warpers that follow Bark's `own` processors, in Transformers' order, each at most once."""
    options: dict[str, Any] = {}
    order = [processors.TemperatureLogitsWarper, processors.TopKLogitsWarper, processors.TopPLogitsWarper]
    order.append(processors.LogitNormalization)
    rules, warpers = found[: len(own)], found[len(own) :]
    if len(rules) != len(own) or any(a is not b for a, b in zip(rules, own, strict=True)):
        raise _Unread
    for warper in warpers:
        if type(warper) not in order or getattr(warper, "min_tokens_to_keep", 1) != 1 or fills(warper):
            raise _Unread
        del order[: order.index(type(warper)) + 1]
        if type(warper) is processors.LogitNormalization:
            options["renormalize"] = True
        for name, (least, most) in _LIMITS.items():
            value = getattr(warper, name, least)
            if isinstance(value, bool) or not least <= value <= most:
                raise _Unread  # called, it does or fails as in stock
            if hasattr(warper, name):
                options[name] = value
    return options


def _read_criteria(
    stage: str, prepared: Prepared, given: Sequence[Any] | None, *, windows: bool
) -> tuple[float, tuple[int, ...]]:
    """(max_length, stop tokens). With `windows`, Bark sets the length, which a caller's own replaces.

    Each may be given more than once: the first of them to end a row does.
    """
    max_length: float | None = None
    stop_tokens: tuple[int, ...] = ()
    for criterion in prepared.arguments["stopping_criteria"]:
        if type(criterion) is criteria.MaxLengthCriteria:
            if windows and any(criterion is own for own in given or ()):
                raise TokenChoice(stage, FallbackKind.STOPPING_CRITERIA, "MaxLengthCriteria, of each window")
            max_length = criterion.max_length if max_length is None else min(max_length, criterion.max_length)
        elif type(criterion) is criteria.EosTokenCriteria and prepared.knows_end:
            stop_tokens += tuple(criterion.eos_token_id.tolist())
    config, others = prepared.arguments["generation_config"], prepared.criteria()
    if others and config.return_dict_in_generate and config.output_scores:
        names = ", ".join(map(name_of, others))
        raise TokenChoice(stage, FallbackKind.STOPPING_CRITERIA, f"{names}, called with the scores of all tokens")
    if max_length is None:
        raise TokenChoice(stage, FallbackKind.STOPPING_CRITERIA, "no maximum length")
    return max_length, stop_tokens
