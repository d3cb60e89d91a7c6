"""`kv_cache_dtype="int8"`: other tokens, the same ones whatever is asked for beside them, and nothing else changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, build, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_untouched, run
from support.stock_limits import skip_where_stock_fails

from bark_accel import (
    AudioStreamer,
    FallbackKind,
    accelerate_bark,
    acceleration_report,
    free_memory,
    restore_bark,
    stream,
    warmup,
)
from bark_accel.hf.transformer import transformer_spec
from bark_accel.patches import api
from bark_accel.patches.patched import stage_patches
from bark_accel.patches.speaker import model_digest
from bark_accel.patches.step_view import StepCache
from bark_accel.report import Fallback
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.weights import TransformerWeights

INT8 = {"kv_cache_dtype": "int8"}
ONE = {**texts(SMALL, [6]), "semantic_max_new_tokens": 40}
SAMPLED = {**ONE, "do_sample": True}
WEIGHTS = ["same", "float16", "int8", "w8a8"]
STAGES = ("semantic", "coarse", "fine")
LINE = "keys and values of 8 bits"


def assert_same_run(expected: Any, got: Any) -> None:
    for stage in STAGES:
        assert torch.equal(expected[0][stage], got[0][stage]), f"{stage} differs"
    assert torch.equal(torch.as_tensor(expected[1]), torch.as_tensor(got[1]))
    assert torch.equal(expected[2], got[2]), "the generators end in different states"


def scores(model: Any, cache_dtype: torch.dtype | None, precision: str, ids: torch.Tensor) -> torch.Tensor:
    """[T, V] after each of ids [1, T]: most of them a prompt in two parts, the rest one at a time."""
    fast = accelerated_copy(model, weights=precision)
    patch = stage_patches(fast)[0]
    weights, spec = patch.converted(patch.weights()), transformer_spec(patch.module)
    causal = CausalModel(weights, spec, patch.ops(torch.device("cpu")), None, cache_dtype)
    cache = KVCache.empty(spec, 1, causal.cache_dtype, torch.device("cpu"))
    rows = slice(0, spec.output_vocab_size)
    parts = [ids[:, :20], ids[:, 20:45], *ids[:, 45:].split(1, dim=1)]
    return torch.cat([causal.next_logits(part, cache, rows) for part in parts])


@pytest.mark.parametrize("precision", WEIGHTS)
def test_scores_are_close(small_model, precision):
    """To those with the dtype that the weights choose: two roundings to 8 bits of what attention reads, no more."""
    ids = torch.randint(0, 80, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = (scores(small_model, dtype, precision, ids) for dtype in (None, torch.int8))
    error = (got - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.02, f"relative error {error}"


@pytest.mark.parametrize("precision", WEIGHTS)
def test_caches_are_of_int8(small_model, precision, monkeypatch):
    made = []
    empty = KVCache.empty.__func__

    def noting(cls: Any, spec: Any, rows: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        made.append(dtype)
        return empty(cls, spec, rows, dtype, device)

    monkeypatch.setattr(KVCache, "empty", classmethod(noting))
    fast = accelerated_copy(small_model, weights=precision, **INT8)
    report = warmup(fast, **texts(SMALL, [6]))
    run(fast, 0, **SAMPLED)
    assert set(made) == {torch.int8}
    assert report.kv_cache_dtype == "int8" and LINE in str(report) and report.fallbacks == ()
    kept = acceleration_report(fast).kv_cache_bytes
    assert 0 < kept < 0.7 * acceleration_report(_warm(small_model, precision)).kv_cache_bytes


def _warm(model: Any, precision: str) -> Any:
    fast = accelerated_copy(model, weights=precision, speculate=False)
    run(fast, 0, **ONE)
    return fast


@pytest.mark.parametrize("precision", ["same", "float16"])
@pytest.mark.parametrize("options", [ONE, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_change_nothing(small_model, precision, options):
    """They share the cache, and what a draft wrote into it is written anew when it is verified."""
    drafting, plain = (
        accelerated_copy(small_model, weights=precision, speculate=drafts, **INT8) for drafts in (True, False)
    )
    for seed in range(3):
        assert_same_run(run(plain, seed, **options), run(drafting, seed, **options))
    assert sum(stage.drafts.accepted_tokens for stage in acceleration_report(drafting).stages if stage.drafts) > 0


@pytest.mark.parametrize("precision", ["same", "int8"])
def test_a_row_of_a_batch_is_the_row_alone(small_model, precision):
    """Of different lengths and voices, greedy, to the bit."""
    fast = accelerated_copy(small_model, weights=precision, **INT8)
    voices = [None, preset(SMALL, 40, 60, seed=2), preset(SMALL, 9, 15, seed=1)]
    greedy = {"do_sample": False, "fine_temperature": None, "semantic_max_new_tokens": 30}
    batch = texts(SMALL, [4, 11, 7])
    rows = fast.generate(**batch, history_prompt=voices, trim=True, **greedy)
    for i, row in enumerate(rows):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        alone = fast.generate(**one, history_prompt=[voices[i]], trim=True, **greedy)
        assert torch.equal(row, alone[0]), f"row {i} differs"


def test_streams(small_model):
    fast = accelerated_copy(small_model, weights="int8", **INT8)
    torch.manual_seed(3)
    whole = fast.generate(**SAMPLED)
    torch.manual_seed(3)
    chunks = list(stream(fast, **SAMPLED, streamer=AudioStreamer(fast, policy="exact")))
    torch.testing.assert_close(torch.cat(chunks, 1), whole, atol=1e-6, rtol=0)


def test_beams(small_model):
    skip_where_stock_fails("beams")
    fast = accelerated_copy(small_model, weights="int8", **INT8)
    one, two = (fast.generate(**ONE, semantic_num_beams=beams) for beams in (1, 2))
    assert one.shape[1] > 0 and two.shape[1] > 0
    assert {r.kind for r in acceleration_report(fast).token_choices} == {FallbackKind.GENERATION_MODE}


def test_beams_read_what_was_reordered(small_model):
    """Beams that are compared with the whole prompt fed anew at each step: entries move with their scales."""
    fast = accelerated_copy(small_model, weights="int8", **INT8)
    patch = stage_patches(fast)[0]
    causal = patch.model(patch.weights())
    ids = torch.randint(0, 80, (3, 9), generator=torch.Generator().manual_seed(1))
    order, more, rows = torch.tensor([2, 0, 0]), torch.tensor([[5], [6], [7]]), slice(0, 90)
    with torch.no_grad():
        cache = StepCache(KVCache.empty(causal.spec, 3, causal.cache_dtype, torch.device("cpu")))
        cache.ids = ids
        causal.prefill_logits(causal.embed(ids) + causal.positions(0, 9), cache.own, rows)
        got = causal.next_logits(more, cache.reorder_cache(order).own, rows)
        again = KVCache.empty(causal.spec, 3, causal.cache_dtype, torch.device("cpu"))
        causal.prefill_logits(causal.embed(ids[order]) + causal.positions(0, 9), again, rows)
        assert torch.equal(got, causal.next_logits(more, again, rows))


def test_lifecycle(small_model):
    """Copied, freed, cast and restored."""
    fast = accelerated_copy(small_model, weights="int8", **INT8)
    expected = run(fast, 1, **SAMPLED)
    kept = acceleration_report(fast).kv_cache_bytes
    assert free_memory(fast) >= kept > 0
    assert_same_run(expected, run(fast, 1, **SAMPLED))
    copied = copy.deepcopy(fast)
    assert_same_run(expected, run(copied, 1, **SAMPLED))
    assert acceleration_report(copied).kv_cache_dtype == "int8"
    assert run(copied.half(), 1, **ONE)[1].shape[1] > 0 and acceleration_report(copied).fallbacks == ()
    accelerate_bark(fast, strict=True)
    assert acceleration_report(fast).kv_cache_dtype == "auto" and LINE not in str(acceleration_report(fast))
    assert_equal_to_stock(small_model, fast, **SAMPLED)
    accelerate_bark(fast, strict=True, **INT8)
    assert_untouched(restore_bark(fast))
    assert_equal_to_stock(small_model, fast, **SAMPLED)


def test_plain_torch_has_it(small_model):
    native, plain = (
        accelerated_copy(small_model, backend=name, speculate=False, **INT8) for name in ("native", "torch")
    )
    expected, got = (run(model, 0, **ONE)[0]["semantic"] for model in (native, plain))
    assert (expected[0, :8] == got[0, :8]).all()


def test_a_long_text_s_folder_knows(small_model):
    plain, fast = accelerated_copy(small_model), accelerated_copy(small_model, **INT8)
    assert len({model_digest(model) for model in (small_model, plain, fast, copy.deepcopy(fast))}) == 3


def test_compiled_prompts_write_entries(small_model):
    torch._dynamo.reset()
    plain, fast = (
        accelerated_copy(small_model, compile_backend="eager", speculate=False, kv_cache_dtype=dtype)
        for dtype in ("auto", "int8")
    )
    assert_equal_to_stock(small_model, plain, **ONE)
    ours = accelerated_copy(small_model, speculate=False, **INT8)
    assert torch.equal(run(fast, 0, **ONE)[0]["semantic"], run(ours, 0, **ONE)[0]["semantic"])


@pytest.mark.parametrize("dtype", ["int4", "fp8", None, torch.int8])
def test_unknown_dtypes_are_refused(small_model, dtype):
    stock = copy.deepcopy(small_model)
    with pytest.raises(ValueError, match=r"kv_cache_dtype: expected one of 'auto', 'int8', got "):
        accelerate_bark(stock, kv_cache_dtype=dtype)
    assert_untouched(stock)


def test_gpus_are_refused(monkeypatch):
    stock = build(SMALL)
    monkeypatch.setattr(api, "device_of", lambda model: torch.device("cuda:0"))
    with pytest.raises(ValueError, match=r"kv_cache_dtype='int8': expected a model on the CPU, got one on cuda:0"):
        accelerate_bark(stock, **INT8)
    assert_untouched(stock)


def test_a_model_that_moves_away_from_the_cpu_falls_back(small_model, monkeypatch):
    """Its weights are asked where they are at every call."""
    patch = stage_patches(accelerated_copy(small_model, **INT8))[0]
    assert patch.ready_weights().device.type == "cpu"
    monkeypatch.setattr(TransformerWeights, "device", property(lambda weights: torch.device("cuda:0")))
    with pytest.raises(Fallback, match="kv_cache_dtype='int8' is for the CPU, got cuda:0"):
        patch.ready_weights()
