"""Patching one instance and nothing else; undoing it; copying, saving, moving and re-weighting a patched model."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from support.bark_models import SMALL, SUNO, build, texts
from support.parity import accelerated_copy, assert_equal_to_stock
from transformers import BarkModel
from transformers.models.bark import modeling_bark
from transformers.models.encodec import modeling_encodec

from bark_accel import accelerate_bark, acceleration_report, restore_bark
from bark_accel.ops.backend import TORCH_CODEC, get_codec_ops

INPUTS = texts(SMALL, [4, 9])
OPTIONS = {"do_sample": True, "semantic_max_new_tokens": 25}


def snapshot(model):
    """Everything an instance holds: containers by their content, the rest by identity."""

    def content(value):
        return dict(value) if isinstance(value, dict) else value

    return {name: {k: content(v) for k, v in vars(module).items()} for name, module in model.named_modules()}


def is_accelerated(model):
    owners = (model, model.semantic, model.coarse_acoustics, model.fine_acoustics)
    return [("generate" in vars(owner)) for owner in owners] == [True] * 4 and "codec_decode" in vars(model)


def test_returns_the_same_object_and_restores_it_exactly():
    model = build(SMALL)
    before, state = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}
    assert accelerate_bark(model) is model
    assert is_accelerated(model)
    model.generate(**INPUTS, **OPTIONS)
    assert restore_bark(model) is model
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, attributes in before.items():
        assert after[name].keys() == attributes.keys(), name
        assert all(after[name][k] is v or after[name][k] == v for k, v in attributes.items()), name
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert restore_bark(model) is model


def test_nothing_but_the_instance_changes():
    other = build(SMALL)
    classes = [kind for module in other.modules() for kind in type(module).__mro__]
    spaces = [*map(vars, classes), vars(modeling_bark), vars(modeling_encodec)]
    before = [dict(space) for space in spaces]
    fast = accelerated_copy(other)
    fast.generate(**INPUTS, **OPTIONS)
    for space, names in zip(spaces, before, strict=True):
        public = {k: v for k, v in space.items() if not k.startswith("__")}
        assert public == {k: v for k, v in names.items() if not k.startswith("__")}


def test_accelerating_twice_is_harmless_and_applies_new_arguments(small_model):
    fast = accelerated_copy(small_model)
    assert accelerate_bark(fast, backend="torch") is fast
    assert acceleration_report(fast).backend == "torch" and not acceleration_report(fast).strict
    assert_equal_to_stock(small_model, fast, **INPUTS, **OPTIONS)
    restore_bark(fast)
    assert not is_accelerated(fast) and "generate" not in vars(fast)


def test_restoring_a_wrapped_model_is_refused(small_model):
    fast = accelerated_copy(small_model)
    ours = fast.generate
    fast.generate = lambda *args, **kwargs: ours(*args, **kwargs)
    for function in (restore_bark, accelerate_bark):
        with pytest.raises(ValueError, match=r"BarkModel.generate: expected the class's own or ours"):
            function(fast)
    del fast.generate
    restore_bark(fast)
    assert not any({"generate", "codec_decode"} & set(vars(m)) for m in fast.modules())


def test_restoring_frees_replaced_submodels_and_leaves_others_alone(small_model):
    fast, other = accelerated_copy(small_model), accelerated_copy(small_model)
    old, fast.semantic = fast.semantic, other.semantic
    stock = copy.deepcopy(small_model)
    stock.coarse_acoustics = other.coarse_acoustics
    restore_bark(stock)
    assert "generate" in vars(other.coarse_acoustics)
    restore_bark(fast)
    assert "generate" not in vars(old)


def test_deepcopy_is_accelerated_and_independent(small_model):
    fast = accelerated_copy(small_model)
    fast.generate(**INPUTS, **OPTIONS)
    twin = copy.deepcopy(fast)
    assert is_accelerated(twin)
    for owner in (twin, twin.semantic, twin.coarse_acoustics, twin.fine_acoustics):
        assert owner.generate.__self__.module is owner
    with torch.no_grad():
        fast.semantic.lm_head.weight.zero_()
    assert_equal_to_stock(small_model, twin, **INPUTS, **OPTIONS)
    restore_bark(twin)
    assert is_accelerated(fast)


@pytest.mark.parametrize("name", ["semantic", "coarse_acoustics", "fine_acoustics"])
def test_pickle_of_a_stage(small_model, name):
    fast = accelerated_copy(small_model)
    stage = pickle.loads(pickle.dumps(getattr(fast, name)))
    assert stage.generate.__self__.module is stage
    setattr(fast, name, stage)
    assert_equal_to_stock(small_model, fast, **INPUTS, **OPTIONS)


def test_pickle_of_a_model_fails_as_stocks_does(small_model):
    """torch refuses EnCodec's parametrised weight_norm."""
    for model in (small_model, accelerated_copy(small_model)):
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(model)


def test_torch_save_and_state_dict(small_model):
    fast = accelerated_copy(small_model)
    assert fast.state_dict().keys() == small_model.state_dict().keys()
    buffer = io.BytesIO()
    torch.save(fast.state_dict(), buffer)
    buffer.seek(0)
    fresh = build(SMALL, seed=9)
    fresh.load_state_dict(torch.load(buffer))
    assert_equal_to_stock(small_model, accelerate_bark(fresh), **INPUTS, **OPTIONS)


def test_save_pretrained_and_from_pretrained(small_model, tmp_path):
    accelerated_copy(small_model).save_pretrained(tmp_path)
    loaded = BarkModel.from_pretrained(tmp_path)
    assert "generate" not in vars(loaded)
    assert_equal_to_stock(small_model, accelerate_bark(loaded, strict=True), **INPUTS, **OPTIONS)


