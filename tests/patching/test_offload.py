"""Models whose weights accelerate moves: no fallback, stock's tokens, and weights that are only there while needed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, preset, submodels, texts
from support.parity import accelerated_copy, assert_equal_to_stock, run
from torch import nn

from bark_accel import BarkEngine, FallbackKind, accelerate_bark, acceleration_report, stream
from bark_accel.transformer.causal import CausalModel

accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")
INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 30, "do_sample": True, "fine_temperature": 0.7}
Offload = Callable[[Any, Any], None]


def enable(model: Any, folder: Any) -> None:
    """`enable_cpu_offload` as on a machine with a GPU, but for the device."""
    with pytest.MonkeyPatch.context() as machine:
        real = accelerate.cpu_offload_with_hook
        machine.setattr(
            accelerate,
            "cpu_offload_with_hook",
            lambda module, _, prev_module_hook=None: real(module, CPU, prev_module_hook),
        )
        # Without an accelerator some versions of Transformers fail.
        machine.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        model.enable_cpu_offload()


def to_cpu(model: Any, folder: Any) -> None:
    accelerate.cpu_offload(model, CPU)


def each_to_cpu(model: Any, folder: Any) -> None:
    for part in (*submodels(model), model.codec_model):
        accelerate.cpu_offload(part, CPU)


def to_disk(model: Any, folder: Any) -> None:
    accelerate.disk_offload(model, folder, CPU)


def dispatch(model: Any, folder: Any) -> None:
    places = {"semantic": "cpu", "coarse_acoustics": "disk", "fine_acoustics": "cpu", "codec_model": "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)


WAYS = [enable, to_cpu, each_to_cpu, to_disk, dispatch]


@pytest.mark.parametrize("first", ["offload", "accelerate"])
@pytest.mark.parametrize("offload", WAYS)
def test_stays_fast_and_equal(small_model, tmp_path, offload: Offload, first):
    fast = copy.deepcopy(small_model)
    if first == "offload":
        offload(fast, tmp_path)
    accelerate_bark(fast, strict=True)
    if first == "accelerate":
        offload(fast, tmp_path)
    for seed in (0, 1):
        assert_equal_to_stock(small_model, fast, seed, **INPUTS, **SHORT)
    stages = acceleration_report(fast).stages
    assert all(stage.blocked_by is None and stage.device == "cpu" for stage in stages)


@pytest.mark.parametrize("offload", WAYS)
def test_voices_and_reports_are_those_of_the_device_that_computes(small_model, tmp_path, offload: Offload):
    """Before Transformers 5 the device of a model whose weights are elsewhere is `meta`."""
    plain, fast = (accelerated_copy(small_model) for _ in range(2))
    offload(fast, tmp_path)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [5]), **SHORT, history_prompt=preset(SMALL, 30, 40))
    here, there = acceleration_report(plain), acceleration_report(fast)
    assert there.decode_step == here.decode_step and (there.float32 is None) == (here.float32 is None)


@pytest.mark.parametrize("offload", WAYS)
def test_choices_of_transformers(small_model, tmp_path, offload: Offload):
    fast = accelerated_copy(small_model)
    offload(fast, tmp_path)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT, min_p=0.05)


@pytest.mark.parametrize("offload", WAYS)
def test_streams_and_int8(small_model, tmp_path, offload: Offload):
    plain, fast = (accelerated_copy(small_model, weights="int8") for _ in range(2))
    offload(fast, tmp_path)
    heard = []
    for model in (plain, fast):
        torch.manual_seed(0)
        heard.append(torch.cat(list(stream(model, **INPUTS, **SHORT)), 1))
    assert torch.equal(*heard)


@pytest.mark.parametrize("offload", [to_cpu, to_disk])
def test_weights_are_there_for_one_stage_alone(small_model, tmp_path, offload: Offload, monkeypatch):
    """While a model steps no other has weights, nor has its own module: they are let go with the stage."""
    fast = accelerated_copy(small_model)
    offload(fast, tmp_path)
    meta, steps = [], CausalModel.next_logits

    def next_logits(self: Any, *arguments: Any) -> torch.Tensor:
        meta.append(all(p.is_meta for part in submodels(fast) for p in part.parameters()))
        return steps(self, *arguments)

    monkeypatch.setattr(CausalModel, "next_logits", next_logits)
    run(fast, 0, **INPUTS, **SHORT)
    assert meta and all(meta)


def test_a_stage_summons_its_model_and_sends_the_one_before_away(small_model, monkeypatch):
    fast, moved = accelerated_copy(small_model, strict=False), []
    enable(fast, None)
    names = {id(fast.semantic): "semantic", id(fast.coarse_acoustics): "coarse", id(fast.fine_acoustics): "fine"}
    hook = accelerate.hooks.CpuOffload
    arrive = hook.pre_forward

    def pre_forward(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        moved.append(names.get(id(module), "codec"))
        assert self.prev_module_hook is None or moved[0] == "semantic"
        return arrive(self, module, *args, **kwargs)

    monkeypatch.setattr(hook, "pre_forward", pre_forward)
    run(fast, 0, **INPUTS, **SHORT)
    assert moved == ["semantic", "coarse", "fine", "codec"]


def add_own_hook(module: nn.Module) -> None:
    accelerate.hooks.add_hook_to_module(module.layers[0].mlp, accelerate.hooks.ModelHook())


def add_two_hooks(module: nn.Module) -> None:
    part = module.layers[0].mlp
    accelerate.hooks.add_hook_to_module(part, accelerate.hooks.AlignDevicesHook(CPU))
    accelerate.hooks.add_hook_to_module(part, accelerate.hooks.ModelHook(), append=True)


def wrap_forward(module: nn.Module) -> None:
    real = module.forward
    module.forward = functools.wraps(real)(lambda *args, **kwargs: real(*args, **kwargs))
    accelerate.cpu_offload_with_hook(module, CPU)


@pytest.mark.parametrize("hook", [add_own_hook, add_two_hooks, wrap_forward])
def test_other_hooks_run_stocks_model(small_model, hook):
    fast = accelerated_copy(small_model, strict=False)
    hook(fast.semantic)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)
    assert [(r.stage, r.kind) for r in acceleration_report(fast).fallbacks] == [
        ("semantic", FallbackKind.HOOKED_MODULE)
    ]


@pytest.mark.parametrize("offload", WAYS)
def test_originals_cannot_be_released(small_model, tmp_path, offload: Offload):
    model = copy.deepcopy(small_model)
    offload(model, tmp_path)
    with pytest.raises(ValueError, match="accelerate keeps its weights"):
        accelerate_bark(model, weights="int8", release_originals=True)


def test_removed_hooks_leave_the_fast_path(small_model, tmp_path):
    fast = accelerated_copy(small_model)
    each_to_cpu(fast, tmp_path)
    for submodel in (fast.semantic, fast.coarse_acoustics, fast.fine_acoustics):
        accelerate.hooks.remove_hook_from_module(submodel, recurse=True)
    assert any("forward" in vars(part) for part in fast.semantic.modules())
    fast.generate(**texts(SMALL, [4]))
    assert not acceleration_report(fast).fallbacks


@pytest.mark.parametrize("strict", [None, False, True])
@pytest.mark.parametrize("offload", [enable, to_cpu])
def test_an_engine_refuses_an_offloaded_model(small_model, tmp_path, offload: Offload, strict):
    model = copy.deepcopy(small_model) if strict is None else accelerated_copy(small_model, strict=strict)
    offload(model, tmp_path)
    with pytest.raises(ValueError, match=r"stays on its device, got one (with enable_cpu_offload|that accelerate)"):
        BarkEngine(model)
    if strict is None:
        with pytest.raises(ValueError, match="not; call accelerate_bark"):
            acceleration_report(model)


@pytest.mark.parametrize("strict", [False, True])
def test_an_engine_takes_no_requests_of_a_model_that_is_offloaded_later(small_model, tmp_path, strict):
    fast = accelerated_copy(small_model, strict=strict)
    with BarkEngine(fast) as engine:
        enable(fast, tmp_path)
        with pytest.raises(ValueError, match="stays on its device, got one with enable_cpu_offload"):
            engine.submit(**texts(SMALL, [4]))
