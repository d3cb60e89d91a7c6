"""Every refusal of a value: both backends raise ValueError, 'op: expected ..., got ...'."""
# ruff: noqa: E501 (one table row per refusal)

from __future__ import annotations

from typing import Any

import pytest
import torch

from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops

from .conftest import exponential, rules
from .valid_arguments import DECODE, EMBEDDING, NEEDS_GRAD, call_with, weights


def numbers(last: float) -> torch.Tensor:
    """Of two rows; the last one's is wrong."""
    return torch.tensor([0.5, last], dtype=torch.float64)


def allowed(*last: int) -> torch.Tensor:
    return torch.tensor([[5, 10, 11], last])


def filled(value: float, row: int = 1) -> torch.Tensor:
    logits = torch.randn(2, 8)
    logits[row, 3] = value
    return logits


def code(value: int) -> torch.Tensor:
    codes = EMBEDDING["codes"]().clone()
    codes[1, 4, 2] = value
    return codes


def token(value: int) -> torch.Tensor:
    ids = DECODE["ids"]().clone()
    ids[1, 2] = value
    return ids


CASES: list[tuple[str, str, Any, str]] = [
    ("fused_sample", "logits", lambda: torch.randn(8), r"logits of shape \[N, L\], got \[8\]"),
    ("fused_sample", "logits", lambda: torch.randn(2, 8).double(), "logits of dtype float32, float16 or bfloat16"),
    ("fused_sample", "logits", lambda: filled(float("nan")), "without NaN or .inf.* in row 1"),
    ("fused_sample", "logits", lambda: filled(float("inf")), "without NaN or .inf.* in row 1"),
    ("fused_sample", "logits", lambda: torch.full((2, 8), float("-inf")), "above -inf, got none in row 0"),
    ("fused_sample", "logits", lambda: torch.randn(2, 8, requires_grad=True), NEEDS_GRAD),
    ("fused_sample", "noise", lambda: torch.full((2, 12), float("nan")), "noise > 0 .*, got none in row 0"),
    ("fused_sample", "noise", lambda: -exponential(2, 12), "noise > 0 .*, got none in row 0"),
    ("fused_sample", "temperature", lambda: numbers(0.0), "temperature > 0, got 0"),
    ("fused_sample", "temperature", lambda: numbers(-1.0), "temperature > 0, got -1"),
    ("fused_sample", "temperature", lambda: numbers(float("nan")), "temperature > 0, got nan"),
    ("fused_sample", "temperature", lambda: numbers(1e-44), "after the division by temperature"),
    ("fused_sample", "top_k", lambda: torch.tensor([2, -1]), "top_k >= 0.*got -1"),
    ("fused_sample", "top_p", lambda: numbers(-0.1), r"top_p in \[0, 1\].*got -0.1"),
    ("fused_sample", "top_p", lambda: numbers(1.5), r"top_p in \[0, 1\].*got 1.5"),
    ("fused_sample", "min_eos_p", lambda: numbers(-0.1), "min_eos_p >= 0.*got -0.1"),
    ("fused_sample", "first_id", lambda: -1, "first_id >= 0, got -1"),
    ("fused_sample", "allowed", lambda: allowed(3, 10, 11), r"range inside \[4, 12\), got \[3, 10\)"),
    ("fused_sample", "allowed", lambda: allowed(10, 10, 11), r"non-empty allowed range.*got \[10, 10\)"),
    ("fused_sample", "allowed", lambda: allowed(5, 13, 11), r"range inside \[4, 12\), got \[5, 13\)"),
    ("fused_sample", "allowed", lambda: allowed(5, 10, 12), r"eos_id -1 or inside \[4, 12\), got 12"),
    ("fused_sample", "allowed", lambda: allowed(5, 10, 0), r"eos_id -1 or inside \[4, 12\), got 0"),
    ("fused_sample", "allowed", lambda: torch.tensor([5, 10, 11]), r"allowed of dtype .*, one entry or 2, got .* of shape \[3\]"),
    ("fused_sample", "allowed", lambda: torch.tensor([[5, 10]]), r"allowed of shape \[1 or N, 3\].*, got \[1, 2\]"),
    ("fused_sample", "allowed", lambda: torch.tensor([[5, 10, 11]] * 3), r"allowed of .*, one entry or 2, got .*\[3, 3\]"),
    ("fused_sample", "allowed", lambda: torch.tensor([[5, 10, 11]]).int(), "allowed of dtype .*, got .*"),
    ("fused_sample", "allowed", lambda: torch.tensor([[5, 10, 11]]).to("meta"), "on the cpu, got meta|one device, got cpu and meta"),
    ("fused_sample", "temperature", lambda: torch.ones(3).double(), r"temperature of .*, one entry or 2, got .*\[3\]"),
    ("fused_sample", "temperature", lambda: torch.ones(2), "temperature of dtype .*, got .*"),
    ("fused_sample", "top_k", lambda: torch.tensor(3), r"top_k of .*, one entry or 2, got .*\[\]"),
    ("fused_sample", "top_p", lambda: torch.ones(1, 2).double(), r"top_p of .*, one entry or 2, got .*\[1, 2\]"),
    ("fused_sample", "noise", lambda: exponential(2, 11), "at least 12 ids, got 11"),
    ("fused_sample", "noise", lambda: exponential(3, 12), "noise for 2 rows, got 3"),
    ("fused_sample", "noise", lambda: exponential(12), r"noise of shape \[N, V\], got \[12\]"),
    ("fused_sample", "noise", lambda: exponential(2, 12).half(), "noise of dtype float32"),
    ("fused_sample", "noise", lambda: exponential(2, 12).to("meta"), "one device, got cpu and meta"),
    ("fused_multinomial", "logits", lambda: torch.randn(8), r"logits of shape \[N, L\], got \[8\]"),
    ("fused_multinomial", "logits", lambda: filled(float("nan")), "without NaN or .inf.* in row 1"),
    ("fused_multinomial", "logits", lambda: torch.full((2, 8), float("-inf")), "above -inf, got none in row 0"),
    ("fused_multinomial", "logits", lambda: torch.randn(2, 8, requires_grad=True), NEEDS_GRAD),
    ("fused_multinomial", "vocab_size", lambda: 11, "vocab_size >= 12, .*got 11"),
    ("fused_multinomial", "vocab_size", lambda: -1, "vocab_size >= 12, .*got -1"),
    ("fused_multinomial", "allowed", lambda: allowed(5, 10, 12), r"inside \[4, 12\), got 12"),
    ("fused_multinomial", "temperature", lambda: numbers(0.0), "temperature > 0, got 0"),
    ("fused_multinomial", "top_p", lambda: numbers(1.5), r"top_p in \[0, 1\].*got 1.5"),
    ("codebook_embedding_sum", "codes", lambda: torch.zeros(2, 5).long(), r"codes of shape \[B, T, K\]"),
    ("codebook_embedding_sum", "codes", lambda: torch.zeros(2, 5, 4), "codes of dtype int32 or int64"),
    ("codebook_embedding_sum", "codes", lambda: torch.zeros(2, 5, 2).long(), "2 tables .*, got 3"),
    ("codebook_embedding_sum", "codes", lambda: torch.zeros(2, 9, 4).long(), "at least 9 positions .*, got 7"),
    ("codebook_embedding_sum", "codes", lambda: code(37), r"\[0, 37\), got 37 in codebook 2, frame 4, batch row 1"),
    ("codebook_embedding_sum", "codes", lambda: code(-1), r"\[0, 37\), got -1 in codebook 2, frame 4, batch row 1"),
    ("codebook_embedding_sum", "tables", lambda: [], "tables.*, got 0"),
    ("codebook_embedding_sum", "tables", lambda: [torch.randn(37)], r"every table of shape \[V, C\]"),
    ("codebook_embedding_sum", "tables", lambda: [torch.randn(37, 8), torch.randn(36, 8)], r"every table of shape \[37, 8\]"),
    ("codebook_embedding_sum", "tables", lambda: [torch.randn(37, 8), torch.randn(37, 8).half()], "every table of"),
    ("codebook_embedding_sum", "tables", lambda: [torch.zeros(37, 8).long()], "tables of dtype float32, float16"),
    ("codebook_embedding_sum", "tables", lambda: [torch.randn(37, 8, requires_grad=True)], NEEDS_GRAD),
    ("codebook_embedding_sum", "positions", lambda: torch.randn(7), "positions of shape"),
    ("codebook_embedding_sum", "positions", lambda: torch.randn(7, 9), "positions of"),
    ("codebook_embedding_sum", "positions", lambda: torch.randn(7, 8).half(), "positions of"),
    ("codebook_embedding_sum", "positions", lambda: torch.randn(7, 8).to("meta"), "one device, got cpu and meta"),
    ("static_cache_attention", "query", lambda: torch.randn(2, 3, 16), r"query of shape \[B, T, H, D\]"),
    ("static_cache_attention", "query", lambda: torch.randn(2, 3, 2, 8).double(), "query of dtype float32, float16"),
    ("static_cache_attention", "query", lambda: torch.randn(2, 3, 2, 8, requires_grad=True), NEEDS_GRAD),
    ("static_cache_attention", "key", lambda: torch.randn(2, 4, 2, 8), r"key of shape \[2, 3, 2, 8\]"),
    ("static_cache_attention", "key", lambda: torch.randn(2, 3, 2, 8).half(), "key of"),
    ("static_cache_attention", "value", lambda: torch.randn(2, 3, 1, 8), r"value of shape \[2, 3, 2, 8\]"),
    ("static_cache_attention", "value", lambda: torch.randn(2, 3, 2, 8).to("meta"), "one device, got cpu and meta"),
    ("static_cache_attention", "key_cache", lambda: torch.randn(2, 2, 9), "key_cache of shape"),
    ("static_cache_attention", "key_cache", lambda: torch.randn(1, 2, 11, 8), r"key_cache of shape \[2, 2, 11, 8\]"),
    ("static_cache_attention", "value_cache", lambda: torch.randn(2, 2, 11, 8).half(), "value_cache of"),
    ("static_cache_attention", "value_cache", lambda: torch.randn(2, 2, 10, 8), "value_cache of shape|one capacity"),
    ("static_cache_attention", "length", lambda: torch.tensor([4, 9]), r"capacity 11, got 9 \+ 3 in row 1"),
    ("static_cache_attention", "length", lambda: torch.tensor([4, -2]), "length >= 0, or -1 for an idle row, got -2 in row 1"),
    ("static_cache_attention", "length", lambda: torch.tensor([1, 1], dtype=torch.int32), "length as an int64 tensor"),
    ("static_cache_attention", "length", lambda: torch.tensor([2**63 - 1, 0]), r"length \+ tokens <= capacity"),
    ("static_cache_attention", "length", lambda: torch.tensor(1), r"length as an int64 tensor of shape \[2\]"),
    ("static_cache_attention", "length", lambda: torch.tensor([1]), r"length as .* of shape \[2\] \(one a row\), got .* \[1\]"),
    ("decode_step", "ids", lambda: torch.zeros(6).long(), r"ids of shape \[B, T\], got \[6\]"),
    ("decode_step", "ids", lambda: torch.zeros(2, 3).int(), "ids of dtype int64, got"),
    ("decode_step", "ids", lambda: token(37), r"ids in \[0, 37\), got \[?37"),
    ("decode_step", "ids", lambda: token(-1), r"ids in \[0, 37\), got \[?-1"),
    ("decode_step", "ids", lambda: torch.zeros(3, 3).long(), r"key_cache of shape \[2, 3, 2, 11, 12\].*, got \[2, 2, 2, 11, 12\]"),
    ("decode_step", "ids", lambda: torch.zeros(2, 7).long(), r"length \+ tokens <= .*11.*, got 5 \+ 7"),
    ("decode_step", "ids", lambda: torch.zeros(2, 3).long().to("meta"), "one device, got cpu and meta"),
    ("decode_step", "token_table", lambda: torch.randn(37), r"token_table of shape \[., C\], got \[37\]"),
    ("decode_step", "token_table", lambda: torch.randn(37, 23), r"token_table of shape \[37, 24\].*, got \[37, 23\]"),
    ("decode_step", "token_table", lambda: torch.randn(37, 24).half(), "token_table of .*dtype .*, got .*(Half|float16)"),
    ("decode_step", "token_table", lambda: torch.randn(37, 24, requires_grad=True), NEEDS_GRAD),
    ("decode_step", "positions", lambda: torch.randn(24), r"positions of shape \[., C\], got \[24\]"),
    ("decode_step", "positions", lambda: torch.zeros(11, 24).long(), "positions of dtype float32, float16 or bfloat16"),
    ("decode_step", "positions", lambda: torch.randn(7, 24), r"length \+ tokens <= .*7.*, got 5 \+ 3"),
    ("decode_step", "weights", lambda: DECODE["weights"]()[:-1], "16 weights for each of 2 layers and 2 more, got 33"),
    ("decode_step", "weights", lambda: [], "16 weights for each of 2 layers and 2 more, got 0"),
    ("decode_step", "weights", lambda: weights(0, None), "a LayerNorm weight, got None"),
    ("decode_step", "weights", lambda: weights(8, torch.ones(23)), r"LayerNorm weight of shape \[24\].*, got \[23\]"),
    ("decode_step", "weights", lambda: weights(9, torch.ones(24).half()), "LayerNorm bias of .*float32.*, got"),
    ("decode_step", "weights", lambda: weights(2, None), r"a weight of shape \[72, 24\], got None"),
    ("decode_step", "weights", lambda: weights(2, torch.ones(71, 24).char()), r"a weight of shape \[72, 24\].*, got \[71, 24\]"),
    ("decode_step", "weights", lambda: weights(2, torch.ones(72, 24)), "scales with int8 weights only, got them with"),
    ("decode_step", "weights", lambda: weights(5, torch.ones(24, 24).double(), float_matrices=True), "a weight .*or int8 with scales.*, got"),
    ("decode_step", "weights", lambda: weights(3, torch.ones(71)), r"a bias of shape \[72\].*, got \[71\]"),
    ("decode_step", "weights", lambda: weights(3, torch.ones(72).half()), "a bias of .*float32.*, got"),
    ("decode_step", "weights", lambda: weights(4, None), "scales with an int8 weight, got None"),
    ("decode_step", "weights", lambda: weights(15, torch.ones(24, 1)), r"scales of shape \[24, 2\].*, got \[24, 1\]"),
    ("decode_step", "weights", lambda: weights(4, torch.ones(72, 1).half()), "scales of .*float32.*, got"),
    ("decode_step", "weights", lambda: weights(10 - 16, None), r"mlp_in of shape \[N, 24\], got None"),
    ("decode_step", "weights", lambda: weights(10 - 16, torch.ones(96)), r"mlp_in of shape \[N, 24\], got \[96\]"),
    ("decode_step", "weights", lambda: weights(10, None), r"a weight of shape \[96, 24\], got None"),
    ("decode_step", "weights", lambda: weights(10, torch.ones(95, 24).char()), r"(a weight|scales) of shape \[96, .*, got \[9[56], "),
    ("decode_step", "weights", lambda: weights(13, torch.ones(24, 95).char()), r"a weight of shape \[24, 96\].*, got \[24, 95\]"),
    ("decode_step", "weights", lambda: weights(13, torch.ones(24, 96).char().to("meta")), "one device, got cpu and meta"),
    ("decode_step", "weights", lambda: weights(0, torch.ones(24, requires_grad=True)), NEEDS_GRAD),
    ("decode_step", "eps", lambda: [1e-5] * 4, "5 eps, got 4"),
    ("decode_step", "head", lambda: torch.ones(19).char(), r"head of shape \[N, C\], got \[19\]"),
    ("decode_step", "head", lambda: torch.ones(19, 23).char(), r"of shape \[19, 24\].*, got \[19, 23\]"),
    ("decode_step", "head", lambda: torch.ones(19, 24), "scales with int8 weights only, got them with"),
    ("decode_step", "head_scales", lambda: None, "scales with an int8 weight, got None"),
    ("decode_step", "head_scales", lambda: torch.ones(18, 1), r"scales of shape \[19, 1\].*, got \[18, 1\]"),
    ("decode_step", "num_heads", lambda: 0, "num_heads to divide the width 24, got 0"),
    ("decode_step", "num_heads", lambda: 5, "num_heads to divide the width 24, got 5"),
    ("decode_step", "num_heads", lambda: -2, "num_heads to divide the width 24, got -2"),
    ("decode_step", "num_heads", lambda: 3, r"key_cache of shape \[2, 2, 3, 11, 8\].*, got \[2, 2, 2, 11, 12\]"),
    ("decode_step", "key_cache", lambda: torch.randn(2, 2, 11, 12), r"key_cache of shape \[layers, B, H, capacity, D\], got"),
    ("decode_step", "key_cache", lambda: torch.randn(2, 2, 2, 11, 12).double(), "key_cache .*of dtype float32, float16 or bfloat16"),
    ("decode_step", "key_cache", lambda: torch.randn(2, 2, 2, 11, 12).half(), "value_cache of .*dtype .*, got"),
    ("decode_step", "key_cache", lambda: torch.randn(3, 2, 2, 11, 12), r"value_cache of shape \[3, 2, 2, 11, 12\].*, got \[2, 2"),
    ("decode_step", "key_cache", lambda: torch.randn(2, 1, 2, 11, 12).expand(-1, 2, -1, -1, -1), "key_cache without elements that share memory, got strides"),
    ("decode_step", "value_cache", lambda: torch.randn(2, 2, 2, 1, 12).expand(-1, -1, -1, 11, -1), "value_cache without elements that share memory, got strides"),
    ("decode_step", "value_cache", lambda: torch.randn(2, 2, 2, 10, 12), r"value_cache of shape \[2, 2, 2, 11, 12\].*, got"),
    ("decode_step", "length", lambda: torch.tensor([4, 9]), r"length \+ tokens <= .*11.*, got 9 \+ 3 in row 1"),
    ("decode_step", "length", lambda: torch.tensor([2**63 - 1, 0]), r"length \+ tokens <= .*11.*, got"),
    ("decode_step", "length", lambda: torch.tensor([4, -2]), "length >= 0, or -1 for an idle row, got -2 in row 1"),
    ("decode_step", "length", lambda: torch.tensor([5, 5], dtype=torch.int32), "length as an int64 tensor"),
    ("decode_step", "length", lambda: torch.tensor(5), r"length as an int64 tensor of shape \[2\]"),
    ("decode_step", "length", lambda: torch.tensor([5]), r"length as .* of shape \[2\] \(one a row\), got .* \[1\]"),
    ("decode_step", "length", lambda: torch.tensor([5, 5]).to("meta"), "one device, got cpu and meta"),
    ("float32_linear", "input", lambda: torch.randn(70), r"input of shape \[M, K\], got \[70\]"),
    ("float32_linear", "input", lambda: torch.randn(3, 70).half(), "input of dtype float32"),
    ("float32_linear", "input", lambda: torch.randn(3, 69), r"weight of shape \[5, 69\].*, got \[5, 70\]"),
    ("float32_linear", "input", lambda: torch.randn(3, 0), r"with K > 0, got \[3, 0\]"),
    ("float32_linear", "input", lambda: torch.randn(3, 70, requires_grad=True), NEEDS_GRAD),
    ("float32_linear", "input", lambda: torch.randn(3, 70).to("meta"), "on the cpu, got meta|one device, got cpu and meta"),
    ("float32_linear", "weight", lambda: torch.randn(70), r"weight of shape \[N, K\]"),
    ("float32_linear", "weight", lambda: torch.randn(5, 70).double(), "weight of .*(float32, got Double|float64)"),
    ("float32_linear", "bias", lambda: torch.randn(4), r"bias of shape \[5\].*, got \[4\]"),
    ("float32_linear", "bias", lambda: torch.randn(5).half(), "bias of .*float32"),
    ("float32_linear", "residual", lambda: torch.randn(3, 4), r"residual of shape \[3, 5\].*, got \[3, 4\]"),
    ("float32_linear", "residual", lambda: torch.randn(3, 5).half(), "residual of .*float32"),
    ("float32_conv", "input", lambda: torch.randn(9, 7), r"input of shape \[B, T, C\], got \[9, 7\]"),
    ("float32_conv", "input", lambda: torch.randn(2, 9, 7).double(), "input of dtype float32"),
    ("float32_conv", "input", lambda: torch.randn(2, 9, 6), r"weight of shape \[3, 6, 5\].*, got \[3, 7, 5\]"),
    ("float32_conv", "input", lambda: torch.randn(3, 9, 7), r"before of shape \[3, 4, 7\].*, got \[2, 4, 7\]"),
    ("float32_conv", "input", lambda: torch.randn(2, 9, 7, requires_grad=True), NEEDS_GRAD),
    ("float32_conv", "input", lambda: torch.randn(2, 9, 7).to("meta"), "on the cpu, got meta|one device, got cpu and meta"),
    ("float32_conv", "before", lambda: torch.randn(2, 3, 7), r"before of shape \[2, 4, 7\].*, got \[2, 3, 7\]"),
    ("float32_conv", "before", lambda: torch.randn(2, 4, 7).half(), "before of .*float32"),
    ("float32_conv", "weight", lambda: torch.randn(7, 5), r"weight of shape \[taps, C, N\], got \[7, 5\]"),
    ("float32_conv", "weight", lambda: torch.randn(0, 7, 5), r"with taps > 0 and C > 0, got \[0, 7, 5\]"),
    ("float32_conv", "weight", lambda: torch.randn(3, 0, 5), r"with taps > 0 and C > 0, got \[3, 0, 5\]"),
    ("float32_conv", "weight", lambda: torch.randn(3, 7, 5).half(), "weight of .*float32"),
    ("float32_conv", "bias", lambda: torch.randn(4), r"bias of shape \[5\].*, got \[4\]"),
    ("float32_conv", "bias", lambda: torch.randn(5).half(), "bias of .*float32"),
    ("float32_conv", "residual", lambda: torch.randn(2, 9, 4), r"residual of shape \[2, 9, 5\].*, got \[2, 9, 4\]"),
    ("float32_conv", "residual", lambda: torch.randn(2, 9, 5).half(), "residual of .*float32"),
    ("float32_conv", "dilation", lambda: 0, "dilation > 0, got 0"),
    ("lstm_layer", "gates", lambda: torch.randn(3, 128), r"gates of shape \[B, T, 4 \* H\], got \[3, 128\]"),
    ("lstm_layer", "gates", lambda: torch.randn(2, 3, 127), r"gates of shape \[2, 3, 128\].*, got \[2, 3, 127\]"),
    ("lstm_layer", "gates", lambda: torch.randn(2, 3, 128).half(), "gates of .*float32"),
    ("lstm_layer", "gates", lambda: torch.randn(2, 3, 128, requires_grad=True), NEEDS_GRAD),
    ("lstm_layer", "weight", lambda: torch.randn(128, 32), r"weight of shape \[H / 16, H, 4, 16\], got \[128, 32\]"),
    ("lstm_layer", "weight", lambda: torch.randn(2, 24, 4, 16), r"with H a multiple of 16, got \[2, 24, 4, 16\]"),
    ("lstm_layer", "weight", lambda: torch.randn(2, 48, 4, 16), r"weight of shape \[3, 48, 4, 16\].*, got \[2, 48, 4, 16\]"),
    ("lstm_layer", "weight", lambda: torch.randn(2, 32, 4, 16).half(), "weight of .*float32"),
    ("lstm_layer", "hidden", lambda: torch.randn(3, 32), r"hidden of shape \[2, 32\].*, got \[3, 32\]"),
    ("lstm_layer", "hidden", lambda: torch.randn(2, 32).half(), "hidden of .*float32"),
    ("lstm_layer", "cell", lambda: torch.randn(2, 31), r"cell of shape \[2, 32\].*, got \[2, 31\]"),
    ("float32_attention", "query", lambda: torch.randn(2, 3, 16), r"query of shape \[B, T, H, D\]"),
    ("float32_attention", "query", lambda: torch.randn(2, 3, 2, 8).half(), "query of dtype float32"),
    ("float32_attention", "query", lambda: torch.randn(2, 10, 2, 8), r"as many keys as queries \(10\).*, got 9"),
    ("float32_attention", "query", lambda: torch.randn(2, 3, 2, 0), "head size of at least 1, got 0"),
    ("float32_attention", "query", lambda: torch.randn(2, 3, 2, 8, requires_grad=True), NEEDS_GRAD),
    ("float32_attention", "key", lambda: torch.randn(2, 9, 8), r"key of shape \[B, H, S, D\]"),
    ("float32_attention", "key", lambda: torch.randn(2, 1, 9, 8), r"key of shape \[2, 2, 9, 8\]"),
    ("float32_attention", "key", lambda: torch.randn(2, 2, 0, 8), "at least one key, got 0"),
    ("float32_attention", "key", lambda: torch.randn(2, 2, 9, 8).half(), "key of .*float32"),
    ("float32_attention", "value", lambda: torch.randn(2, 2, 8, 8), r"value of shape \[2, 2, 9, 8\]"),
    ("float32_attention", "value", lambda: torch.randn(2, 2, 9, 8).half(), "value of .*float32"),
    ("int16_linear", "input", lambda: torch.randn(70), r"input of shape \[M, K\], got \[70\]"),
    ("int16_linear", "input", lambda: torch.randn(3, 70).half(), "input of dtype float32"),
    ("int16_linear", "input", lambda: torch.randn(3, 69), r"weight of shape \[5, 69\], got \[5, 70\]"),
    ("int16_linear", "input", lambda: torch.randn(3, 70, requires_grad=True), NEEDS_GRAD),
    ("int16_linear", "input", lambda: torch.randn(3, 70).to("meta"), "on the cpu, got meta|one device, got cpu and meta"),
    ("int16_linear", "weight", lambda: torch.ones(70), r"weight of shape \[N, K\]"),
    ("int16_linear", "weight", lambda: torch.randn(5, 70), "scales with an int8 weight and only then, got scales"),
    ("int16_linear", "scales", lambda: None, "scales with an int8 weight and only then, got none"),
    ("int16_linear", "scales", lambda: torch.rand(5, 1), r"scales of shape \[5, 2\].*, got \[5, 1\]"),
    ("int16_linear", "scales", lambda: torch.rand(5, 2).half(), "scales of .*float32"),
    ("int16_linear", "bias", lambda: torch.randn(4), r"bias of shape \[5\].*, got \[4\]"),
    ("int16_linear", "bias", lambda: torch.randn(5).half(), "bias of .*float32"),
    ("int8_linear", "input", lambda: torch.randn(70), r"input of shape \[M, K\], got \[70\]"),
    ("int8_linear", "input", lambda: torch.randn(3, 70).half(), "input of dtype float32"),
    ("int8_linear", "input", lambda: torch.randn(3, 69), r"weight of shape \[5, 69\], got \[5, 70\]"),
    ("int8_linear", "input", lambda: torch.randn(3, 70, requires_grad=True), NEEDS_GRAD),
    ("int8_linear", "weight", lambda: torch.randn(5, 70), "weight of dtype int8, got"),
    ("int8_linear", "scales", lambda: torch.rand(5, 1), r"scales of shape \[5, 2\].*, got \[5, 1\]"),
    ("int8_linear", "scales", lambda: torch.rand(5, 2).half(), "scales of .*float32"),
    ("int8_linear", "bias", lambda: torch.randn(4), r"bias of shape \[5\].*, got \[4\]"),
    ("int16_attention", "query", lambda: torch.randn(2, 3, 16), r"query of shape \[B, T, H, D\]"),
    ("int16_attention", "query", lambda: torch.randn(2, 3, 2, 8).half(), "query of dtype float32"),
    ("int16_attention", "query", lambda: torch.randn(2, 3, 2, 257), "head size of 1 to 256, got 257"),
    ("int16_attention", "query", lambda: torch.randn(2, 10, 2, 8), r"as many keys as queries \(10\).*, got 9"),
    ("int16_attention", "query", lambda: torch.randn(2, 3, 2, 8, requires_grad=True), NEEDS_GRAD),
    ("int16_attention", "key", lambda: torch.randn(2, 9, 8), r"key of shape \[B, H, S, D\]"),
    ("int16_attention", "key", lambda: torch.randn(2, 1, 9, 8), r"key of shape \[2, 2, 9, 8\]"),
    ("int16_attention", "key", lambda: torch.randn(2, 2, 9, 8).double(), "key of dtype float32, float16"),
    ("int16_attention", "value", lambda: torch.randn(2, 2, 8, 8).half(), r"value of shape \[2, 2, 9, 8\]"),
    ("int16_attention", "value", lambda: torch.randn(2, 2, 9, 8), "value of .*"),
]  # fmt: skip


