"""Who computes float32 blocks: stock's tokens with each, and one answer for every run on a machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.bark_models import SMALL, SUNO, build, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock

from bark_accel import acceleration_report
from bark_accel.ops import cpu as cpu_ops
from bark_accel.ops import float32_choice
from bark_accel.ops.backend import TORCH_CODEC, check_backend, get_codec_ops
from bark_accel.ops.float32_choice import VARIABLE, choice

NAMES = ("torch", "onednn", "native")
CPU = torch.device("cpu")


@pytest.fixture(params=NAMES)
def forced(request, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def unknown_cpu(monkeypatch, tmp_path):
    """A CPU that nobody measured, and an empty cache."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(float32_choice, "cpu_model", lambda: "a new one")
    float32_choice._decided.cache_clear()
    yield tmp_path / "bark_accel"
    float32_choice._decided.cache_clear()


@pytest.fixture
def trials(monkeypatch):
    """Answers of trials, in turn, instead of their times."""
    answers = [("native", "torch", "native"), ("torch", "native", "torch"), ("onednn", "native", "native")]
    monkeypatch.setattr(float32_choice, "_trial", lambda: answers.pop(0))
    return answers


def again():
    """As a new process would ask."""
    float32_choice._decided.cache_clear()
    return choice()


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.7, "fine_temperature": 0.5}])
def test_equal_to_stock_with_each(small_model, speaking_model, forced, options):
    for stock, tokens in ((small_model, 70), (speaking_model, 30)):
        fast = accelerated_copy(stock)
        assert_equal_to_stock(stock, fast, **texts(SMALL, [3, 16, 7]), semantic_max_new_tokens=tokens, **options)
        assert acceleration_report(fast).float32 == str(choice())


def test_presets_with_each(small_model, forced):
    history = preset(SMALL, 60, 90)
    fast = accelerated_copy(small_model)
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [5, 9]), history_prompt=history, do_sample=True)


def test_suno_s_layout_with_each(suno_model, forced):
    fast = accelerated_copy(suno_model)
    assert_equal_to_stock(suno_model, fast, **texts(SUNO, [9]), do_sample=True, semantic_max_new_tokens=120)


def test_strided_weights_and_bias_with_each(forced):
    stock, twin = build(SMALL, bias=True, layers=1), build(SMALL, bias=True, layers=1)
    for model in (stock, twin):
        for module in model.semantic.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.detach().t().contiguous().t())
    assert_equal_to_stock(stock, accelerated_copy(twin), **texts(SMALL, [4]), do_sample=True)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("extras", [False, True])
def test_products_of_each_agree(forced, gelu, extras):
    x, weight, bias, before = torch.randn(40, 50), torch.randn(30, 50) / 7, torch.randn(30), torch.randn(40, 30)
    product = F.linear(x.double(), weight.double(), bias.double() if extras else None)
    expected = (F.gelu(product) if gelu else product) + (before.double() if extras else 0)
    with torch.no_grad():
        got = cpu_ops.float32_linear(x, weight, bias if extras else None, before if extras else None, gelu)
    torch.testing.assert_close(got.double(), expected, atol=3e-6, rtol=0)


def test_each_is_what_runs(forced, monkeypatch):
    """The variable reaches the products: all others are taken away."""
    assert choice().products == forced and choice().source == VARIABLE
    monkeypatch.setattr(cpu_ops, "PRODUCTS", {forced: cpu_ops.PRODUCTS[forced]})
    monkeypatch.setattr(cpu_ops, "ATTENTION", {choice().attention: lambda *arguments: "attended"})
    with torch.no_grad():
        assert cpu_ops.float32_linear(torch.ones(3, 4), torch.ones(5, 4)).eq(4).all()
        assert cpu_ops.float32_attention(*torch.ones(3, 1, 2, 2, 4)) == "attended"


