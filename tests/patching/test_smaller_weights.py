"""Copies of a model's weights in another precision: made once, made anew when the weights change, carried nowhere."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import threading
import warnings

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.parity import accelerated_copy, run
from transformers import BarkModel

from bark_accel import accelerate_bark, acceleration_report, restore_bark
from bark_accel.ops import _library
from bark_accel.transformer import precision
from bark_accel.transformer.precision import ConvertedWeights
from bark_accel.transformer.weights import tensors_of

INPUTS = texts(SMALL, [5])
OPTIONS = {"do_sample": True, "semantic_max_new_tokens": 12}
PRECISIONS = ["float16", "bfloat16", "int8", "w8a8"]
STAGES = ("semantic", "coarse_acoustics", "fine_acoustics")


@pytest.fixture
def conversions(monkeypatch):
    """One entry for each time that weights were converted."""
    made = []
    convert = precision.convert

    def counting(weights, name):
        made.append(name)
        return convert(weights, name)

    monkeypatch.setattr(precision, "convert", counting)
    return made


def tokens_of(model, seed=3):
    outputs = run(model, seed, **INPUTS, **OPTIONS)[0]
    return [outputs[stage] for stage in ("semantic", "coarse", "fine")]


def same(a, b):
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def patches_of(model):
    return [getattr(model, name).generate.__self__ for name in STAGES]


def kept(model):
    return [len(patch.conversions.kept()) for patch in patches_of(model)]


@pytest.mark.parametrize("weights", PRECISIONS)
def test_made_once(small_model, conversions, weights):
    """And for no reason again: other inputs, modes, threads, a gradient, a buffer that is read."""
    fast = accelerated_copy(small_model, weights=weights, speculate=False)
    assert conversions == [] and sum(s.copied_bytes for s in acceleration_report(fast).stages[:3]) == 0
    tokens = tokens_of(fast)
    assert conversions == [weights] * 3
    assert all(s.copied_bytes > 0 for s in acceleration_report(fast).stages[:3])
    with torch.inference_mode():
        assert same(tokens_of(fast), tokens)
    fast.eval().requires_grad_(False)
    fast.state_dict()
    fast.float()
    fast.to("cpu")
    fast.generate(**texts(SMALL, [3, 7]), **OPTIONS)
    threads = [threading.Thread(target=fast.generate, kwargs={**INPUTS, **OPTIONS}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(tokens_of(fast), tokens) and conversions == [weights] * 3


def test_threads_that_come_first_convert_once(small_model, conversions):
    fast = accelerated_copy(small_model, weights="int8")
    threads = [threading.Thread(target=fast.generate, kwargs={**INPUTS, **OPTIONS}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conversions == ["int8"] * 3


def new_state(model):
    model.load_state_dict(build(SMALL, seed=7).state_dict())


def new_state_assigned(model):
    model.load_state_dict(build(SMALL, seed=7).state_dict(), assign=True)


def move_and_load(model):
    """What tied `from_pretrained`-like code does: storage freed, then filled anew."""
    for name in STAGES:
        getattr(model, name).to_empty(device="cpu")
    model.load_state_dict(build(SMALL, seed=7).state_dict())


def edit_in_place(model):
    with torch.no_grad():
        for name in STAGES:
            getattr(model, name).layers[1].mlp.in_proj.weight.mul_(-1.5)


def edit_data(model):
    """Bypasses torch's version counter; seen because numbers are sampled."""
    for name in STAGES:
        getattr(model, name).layers[0].mlp.out_proj.weight.data.mul_(-1.5)


def replace_parameter(model):
    for name in STAGES:
        layer = getattr(model, name).layers[0].attn.att_proj
        layer.weight = torch.nn.Parameter(layer.weight.detach() * -1.5)


def replace_module(model):
    donor = build(SMALL, seed=7)
    for name in STAGES:
        getattr(model, name).layers[0] = getattr(donor, name).layers[0]


def edit_heads(model):
    with torch.no_grad():
        model.semantic.lm_head.weight.neg_()
        model.coarse_acoustics.lm_head.weight.neg_()
        for head in model.fine_acoustics.lm_heads:
            head.weight.neg_()


def cast(model):
    model.bfloat16()


CHANGES = [
    new_state,
    new_state_assigned,
    move_and_load,
    edit_in_place,
    edit_data,
    replace_parameter,
    replace_module,
    edit_heads,
    cast,
]


@pytest.mark.parametrize("change", CHANGES)
def test_made_anew_when_the_weights_change(small_model, conversions, change):
    """The tokens are those of a model that had the new weights from the start; what is old is let go."""
    fast, fresh = accelerated_copy(small_model, weights="int8"), copy.deepcopy(small_model)
    before = tokens_of(fast)
    change(fast)
    change(fresh)
    conversions.clear()
    after = tokens_of(fast)
    assert conversions == ["int8"] * 3 and kept(fast) == [1, 1, 1]
    assert same(after, tokens_of(accelerate_bark(fresh, weights="int8"))) and not same(after, before)
    conversions.clear()
    assert same(tokens_of(fast), after) and conversions == []


