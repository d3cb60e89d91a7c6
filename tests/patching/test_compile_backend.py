"""Dense parts through backends of torch.compile: inductor itself, and toys that are wrong, fail, or count."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
import threading
from importlib.util import find_spec

import pytest
import torch
from support.bark_models import SMALL, build, preset, stage_configs, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, assert_untouched, run
from torch._dynamo.utils import counters

from bark_accel import BarkEngine, accelerate_bark, acceleration_report, restore_bark, stream
from bark_accel.patches.speaker import _float32_sums

SHORT = {"semantic_max_new_tokens": 20}
SAMPLED, GREEDY = {"do_sample": True, **SHORT}, {"do_sample": False, "fine_temperature": None, **SHORT}
PARTS = ["prompt of 21 tokens", "fine window of 96 frames", "sound of 64 frames"]


def names(model):
    return [part.name for part in acceleration_report(model).compiled_parts]


def toy(name, change):
    """Register a backend that gives what torch does, changed by `change(outputs)`."""

    def backend(graph, inputs):
        return lambda *given: change(graph(*given))

    if name not in torch._dynamo.list_backends(exclude_tags=()):
        torch._dynamo.register_backend(backend, name=name)
    return name


PLAIN = toy("bark_toy_plain", lambda outputs: outputs)


@pytest.fixture(scope="module")
def by_inductor(small_model):
    fast = accelerated_copy(small_model, compile_backend="inductor")
    fast.generate(**texts(SMALL, [4]), **SAMPLED)
    return fast


@pytest.mark.parametrize("options", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("lengths", [[3], [12], [5, 14]])
def test_inductor_gives_stock_s_tokens_and_compiles_nothing_after_the_first_text(
    small_model, by_inductor, lengths, options
):
    before, graphs = names(by_inductor), counters["stats"]["unique_graphs"]
    assert before == PARTS and graphs >= len(PARTS)
    assert_equal_to_stock(small_model, by_inductor, 3, **texts(SMALL, lengths, sum(lengths)), **options)
    assert names(by_inductor) == before and counters["stats"]["unique_graphs"] == graphs


def test_inductor_s_programs_serve_inference_mode(by_inductor):
    inputs = texts(SMALL, [6])
    expected = run(by_inductor, 1, **inputs, **SAMPLED)
    graphs = counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        inference = run(by_inductor, 1, **texts(SMALL, [6]), **SAMPLED)
    assert_same_run(expected, inference)
    assert counters["stats"]["unique_graphs"] == graphs


def test_the_report_names_what_was_compiled_and_how_it_was_checked(by_inductor):
    report = acceleration_report(by_inductor)
    assert report.compile_backend == "inductor"
    assert all(0 < part.error <= part.limit == 2e-5 and part.first_call_s > 0 for part in report.compiled_parts)
    ops = {stage.stage: stage.ops for stage in report.stages}
    assert ops == {"semantic": "native", "coarse": "native", "fine": "inductor", "codec": "inductor"}
    assert "compiled: fine window of 96 frames, by inductor: first call" in str(report)
    assert _float32_sums(by_inductor) == "compiled by inductor"


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_gives_stock_s_tokens(small_model):
    fast = accelerated_copy(small_model, compile_backend="openvino")
    for length in (4, 11):
        assert_equal_to_stock(small_model, fast, length, **texts(SMALL, [length, 3]), **SAMPLED)
    assert names(fast) == PARTS
    halves = accelerated_copy(small_model, compile_backend="openvino", weights="bfloat16")
    with pytest.raises(RuntimeError, match=r"prompt of 21 tokens: .*OpenVINO left it to torch"):
        halves.generate(**texts(SMALL, [4]), **SAMPLED)


def test_lengths_fall_into_few_programs(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    for frames in range(0, 60, 7):
        voice = preset(SMALL, frames, frames, frames) if frames else None
        inputs = texts(SMALL, [4 + frames % 5], frames)
        assert_equal_to_stock(small_model, fast, frames, **inputs, history_prompt=voice, do_sample=True)
    lengths = [int(name.split()[2]) for name in names(fast) if name.startswith("prompt")]
    assert len(set(lengths)) == len(lengths) <= 7 and all(length % 20 == 1 for length in lengths)
    assert [name for name in names(fast) if name.startswith("fine")] == ["fine window of 96 frames"]
    sounds = [int(name.split()[2]) for name in names(fast) if name.startswith("sound")]
    assert sounds and all(frames in (64, 128, 256) for frames in sounds) and len(set(sounds)) == len(sounds)


def test_fitting_windows_have_a_program_each(small_model):
    ours = accelerated_copy(small_model, fit_windows=True)
    fast = accelerated_copy(small_model, fit_windows=True, compile_backend=PLAIN)
    for tokens in (8, 20, 9):
        inputs = {**texts(SMALL, [6]), "do_sample": True, "semantic_max_new_tokens": tokens}
        assert_same_run(run(ours, 5, **inputs), run(fast, 5, **inputs))
    assert sum(name.startswith("fine window") for name in names(fast)) == 2


def is_part(outputs, part):
    """Tell a prompt (last row, keys, values), a fine window [1, 96, C] and a waveform [1, S] apart."""
    return {"prompt": len(outputs) == 3, "fine": outputs[0].dim() == 3, "sound": outputs[0].shape[1] > 1000}[part]


@pytest.mark.parametrize("part", ["prompt", "fine", "sound"])
def test_wrong_numbers_are_caught_again_and_again(small_model, part):
    def spoil(outputs):
        worst = outputs[-1].clone()
        worst.view(-1)[-1] += 1e-3 * worst.abs().max()
        return (*outputs[:-1], worst) if is_part(outputs, part) else outputs

    fast = accelerated_copy(small_model, compile_backend=toy(f"bark_toy_wrong_{part}", spoil))
    message = rf"bark_toy_wrong_{part}', {part}.*: expected an error of at most 2.0e-05 .*, got 1.0e-03 in call 1;"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            fast.generate(**texts(SMALL, [4]), **SAMPLED)
    assert not any(name.startswith(part) for name in names(fast))


@pytest.mark.parametrize("good, caught", [(1, 2), (2, 4), (3, 4), (5, 8)])
def test_a_program_that_is_wrong_later_is_caught_in_call_1_2_4_8(small_model, good, caught):
    """Of the sound, which each generation asks for once."""
    sounds = []

    def spoil(outputs):
        if not is_part(outputs, "sound"):
            return outputs
        sounds.append(outputs[0])
        return (outputs[0] * (1 if len(sounds) <= good else 1.001), *outputs[1:])

    name = f"bark_toy_wrong_after_{good}"
    fast = accelerated_copy(small_model, compile_backend=toy(name, spoil))
    for _ in range(caught - 1):
        fast.generate(**texts(SMALL, [4]), **SAMPLED)
    for _ in range(2):  # and again, in the next call
        with pytest.raises(RuntimeError, match=rf"{name}', sound.*: expected .*, got 1.0e-03 in call {caught};"):
            fast.generate(**texts(SMALL, [4]), **SAMPLED)
    assert len(sounds) == caught + 1


def test_the_report_has_the_largest_error_of_all_checks(small_model):
    calls = []

    def worse(outputs):
        if not is_part(outputs, "sound"):
            return outputs
        calls.append(outputs)
        return (outputs[0] * (1 + 3e-6 * len(calls)), *outputs[1:])

    fast = accelerated_copy(small_model, compile_backend=toy("bark_toy_worse", worse))
    errors = []
    for _ in range(4):
        fast.generate(**texts(SMALL, [4]), **SAMPLED)
        errors.append(acceleration_report(fast).compiled_parts[-1].error)
    assert errors == pytest.approx([3e-6, 6e-6, 6e-6, 12e-6], rel=0.05) and names(fast) == PARTS


def fail(outputs):
    raise MemoryError("a toy's")


WRONG = {
    "nan": (lambda outputs: tuple(each * float("nan") for each in outputs), "got nan"),
    "shape": (lambda outputs: tuple(each[..., :-1] for each in outputs), "got inf"),
    "fails": (fail, "expected a program, got MemoryError: a toy's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_results_are_refused(small_model, name):
    change, message = WRONG[name]
    fast = accelerated_copy(small_model, compile_backend=toy(f"bark_toy_{name}", change))
    with pytest.raises(RuntimeError, match=f"bark_toy_{name}', prompt of 21 tokens: .*{message}"):
        fast.generate(**texts(SMALL, [4]), **SAMPLED)


def test_16_bits_are_an_error_for_float32_and_none_for_16_bits(small_model):
    rounded = toy("bark_toy_bf16", lambda outputs: tuple(each.bfloat16().to(each.dtype) for each in outputs))
    with pytest.raises(RuntimeError, match=r"at most 2.0e-05 .*, got \d\.\de-03"):
        accelerated_copy(small_model, compile_backend=rounded).generate(**texts(SMALL, [4]), **SAMPLED)
    fast = accelerated_copy(small_model, compile_backend=rounded, weights="bfloat16")
    stage, configs = fast.fine_acoustics, stage_configs(fast)
    stage.generate(torch.randint(0, 64, (1, 20)) + 100, **configs, codebook_size=64)
    (part,) = acceleration_report(fast).compiled_parts
    assert 2e-5 < part.error <= part.limit < 0.1


@pytest.mark.parametrize("options", [{"weights": "float16"}, {"weights": "bfloat16", "release_originals": True}])
def test_smaller_weights(small_model, options):
    fast = accelerated_copy(small_model, compile_backend=PLAIN, **options)
    audio = fast.generate(**texts(SMALL, [4, 9]), **SAMPLED)
    assert audio.isfinite().all() and names(fast) == PARTS
    assert [part.error > 1e-5 for part in acceleration_report(fast).compiled_parts] == [True, True, False]


def test_a_backend_that_gives_its_own_memory_each_time(small_model):
    kept = {}

    def into_the_same(outputs):
        key = tuple(each.shape for each in outputs)
        mine = kept.setdefault(key, tuple(map(torch.empty_like, outputs)))
        for own, each in zip(mine, outputs, strict=True):
            own.copy_(each)
        return mine

    fast = accelerated_copy(small_model, compile_backend=toy("bark_toy_memory", into_the_same))
    assert_equal_to_stock(small_model, fast, 2, **texts(SMALL, [4, 9, 6]), **SAMPLED)


def test_compiling_that_is_switched_off_is_said(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(RuntimeError, match=r"torch.compile is switched off"),
    ):
        fast.generate(**texts(SMALL, [4]), **SAMPLED)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [4]), **SAMPLED)


def test_another_number_of_threads_is_compiled_and_checked_again(small_model, two_threads):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    fast.generate(**texts(SMALL, [4]), **SAMPLED)
    torch.set_num_threads(1)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [4]), **SAMPLED)
    assert sorted(names(fast)) == sorted(PARTS * 2)


def test_new_weights_are_noticed():
    stock = build(SMALL)
    fast = accelerated_copy(stock, compile_backend=PLAIN)
    fast.generate(**texts(SMALL, [4]), **SAMPLED)
    other = build(SMALL, seed=1)
    fast.load_state_dict(other.state_dict())
    assert_equal_to_stock(other, fast, **texts(SMALL, [4]), **SAMPLED)
    assert names(fast) == PARTS


def test_copies_compile_for_themselves_and_a_restored_model_is_stock(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    fast.generate(**texts(SMALL, [4]), **SAMPLED)
    copied = copy.deepcopy(fast)
    assert names(copied) == [] and names(fast) == PARTS
    assert_equal_to_stock(small_model, copied, **texts(SMALL, [4]), **SAMPLED)
    assert names(copied) == PARTS
    unpickled = pickle.loads(pickle.dumps(fast.fine_acoustics))
    assert unpickled.generate.__self__.settings.compiler.backend == PLAIN
    restore_bark(copied)
    assert_untouched(copied)


def test_two_threads_at_once(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    expected = [run(small_model, 0, **texts(SMALL, [n]), **GREEDY)[1] for n in (4, 9)]
    got = {}

    def generate(index, length):
        got[index] = fast.generate(**texts(SMALL, [length]), **GREEDY)

    threads = [threading.Thread(target=generate, args=pair) for pair in enumerate((4, 9))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for index, audio in enumerate(expected):
        torch.testing.assert_close(got[index], audio, rtol=0, atol=1e-6)
    assert names(fast) == PARTS or sorted(names(fast)) == sorted(PARTS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_refuses(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    fast.generate(**texts(SMALL, [4]), **SAMPLED)
    receiving, sending = multiprocessing.get_context("fork").Pipe()

    def work():
        try:
            fast.generate(**texts(SMALL, [4]), **SAMPLED)
        except RuntimeError as error:
            sending.send(str(error))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    assert receiving.poll(60) and "got a child forked from it" in receiving.recv()
    child.join()


def test_engines_and_streams_use_the_programs_too(small_model):
    fast = accelerated_copy(small_model, compile_backend=PLAIN)
    with BarkEngine(fast) as engine:
        said = engine.submit(**texts(SMALL, [6]), **SAMPLED, seed=4).result()
    torch.manual_seed(4)
    assert torch.equal(said, fast.generate(**texts(SMALL, [6]), **SAMPLED)[0])
    assert sum(chunk.shape[1] for chunk in stream(fast, **texts(SMALL, [6]), **SAMPLED)) > 0
    assert names(fast)[:2] == PARTS[:2]


MISSING = {"tensorrt": "torch_tensorrt", "openvino": "openvino", "openxla": "torch_xla", "tvm": "tvm"}


@pytest.mark.parametrize("backend", MISSING)
def test_a_backend_that_is_not_installed(small_model, backend):
    if find_spec(MISSING[backend]) is not None:
        pytest.skip("it is installed")
    model = copy.deepcopy(small_model)
    with pytest.raises(
        ImportError, match=rf"compile_backend='{backend}': expected the module .*pip install .*for torch"
    ):
        accelerate_bark(model, compile_backend=backend)
    assert_untouched(model)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"compile_backend": "induktor"}, ValueError, "expected one of .*'inductor'.*, got 'induktor'"),
        ({"compile_backend": True}, TypeError, "expected None or the name of a backend, got True"),
        ({"compile_backend": PLAIN, "weights": "int8"}, ValueError, "'float16' or 'bfloat16' with it, got 'int8'"),
        ({"compile_backend": PLAIN, "weights": "w8a8"}, ValueError, "got 'w8a8'"),
    ],
)
def test_bad_arguments(small_model, options, error, message):
    model = copy.deepcopy(small_model)
    with pytest.raises(error, match=f"compile_backend.*{message}"):
        accelerate_bark(model, **options)
    assert_untouched(model)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "env g++"])
def test_inductor_without_a_compiler(small_model, compiler):
    """As torch would start it: a command with arguments is the name of no file."""
    model = copy.deepcopy(small_model)
    expected = f"name or path of one program, without arguments, got {compiler!r}"
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, compiler)}),
        pytest.raises(ImportError, match=re.escape(expected)),
    ):
        accelerate_bark(model, compile_backend="inductor")
    assert_untouched(model)
