"""The three transformers of a `BarkModel`: their weights and sizes. Knows Transformers' names of their parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.bark import modeling_bark as hf

from bark_accel.report import Fallback, FallbackKind
from bark_accel.transformer.spec import TransformerSpec
from bark_accel.transformer.weights import Layer, Linear, Norm, TransformerWeights

from .compat import layer_norm_eps
from .module_checks import (
    BETTER_TRANSFORMER,
    check_modules,
    check_tensors,
    class_name,
    exact,
    naming_parts,
)
from .parts import parameters_of
from .points import SUBMODELS


def transformer_spec(module: Any) -> TransformerSpec:
    config = module.config
    return TransformerSpec(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        width=config.hidden_size,
        block_size=config.block_size,
        output_vocab_size=config.output_vocab_size,
    )


@naming_parts
def transformer_weights(stage: str, module: Any) -> TransformerWeights:
    """Read one of the three transformers. Only LayerNorms of 16-bit models are copied (to float32)."""
    exact(stage, module, SUBMODELS[stage].kind)
    check_tensors(stage, parameters_of(module))
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
    if exact(stage, module, nn.Embedding).max_norm is not None:
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
    exact(stage, block, hf.BarkBlock)
    attention = block.attn
    known = type(attention) in hf.BARK_ATTENTION_CLASSES.values()
    if not known and class_name(type(attention)) != BETTER_TRANSFORMER:
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"attention is a {type(attention).__name__}")
    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    if (attention.num_heads, attention.head_dim) != (heads, head_dim):
        got = f"{attention.num_heads} heads of {attention.head_dim}"
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"expected {heads} heads of {head_dim}, got {got}")
    mlp = exact(stage, block.mlp, hf.BarkMLP)
    if exact(stage, mlp.gelu, nn.GELU).approximate != "none":
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
    exact(stage, module, nn.Linear)
    bias = None if module.bias is None else module.bias.detach().contiguous()
    return Linear(_with_unit_stride(module.weight), bias)


def _norm(stage: str, module: Any) -> Norm:
    eps = layer_norm_eps(module)
    if eps is None or module.weight is None:
        got = type(module).__name__
        raise Fallback(stage, FallbackKind.REPLACED_MODULE, f"expected a LayerNorm with a weight, got {got}")
    bias = None if module.bias is None else module.bias.detach().float().contiguous()
    return Norm(module.weight.detach().float().contiguous(), bias, eps)
