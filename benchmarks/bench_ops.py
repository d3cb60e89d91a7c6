"""Each compiled op against what stock runs in its place, at Bark's shapes (bark-small: 12 heads of 64).

pytest benchmarks/bench_ops.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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

from bark_accel import ops

HEADS, HEAD_DIM, CAPACITY = 12, 64, 1024
LAYERS = 12
"""Caches taken in turn, so that no call finds its own in the CPU's cache."""


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def measure(benchmark, run: Callable[[], object]) -> None:
    benchmark.pedantic(run, warmup_rounds=10, rounds=60, iterations=1)


def compare(benchmark, which: str, candidates: dict[str, Callable[[], object]], group: str) -> None:
    benchmark.group = group
    measure(benchmark, candidates[which])


@pytest.mark.parametrize("which", ["stock", "full_noise", "lazy_noise", "without_noise"])
@pytest.mark.parametrize("top_k", [50, 0])
@pytest.mark.parametrize("rows", [1, 8])
def test_sample_semantic(benchmark, which: str, top_k: int, rows: int) -> None:
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
    rules = (0, 0, eos, eos, 0.2, 0.7, top_k)

    def stock() -> torch.Tensor:
        probabilities = chain(fixed, logits).log_softmax(-1).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)

    def full_noise() -> torch.Tensor:
        return ops.fused_sample(logits, torch.empty(rows, 10048).exponential_(generator=generator), *rules)

    candidates = {
        "stock": stock,
        "full_noise": full_noise,
        "lazy_noise": lambda: ops.fused_multinomial(logits, generator, 10048, *rules),
        "without_noise": lambda: ops.fused_sample(logits, fixed, *rules),
    }
    compare(benchmark, which, candidates, f"sample, semantic, {rows} x 10048, top-k {top_k}")


@pytest.mark.parametrize("which", ["stock", "full_noise", "lazy_noise", "without_noise"])
def test_sample_fine(benchmark, which: str) -> None:
    """All 1024 frames of a fine pass over 1024 codes; stock samples them without any processor."""
    logits, generator = torch.randn(1024, 1024) * 3, torch.Generator().manual_seed(0)
    fixed = torch.empty(1024, 1024).exponential_(generator=generator)

    def stock() -> torch.Tensor:
        return torch.multinomial((logits / 0.5).softmax(-1), 1, generator=generator)

    def full_noise() -> torch.Tensor:
        noise = torch.empty(1024, 1024).exponential_(generator=generator)
        return ops.fused_sample(logits, noise, 0, 0, 1024, temperature=0.5, renormalize=False)

    def lazy_noise() -> torch.Tensor:
        return ops.fused_multinomial(logits, generator, 1024, 0, 0, 1024, temperature=0.5, renormalize=False)

    candidates = {
        "stock": stock,
        "full_noise": full_noise,
        "lazy_noise": lazy_noise,
        "without_noise": lambda: ops.fused_sample(logits, fixed, 0, 0, 1024, temperature=0.5, renormalize=False),
    }
    compare(benchmark, which, candidates, "sample, fine, 1024 x 1024")


@pytest.mark.parametrize("which", ["stock", "native"])
@pytest.mark.parametrize("last", [2, 7])
def test_embedding_sum(benchmark, which: str, last: int) -> None:
    """The fine model's input for codebook `last`: 1024 frames, width 768."""
    codes = torch.randint(0, 1056, (1, 1024, 8))
    tables, positions = [torch.randn(1056, 768) for _ in range(8)], torch.randn(1024, 768)

    def stock() -> torch.Tensor:
        looked_up = [torch.nn.functional.embedding(codes[:, :, i], t).unsqueeze(-1) for i, t in enumerate(tables)]
        return torch.cat(looked_up, dim=-1)[:, :, :, : last + 1].sum(dim=-1) + positions

    candidates = {
        "stock": stock,
        "native": lambda: ops.codebook_embedding_sum(codes, tables[: last + 1], positions),
    }
    compare(benchmark, which, candidates, f"embedding sum, 1024 frames, codebook {last}")


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


