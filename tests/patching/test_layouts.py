"""Every layout of their input that stock's sub-models take, called directly: the same tokens, shape and dtype."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, preset, stage_configs, texts
from support.parity import accelerated_copy, assert_same_tokens

from bark_accel import acceleration_report
from bark_accel.hf.stage_trace import trace_stages

TEXT = texts(SMALL, [3, 7])
IDS, MASK = TEXT["input_ids"], TEXT["attention_mask"]
VOICE = preset(SMALL, 20, 30)
NARROW = preset(SMALL, 20, 30, dtype=torch.int32)
SIZE = SMALL.codebook_size


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model)


@pytest.fixture(scope="module")
def hooked_pair(small_model):
    """Accelerated, but stock's own code has to run each stage."""
    fast = accelerated_copy(small_model, strict=False)
    for part in (fast.semantic, fast.coarse_acoustics, fast.fine_acoustics):
        part.layers[0].mlp.register_forward_hook(lambda module, args, output: output)
    return small_model, fast


@pytest.fixture(scope="module")
def configs(small_model):
    return stage_configs(small_model)


@pytest.fixture(scope="module")
def tokens(small_model, configs):
    """Semantic [2, 33], coarse [2, 98] and fine [2, 8, 49] tokens of stock."""
    torch.manual_seed(0)
    two = {k: v for k, v in configs.items() if not k.startswith("fine")}
    semantic_config = {"semantic_generation_config": configs["semantic_generation_config"]}
    semantic = small_model.semantic.generate(**TEXT, **semantic_config, max_new_tokens=33, do_sample=True)
    coarse = small_model.coarse_acoustics.generate(semantic.clone(), **two, codebook_size=SIZE, do_sample=True)
    fine = small_model.fine_acoustics.generate(coarse, **configs, codebook_size=SIZE)
    assert semantic.shape == (2, 33) and coarse.shape == (2, 98) and fine.shape == (2, 8, 49)
    return semantic, coarse, fine


def both(models, call):
    results = []
    for model in models:
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(call(model))
    return results


