"""Tokens of every stage, the waveform and the random state equal stock's (float32)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, SUNO, build, layout_of, preset, submodels, texts
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, assert_stock_gives, run

from bark_accel import accelerate_bark
from bark_accel.ops.float32_choice import VARIABLE

SAMPLED = {"do_sample": True}
CASES = {
    "greedy": {},
    "sampled": SAMPLED,
    "temperature": {**SAMPLED, "temperature": 0.7, "fine_temperature": 0.5},
    "top_k": {**SAMPLED, "top_k": 5},
    "top_k over the vocabulary": {**SAMPLED, "top_k": 100_000},
    "top_k off": {**SAMPLED, "top_k": 0},
    "top_p": {**SAMPLED, "top_p": 0.8, "top_k": 0},
    "top_p 0": {**SAMPLED, "top_p": 0.0},
    "top_k and top_p": {**SAMPLED, "top_k": 20, "top_p": 0.6, "temperature": 1.3},
    "min_eos_p": {**SAMPLED, "min_eos_p": 0.01},
    "min_eos_p, greedy": {"min_eos_p": 0.01},
    "one stage sampled": {"coarse_do_sample": True, "coarse_temperature": 0.6},
    "per-stage overrides": {
        "do_sample": True,
        "semantic_temperature": 0.9,
        "semantic_top_k": 7,
        "coarse_top_p": 0.7,
        "fine_temperature": 1.4,
    },
    "without renormalize_logits": {**SAMPLED, "renormalize_logits": False},
    "output lengths": {"return_output_lengths": True},
}


@pytest.fixture(scope="module")
def small_pair(small_model):
    return small_model, accelerated_copy(small_model)


@pytest.fixture(scope="module")
def speaking_pair(speaking_model):
    return speaking_model, accelerated_copy(speaking_model)


@pytest.fixture(params=["small_pair", "speaking_pair"])
def pair(request):
    """Stock and accelerated, of random and of trained weights."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def suno_pair(suno_model):
    return suno_model, accelerated_copy(suno_model)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_options_and_batches(small_pair, options, batch):
    lengths = [3, 16, 7, 1, 11][:batch]
    for seed in (0, 1):
        got = assert_equal_to_stock(*small_pair, seed=seed, **texts(SMALL, lengths), **options)
        assert got["semantic"].shape[1] < SMALL.max_new_tokens or "min_eos_p" not in options


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("batch", [1, 5])
def test_options_and_batches_of_the_trained_model(speaking_pair, options, batch):
    """Shorter utterances of a larger model."""
    inputs = texts(layout_of(speaking_pair[0]), [3, 16, 7, 1, 11][:batch])
    assert_equal_to_stock(*speaking_pair, **inputs, semantic_max_new_tokens=16, **options)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 30, 33, 34, 40, 64, 65, 90])
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_every_length(pair, tokens, options):
    """From one token past the coarse history and past one fine window (90 tokens and 96 frames, 96 and 128)."""
    assert_equal_to_stock(*pair, **texts(layout_of(pair[0]), [5]), semantic_max_new_tokens=tokens, **options)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (9, 14), (30, 45), (31, 46), (60, 90), (90, 200)])
@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_presets_of_any_length(pair, shape, options):
    layout = layout_of(pair[0])
    history, inputs = preset(layout, *shape), texts(layout, [5, 9])
    for tokens in (10, 70):
        assert_equal_to_stock(*pair, **inputs, history_prompt=history, semantic_max_new_tokens=tokens, **options)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_preset_dtypes(small_pair, dtype):
    """Stock takes only some integer dtypes, so it gets the same preset in int64."""
    stock, fast = small_pair
    wide, narrow = preset(SMALL, 30, 45), preset(SMALL, 30, 45, dtype=dtype)
    inputs = texts(SMALL, [5])
    got = run(fast, 0, **inputs, history_prompt=narrow)
    assert_stock_gives(lambda expected: assert_same_run(expected, got), stock, **inputs, history_prompt=wide)


def test_rows_that_end_at_different_times():
    """A model that likes to end: EOS rows are padded and decoded at their own lengths."""
    stock = build(SMALL, seed=3)
    with torch.no_grad():
        stock.semantic.lm_head.weight[SMALL.semantic_vocab] *= 3
    fast = accelerated_copy(stock)
    inputs, options = texts(SMALL, [3, 8, 12, 5]), {"do_sample": True, "return_output_lengths": True}
    lengths = set()
    for seed in range(12):
        tokens = run(fast, seed, **inputs, **options)[0]["semantic"]
        row_lengths = ((tokens != SMALL.semantic_vocab) & (tokens < SMALL.semantic_outputs)).sum(1)
        if row_lengths.min() > 0:  # stock cannot decode a row of no tokens
            assert_equal_to_stock(stock, fast, seed, **inputs, **options)
            lengths |= set(row_lengths.tolist())
    assert len(lengths) > 3, f"expected rows of different lengths, got {lengths}"


