"""Plain torch ops on a device without float64, as Apple's GPUs are: the CPU stands for one, and a mode refuses float64.

What the ops do off the host (masks instead of a look at lengths, float16 products) is what runs here.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.stock_limits import skip_where_stock_fails
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report
from bark_accel.bench.ties import explaining_ties
from bark_accel.decoding.sampling import SampleRules, SamplingConfig, TokenRange
from bark_accel.ops import device
from bark_accel.patches.stage_patch import Settings
from bark_accel.patches.step_kind import step_kind
from bark_accel.report import FallbackLog

WIDE = {torch.float64, torch.complex128}
MPS = torch.device("mps")


class NoFloat64(TorchDispatchMode):
    """Raises for every tensor of 64-bit floats that an operation takes or makes."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor):
                self.seen += 1
                if value.dtype in WIDE:
                    raise TypeError(f"{func}: expected no {value.dtype}, as on mps")
        return result


@pytest.fixture
def narrow(monkeypatch):
    """A device without float64 that is not the host."""
    monkeypatch.setattr("bark_accel.ops.device.has_float64", lambda device: False)
    monkeypatch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)


SHORT = {"semantic_max_new_tokens": 20}
INPUTS = {**texts(SMALL, [9, 4]), **SHORT}
EVERY = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_eos_p": 0.2, "semantic_repetition_penalty": 1.2}
CASES = {
    "greedy": ({}, {**INPUTS, "do_sample": False}),
    "drawn": ({}, INPUTS),
    "every option": ({}, {**INPUTS, **EVERY}),
    "voices": ({}, {**INPUTS, "history_prompt": [preset(SMALL, 0, 12), None]}),
    "float16": ({"weights": "float16"}, INPUTS),
    "int8": ({"weights": "int8"}, INPUTS),
    "w8a8, short windows": ({"weights": "w8a8", "fit_windows": True}, INPUTS),
    "drafts": ({"speculate": True}, {**texts(SMALL, [9]), **SHORT}),
    "released": ({"weights": "int8", "release_originals": True}, INPUTS),
    "Transformers' processors": ({}, {**INPUTS, "semantic_min_p": 0.05, "coarse_typical_p": 0.9}),
    "Transformers' loop": ({}, {**INPUTS, "semantic_num_beams": 2, "coarse_max_time": 1e4}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_generation_has_no_float64(small_model, narrow, case):
    if case == "Transformers' loop":
        skip_where_stock_fails("beams")
    options, arguments = CASES[case]
    fast = accelerate_bark(copy.deepcopy(small_model), backend="torch", **options)
    torch.manual_seed(0)
    with NoFloat64() as mode:
        audio = fast.generate(**arguments)
        again = fast.generate(**arguments)
    assert mode.seen > 1000 and audio.shape[1] > 0 and again.isfinite().all()
    assert not acceleration_report(fast).fallbacks


@pytest.mark.parametrize("policy", ["low_latency", "exact", "preview"])
def test_a_stream_has_no_float64(small_model, narrow, policy):
    fast = accelerate_bark(copy.deepcopy(small_model), backend="torch")
    streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=5, lookahead_frames=2)
    with NoFloat64():
        audio = fast.generate(**INPUTS, streamer=streamer)
    torch.testing.assert_close(torch.cat([*streamer], 1), audio)


def test_its_tokens_are_those_of_float64_options(small_model, monkeypatch, narrow):
    fast = accelerate_bark(copy.deepcopy(small_model), backend="torch")
    torch.manual_seed(0)
    got = fast.generate(**INPUTS, **EVERY)
    monkeypatch.setattr("bark_accel.ops.device.has_float64", lambda device: True)
    torch.manual_seed(0)
    torch.testing.assert_close(got, fast.generate(**INPUTS, **EVERY), rtol=0, atol=0)


def test_the_mode_sees_float64(small_model):
    fast = accelerate_bark(copy.deepcopy(small_model), backend="torch")
    with pytest.raises(TypeError, match=r"expected no torch\.float64"), NoFloat64():
        fast.generate(**INPUTS, temperature=0.8)


def test_only_mps_has_none(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "tensor", lambda values, dtype, device: made.append((dtype, device)))
    SampleRules.of([(SamplingConfig(True, 1, 0.7, 0, 0.9, 0.2), TokenRange(0, 5))], MPS)
    assert made == [(torch.int64, MPS), *[(torch.float32, MPS)] * 3]
    assert device.options_dtype(torch.device("cuda", 0)) == torch.float64


def test_timing_waits_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    for name in ("mps", "cuda:1", "cpu"):
        device.synchronize(torch.device(name))
    assert waited == ["mps", "cuda:1"]


def test_the_report_says_what_runs_there():
    settings = Settings("auto", FallbackLog(False))
    assert step_kind(settings, MPS) == "plain torch, the library has no kernels for mps"


def test_ties_cannot_be_judged_there(small_model, monkeypatch):
    monkeypatch.setattr("bark_accel.bench.ties.has_float64", lambda device: False)
    with pytest.warns(UserWarning, match="has no float64, in which ties are judged: any difference counts"):
        assert explaining_ties(small_model, lambda model: None, lambda result: False) is None
