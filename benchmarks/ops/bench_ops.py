"""Each compiled op against what stock runs in its place, at Bark's shapes (bark-small: 12 heads of 64)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.logits_process import (
    BarkEosPrioritizerLogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from bark_accel.decoding.sampling import SampleRules, SamplingConfig, TokenRange
from bark_accel.ops import float32_candidates, reference
from bark_accel.ops import native as ops
from benchmarks.ops.interleaved import compare

CPU = torch.device("cpu")
HEADS, HEAD_DIM, CAPACITY = 12, 64, 1024
ROUNDS = 60
LAYERS = 12
"""Caches taken in turn, so that no call finds its own in the CPU's cache."""


@pytest.mark.parametrize("top_k", [50, 0])
@pytest.mark.parametrize("rows", [1, 8])
def test_sample_semantic(benchmark: Any, top_k: int, rows: int) -> None:
    """Vocabulary 10048, ids 0..9999 and the EOS allowed, temperature 0.7; noise in full, or drawn by the op."""
    logits, eos, generator = torch.randn(rows, 10048) * 3, 10000, torch.Generator().manual_seed(0)
    chain = LogitsProcessorList(
        [
            SuppressTokensLogitsProcessor(list(range(eos + 1, 10048))),
            BarkEosPrioritizerLogitsProcessor(eos, 0.2),
            TemperatureLogitsWarper(0.7),
            *([TopKLogitsWarper(top_k)] if top_k else []),
        ]
    )
    fixed = torch.empty(rows, 10048).exponential_(generator=generator)
    config = SamplingConfig(True, 1, 0.7, top_k, min_eos_p=0.2, renormalize=True)
    rules = SampleRules.of([(config, TokenRange(0, eos, eos))], CPU).arguments

    def stock() -> torch.Tensor:
        probabilities = chain(fixed, logits).log_softmax(-1).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)

    def full_noise() -> torch.Tensor:
        return ops.fused_sample(logits, torch.empty(rows, 10048).exponential_(generator=generator), *rules)

    baselines = {"stock": stock, "ours, full noise": full_noise}
    group = f"sample, semantic, {rows} x 10048, top-k {top_k}"
    compare(benchmark, group, lambda: ops.fused_multinomial(logits, generator, 10048, *rules), baselines, rounds=ROUNDS)


def test_sample_fine(benchmark: Any) -> None:
    """All 1024 frames of a fine pass over 1024 codes; stock samples them without any processor."""
    logits, generator = torch.randn(1024, 1024) * 3, torch.Generator().manual_seed(0)

    def stock() -> torch.Tensor:
        return torch.multinomial((logits / 0.5).softmax(-1), 1, generator=generator)

    rules = SampleRules.of([(SamplingConfig(True, 1, 0.5), TokenRange(0, 1024))], CPU).arguments

    def full_noise() -> torch.Tensor:
        return ops.fused_sample(logits, torch.empty(1024, 1024).exponential_(generator=generator), *rules)

    def lazy_noise() -> torch.Tensor:
        return ops.fused_multinomial(logits, generator, 1024, *rules)

    baselines = {"stock": stock, "ours, full noise": full_noise}
    compare(benchmark, "sample, fine, 1024 x 1024", lazy_noise, baselines, rounds=20)


@pytest.mark.parametrize("last", [2, 7])
def test_embedding_sum(benchmark: Any, last: int) -> None:
    """The fine model's input for codebook `last`: 1024 frames, width 768."""
    codes = torch.randint(0, 1056, (1, 1024, 8))
    tables, positions = [torch.randn(1056, 768) for _ in range(8)], torch.randn(1024, 768)

    def stock() -> torch.Tensor:
        looked_up = [torch.nn.functional.embedding(codes[:, :, i], t).unsqueeze(-1) for i, t in enumerate(tables)]
        return torch.cat(looked_up, dim=-1)[:, :, :, : last + 1].sum(dim=-1) + positions

    compare(
        benchmark,
        f"embedding sum, 1024 frames, codebook {last}",
        lambda: ops.codebook_embedding_sum(codes, tables[: last + 1], positions),
        {"stock": stock},
        rounds=ROUNDS,
    )


def stock_attention(
    keys: torch.Tensor, values: torch.Tensor, causal: torch.Tensor, projected: torch.Tensor, length: int
) -> torch.Tensor:
    """BarkSelfAttention between its two projections, on a DynamicCache of `length` entries."""
    tokens = projected.shape[1]
    query, key, value = (x.view(1, tokens, HEADS, HEAD_DIM).transpose(1, 2) for x in projected.chunk(3, dim=2))
    cache = DynamicCache()
    if length:
        cache.update(keys[:, :, :0], values[:, :, :0], 0)
        cache.layers[0].keys, cache.layers[0].values = keys[:, :, :length], values[:, :, :length]
    key, value = cache.update(key, value, 0)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (1.0 / math.sqrt(HEAD_DIM))
    visible = causal[:, :, length : length + tokens, : length + tokens]
    scores = scores.masked_fill(visible == 0, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.matmul(scores, value).transpose(1, 2).reshape(1, tokens, HEADS * HEAD_DIM)


def sdpa(keys: torch.Tensor, values: torch.Tensor, projected: torch.Tensor, length: int) -> torch.Tensor:
    tokens, end = projected.shape[1], length + projected.shape[1]
    query, key, value = (x.view(1, tokens, HEADS, HEAD_DIM).transpose(1, 2) for x in projected.chunk(3, dim=2))
    keys[:, :, length:end], values[:, :, length:end] = key, value
    mask = None if tokens == 1 or length == 0 else torch.ones(tokens, end, dtype=torch.bool).tril(length)
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys[:, :, :end], values[:, :, :end], attn_mask=mask, is_causal=mask is None and tokens > 1
    )