def test_tables_and_norms_are_the_models_own(small_model, conversions):
    """They are read at every call, so that a change of them shows without a conversion."""
    fast, fresh = accelerated_copy(small_model, weights="int8"), copy.deepcopy(small_model)
    before = tokens_of(fast)
    for model in (fast, fresh):
        with torch.no_grad():
            model.semantic.position_embeds_layer.weight.neg_()
            model.coarse_acoustics.layernorm_final.weight.mul_(0.3)
            model.fine_acoustics.layernorm_final.bias.add_(0.5)
            norm = model.semantic.layers[1].layernorm_1
            norm.weight = torch.nn.Parameter(norm.weight * -2)
    conversions.clear()
    after = tokens_of(fast)
    assert conversions == []
    assert same(after, tokens_of(accelerate_bark(fresh, weights="int8"))) and not same(after, before)


def test_broken_weights_are_converted_once(small_model, conversions):
    """NaN differs from itself, and is no change."""
    broken = copy.deepcopy(small_model)
    broken.semantic.layers[0].mlp.in_proj.weight.data.fill_(torch.nan)
    fast = accelerate_bark(broken, weights="float16", speculate=False)
    for _ in range(2):
        with pytest.raises(ValueError, match="its weights hold NaN"):
            fast.generate(**INPUTS, **OPTIONS)
    assert conversions == ["float16"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_sixteen_bit_models_are_converted_once(small_model, conversions, dtype, weights):
    """Their vectors are widened at every call; that is no new matrix. "same" has int8 drafts."""
    fast = accelerated_copy(copy.deepcopy(small_model).to(dtype), weights=weights, speculate=weights == "same" or None)
    tokens = tokens_of(fast)
    stages = 2 if weights == "same" else 3
    assert conversions.count("int8") == stages
    assert same(tokens_of(fast), tokens) and conversions.count("int8") == stages


def test_several_precisions_live_side_by_side(small_model, conversions):
    weights, store = patches_of(accelerated_copy(small_model))[0].weights(), ConvertedWeights()
    first = {name: store.get(weights, name) for name in PRECISIONS}
    assert store.get(weights, "same") is weights and conversions == PRECISIONS
    for name in PRECISIONS:
        again = store.get(weights, name)
        assert all(map(operator.is_, tensors_of(first[name]), tensors_of(again)))
    assert conversions == PRECISIONS and len(store.kept()) == 4
    dtypes = [first[name].layers[0].qkv.weight.dtype for name in PRECISIONS]
    assert dtypes == [torch.float16, torch.bfloat16, torch.int8, torch.int8]


# ---- copies of the model carry no copies of the weights


@pytest.mark.parametrize("weights", ["same", *PRECISIONS])  # "same" with its int8 drafts
def test_copies_start_empty(small_model, weights):
    fast = accelerated_copy(small_model, weights=weights, speculate=weights == "same")
    tokens = tokens_of(fast)
    held = kept(fast)
    assert held == ([1, 1, 0] if weights == "same" else [1, 1, 1])
    twin = copy.deepcopy(fast)
    assert kept(twin) == [0, 0, 0] and kept(fast) == held
    assert same(tokens_of(twin), tokens) and kept(twin) == held
    for name in STAGES:
        stage = getattr(fast, name)
        pickled = pickle.dumps(stage)
        assert len(pickled) < 1.05 * len(pickle.dumps(getattr(accelerated_copy(small_model), name)))
        assert pickle.loads(pickled).generate.__self__.conversions.kept() == []


@pytest.mark.parametrize("weights", PRECISIONS)
def test_saved_models_are_the_original_ones(small_model, tmp_path, weights):
    fast = accelerated_copy(small_model, weights=weights)
    tokens_of(fast)
    state, expected = fast.state_dict(), small_model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[k], v) for k, v in expected.items())
    buffers = [io.BytesIO(), io.BytesIO()]
    for model, buffer in zip((fast, small_model), buffers, strict=True):
        torch.save(model.state_dict(), buffer)
    assert buffers[0].tell() == buffers[1].tell()
    fast.save_pretrained(tmp_path)
    loaded = BarkModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())


def test_restoring_gives_stocks_weights_back(small_model):
    fast = accelerated_copy(small_model, weights="int8")
    assert not same(tokens_of(fast), tokens_of(small_model))
    restore_bark(fast)
    assert same(tokens_of(fast), tokens_of(small_model))


@pytest.mark.parametrize("isa", _library.load().available_isas())
@pytest.mark.parametrize("weights", ["same", *PRECISIONS])
def test_a_warning_where_smaller_weights_are_slower(small_model, isa, weights):
    library = _library.load()
    before = library.isa()
    library.set_isa(isa)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            accelerate_bark(copy.deepcopy(small_model), weights=weights)
    finally:
        library.set_isa(before)
    slower = [str(warning.message) for warning in caught if "slower than float32" in str(warning.message)]
    assert len(slower) == (isa == "generic" and weights != "same")
    assert all(f"weights={weights!r}" in message for message in slower)
