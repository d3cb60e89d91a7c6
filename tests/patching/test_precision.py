"""16-bit models: no further from float32 than Transformers' own 16-bit model, on teacher-forced logits."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from bark_models import SUNO, build, texts
from parity import accelerated_copy

from bark_accel.backend import get_ops
from bark_accel.bidirectional import bidirectional_forward
from bark_accel.gpt import CausalModel
from bark_accel.kv_cache import KVCachePool
from bark_accel.layers import linear
from bark_accel.patches import extract

CPU = torch.device("cpu")
# Ours may be this much worse in mean absolute error than stock in the same dtype: none, but for chance.
SLACK = 1.0


def causal_logits(stage, module, tokens):
    """Logits [T, V] of teacher-forced tokens: a prefill of the first half, then one token at a time."""
    weights, spec = extract.transformer_weights(stage, module), extract.transformer_spec(module)
    ops, rows = get_ops("native", CPU), []
    model, vocabulary = CausalModel(weights, spec, ops), slice(0, spec.output_vocab_size)
    with KVCachePool().borrow(spec, 1, weights.cache_dtype, CPU) as cache:
        half = tokens.shape[1] // 2
        for part in (tokens[:, :half], *tokens[:, half:].split(1, dim=1)):
            rows.append(model.next_logits(part, cache, vocabulary))
    return torch.cat(rows).float()


def fine_logits(module, codes, codebook):
    weights, spec = extract.transformer_weights("fine", module), extract.transformer_spec(module)
    ops = get_ops("native", CPU)
    hidden = ops.codebook_embedding_sum(codes, weights.token_tables[: codebook + 1], weights.positions)
    head = weights.heads[codebook - module.config.n_codes_given]
    return linear(bidirectional_forward(weights, spec, hidden, ops), head, ops)


def compare(name, reference, stock, ours):
    """Mean error, KL divergence and top-1 agreement against float32."""

    def error(x):
        return (x - reference).abs().mean().item()

    def kl(x):
        return F.kl_div(x.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean").item()

    def agreement(x):
        return (x.argmax(-1) == reference.argmax(-1)).float().mean().item()

    print(
        f"{name}: error {error(ours):.2e} (stock {error(stock):.2e}), KL {kl(ours):.2e} ({kl(stock):.2e}), "
        f"top-1 {agreement(ours):.3f} ({agreement(stock):.3f})"
    )
    assert error(ours) <= SLACK * error(stock)
    assert kl(ours) <= 1.05 * kl(stock)
    assert agreement(ours) >= agreement(stock) - 0.02


@pytest.fixture(scope="module")
def models():
    base = build(SUNO, width=256, layers=4, heads=4, sharpen=2.0)
    return {dtype: copy.deepcopy(base).to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage, name", [("semantic", "semantic"), ("coarse", "coarse_acoustics")])
@torch.no_grad()
def test_causal_logits(models, dtype, stage, name):
    tokens = torch.randint(0, 12_000, (1, 256))
    full, low = getattr(models[torch.float32], name), getattr(models[dtype], name)
    half = tokens.shape[1] // 2
    rows = slice(half - 1, None)
    reference = full(tokens).logits[0, rows]
    torch.testing.assert_close(causal_logits(stage, full, tokens), reference, rtol=0, atol=2e-4)
    compare(f"{stage} {dtype}", reference, low(tokens).logits[0, rows].float(), causal_logits(stage, low, tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_fine_logits(models, dtype):
    codes = torch.randint(0, 1024, (1, 200, 8))
    full, low = models[torch.float32].fine_acoustics, models[dtype].fine_acoustics
    for codebook in (2, 7):
        reference = full(codebook, codes).logits
        torch.testing.assert_close(fine_logits(full, codes, codebook), reference, rtol=0, atol=2e-4)
        stock = low(codebook, codes).logits.float()
        compare(f"fine {codebook} {dtype}", reference, stock, fine_logits(low, codes, codebook))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_generates_from_end_to_end(models, dtype):
    fast = accelerated_copy(models[dtype])
    options = {"do_sample": True, "semantic_max_new_tokens": 20, "fine_temperature": 0.5}
    audio = fast.generate(**texts(SUNO, [6, 9]), **options)
    assert audio.dtype == dtype and audio.shape == (2, 60 // 2 * 320) and audio.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codec(models, dtype):
    codes = torch.randint(0, 1024, (1, 8, 40))
    with torch.no_grad():
        reference = models[torch.float32].codec_decode(codes)
        stock = models[dtype].codec_decode(codes).float()
        ours = accelerated_copy(models[dtype]).codec_decode(codes).float()
    assert (ours - reference).abs().mean() <= SLACK * (stock - reference).abs().mean() + 1e-6