@pytest.mark.parametrize(("tokens", "length"), [(1, 600), (1, 900), (8, 600), (60, 256), (887, 0)])
def test_attention(benchmark: Any, tokens: int, length: int) -> None:
    projected = torch.randn(1, tokens, 3 * HEADS * HEAD_DIM)
    buffers = [torch.randn(2, 1, HEADS, CAPACITY, HEAD_DIM) for _ in range(LAYERS)]
    query, key, value = projected.view(1, tokens, 3, HEADS, HEAD_DIM).unbind(2)
    position, turn = torch.tensor([length]), iter(range(10**9))
    causal = torch.ones(CAPACITY, CAPACITY, dtype=torch.bool).tril()[None, None]

    def native() -> torch.Tensor:
        return ops.static_cache_attention(query, key, value, *buffers[next(turn) % LAYERS], position)

    baselines = {
        "stock": lambda: stock_attention(*buffers[next(turn) % LAYERS], causal, projected, length),
        "torch SDPA": lambda: sdpa(*buffers[next(turn) % LAYERS], projected, length),
    }
    compare(benchmark, f"attention, {tokens} new after {length}", native, baselines, rounds=ROUNDS)


SHAPES = [(1024, 3072, 768), (1024, 768, 3072), (1024, 768, 768), (257, 3072, 768)]


@pytest.mark.parametrize(("rows", "outputs", "inner"), [*SHAPES, (887, 3072, 768)])
def test_float32_linear(benchmark: Any, rows: int, outputs: int, inner: int) -> None:
    """A block's product in float32 by our kernel, by torch's library and by oneDNN; other weights in each call."""
    x, weights, turn = torch.randn(rows, inner), torch.randn(6, outputs, inner) * 0.02, iter(range(10**9))
    weight = lambda: weights[next(turn) % len(weights)]  # noqa: E731
    baselines = {
        "torch": lambda: torch.nn.functional.linear(x, weight()),
        "oneDNN": lambda: float32_candidates.onednn_linear(x, weight()),
    }
    group = f"linear, {rows} x {inner} to {outputs}, float32"
    native = lambda: ops.float32_linear(x, weight())  # noqa: E731
    with torch.no_grad():
        compare(benchmark, group, native, baselines, rounds=20, multiply_adds=rows * outputs * inner)


# EnCodec's layers, 64 frames of the codec: frames, channels, taps, outputs.
CONVOLUTIONS = [(64, 512, 2, 2048), (512, 256, 3, 128), (2560, 128, 2, 256), (20480, 32, 3, 16), (20480, 32, 7, 1)]


@pytest.mark.parametrize(("frames", "channels", "taps", "outputs"), CONVOLUTIONS)
def test_float32_conv(benchmark: Any, frames: int, channels: int, taps: int, outputs: int) -> None:
    """A convolution over the ELU of its input, against torch's, whose channels come before time."""
    x, before = torch.randn(1, frames, channels), torch.randn(1, taps - 1, channels)
    weight = torch.randn(taps, channels, outputs) * 0.02
    theirs, filters = torch.cat([before, x], dim=1).mT.contiguous(), weight.permute(2, 1, 0).contiguous()
    functional = torch.nn.functional
    baselines = {
        "torch": lambda: functional.conv1d(functional.elu(theirs), filters),
        "a product for each tap": lambda: reference.float32_conv(x, before, weight, elu=True),
    }
    group = f"convolution, {frames} x {channels}, {taps} taps, to {outputs}, float32"
    native = lambda: ops.float32_conv(x, before, weight, elu=True)  # noqa: E731
    with torch.no_grad():
        compare(benchmark, group, native, baselines, rounds=20, multiply_adds=frames * channels * taps * outputs)


@pytest.mark.parametrize("rows", [1, 8])
def test_lstm_layer(benchmark: Any, rows: int) -> None:
    """A layer of 512 units over 375 steps, against torch's; without the inputs' products, which torch has inside."""
    gates, weight = torch.randn(rows, 375, 2048), torch.randn(32, 512, 4, 16) / 24
    state = torch.zeros(2, rows, 512)
    lstm, x = torch.nn.LSTM(512, 512, batch_first=True), torch.randn(rows, 375, 512)
    with torch.no_grad():
        native = lambda: ops.lstm_layer(gates, weight, *state)  # noqa: E731
        compare(benchmark, f"LSTM layer, {rows} rows", native, {"torch": lambda: lstm(x)}, rounds=10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1024, 887, 257])
