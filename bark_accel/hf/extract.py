"""BarkModel -> weights and specs. The only reader of Transformers' attribute names.

Weights are read from the modules directly, so a module that would not compute what its class says (hooks, a replaced
layer, another dtype) is refused with `Fallback`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.bark import modeling_bark as hf
from transformers.models.encodec import modeling_encodec as encodec

from bark_accel.report import Fallback, FallbackKind
from bark_accel.stages.codec_weights import CodecWeights, Conv, ConvTranspose, Lstm, ResidualBlock, Upsampling
from bark_accel.stages.spec import CoarseSpec, FineSpec, SemanticSpec
from bark_accel.transformer.spec import TransformerSpec
from bark_accel.transformer.weights import Layer, Linear, Norm, TransformerWeights

from .compat import layer_norm_eps
from .offload import only_moves_weights
from .points import SUBMODELS

_PATCHED_METHODS = {point.method for point in SUBMODELS.values()}
# What optimum 1 puts in the place of an attention layer: the same weights and names, torch's attention.
_BETTER_TRANSFORMER = "optimum.bettertransformer.models.decoder_models.BarkAttentionLayerBetterTransformer"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_modules(stage: str, module: nn.Module) -> None:
    """Refuse modules that would not compute what their class of Transformers or torch does."""
    if nn.modules.module._has_any_global_hook():
        raise Fallback(stage, FallbackKind.HOOKED_MODULE, "hooks for all modules of the process")
    for kind in {type(part) for part in module.modules()}:
        _check_class(stage, kind)
    for name, part in module.named_modules():
        where = f"{name or 'the model'} ({type(part).__name__})"
        if part.training:
            raise Fallback(stage, FallbackKind.TRAINING, where)
        moved = only_moves_weights(part)
        if (hasattr(part, "_hf_hook") and not moved) or part._forward_hooks or part._forward_pre_hooks:
            raise Fallback(stage, FallbackKind.HOOKED_MODULE, where)
        own = vars(part).keys() - _PATCHED_METHODS - ({"forward"} if moved else set())
        overridden = sorted(k for k in own if callable(getattr(type(part), k, None)) and not _is_class_own(part, k))
        if overridden:
            raise Fallback(stage, FallbackKind.HOOKED_MODULE, f"{where}: {overridden[0]} was set on the instance")


def _is_class_own(part: nn.Module, name: str) -> bool:
    """Tell whether what was set on an instance is its class's method: accelerate's hooks leave it when removed."""
    method = vars(part)[name]
    return getattr(method, "__self__", None) is part and getattr(method, "__func__", None) is getattr(type(part), name)


def _check_class(stage: str, kind: Any) -> None:
    """Refuse a class whose methods somebody replaced or overrode."""
    libraries = ("torch", "transformers", *(["optimum"] if class_name(kind) == _BETTER_TRANSFORMER else []))
    for name, method in (*vars(kind).items(), ("forward", kind.forward)):
        home = getattr(method, "__module__", None) if inspect.isfunction(method) else None
        if home is not None and home.partition(".")[0] not in libraries:
            detail = f"{kind.__name__}.{name} comes from {home}"
            raise Fallback(stage, FallbackKind.REPLACED_MODULE, detail)


def check_tensors(stage: str, tensors: Iterable[Tensor]) -> None:
    """Refuse what is not all of one supported dtype on one device."""
    seen_dtypes, seen_devices = set(), set()
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter):
            raise _ReplacedPart(stage, tensor, nn.Parameter)
        if tensor.is_floating_point():
            seen_dtypes.add(tensor.dtype)
        seen_devices.add(tensor.device)
    if len(seen_dtypes) != 1 or not seen_dtypes <= set(DTYPES):
        expected, got = ", ".join(map(str, DTYPES)), ", ".join(sorted(map(str, seen_dtypes)))
        raise Fallback(stage, FallbackKind.DTYPE, f"expected one of {expected}, got {got}")
    if len(seen_devices) != 1:
        got = ", ".join(sorted(map(str, seen_devices)))
        raise Fallback(stage, FallbackKind.DEVICE, f"expected one device, got {got}")


class _ReplacedPart(Fallback):
    """A module or parameter of another class; `_naming_parts` adds where it is."""

    def __init__(self, stage: str, part: Any, expected: type):
        detail = f"expected {class_name(expected)}, got {class_name(type(part))}{way_out(part)}"
        super().__init__(stage, FallbackKind.REPLACED_MODULE, detail)
        self.part = part


def class_name(kind: type) -> str:
    """Name a class in full: several libraries have a Linear."""
    return f"{kind.__module__}.{kind.__qualname__}"


def way_out(part: Any) -> str:
    """Say what to do about a part of another library."""
    where = class_name(type(part)).lower()
    if hasattr(part, "base_layer") or where.startswith("peft."):
        return "; merge LoRA layers first: merge_and_unload()"
    if any(word in where for word in ("quant", "torch.ao.", "torchao", "bitsandbytes", "8bit", "4bit", "gptq", "awq")):
        return "; load the model unquantised, weights='int8' of accelerate_bark makes it smaller"
    return ""


def _naming_parts(read: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a reader whose last argument is the whole module."""

    @functools.wraps(read)
    def call(*args: Any) -> Any:
        try:
            return read(*args)
        except _ReplacedPart as replaced:
            part, reason = replaced.part, replaced.reason
        places = (*args[-1].named_modules(), *args[-1].named_parameters())
        name = next((name for name, place in places if place is part and name), "the model")
        raise Fallback(reason.stage, reason.kind, f"{name}: {reason.detail}")

    return call