def new_state(model):
    model.load_state_dict(build(SMALL, seed=7).state_dict())


def edit_in_place(model):
    with torch.no_grad():
        model.semantic.layers[0].attn.att_proj.weight.mul_(1.5)
        model.coarse_acoustics.layernorm_final.weight.add_(0.5)
        model.codec_model.decoder.layers[0].conv.parametrizations.weight.original0.mul_(2)


def edit_data(model):
    """Bypasses torch's version counter."""
    model.fine_acoustics.layernorm_final.weight.data.mul_(torch.rand_like(model.fine_acoustics.layernorm_final.weight))
    model.codec_model.decoder.layers[0].conv.parametrizations.weight.original0.data.mul_(3)


def change_eps(model):
    # Only the fine stage has torch's own LayerNorm in every version of Transformers.
    for layer in (*model.semantic.layers, *model.fine_acoustics.layers):
        layer.layernorm_1.eps = 0.5


def replace_parameter(model):
    layer = model.fine_acoustics.layers[1].mlp.in_proj
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))


def replace_submodel(model):
    donor = build(SMALL, seed=11)
    model.codec_model = donor.codec_model


@pytest.mark.parametrize(
    "change", [new_state, edit_in_place, edit_data, change_eps, replace_parameter, replace_submodel]
)
def test_new_weights_are_noticed(small_model, change):
    stock, fast = copy.deepcopy(small_model), accelerated_copy(small_model)
    before = assert_equal_to_stock(stock, fast, **INPUTS, **OPTIONS)
    torch.manual_seed(5)
    change(stock)
    torch.manual_seed(5)
    change(fast)
    after = assert_equal_to_stock(stock, fast, **INPUTS, **OPTIONS)
    changed = any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True)
    )
    assert changed, "the change was expected to show"


def test_dtype_round_trip(small_model):
    fast = accelerated_copy(small_model)
    fast.generate(**INPUTS, **OPTIONS)
    for cast in ("half", "bfloat16"):
        getattr(fast, cast)()
        assert acceleration_report(fast).stages[0].dtype in ("float16", "bfloat16")
        audio = fast.generate(**INPUTS, **OPTIONS)
        assert audio.dtype == fast.dtype and audio.isfinite().all()
    fast.load_state_dict(small_model.state_dict())
    fast.float()
    fast.load_state_dict(small_model.state_dict())
    assert_equal_to_stock(small_model, fast, **INPUTS, **OPTIONS)


def test_inference_mode_and_back(small_model):
    fast = accelerated_copy(small_model)
    with torch.inference_mode():
        assert_equal_to_stock(small_model, fast, **INPUTS, **OPTIONS)
    assert_equal_to_stock(small_model, fast, **INPUTS, **OPTIONS)


def test_model_built_in_inference_mode():
    with torch.inference_mode():
        stock = build(SMALL)
        assert_equal_to_stock(stock, accelerated_copy(stock), **INPUTS, **OPTIONS)


def test_growing_and_shrinking_batches_share_one_cache(small_model):
    fast = accelerated_copy(small_model)
    held = []
    for batch in (1, 4, 2, 4, 1):
        assert_equal_to_stock(small_model, fast, **texts(SMALL, [5] * batch), **OPTIONS)
        held.append(acceleration_report(fast).kv_cache_bytes)
    assert held[0] * 4 == held[1] and set(held[1:]) == {held[1]}


def test_two_threads_on_one_model(small_model):
    """Greedy, because the two share one random generator (with stock, too)."""
    fast = accelerated_copy(small_model)
    jobs = {seed: texts(SMALL, [5], seed) for seed in range(4)}
    expected = {seed: small_model.generate(**job, semantic_max_new_tokens=40) for seed, job in jobs.items()}
    got = {}

    def work(seed):
        got[seed] = fast.generate(**jobs[seed], semantic_max_new_tokens=40)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in jobs:
        torch.testing.assert_close(got[seed], expected[seed], rtol=0, atol=1e-6)


def test_a_patched_model_is_freed():
    model = accelerate_bark(build(SMALL))
    model.generate(**INPUTS, **OPTIONS)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_report(small_model):
    fast = accelerated_copy(small_model)
    fast.generate(**texts(SMALL, [9]), **OPTIONS)
    report = acceleration_report(fast)
    assert [s.stage for s in report.stages] == ["semantic", "coarse", "fine", "codec"]
    codec = "torch" if get_codec_ops("auto", torch.device("cpu")) is TORCH_CODEC else "native"
    assert [s.ops for s in report.stages] == ["native", "native", "native", codec]
    # The drafts of the causal stages are copies, the codec folds its weight_norm; the fine stage uses views.
    assert [s.copied_bytes > 0 for s in report.stages] == [True, True, False, True]
    assert [s.weights for s in report.stages] == ["float32"] * 4
    assert all(s.drafts.accepted_tokens <= s.drafts.drafted_tokens > 0 for s in report.stages[:2])
    assert [s.drafts for s in report.stages[2:]] == [None, None]
    assert report.fallbacks == () and report.kv_cache_bytes > 0
    text = str(report)
    for word in ("semantic", "float32", "native", report.isa, torch.__version__, "fell back: never"):
        assert word in text


def test_large_shapes_have_no_copies_of_the_transformers():
    fast = accelerated_copy(build(SUNO))
    assert sum(s.copied_bytes for s in acceleration_report(fast).stages[:3]) == 0
