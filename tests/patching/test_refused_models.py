"""Models and options that `accelerate_bark` refuses: one clear error, and nothing half-patched."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_untouched
from torch import nn
from transformers import BarkModel

from bark_accel import FallbackKind, accelerate_bark, acceleration_report, restore_bark
from bark_accel.hf import compat

INPUTS = texts(SMALL, [4, 9])


@pytest.mark.parametrize("function", [accelerate_bark, restore_bark, acceleration_report])
def test_not_a_bark_model(function):
    with pytest.raises(TypeError, match=r"expected a transformers.BarkModel, got torch.nn.*Linear"):
        function(nn.Linear(2, 2))


def test_report_of_a_stock_model(small_model):
    with pytest.raises(ValueError, match="expected an accelerated model"):
        acceleration_report(small_model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int3"}, r"weights: expected one of 'same', 'float16', 'bfloat16', 'int8', 'w8a8', got 'int3'"),
        ({"backend": "cuda"}, r"backend: expected one of 'auto', 'native', 'torch', got 'cuda'"),
    ],
)
def test_unknown_arguments(small_model, options, message):
    model = copy.deepcopy(small_model)
    with pytest.raises(ValueError, match=message):
        accelerate_bark(model, **options)
    assert_untouched(model)


def test_meta_model(small_model):
    model = copy.deepcopy(small_model).to("meta")
    with pytest.raises(ValueError, match="meta device"):
        accelerate_bark(model)
    assert_untouched(model)


class Linear8bit(nn.Linear):
    """Stands for a layer of another quantisation library."""


def quantised(model):
    old = model.coarse_acoustics.layers[0].mlp.in_proj
    model.coarse_acoustics.layers[0].mlp.in_proj = Linear8bit(old.in_features, old.out_features, bias=False)


def float64(model):
    model.double()


def mixed(model):
    model.fine_acoustics.layers[0].mlp.half()


def own_generate(model):
    model.semantic.generate = lambda *args, **kwargs: None


def own_submodel(model):
    class Other(type(model.semantic)):
        pass

    model.semantic.__class__ = Other


@pytest.mark.parametrize(
    "change, message",
    [
        (quantised, r"coarse: .*layers\.0\.mlp\.in_proj: expected torch\.nn.*\.Linear, got .*\.Linear8bit; load the"),
        (float64, r"semantic|codec: .*float32.*got torch.float64"),
        (mixed, r"fine: .*got torch.float16, torch.float32"),
        (own_generate, "expected the class's own or ours, got one set on the instance"),
        (own_submodel, r"expected a BarkSemanticModel, got a .*Other"),
    ],
)
def test_models_that_cannot_be_patched(small_model, change, message):
    model = copy.deepcopy(small_model)
    change(model)
    before = vars(model.semantic).get("generate")
    with pytest.raises(ValueError, match=message):
        accelerate_bark(model)
    assert "generate" not in vars(model) and "codec_decode" not in vars(model)
    assert vars(model.semantic).get("generate") is before


def test_refusal_keeps_an_earlier_acceleration(small_model):
    model = accelerated_copy(small_model)
    with pytest.raises(ValueError, match="backend"):
        accelerate_bark(model, backend="nope")
    assert_equal_to_stock(small_model, model, **INPUTS, semantic_max_new_tokens=5)


def test_other_signatures_are_refused(small_model, monkeypatch):
    def generate(self, input_ids=None, voice=None, **kwargs): ...

    monkeypatch.setattr(BarkModel, "generate", generate)
    model = copy.deepcopy(small_model)
    with pytest.raises(
        ImportError, match=r"tested with Transformers .* BarkModel.generate takes \(self, input_ids, voice"
    ):
        accelerate_bark(model)
    assert_untouched(model)


def test_transformers_whose_loop_cannot_be_reached_is_refused(small_model, monkeypatch):
    monkeypatch.setattr(compat, "_takes_custom_loop", lambda: False)
    monkeypatch.setattr(compat, "_runs_its_own_loop", lambda: False)
    with pytest.raises(ImportError, match=r"takes no callable custom_generate, nor calls self\._sample"):
        accelerate_bark(copy.deepcopy(small_model))


def test_missing_library(small_model, monkeypatch):
    from bark_accel.ops import _library

    def missing():
        raise ImportError("bark_accel: the compiled library is missing; run `make setup`")

    monkeypatch.setattr(_library, "load", missing)
    model = copy.deepcopy(small_model)
    with pytest.raises(ImportError, match="make setup"):
        accelerate_bark(model)
    assert_untouched(model)
    accelerate_bark(model, backend="torch")


def test_an_overridden_codec_decode(small_model):
    class Quiet(BarkModel):
        def codec_decode(self, *args, **kwargs):
            return 0.5 * super().codec_decode(*args, **kwargs)

    model = copy.deepcopy(small_model)
    model.__class__ = Quiet
    with pytest.raises(ValueError, match=r"Quiet.codec_decode: expected BarkModel's own"):
        accelerate_bark(model)
    assert_untouched(model)


@pytest.mark.parametrize("flag", ["strict", "release_originals", "speculate", "fit_windows", "long_coarse_windows"])
def test_flags_are_bools(small_model, flag):
    stock = copy.deepcopy(small_model)
    with pytest.raises(TypeError, match=f"{flag}: expected .*True or False, got 'no'"):
        accelerate_bark(stock, weights="int8", **{flag: "no"})
    assert_untouched(stock)


@pytest.mark.parametrize("dtype, weights", [(torch.float32, "int8"), (torch.bfloat16, "same")])
def test_heads_that_the_16_bit_ops_do_not_take(dtype, weights):
    """Refused at once, and stock's own code where the model becomes so later; float32 takes any size."""
    stock = build(SMALL, width=260, heads=1, layers=1)
    with pytest.raises(ValueError, match=r"semantic: heads that are too large .*expected at most 256, got 260"):
        accelerate_bark(copy.deepcopy(stock).to(dtype), weights=weights)
    fast = accelerated_copy(stock, strict=False)
    assert_equal_to_stock(stock, fast, **INPUTS, semantic_max_new_tokens=5)
    assert acceleration_report(fast).fallbacks == ()
    fast.half().generate(**INPUTS, semantic_max_new_tokens=5)
    assert {reason.kind for reason in acceleration_report(fast).fallbacks} == {FallbackKind.HEAD_SIZE}