def _exact(stage: str, module: Any, kind: type) -> Any:
    if type(module) is not kind:
        raise _ReplacedPart(stage, module, kind)
    return module


def transformer_spec(module: Any) -> TransformerSpec:
    config = module.config
    return TransformerSpec(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        width=config.hidden_size,
        block_size=config.block_size,
        output_vocab_size=config.output_vocab_size,
    )


@_naming_parts
def transformer_weights(stage: str, module: Any) -> TransformerWeights:
    """Read one of the three transformers. Only LayerNorms of 16-bit models are copied (to float32)."""
    _exact(stage, module, SUBMODELS[stage].kind)
    check_tensors(stage, module.parameters())
    if len(module.layers) != module.config.num_layers:
        detail = f"expected {module.config.num_layers} layers (num_layers), got {len(module.layers)}"
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, detail)
    tables = module.input_embeds_layers if stage == "fine" else [module.input_embeds_layer]
    heads = module.lm_heads if stage == "fine" else [module.lm_head]
    weights = TransformerWeights(
        token_tables=tuple(_table(stage, table) for table in tables),
        positions=_table(stage, module.position_embeds_layer),
        layers=tuple(_layer(stage, block, module.config) for block in module.layers),
        norm_final=_norm(stage, module.layernorm_final),
        heads=tuple(_head(stage, head, module.config) for head in heads),
    )
    check_modules(stage, module)
    return weights


def _table(stage: str, module: Any) -> Tensor:
    if _exact(stage, module, nn.Embedding).max_norm is not None:
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"an embedding with max_norm={module.max_norm}")
    return _with_unit_stride(module.weight)


def _with_unit_stride(parameter: Tensor) -> Tensor:
    weight = parameter.detach()
    return weight if weight.stride(-1) == 1 else weight.contiguous()


def _head(stage: str, module: Any, config: Any) -> Linear:
    linear = _linear(stage, module)
    if linear.bias is not None or linear.weight.shape[0] != config.output_vocab_size:
        detail = f"expected a head of {config.output_vocab_size} rows (output_vocab_size) without bias, got {module}"
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, detail)
    return linear


