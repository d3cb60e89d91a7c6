"""The codec's weights are folded once, and anew after every change of the codec."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.parity import accelerated_copy
from support.waiting import LIMIT_S
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from bark_accel import accelerate_bark, acceleration_report, free_memory
from bark_accel.hf.codec import codec_weights
from bark_accel.patches import kept_codec
from bark_accel.report import Fallback
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.codec_weights import CodecWeights

INPUTS = {**texts(SMALL, [9]), "semantic_max_new_tokens": 8}


@pytest.fixture
def folds(monkeypatch) -> list[Any]:
    """The codecs whose weights were folded so far."""
    found = []

    def counted(module: Any) -> Any:
        found.append(module)
        return codec_weights(module)

    monkeypatch.setattr(kept_codec, "codec_weights", counted)
    return found


@torch.no_grad()
def stage_of(fast: Any) -> CodecStage:
    return fast.generate.__self__.codec_patch().ready_stage()


@torch.no_grad()
def sound(stage: CodecStage) -> torch.Tensor:
    return stage.run(torch.arange(24).view(1, 2, 12) % 7)


def test_folded_once(small_model, folds):
    fast = accelerated_copy(small_model)
    first = fast.generate(**INPUTS, do_sample=False)
    before = len(folds)
    assert torch.equal(fast.generate(**INPUTS, do_sample=False), first)
    assert stage_of(fast) is stage_of(fast) and len(folds) == before > 0


def last_conv(codec: Any) -> Any:
    return codec.decoder.layers[-1].conv


def written(codec: Any) -> None:
    with torch.no_grad():
        last_conv(codec).bias += 1


def written_past_torch(codec: Any) -> None:
    last_conv(codec).bias.data += 1


def loaded(codec: Any) -> None:
    codec.load_state_dict({name: tensor * 1.5 for name, tensor in codec.state_dict().items()})


def assigned(codec: Any) -> None:
    codec.load_state_dict({name: tensor * 1.5 for name, tensor in codec.state_dict().items()}, assign=True)


def another_parameter(codec: Any) -> None:
    last_conv(codec).bias = nn.Parameter(last_conv(codec).bias + 1)


def no_bias(codec: Any) -> None:
    last_conv(codec).bias = None


def another_layer(codec: Any) -> None:
    with torch.no_grad():
        codec.decoder.layers[-1] = other = copy.deepcopy(codec.decoder.layers[-1])
        other.conv.bias += 1


def another_table(codec: Any) -> None:
    codebook = codec.quantizer.layers[0].codebook
    codebook.embed = codebook.embed + 1


def narrower(codec: Any) -> None:
    codec.bfloat16().float()


def one_more_parametrization(codec: Any) -> None:
    parametrize.register_parametrization(last_conv(codec), "weight", nn.Tanh())


def another_padding(codec: Any) -> None:
    codec.decoder.layers[-1].pad_mode = "constant"


def one_number(codec: Any) -> None:
    """In a large tensor, past torch, and where no number is sampled."""
    weight = codec.decoder.layers[0].conv.parametrizations.weight.original1
    weight.detach().numpy().reshape(-1)[weight.numel() // 64 + 1] += 10


def another_dict(codec: Any) -> None:
    layer = codec.decoder.layers[-1]
    layer.__dict__ = {**vars(layer), "pad_mode": "constant"}


CHANGES: list[Callable[[Any], None]] = [written, written_past_torch, loaded, assigned, another_parameter, no_bias]
CHANGES += [another_layer, another_table, narrower, one_more_parametrization, another_padding, one_number, another_dict]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_heard(small_model, change):
    fast = accelerated_copy(small_model)
    before = sound(stage_of(fast))
    change(fast.codec_model)
    got = sound(stage_of(fast))
    assert not torch.equal(got, before)
    ops = fast.generate.__self__.codec_patch()._ops(torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(got, sound(CodecStage(codec_weights(fast.codec_model), ops)))


def hooked(codec: Any) -> None:
    last_conv(codec).register_forward_hook(lambda *args: None)


def hooked_before(codec: Any) -> None:
    last_conv(codec).register_forward_pre_hook(lambda *args: None)


def forward_set(codec: Any) -> None:
    last_conv(codec).forward = lambda x: x


def replaced(codec: Any) -> None:
    codec.decoder.layers[-1] = nn.Identity()


def another_config(codec: Any) -> None:
    codec.config.norm_type = "time_group_norm"


def in_training(codec: Any) -> None:
    last_conv(codec).train()


def mixed(codec: Any) -> None:
    last_conv(codec).half()


@pytest.mark.parametrize("change", [hooked, hooked_before, forward_set, replaced, another_config, in_training, mixed])
def test_what_cannot_be_read_is_refused(small_model, change):
    fast = accelerated_copy(small_model)
    stage_of(fast)
    change(fast.codec_model)
    with pytest.raises(Fallback):
        stage_of(fast)


def test_a_replaced_method_of_a_class_is_refused(small_model, monkeypatch):
    fast = accelerated_copy(small_model)
    stage_of(fast)
    monkeypatch.setattr(nn.ELU, "forward", lambda self, x: x)
    with pytest.raises(Fallback):
        stage_of(fast)


def test_a_hook_of_all_modules_is_refused(small_model):
    fast = accelerated_copy(small_model)
    stage_of(fast)
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(Fallback):
            stage_of(fast)
    finally:
        hook.remove()


def test_a_weight_without_its_parametrization_is_read():
    fast = accelerate_bark(build(SMALL))  # a deep copy would share the class that is changed
    before = sound(stage_of(fast))
    parametrize.remove_parametrizations(last_conv(fast.codec_model), "weight")
    with torch.no_grad():
        last_conv(fast.codec_model).weight *= 2
    assert not torch.equal(sound(stage_of(fast)), before)


def test_a_tensor_that_is_no_parameter_is_read():
    fast = accelerate_bark(build(SMALL))
    conv = last_conv(fast.codec_model)
    parametrize.remove_parametrizations(conv, "weight")
    weight = conv.weight.detach().clone()
    del conv.weight
    conv.weight = weight
    conv.noted = torch.ones(2, dtype=torch.float64)
    before = sound(stage_of(fast))
    weight *= 2
    assert not torch.equal(sound(stage_of(fast)), before)


@pytest.mark.parametrize("block", [parametrize.cached, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_what_is_read_in_a_block_of_other_weights_is_not_kept(block, folds):
    """A cache hides what is written meanwhile; autocast rounds a parametrization's products."""
    fast = accelerate_bark(build(SMALL))
    conv = fast.codec_model.decoder.layers[0].conv
    parametrize.remove_parametrizations(conv, "weight")
    fast.codec_model.decoder.layers[0].conv = parametrizations.orthogonal(conv, orthogonal_map="cayley").eval()
    with block(), torch.no_grad():
        _, original = conv.weight, conv.parametrizations.weight.original
        original.copy_(torch.rand_like(original))
        fast.codec_decode(torch.zeros(1, 8, 12, dtype=torch.int64))
    fresh = CodecStage(codec_weights(fast.codec_model), fast.generate.__self__.codec_patch()._ops(torch.device("cpu")))
    with torch.no_grad():
        assert torch.equal(sound(stage_of(fast)), sound(fresh))