@pytest.mark.parametrize("backend", [ops, torch_ops], ids=["native", "torch"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{c[3][:24]}")
def test_refusal(backend: Any, case: tuple[str, str, Any, str]) -> None:
    op, name, make, message = case
    with torch.set_grad_enabled(message == NEEDS_GRAD), pytest.raises(ValueError, match=message) as error:
        call_with(backend, op, name, make())
    text = str(error.value).splitlines()[0]
    assert text.startswith(f"{op}: expected ") and ", got " in text


@pytest.mark.parametrize("count", [1, 5, 16, 40])
@pytest.mark.parametrize("top_k", [0, 5])
def test_bad_noise_never_gives_an_id_outside(count: int, top_k: int) -> None:
    """The SIMD padding of a row must not win where its noise is no noise."""
    logits = torch.randn(1, count)
    for bad in (torch.full((1, count), float("nan")), -torch.rand(1, count)):
        with pytest.raises(ValueError, match="noise > 0"):
            ops.fused_sample(logits, bad, *rules(0, 0, count, top_k=top_k))


def test_none_for_a_tensor_is_refused_and_holds_nothing() -> None:
    """The dispatcher lets it pass; tensors beside it are given back."""
    logits, temperature = torch.randn(2, 8), torch.ones(1, dtype=torch.float64)
    before = temperature._use_count()
    for _ in range(10):
        with pytest.raises(ValueError, match="expected a tensor as argument 3, got None"):
            ops.fused_sample(logits, None, 0, None, None, temperature)  # type: ignore[arg-type]
    assert temperature._use_count() == before
