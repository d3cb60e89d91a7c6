"""`free_memory`: what is kept between calls goes, and the next call gives the same result."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, run
from support.waiting import LIMIT_S

from bark_accel import acceleration_report, free_memory
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.ops import _library
from bark_accel.stages.semantic import SemanticStage

INPUTS = {**texts(SMALL, [9]), "do_sample": True, "semantic_max_new_tokens": 12}


def held(model) -> tuple[int, int]:
    """Bytes of caches, and of copied weights."""
    report = acceleration_report(model)
    return report.kv_cache_bytes, sum(stage.copied_bytes for stage in report.stages)


def codec_bytes(model) -> int:
    """Bytes of the codec's folded weights."""
    return acceleration_report(model).stages[3].copied_bytes


@pytest.mark.parametrize("options", [{"speculate": True}, {"weights": "int8"}, {"weights": "float16"}], ids=str)
def test_caches_and_copies_are_freed_and_made_again(small_model, options):
    fast = accelerated_copy(small_model, **options)
    expected = run(fast, 3, **INPUTS)[0]
    _library.release_memory()
    cache, copies = held(fast)
    assert cache > 0 and copies > 0
    assert free_memory(fast) == cache + copies
    assert held(fast) == (0, 0) and free_memory(fast) == 0
    got = run(fast, 3, **INPUTS)[0]
    assert all(torch.equal(got[stage], expected[stage]) for stage in expected)
    assert held(fast) == (cache, copies)


def test_graphs_are_freed(small_model, monkeypatch):
    monkeypatch.setattr(graphs, "make_capturer", lambda device: CallCapturer())
    fast = accelerated_copy(small_model, speculate=False)
    fast.generate(**INPUTS)
    assert acceleration_report(fast).captured_graphs > 0
    free_memory(fast)
    assert acceleration_report(fast).captured_graphs == 0


def test_what_release_originals_left_stays(small_model):
    fast = accelerated_copy(small_model, weights="int8", release_originals=True)
    expected = run(fast, 3, **INPUTS)[0]
    cache, copies = held(fast)
    _library.release_memory()
    codec = codec_bytes(fast)
    assert free_memory(fast) == cache + codec and held(fast) == (0, copies - codec)
    assert torch.equal(run(fast, 3, **INPUTS)[0]["fine"], expected["fine"])


def test_views_of_the_models_own_weights_are_not_counted():
    half = accelerated_copy(build(SMALL).half(), weights="float16", speculate=False)
    half.generate(**INPUTS)
    _library.release_memory()
    assert free_memory(half) == held_after_a_generation(half)


def held_after_a_generation(model) -> int:
    model.generate(**INPUTS)
    return held(model)[0] + codec_bytes(model)


def test_a_generation_that_is_running_keeps_what_it_has(small_model, monkeypatch):
    fast = accelerated_copy(small_model, speculate=True)
    expected = run(fast, 3, **INPUTS)[0]
    step, freed = SemanticStage.step, []

    def freeing(*args, **kwargs):
        thread = threading.Thread(target=lambda: freed.append(free_memory(fast)))
        thread.start()
        thread.join()
        return step(*args, **kwargs)

    monkeypatch.setattr(SemanticStage, "step", freeing)
    got = run(fast, 3, **INPUTS)[0]
    assert len(freed) > 1 and all(torch.equal(got[stage], expected[stage]) for stage in expected)


def test_scratch_of_the_ops_is_freed():
    torch.set_num_threads(2)
    try:
        _library.load()
        logits, allowed = torch.randn(64, 10_000), torch.tensor([[0, 10_000, -1]])
        torch.ops.bark_accel.fused_sample(logits, None, 0, allowed)
        assert _library.release_memory() >= 5 * 4 * 10_000
        assert _library.release_memory() == 0
        torch.ops.bark_accel.fused_sample(logits, None, 0, allowed)
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux")
def test_the_system_gets_the_memory_back():
    """Copies of matrices are below the size from which the C library maps memory of its own."""
    script = """
import torch
from pathlib import Path
from bark_accel.ops import _library

def resident_kib():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

_library.load()
held = [torch.ones(20_000) for _ in range(2_000)]
del held[:-1]
before = resident_kib()
_library.release_memory()
assert before - resident_kib() > 100_000, (before, resident_kib())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT_S)


def test_what_is_no_accelerated_model_is_refused(small_model):
    with pytest.raises(ValueError, match="free_memory: expected an accelerated model, got one that is not"):
        free_memory(small_model)
    with pytest.raises(TypeError, match=r"expected a transformers\.BarkModel"):
        free_memory(small_model.semantic)
