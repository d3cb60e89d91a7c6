"""Which devices the compiled ops serve, and what happens where they turn out to be wrong."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy, assert_equal_to_stock

from bark_accel import accelerate_bark, acceleration_report, restore_bark
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.ops import backend, device_check
from bark_accel.ops import cpu as cpu_ops
from bark_accel.ops import cuda as cuda_ops
from bark_accel.ops import reference as torch_ops
from bark_accel.ops.interface import Ops

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "archs, capability, native",
    [
        ("sm_80 sm_90", (8, 0), True),
        ("sm_80 sm_90", (12, 0), True),
        ("sm_80 sm_90", (7, 5), False),
        ("sm_75 sm_80", (7, 5), True),
        ("sm_75 sm_100 sm_120 compute_90", (7, 0), False),
        (None, None, False),
    ],
)
def test_a_gpu_is_served_by_code_that_it_can_run(
    monkeypatch: pytest.MonkeyPatch, archs: str | None, capability: tuple[int, int] | None, native: bool
) -> None:
    monkeypatch.setattr(backend, "cuda_archs", lambda: archs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backend, "native_fault", lambda device: None)
    assert backend.runs_natively("auto", GPU) == native
    assert backend.get_ops("auto", GPU) == (cuda_ops.OPS if native else Ops.of(torch_ops))
    assert not backend.runs_natively("torch", GPU)
    if not native:
        oldest = r"\(8, 0\)" if archs == "sm_80 sm_90" else r"\(7, 5\)"
        with pytest.raises(
            ValueError, match=rf"compute capability {oldest} or later, got cuda:0; use 'auto' or 'torch'"
        ):
            backend.check_backend("native", GPU)


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device whose ops are compared at first use."""
    monkeypatch.setattr(device_check, "_faults", {})
    monkeypatch.setattr(backend, "_is_tested", lambda device: False)


def spoil_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_ops.OPS
    wrong = replace(right, decode_step=lambda *arguments: right.decode_step(*arguments) + 1)
    monkeypatch.setattr(cpu_ops, "OPS", wrong)


GENERATION: dict[str, Any] = {**texts(SMALL, [6]), "do_sample": True, "semantic_max_new_tokens": 12}


def test_ops_that_pass_are_used(small_model: Any, like_a_gpu: None) -> None:
    for name in ("auto", "native"):
        report = acceleration_report(accelerated_copy(small_model, backend=name))
        codec = "torch" if backend.get_codec_ops("auto", torch.device("cpu")) is backend.TORCH_CODEC else "native"
        assert [stage.ops for stage in report.stages] == ["native"] * 3 + [codec]
        assert report.native_fault is None and "compiled ops not used" not in str(report)
    assert device_check._faults == {torch.device("cpu"): None}


def test_ops_that_are_wrong_give_way_to_torch(
    small_model: Any, like_a_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_decode_step(monkeypatch)
    with caplog.at_level(logging.WARNING, "bark_accel"):
        fast = accelerated_copy(small_model)
        for seed in range(2):
            assert_equal_to_stock(small_model, fast, seed, **GENERATION)
        accelerated_copy(small_model)
    assert backend.get_ops("auto", torch.device("cpu")) == Ops.of(torch_ops)
    report = acceleration_report(fast)
    assert [stage.ops for stage in report.stages] == ["torch"] * 4 and report.isa is None
    fault = report.native_fault
    assert fault is not None and fault.startswith("decode_step (float32 weights")
    assert f"\ncompiled ops not used, they are wrong here: {fault}\n" in str(report)
    assert [r.getMessage() for r in caplog.records] == [
        f"bark_accel runs plain torch ops on cpu, its compiled ones are wrong there: {fault}"
    ]
    assert acceleration_report(accelerated_copy(small_model, backend="torch")).native_fault is None


def test_wrong_ops_that_were_asked_for_by_name_are_refused(
    small_model: Any, like_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the device is new only later; and nothing is patched."""
    moved = accelerated_copy(small_model, backend="native")
    spoil_decode_step(monkeypatch)
    device_check._faults.clear()
    message = r"backend='native': expected compiled ops that equal plain torch on cpu, got decode_step \(.*use 'auto'"
    plain = restore_bark(accelerated_copy(small_model, backend="torch"))
    with pytest.raises(RuntimeError, match=message):
        accelerate_bark(plain, backend="native")
    assert "generate" not in vars(plain) and "generate" not in vars(plain.semantic)
    with pytest.raises(RuntimeError, match=message):
        moved.generate(**GENERATION)
    with pytest.raises(RuntimeError, match=message):
        backend.get_ops("native", torch.device("cpu"))
    assert acceleration_report(moved).native_fault is not None


def test_ops_are_compared_before_a_graph_is_captured(
    small_model: Any, like_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[dict] = []

    def make_capturer(device: torch.device) -> CallCapturer:
        known.append(dict(device_check._faults))
        return CallCapturer()

    monkeypatch.setattr(graphs, "make_capturer", make_capturer)
    fast = accelerated_copy(small_model, speculate=False)
    device_check._faults.clear()
    fast.generate(**GENERATION)
    assert known and all(faults == {torch.device("cpu"): None} for faults in known)


def test_native_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="backend='native': expected a model on the CPU, got meta"):
        backend.get_ops("native", torch.device("meta"))


def test_the_ops_of_a_gpu_are_those_that_are_compared_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "fault", lambda *given: given)
    assert backend.native_fault(GPU) == (cuda_ops.OPS, torch_ops, GPU)
    assert backend.native_fault(torch.device("cpu")) is None