@pytest.mark.parametrize("bias", [False, True])
def test_bias(bias):
    stock = build(SMALL, bias=bias, heads=4, layers=1, seed=5)
    assert_equal_to_stock(stock, accelerated_copy(stock), **texts(SMALL, [4, 9]), do_sample=True)


def test_settings_from_the_generation_config():
    settings = {"do_sample": True, "temperature": 0.8, "top_k": 12}
    stock = build(SMALL, semantic=settings, coarse=settings, fine={"temperature": 0.5})
    assert_equal_to_stock(stock, accelerated_copy(stock), **texts(SMALL, [4]))


def test_torch_backend(small_model):
    fast = accelerated_copy(small_model, backend="torch")
    assert_equal_to_stock(small_model, fast, **texts(SMALL, [4, 9]), do_sample=True, top_p=0.9)


@pytest.mark.parametrize("options", [{}, {**SAMPLED, "temperature": 0.7}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("tokens", [40, 300])
def test_sunos_layout(suno_pair, tokens, options):
    """300 semantic tokens: 901 coarse tokens, past the history of 630, with the re-prefill that follows."""
    assert_equal_to_stock(*suno_pair, **texts(SUNO, [9]), semantic_max_new_tokens=tokens, **options)


def test_longest_utterance(suno_pair):
    """768 semantic tokens, 1154 frames: three fine windows."""
    got = assert_equal_to_stock(*suno_pair, 1, **texts(SUNO, [200]), do_sample=True)
    assert got["semantic"].shape[1] == 768 and got["fine"].shape[2] == 1154


def _real_presets() -> list[Path]:
    # Test data only, never imported: the voice presets in PyPI's bark 0.1.5.
    package = importlib.util.find_spec("bark")
    assert package is not None, "expected PyPI's bark 0.1.5 (pip install --no-deps bark==0.1.5; make test does)"
    root = Path(package.submodule_search_locations[0]) / "assets" / "prompts"
    names = ["announcer", "v2/en_speaker_6", "en_speaker_3", "v2/zh_speaker_0"]
    return [root / f"{name}.npz" for name in names]


@pytest.mark.parametrize("index", range(4))
def test_real_voice_presets(suno_pair, index):
    """As stored: `announcer` is uint16, the others int64 and int32. Stock gets tensors, all int64."""
    stock, fast = suno_pair
    with np.load(_real_presets()[index]) as arrays:
        history = {k: torch.from_numpy(arrays[k].astype(np.int64)) for k in arrays}
        stored = {k: arrays[k] for k in arrays}
    inputs = texts(SUNO, [12])
    options = {"do_sample": True, "semantic_max_new_tokens": 30, "fine_temperature": 0.5}
    assert_equal_to_stock(stock, fast, **inputs, history_prompt=history, **options)
    torch.manual_seed(0)
    expected = fast.generate(**inputs, history_prompt=history, **options)
    torch.manual_seed(0)
    assert torch.equal(fast.generate(**inputs, history_prompt=stored, **options), expected)


@pytest.mark.parametrize(
    "shape", [{"width": 768, "layers": 3, "heads": 12}, {"width": 96, "layers": 12, "heads": 12}], ids=["wide", "deep"]
)
def test_bark_small_shapes(two_threads, shape):
    """12 heads of 64 numbers, 12 layers: one at a time; a short sampled utterance with a preset."""
    stock = build(SUNO, **shape, filters=32, sharpen=2.0)
    fast = accelerated_copy(stock)
    assert_equal_to_stock(
        stock,
        fast,
        **texts(SUNO, [9]),
        history_prompt=preset(SUNO, 60, 90),
        do_sample=True,
        semantic_max_new_tokens=24,
    )


@pytest.mark.parametrize("weights", ["same", "float16", "int8"])
def test_the_number_of_threads_changes_nothing(two_threads, monkeypatch, weights):
    monkeypatch.setenv(VARIABLE, "native")
    fast = accelerated_copy(
        build(SUNO, width=768, layers=2, heads=12, filters=32, sharpen=2.0), weights=weights, fit_windows=True
    )
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        made.append(fast.generate(**texts(SUNO, [9]), do_sample=True, semantic_max_new_tokens=24))
    assert made[0].shape[1] > 0
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("bias", [False, True])
def test_weights_of_any_strides(bias):
    """Transposed matrices, and vectors that are views of every other number, as stock takes them."""
    stock, twin = build(SMALL, bias=bias), build(SMALL, bias=bias)
    for model in (stock, twin):
        for part in (module for stage in submodels(model) for module in stage.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                data = parameter.detach()
                view = data.t().contiguous().t() if data.ndim == 2 else data.repeat_interleave(2)[::2]
                setattr(part, name, torch.nn.Parameter(view))
    # Not a deep copy: that would make the vectors contiguous.
    fast = accelerate_bark(twin, strict=True)
    assert fast.semantic.layers[0].mlp.in_proj.weight.stride(-1) > 1
    assert fast.semantic.layernorm_final.weight.stride(0) == 2
    for options in ({}, SAMPLED):
        assert_equal_to_stock(stock, fast, **texts(SMALL, [6]), **options)