def test_float32_block_attention(benchmark: Any, causal: bool, tokens: int) -> None:
    """Queries and keys of 12 heads, views of one packed projection, in float32."""
    query, key, value = torch.randn(1, tokens, 3, HEADS, HEAD_DIM).transpose(1, 3).unbind(2)
    attention = torch.nn.functional.scaled_dot_product_attention
    baselines = {"torch": lambda: attention(query, key, value, is_causal=causal)}
    group = f"block attention, {tokens}, {'causal' if causal else 'bidirectional'}, float32"
    native = lambda: ops.float32_attention(query.transpose(1, 2), key, value, causal)  # noqa: E731
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    compare(benchmark, group, native, baselines, rounds=20, multiply_adds=2 * pairs * HEADS * HEAD_DIM)


@pytest.mark.parametrize("weights", ["float16", "int8"])
@pytest.mark.parametrize(("rows", "outputs", "inner"), SHAPES)
def test_linear(benchmark: Any, weights: str, rows: int, outputs: int, inner: int) -> None:
    """One product of a block, against torch's. `int_mm` is the bare int8 product: 1e-2 off, and no rescaling."""
    x, weight = torch.randn(rows, inner), torch.randn(outputs, inner) * 0.02
    half, brain = weight.half(), weight.bfloat16()
    x8, weight8 = (x * 30).to(torch.int8), (weight * 1000).to(torch.int8)
    scales, row_scales = torch.rand(outputs, inner // 64), torch.rand(outputs).bfloat16()
    linear = torch.nn.functional.linear
    baselines = {
        "torch float32": lambda: linear(x, weight),
        "torch float16": lambda: linear(x.half(), half),
        "torch bfloat16": lambda: linear(x.bfloat16(), brain),
        "torch int8 (bare)": lambda: torch._int_mm(x8, weight8.t()),
        "torch int8pack_mm": lambda: torch._weight_int8pack_mm(x.bfloat16(), weight8, row_scales),
    }
    run = {"float16": lambda: ops.int16_linear(x, half), "int8": lambda: ops.int16_linear(x, weight8, scales)}[weights]
    group = f"linear, {rows} x {inner} to {outputs}, {weights}"
    compare(benchmark, group, run, baselines, rounds=20, multiply_adds=rows * outputs * inner)


@pytest.mark.parametrize(("rows", "outputs", "inner"), SHAPES)
def test_int8_linear(benchmark: Any, rows: int, outputs: int, inner: int) -> None:
    """A block's product with activations of 8 bits, against the one with 16 on the same int8 weights."""
    x, weight = torch.randn(rows, inner), (torch.randn(outputs, inner) * 20).to(torch.int8)
    scales = torch.rand(outputs, inner // 64)
    baselines = {"int16_linear": lambda: ops.int16_linear(x, weight, scales)}
    group, run = f"linear, {rows} x {inner} to {outputs}, w8a8", lambda: ops.int8_linear(x, weight, scales)
    compare(benchmark, group, run, baselines, rounds=20, multiply_adds=rows * outputs * inner)


@pytest.mark.parametrize("weights", ["int8", "w8a8"])
@pytest.mark.parametrize(("rows", "outputs", "inner"), [(64, 3072, 768), *SHAPES])
def test_packed_linear(benchmark: Any, weights: str, rows: int, outputs: int, inner: int) -> None:
    """A block's product by weights that were packed ahead, against those that are packed in every call."""
    x, weight = torch.randn(rows, inner), (torch.randn(outputs, inner) * 20).to(torch.int8)
    scales, linear = torch.rand(outputs, inner // 64), ops.int8_linear if weights == "w8a8" else ops.int16_linear
    packed = ops.pack_linear(weight, scales, weights == "w8a8")
    baselines = {"packed in every call": lambda: linear(x, weight, scales)}
    group, run = f"linear, {rows} x {inner} to {outputs}, {weights}, packed", lambda: ops.packed_linear(x, packed)
    compare(benchmark, group, run, baselines, rounds=20, multiply_adds=rows * outputs * inner)


@pytest.mark.parametrize("causal", [False, True])
def test_block_attention(benchmark: Any, causal: bool) -> None:
    """1024 queries and keys of 12 heads, views of one packed projection."""
    query, key, value = torch.randn(1, 1024, 3, HEADS, HEAD_DIM).transpose(1, 3).unbind(2)
    halves = query.half(), key.half(), value.half()
    attention = torch.nn.functional.scaled_dot_product_attention
    baselines = {
        "torch float32": lambda: attention(query, key, value, is_causal=causal),
        "torch float16": lambda: attention(*halves, is_causal=causal),
    }
    group = f"block attention, 1024, {'causal' if causal else 'bidirectional'}"
    compare(
        benchmark, group, lambda: ops.int16_attention(query.transpose(1, 2), key, value, causal), baselines, rounds=20
    )