def test_nothing_is_kept_of_what_is_offloaded(small_model, monkeypatch):
    fast = accelerated_copy(small_model)
    stage_of(fast)
    kept = fast.generate.__self__.settings.codec
    monkeypatch.setattr(kept_codec, "is_offloaded", lambda module: True)
    stage_of(fast)
    assert not kept.held()


def test_threads_that_fold_at_once(small_model, folds):
    """One folds, the other takes what it finds then; while a thread compares, which may wait, none has to."""
    fast = accelerated_copy(small_model)
    kept = fast.generate.__self__.settings.codec
    found: list[CodecStage] = []
    read: list[CodecWeights] = []
    with kept._lock:
        threads = [threading.Thread(target=lambda: found.append(stage_of(fast))) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    with kept._lock:
        third = threading.Thread(target=lambda: read.append(kept.weights(fast.codec_model)), daemon=True)
        third.start()
        third.join(LIMIT_S)
        assert read and read[0] is found[0]._weights and found[0] is found[1]
    assert len(folds) == 1


def test_all_streams_may_read_what_one_has_folded(small_model, monkeypatch):
    done: list[torch.device] = []
    monkeypatch.setattr(kept_codec, "finish_stream", done.append)
    fast = accelerated_copy(small_model)
    stage_of(fast), stage_of(fast)
    assert done == [torch.device("cpu")]


def test_another_codec_of_the_same_tensors_is_read(small_model, folds):
    fast = accelerated_copy(small_model)
    stage_of(fast)
    tensors = {id(t): t for t in (*fast.codec_model.parameters(), *fast.codec_model.buffers())}
    fast.codec_model = copy.deepcopy(fast.codec_model, tensors)
    stage_of(fast)
    assert folds[-1] is fast.codec_model


def test_a_copy_of_the_model_reads_its_own(small_model, folds):
    fast = accelerated_copy(small_model)
    first = stage_of(fast)
    other = copy.deepcopy(fast)
    assert stage_of(other) is not first and folds[-1] is other.codec_model


def test_freed_with_the_rest(small_model, folds):
    fast = accelerated_copy(small_model, speculate=False)
    stage_of(fast)
    copied = acceleration_report(fast).stages[3].copied_bytes
    assert free_memory(fast) >= copied > 0
    before = len(folds)
    stage_of(fast)
    assert len(folds) == before + 1