def columns(tensor):
    """The same numbers, stored column by column."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


SEMANTIC = {
    "int32": {"input_ids": IDS.int()},
    "no mask": {"attention_mask": None},
    "a mask of another dtype": {"attention_mask": MASK.float()},
    "a mask of bytes": {"attention_mask": MASK.byte()},
    "columns": {"input_ids": columns(IDS), "attention_mask": columns(MASK)},
    "one row, expanded": {"input_ids": IDS[:1].expand(3, -1), "attention_mask": MASK[:1].expand(3, -1)},
    "longer": {"input_ids": torch.cat([IDS, IDS], 1), "attention_mask": torch.cat([MASK, 0 * MASK], 1)},
    "a history alone": {"history_prompt": {"semantic_prompt": VOICE["semantic_prompt"]}},
    "an int32 history": {"history_prompt": NARROW},
    "an empty history": {"history_prompt": {"semantic_prompt": VOICE["semantic_prompt"][:0]}},
    "a strided history": {"history_prompt": {"semantic_prompt": VOICE["semantic_prompt"].repeat_interleave(2)[::2]}},
}


@pytest.mark.parametrize("options", SEMANTIC.values(), ids=SEMANTIC.keys())
@pytest.mark.parametrize("models", ["pair", "hooked_pair"])
def test_semantic(models, configs, options, request):
    config = configs["semantic_generation_config"]
    options = {**TEXT, "max_new_tokens": 12, "do_sample": True, **options}
    expected, got = both(
        request.getfixturevalue(models), lambda m: m.semantic.generate(**options, semantic_generation_config=config)
    )
    assert_same_tokens("semantic", expected, got)


COARSE = {
    "int32": (lambda s: s.int(), {}),
    "int16": (lambda s: s.short(), {}),
    "bytes": (lambda s: s.byte(), {}),
    "columns": (columns, {}),
    "strided": (lambda s: s.repeat_interleave(2, 1)[:, ::2], {}),
    "one token": (lambda s: s[:, :1].clone(), {}),
    "no tokens": (lambda s: s[:, :0].clone(), {}),
    "padding alone": (lambda s: torch.full_like(s, SMALL.semantic_vocab), {}),
    "an int32 history": (torch.clone, {"history_prompt": NARROW}),
    "a history of two parts": (
        torch.clone,
        {"history_prompt": {k: VOICE[k] for k in ("semantic_prompt", "coarse_prompt")}},
    ),
    "history in columns": (
        torch.clone,
        {"history_prompt": {**VOICE, "coarse_prompt": columns(VOICE["coarse_prompt"])}},
    ),
    "fewer codes": (torch.clone, {"codebook_size": 32}),
}


@pytest.mark.parametrize("layout, options", COARSE.values(), ids=COARSE.keys())
@pytest.mark.parametrize("models", ["pair", "hooked_pair"])
def test_coarse(models, configs, tokens, layout, options, request):
    options = {"codebook_size": SIZE, "do_sample": True, "return_output_lengths": True, **options}
    two = {k: v for k, v in configs.items() if not k.startswith("fine")}
    # Padding is replaced in place, in the caller's own layout.
    pushed = [layout(tokens[0].clone()), layout(tokens[0].clone())]
    inputs = iter(pushed)
    expected, got = both(
        request.getfixturevalue(models), lambda m: m.coarse_acoustics.generate(next(inputs), **two, **options)
    )
    for a, b in zip(expected, got, strict=True):
        assert_same_tokens("coarse", a, b)
    assert torch.equal(*pushed)


FINE = {
    "[B, T, n]": (lambda c: c.view(2, -1, 2), {}),
    "[B, n, T]": (lambda c: c.view(2, 2, -1), {}),
    "[B, T, n, 1]": (lambda c: c.view(2, -1, 2, 1), {}),
    "[B, T, 4 n]": (lambda c: c[:, :96].reshape(2, -1, 8), {}),
    "codes without offsets": (lambda c: c.view(2, -1, 2).remainder(SIZE), {}),
    "one row, expanded": (lambda c: c.view(2, -1, 2)[:1].expand(3, -1, -1), {}),
    "strided": (lambda c: c.repeat_interleave(2, 1)[:, ::2], {}),
    "one frame": (lambda c: c[:, :2], {}),
    "int32": (lambda c: c.int(), {}),
    "int32 [B, T, n]": (lambda c: c.int().view(2, -1, 2), {}),
    "int32 with a history": (lambda c: c.int(), {"history_prompt": VOICE}),
    "int32 with one of int32": (lambda c: c.int(), {"history_prompt": NARROW}),
    "with a history of int32": (torch.clone, {"history_prompt": NARROW}),
    "[B, T, n] with a history": (lambda c: c.view(2, -1, 2), {"history_prompt": VOICE}),
    "history in columns": (torch.clone, {"history_prompt": {"fine_prompt": columns(VOICE["fine_prompt"])}}),
    "an empty history": (torch.clone, {"history_prompt": {"fine_prompt": VOICE["fine_prompt"][:, :0]}}),
    "fewer codes": (torch.clone, {"codebook_size": 32}),
}


@pytest.mark.parametrize("layout, options", FINE.values(), ids=FINE.keys())
@pytest.mark.parametrize("models", ["pair", "hooked_pair"])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_fine(models, configs, tokens, layout, options, temperature, request):
    options = {"codebook_size": SIZE, "temperature": temperature, **options}
    codes = layout(tokens[1])
    expected, got = both(
        request.getfixturevalue(models), lambda m: m.fine_acoustics.generate(codes, **configs, **options)
    )
    assert_same_tokens("fine", expected, got)


def test_fine_rows_that_end(small_model, configs, tokens):
    """The layout does not hide where rows end."""
    fast = accelerated_copy(small_model, fix_stock_bugs=["batch_tails"])
    coarse = tokens[1].clone()
    coarse[0, 40:] = 0
    expected, got = (
        fast.fine_acoustics.generate(codes, **configs, codebook_size=SIZE) for codes in (coarse, coarse.view(2, -1, 2))
    )
    assert (expected[0, :, 20:] == 0).all() and (expected[0, :, :20] != 0).any()
    assert_same_tokens("fine", expected, got)


LENGTHS = [
    None,
    [5, 9],
    (5, 9),
    [5],
    [5, 9, 3],
    [5, None],
    [-3, 900],
    [torch.tensor(5), 9],
    np.array([5, 9]),
    torch.tensor([5, 9]),
    torch.tensor([[5], [9]]),
    torch.tensor([5, 9], dtype=torch.int32),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=map(str, range(len(LENGTHS))))
def test_lengths_of_the_codec(pair, tokens, lengths):
    for a, b in zip(*both(pair, lambda m: m.codec_decode(tokens[2], lengths)), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        lambda f: f.int(),
        lambda f: f.transpose(1, 2).contiguous().transpose(1, 2),
        lambda f: f[:1].expand(3, -1, -1),
        lambda f: f[:, :2],
        lambda f: f[:0],
    ],
    ids=["int32", "columns", "one row, expanded", "two codebooks", "no rows"],
)
def test_codes_of_the_codec(pair, tokens, layout):
    expected, got = both(pair, lambda m: m.codec_decode(layout(tokens[2])))
    assert got.shape == expected.shape and got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


REFUSED = {
    "half a frame": (lambda c: c[:, :51], ValueError, r"rows of 2 codes for each frame, got \[2, 51\]"),
    "no batch": (lambda c: c[0], ValueError, r"expected \[batch, \.\.\.\], .* got \[98\]"),
    "no rows": (lambda c: c[:0], ValueError, r"got \[0, 98\]"),
    "floats": (lambda c: c.float(), TypeError, "expected a tensor of int64 or int32, got torch.float32"),
    "bytes": (lambda c: c.byte(), TypeError, "expected a tensor of int64 or int32, got torch.uint8"),
    "a list": (lambda c: c.tolist(), TypeError, "expected a tensor of int64 or int32, got list"),
}


@pytest.mark.parametrize("layout, error, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_stocks_fine_stage_does_not_take(pair, configs, tokens, layout, error, message):
    stock, fast = pair
    codes = layout(tokens[1])
    with pytest.raises((RuntimeError, AttributeError)):
        stock.fine_acoustics.generate(codes, **configs, codebook_size=SIZE)
    with pytest.raises(error, match=f"coarse_output: .*{message}"):
        fast.fine_acoustics.generate(codes, **configs, codebook_size=SIZE)


@pytest.mark.parametrize("layout", [lambda s: s.float(), lambda s: s[0], lambda s: s[:, None], lambda s: s[:0]])
def test_what_stocks_coarse_stage_does_not_take(pair, configs, tokens, layout):
    stock, fast = pair
    two = {k: v for k, v in configs.items() if not k.startswith("fine")}
    with pytest.raises((RuntimeError, IndexError)):
        stock.coarse_acoustics.generate(layout(tokens[0].clone()), **two, codebook_size=SIZE)
    with pytest.raises(ValueError, match=r"semantic_output: expected an integer tensor \[batch, T\], got torch\."):
        fast.coarse_acoustics.generate(layout(tokens[0].clone()), **two, codebook_size=SIZE)


@pytest.mark.parametrize("codebooks", [3, 7, 9])
def test_another_number_of_codebooks(small_model, configs, tokens, codebooks):
    """Stock fails deep inside, and would otherwise speak with a part of them."""
    fast = accelerated_copy(small_model)
    other = copy.deepcopy(configs)
    other["fine_generation_config"].n_fine_codebooks = codebooks
    with pytest.raises(IndexError):
        small_model.fine_acoustics.generate(tokens[1], **other, codebook_size=SIZE)
    message = f"n_fine_codebooks of the fine generation config: expected the model's 8, got {codebooks}"
    with pytest.raises(ValueError, match=message):
        fast.fine_acoustics.generate(tokens[1], **other, codebook_size=SIZE)
    fast.generation_config = copy.deepcopy(fast.generation_config)
    fast.generation_config.fine_acoustics_config["n_fine_codebooks"] = codebooks
    with trace_stages(fast) as trace, pytest.raises(ValueError, match=message):
        fast.generate(**TEXT)
    assert trace.seconds == {}, "no work is done before the check"


def test_the_hooked_pair_runs_stocks_code(hooked_pair):
    fast = hooked_pair[1]
    assert {stage.stage for stage in acceleration_report(fast).stages if stage.blocked_by} == {
        "semantic",
        "coarse",
        "fine",
    }
