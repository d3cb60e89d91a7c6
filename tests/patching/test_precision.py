"""Teacher-forced logits in smaller precisions: of 16-bit models, and of float32 models with smaller weights.

16 bits: no further from float32 than Transformers' own 16-bit model. int8: bounded error, KL and top-1 agreement.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.bark_models import SMALL, SUNO, build, preset, texts
from support.parity import accelerated_copy

from bark_accel import AudioStreamer, stream
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.bidirectional import bidirectional_forward
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool
from bark_accel.transformer.layers import linear
from bark_accel.transformer.precision import convert

CPU = torch.device("cpu")
# Ours may be this much worse in mean absolute error than stock in the same dtype: none, but for chance.
SLACK = 1.0


def causal_logits(stage, module, tokens, precision="same"):
    """Logits [T, V] of teacher-forced tokens: a prefill of the first half, then one token at a time."""
    weights, spec = convert(transformer_weights(stage, module), precision), transformer_spec(module)
    ops, rows = get_ops("native", CPU), []
    model, vocabulary = CausalModel(weights, spec, ops), slice(0, spec.output_vocab_size)
    with KVCachePool().borrow(spec, 1, weights.cache_dtype, CPU) as cache:
        half = tokens.shape[1] // 2
        for part in (tokens[:, :half], *tokens[:, half:].split(1, dim=1)):
            rows.append(model.next_logits(part, cache, vocabulary))
    return torch.cat(rows).float()


def fine_logits(module, codes, codebook, precision="same"):
    weights, spec = convert(transformer_weights("fine", module), precision), transformer_spec(module)
    ops = get_ops("native", CPU)
    hidden = ops.codebook_embedding_sum(codes, weights.token_tables[: codebook + 1], weights.positions)
    head = weights.heads[codebook - module.config.n_codes_given]
    return linear(bidirectional_forward(weights, spec, hidden, ops), head, ops)


def distance(reference, logits):
    """Mean absolute error, KL divergence and top-1 agreement."""
    kl = F.kl_div(logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
    return (logits - reference).abs().mean().item(), kl.item(), agreement.item()


def compare(name, reference, stock, ours):
    """Against float32: ours is at least as close as stock."""
    error, kl, agreement = distance(reference, ours)
    error_stock, kl_stock, agreement_stock = distance(reference, stock)
    print(
        f"{name}: error {error:.2e} (stock {error_stock:.2e}), KL {kl:.2e} ({kl_stock:.2e}), "
        f"top-1 {agreement:.3f} ({agreement_stock:.3f})"
    )
    assert error <= SLACK * error_stock
    assert kl <= 1.05 * kl_stock
    assert agreement >= agreement_stock - 0.02


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


DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("stage, name", [("semantic", "semantic"), ("coarse", "coarse_acoustics")])
@torch.no_grad()
def test_causal_logits_with_smaller_weights(models, precision, stage, name):
    """float32 in between: closer to the float32 model than stock cast to that dtype."""
    tokens = torch.randint(0, 12_000, (1, 200))
    full, low = getattr(models[torch.float32], name), getattr(models[DTYPES[precision]], name)
    rows = slice(99, None)
    reference, stock = full(tokens).logits[0, rows], low(tokens).logits[0, rows].float()
    compare(f"{stage} {precision} weights", reference, stock, causal_logits(stage, full, tokens, precision))


@pytest.mark.parametrize("precision", DTYPES)
@torch.no_grad()
def test_fine_logits_with_smaller_weights(models, precision):
    codes = torch.randint(0, 1024, (1, 150, 8))
    full, low = models[torch.float32].fine_acoustics, models[DTYPES[precision]].fine_acoustics
    for codebook in (2, 7):
        reference, stock = full(codebook, codes).logits, low(codebook, codes).logits.float()
        ours = fine_logits(full, codes, codebook, precision)
        compare(f"fine {codebook} {precision} weights", reference, stock, ours)


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
@torch.no_grad()
def test_int8_weights(models, precision):
    """On these random models: errors of 1 % of the logits' spread, and nearly always the same first choice."""
    tokens, codes = torch.randint(0, 12_000, (1, 200)), torch.randint(0, 1024, (1, 150, 8))
    model = models[torch.float32]
    pairs = {
        "semantic": (
            model.semantic(tokens).logits[0, 99:],
            causal_logits("semantic", model.semantic, tokens, precision),
        ),
        "coarse": (
            model.coarse_acoustics(tokens).logits[0, 99:],
            causal_logits("coarse", model.coarse_acoustics, tokens, precision),
        ),
        "fine": (model.fine_acoustics(4, codes).logits, fine_logits(model.fine_acoustics, codes, 4, precision)),
    }
    for stage, (reference, ours) in pairs.items():
        error, kl, agreement = distance(reference, ours)
        error_share = error / reference.std()
        print(f"{stage} {precision}: error {error_share:.2e} of the spread, KL {kl:.2e}, top-1 {agreement:.3f}")
        assert error < 0.02 * reference.std()
        assert kl < 1e-3
        assert agreement > 0.9
        # Not the float32 weights after all.
        assert error > 1e-3 * reference.std()


@torch.no_grad()
def test_w8a8_rounds_blocks_only(models):
    """Prompts and the fine stage are other than int8's, a decode step is not; and half again as far from float32."""
    model, codes = models[torch.float32], torch.randint(0, 1024, (1, 150, 8))
    few = torch.randint(0, 12_000, (1, 8))
    assert torch.equal(*(causal_logits("semantic", model.semantic, few, p) for p in ("int8", "w8a8")))
    exact = model.fine_acoustics(4, codes).logits
    error = {p: distance(exact, fine_logits(model.fine_acoustics, codes, 4, p))[0] for p in ("int8", "w8a8")}
    assert 1.15 * error["int8"] < error["w8a8"] < 2 * error["int8"]


@pytest.mark.parametrize("weights", ["float16", "bfloat16", "int8", "w8a8"])
def test_generates_with_smaller_weights(small_model, weights):
    """From end to end: a preset, a batch, a stream of one row; the dtype stays the model's."""
    fast = accelerated_copy(small_model, weights=weights)
    options = {"do_sample": True, "semantic_max_new_tokens": 20, "fine_temperature": 0.5}
    for inputs in (texts(SMALL, [6, 9]), texts(SMALL, [6])):
        for history in (None, preset(SMALL, 40, 60)):
            torch.manual_seed(0)
            audio = fast.generate(**inputs, **options, history_prompt=history)
            assert audio.dtype == torch.float32 and audio.shape[1] <= 30 * 320 and audio.isfinite().all()
    torch.manual_seed(0)
    whole = fast.generate(**inputs, **options)
    torch.manual_seed(0)
    streamed = torch.cat(list(stream(fast, streamer=AudioStreamer(fast, policy="exact"), **inputs, **options)), 1)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6)


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