@pytest.mark.parametrize("which", ["stock", "sdpa", "native", "native_fp16"])
@pytest.mark.parametrize(("tokens", "length"), [(1, 600), (1, 900), (8, 600), (60, 256), (887, 0)])
def test_attention(benchmark, which: str, tokens: int, length: int) -> None:
    dtype = torch.float16 if which == "native_fp16" else torch.float32
    projected = torch.randn(1, tokens, 3 * HEADS * HEAD_DIM).to(dtype)
    buffers = [torch.randn(2, 1, HEADS, CAPACITY, HEAD_DIM).to(dtype) for _ in range(LAYERS)]
    query, key, value = projected.view(1, tokens, 3, HEADS, HEAD_DIM).unbind(2)
    position, turn = torch.tensor([length]), iter(range(10**9))
    causal = torch.ones(CAPACITY, CAPACITY, dtype=torch.bool).tril()[None, None]

    def native() -> torch.Tensor:
        return ops.static_cache_attention(query, key, value, *buffers[next(turn) % LAYERS], position)

    candidates = {
        "stock": lambda: stock_attention(*buffers[next(turn) % LAYERS], causal, projected, length),
        "sdpa": lambda: sdpa(*buffers[next(turn) % LAYERS], projected, length),
        "native": native,
        "native_fp16": native,
    }
    benchmark.extra_info["cache_bytes"] = 2 * HEADS * (length + tokens) * HEAD_DIM * projected.element_size()
    compare(benchmark, which, candidates, f"attention, {tokens} new after {length}")


@pytest.mark.parametrize(
    "which", ["fp32", "fp16", "bf16", "int_mm", "int8pack_mm", "native_fp16", "native_int8", "native_gelu"]
)
@pytest.mark.parametrize(
    ("rows", "outputs", "inner"), [(1024, 3072, 768), (1024, 768, 3072), (1024, 768, 768), (257, 3072, 768)]
)
def test_linear(benchmark, which: str, rows: int, outputs: int, inner: int) -> None:
    """One product of a block, against torch's. `int_mm` is the bare int8 product: 1e-2 off, and no rescaling."""
    x, weight = torch.randn(rows, inner), torch.randn(outputs, inner) * 0.02
    half, brain = weight.half(), weight.bfloat16()
    x8, weight8 = (x * 30).to(torch.int8), (weight * 1000).to(torch.int8)
    scales, row_scales = torch.rand(outputs, inner // 64), torch.rand(outputs).bfloat16()
    linear = torch.nn.functional.linear
    candidates = {
        "fp32": lambda: linear(x, weight),
        "fp16": lambda: linear(x.half(), half),
        "bf16": lambda: linear(x.bfloat16(), brain),
        "int_mm": lambda: torch._int_mm(x8, weight8.t()),
        "int8pack_mm": lambda: torch._weight_int8pack_mm(x.bfloat16(), weight8, row_scales),
        "native_fp16": lambda: ops.int16_linear(x, half),
        "native_int8": lambda: ops.int16_linear(x, weight8, scales),
        "native_gelu": lambda: ops.int16_linear(x, half, gelu=True),
    }
    benchmark.extra_info["multiply_adds"] = rows * outputs * inner
    compare(benchmark, which, candidates, f"linear, {rows} x {inner} to {outputs}")


@pytest.mark.parametrize("which", ["sdpa", "sdpa_fp16", "native"])
@pytest.mark.parametrize("causal", [False, True])
def test_block_attention(benchmark, which: str, causal: bool) -> None:
    """1024 queries and keys of 12 heads, views of one packed projection."""
    query, key, value = torch.randn(1, 1024, 3, HEADS, HEAD_DIM).transpose(1, 3).unbind(2)
    halves = query.half(), key.half(), value.half()
    attention = torch.nn.functional.scaled_dot_product_attention
    candidates = {
        "sdpa": lambda: attention(query, key, value, is_causal=causal),
        "sdpa_fp16": lambda: attention(*halves, is_causal=causal),
        "native": lambda: ops.int16_attention(query.transpose(1, 2), key, value, causal),
    }
    compare(benchmark, which, candidates, f"block attention, 1024, {'causal' if causal else 'bidirectional'}")