def _layer(stage: str, block: Any, config: Any) -> Layer:
    _exact(stage, block, hf.BarkBlock)
    attention = block.attn
    known = type(attention) in hf.BARK_ATTENTION_CLASSES.values()
    if not known and class_name(type(attention)) != _BETTER_TRANSFORMER:
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"attention is a {type(attention).__name__}")
    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    if (attention.num_heads, attention.head_dim) != (heads, head_dim):
        got = f"{attention.num_heads} heads of {attention.head_dim}"
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"expected {heads} heads of {head_dim}, got {got}")
    mlp = _exact(stage, block.mlp, hf.BarkMLP)
    if _exact(stage, mlp.gelu, nn.GELU).approximate != "none":
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"expected the exact GELU, got {mlp.gelu}")
    return Layer(
        norm_1=_norm(stage, block.layernorm_1),
        qkv=_linear(stage, attention.att_proj),
        attention_out=_linear(stage, attention.out_proj),
        norm_2=_norm(stage, block.layernorm_2),
        mlp_in=_linear(stage, mlp.in_proj),
        mlp_out=_linear(stage, mlp.out_proj),
    )


def _linear(stage: str, module: Any) -> Linear:
    _exact(stage, module, nn.Linear)
    bias = None if module.bias is None else module.bias.detach().contiguous()
    return Linear(_with_unit_stride(module.weight), bias)


def _norm(stage: str, module: Any) -> Norm:
    eps = layer_norm_eps(module)
    if eps is None or module.weight is None:
        got = type(module).__name__
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"expected a LayerNorm with a weight, got {got}")
    bias = None if module.bias is None else module.bias.detach().float().contiguous()
    return Norm(module.weight.detach().float().contiguous(), bias, eps)


@_naming_parts
def codec_weights(module: Any) -> CodecWeights:
    """Read EnCodec's decoder, weight_norm folded (a copy of its weights, in float32)."""
    _check_codec_classes(module)
    check_tensors("codec", (*module.decoder.parameters(), *(layer.codebook.embed for layer in module.quantizer.layers)))
    config = module.config
    if config.norm_type != "weight_norm" or not config.use_causal_conv:
        detail = f"expected causal convolutions with weight_norm, got norm_type={config.norm_type!r}"
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, detail)
    layers = list(module.decoder.layers)
    conv_in, lstm, conv_out = layers[0], layers[1], layers[-1]
    check_modules("codec", module)
    return CodecWeights(
        codebooks=tuple(layer.codebook.embed.detach() for layer in module.quantizer.layers),
        conv_in=_conv(conv_in),
        lstm=_lstm(lstm.lstm),
        upsampling=_upsampling(layers[2:-2]),
        conv_out=_conv(conv_out),
    )


def _lstm(module: nn.LSTM) -> Lstm:
    flat = tuple(weight.detach().float() for weight in module._flat_weights if weight is not None)
    return Lstm(flat, module.num_layers, module.hidden_size)


def _check_codec_classes(module: Any) -> None:
    _exact("codec", module, encodec.EncodecModel)
    _exact("codec", module.decoder, encodec.EncodecDecoder)
    for layer in _exact("codec", module.quantizer, encodec.EncodecResidualVectorQuantizer).layers:
        _exact("codec", layer, encodec.EncodecVectorQuantization)
        _exact("codec", layer.codebook, encodec.EncodecEuclideanCodebook)
    lstm = _exact("codec", _exact("codec", module.decoder.layers[1], encodec.EncodecLSTM).lstm, nn.LSTM)
    plain = lstm.bias and not (lstm.bidirectional or lstm.batch_first or lstm.proj_size)
    if not plain:
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"{lstm}")
    for part in module.decoder.modules():
        if isinstance(part, nn.ELU) and (type(part) is not nn.ELU or part.alpha != 1.0):
            raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"{part}")


def _upsampling(layers: list) -> tuple[Upsampling, ...]:
    groups: list[tuple[ConvTranspose, list[ResidualBlock]]] = []
    for layer in layers:
        if type(layer) is encodec.EncodecConvTranspose1d:
            groups.append((_conv_transpose(layer), []))
        elif type(layer) is encodec.EncodecResnetBlock and groups:
            groups[-1][1].append(_residual(layer))
        elif type(layer) is not nn.ELU:
            raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"unexpected {type(layer).__name__}")
    return tuple(Upsampling(conv, tuple(blocks)) for conv, blocks in groups)