def test_the_codec_runs_on_what_is_chosen(forced, speaking_model):
    """Both give stock's waveform (`assert_equal_to_stock` above); the report names which it was."""
    expected = TORCH_CODEC if forced == "torch" else cpu_ops.CODEC
    assert get_codec_ops("auto", CPU) is expected and get_codec_ops("torch", CPU) is TORCH_CODEC
    stages = {stage.stage: stage.ops for stage in acceleration_report(accelerated_copy(speaking_model)).stages}
    assert stages["codec"] == ("torch" if forced == "torch" else "native")


def test_an_unknown_name_is_refused_before_anything_is_patched(monkeypatch):
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match=f"{VARIABLE}: expected one of torch, native, onednn, got 'mkl'"):
        check_backend("auto", CPU)


def test_a_trial_decides_for_all_later_runs(unknown_cpu, trials):
    first = choice()
    assert (first.products, first.attention, first.convolutions) == ("native", "torch", "native")
    assert str(unknown_cpu) in first.source
    assert again() == first and len(trials) == 2
    (path,) = unknown_cpu.iterdir()
    assert json.loads(path.read_text())["key"].startswith("a new one, ")


def test_another_cpu_or_number_of_threads_has_another_answer(unknown_cpu, trials, monkeypatch):
    first, before = choice(), torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert choice().products == "torch"
    finally:
        torch.set_num_threads(before)
    assert again() == first
    monkeypatch.setattr(float32_choice, "cpu_model", lambda: "another one")
    assert again().products == "onednn" and len(list(unknown_cpu.iterdir())) == 3


def test_the_first_of_two_processes_decides(unknown_cpu, trials, monkeypatch):
    ours = float32_choice.Float32Choice("torch", "torch", "torch", "trial")
    link = os.link

    def late(source, target):
        monkeypatch.setattr(os, "link", link)
        float32_choice._keep(target, json.loads(Path(source).read_text())["key"], ours)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert choice().products == "torch" and len(list(unknown_cpu.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"products": "native"}', "{}"])
def test_a_broken_file_is_replaced(unknown_cpu, trials, content):
    choice()
    (path,) = unknown_cpu.iterdir()
    path.write_text(content)
    second = again()
    assert (second.products, second.attention, second.convolutions) == ("torch", "native", "torch")
    assert again() == second and len(trials) == 1


def test_without_a_folder_it_is_torch(unknown_cpu, trials):
    """A trial that is not kept might end otherwise in the next process."""
    unknown_cpu.write_text("a file in the folder's place")
    first = choice()
    assert first == choice() == again()
    assert str(first) == "products torch, attention torch, convolutions torch (no folder keeps a trial)"


def test_the_real_trial_leaves_the_generator_alone(unknown_cpu):
    before = torch.get_rng_state()
    chosen = choice()
    assert torch.equal(torch.get_rng_state(), before)
    assert chosen.products in NAMES and {chosen.attention, chosen.convolutions} <= {"torch", "native"}


def test_one_trial_for_many_threads(unknown_cpu, trials, monkeypatch):
    answer = float32_choice._trial

    def slow():
        time.sleep(0.02)
        return answer()

    monkeypatch.setattr(float32_choice, "_trial", slow)
    with ThreadPoolExecutor(8) as pool:
        assert len({f.result() for f in [pool.submit(choice) for _ in range(32)]}) == 1
    assert len(trials) == 2


def test_what_is_missing_or_slow_is_not_taken():
    def missing():
        raise RuntimeError("mkldnn: unsupported")

    def slow():
        torch.ones(300_000).exp().sum()

    assert float32_choice._fastest({"torch": slow, "onednn": missing, "native": lambda: None}) == "native"
    assert float32_choice._fastest({"torch": slow, "native": slow, "onednn": missing}) in ("torch", "native")


def test_a_process_without_a_home():
    code = "from bark_accel.ops import float32_choice as f; f.cpu_model = lambda: 'new'; print(f.choice())"
    environment = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", VARIABLE)}
    environment["HOME"] = "/proc/nowhere"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "(no folder keeps a trial)" in done.stdout, done.stderr


def test_other_models_have_none(small_model):
    for options in ({"backend": "torch"}, {"weights": "int8"}):
        assert acceleration_report(accelerated_copy(small_model, **options)).float32 is None
