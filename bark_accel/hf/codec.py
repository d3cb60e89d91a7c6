"""EnCodec's decoder: its weights. Knows Transformers' names of its parts."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.encodec import modeling_encodec as encodec

from bark_accel.report import Fallback, FallbackKind
from bark_accel.stages.codec_weights import CodecWeights, Conv, ConvTranspose, Lstm, ResidualBlock, Upsampling

from .module_checks import ReplacedPart, check_modules, check_tensors, exact, naming_parts
from .parts import float_tensors_of, parameters_of


@naming_parts
def codec_weights(module: Any) -> CodecWeights:
    """Read EnCodec's decoder, weight_norm folded (a copy of its weights, in float32)."""
    check_codec(module)
    layers = list(module.decoder.layers)
    conv_in, lstm, conv_out = layers[0], layers[1], layers[-1]
    return CodecWeights(
        codebooks=tuple(table.detach() for table in _codebooks(module)),
        conv_in=_conv(conv_in),
        lstm=_lstm(lstm.lstm),
        upsampling=_upsampling(layers[2:-2]),
        conv_out=_conv(conv_out),
    )


@naming_parts
def check_codec(module: Any) -> None:
    """Refuse a codec that would not compute what Transformers' EnCodec does."""
    _check_codec_classes(module)
    check_tensors("codec", [*parameters_of(module.decoder), *_codebooks(module)])
    config = module.config
    if config.norm_type != "weight_norm" or not config.use_causal_conv:
        detail = f"expected causal convolutions with weight_norm, got norm_type={config.norm_type!r}"
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, detail)
    check_modules("codec", module)


def codec_tensors(module: Any) -> list[Tensor]:
    """List all tensors that the weights may be read from."""
    return [*float_tensors_of(module.decoder), *_codebooks(module)]


def _codebooks(module: Any) -> list[Tensor]:
    return [layer.codebook.embed for layer in module.quantizer.layers]


def _lstm(module: nn.LSTM) -> Lstm:
    flat = tuple(weight.detach().float() for weight in module._flat_weights if weight is not None)
    return Lstm(flat, module.num_layers, module.hidden_size)


def _check_codec_classes(module: Any) -> None:
    exact("codec", module, encodec.EncodecModel)
    exact("codec", module.decoder, encodec.EncodecDecoder)
    for layer in exact("codec", module.quantizer, encodec.EncodecResidualVectorQuantizer).layers:
        exact("codec", layer, encodec.EncodecVectorQuantization)
        exact("codec", layer.codebook, encodec.EncodecEuclideanCodebook)
    lstm = exact("codec", exact("codec", module.decoder.layers[1], encodec.EncodecLSTM).lstm, nn.LSTM)
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
    exact("codec", module, encodec.EncodecConv1d)
    conv = _unparametrized(module.conv, nn.Conv1d)
    if conv.stride != (1,) or conv.groups != 1:
        raise Fallback("codec", FallbackKind.CODEC_ARCHITECTURE, f"convolution {conv}")
    weight = conv.weight.detach().float().permute(2, 1, 0).contiguous()
    return Conv(weight, _bias(conv), conv.dilation[0], module.pad_mode)


def _bias(conv: Any) -> Tensor | None:
    return None if conv.bias is None else conv.bias.detach().float()


def _unparametrized(conv: Any, kind: type) -> Any:
    if parametrize.type_before_parametrizations(conv) is not kind:
        raise ReplacedPart("codec", conv, kind)
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