def _conv(module: Any) -> Conv:
    _exact("codec", module, encodec.EncodecConv1d)
    conv = _unparametrized(module.conv, nn.Conv1d)
    if conv.stride != (1,) or conv.groups != 1:
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"convolution {conv}")
    weight = conv.weight.detach().float().permute(2, 1, 0).contiguous()
    return Conv(weight, _bias(conv), conv.dilation[0], module.pad_mode)


def _bias(conv: Any) -> Tensor | None:
    return None if conv.bias is None else conv.bias.detach().float()


def _unparametrized(conv: Any, kind: type) -> Any:
    if parametrize.type_before_parametrizations(conv) is not kind:
        raise _ReplacedPart("codec", conv, kind)
    return conv


def _conv_transpose(module: Any) -> ConvTranspose:
    conv = _unparametrized(module.conv, nn.ConvTranspose1d)
    (kernel_size,), (stride,) = conv.kernel_size, conv.stride
    right = math.ceil((kernel_size - stride) * module.trim_right_ratio)
    groups = math.ceil(kernel_size / stride)
    taps = F.pad(conv.weight.detach().float(), (0, groups * stride - kernel_size))
    # [in, out, groups, stride] -> [groups, in, stride, out]
    weight = taps.unflatten(2, (groups, stride)).permute(2, 0, 3, 1).flip(0).flatten(2)
    return ConvTranspose(weight, _bias(conv), stride, kernel_size, kernel_size - stride - right, right)


def _residual(module: Any) -> ResidualBlock:
    convs = [layer for layer in module.block if type(layer) is not nn.ELU]
    if len(convs) != 2:
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"{len(convs)} convolutions in a residual block")
    shortcut = None if type(module.shortcut) is nn.Identity else _conv(module.shortcut)
    return ResidualBlock(_conv(convs[0]), _conv(convs[1]), shortcut)


def semantic_spec(config: Any) -> SemanticSpec:
    """Read the semantic stage's numbers from a `BarkSemanticGenerationConfig`."""
    return SemanticSpec(
        vocab_size=config.semantic_vocab_size,
        pad_token=config.semantic_pad_token,
        infer_token=config.semantic_infer_token,
        text_encoding_offset=config.text_encoding_offset,
        text_pad_token=config.text_pad_token,
        max_input_tokens=config.max_input_semantic_length,
        rate_hz=config.semantic_rate_hz,
    )


def coarse_spec(semantic: Any, coarse: Any, codebook_size: int) -> CoarseSpec:
    """Read the coarse stage's numbers from a `BarkSemanticGenerationConfig` and a `BarkCoarseGenerationConfig`."""
    return CoarseSpec(
        semantic_vocab_size=semantic.semantic_vocab_size,
        semantic_pad_token=coarse.coarse_semantic_pad_token,
        semantic_rate_hz=semantic.semantic_rate_hz,
        infer_token=coarse.coarse_infer_token,
        codebook_size=codebook_size,
        num_codebooks=coarse.n_coarse_codebooks,
        rate_hz=coarse.coarse_rate_hz,
        max_input_tokens=coarse.max_coarse_input_length,
        max_history_tokens=coarse.max_coarse_history,
        window_tokens=coarse.sliding_window_len,
    )


def fine_spec(semantic: Any, coarse: Any, fine: Any, codebook_size: int) -> FineSpec:
    """Read the fine stage's numbers from the three generation configs."""
    return FineSpec(
        semantic_vocab_size=semantic.semantic_vocab_size,
        codebook_size=codebook_size,
        num_coarse_codebooks=coarse.n_coarse_codebooks,
        num_codebooks=fine.n_fine_codebooks,
        max_history_frames=fine.max_fine_history_length,
        max_input_frames=fine.max_fine_input_length,
    )
