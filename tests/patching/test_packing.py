"""The fine stage's smaller weights are kept as the kernels read them: the same bits, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.parity import accelerated_copy, run

from bark_accel import accelerate_bark, free_memory
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.patches import fine
from bark_accel.transformer.bidirectional import bidirectional_forward
from bark_accel.transformer.layers import is_packed
from bark_accel.transformer.packing import packed
from bark_accel.transformer.precision import convert

INPUTS = texts(SMALL, [5])
OPTIONS = {"do_sample": True, "semantic_max_new_tokens": 12}
PRECISIONS = ["float16", "bfloat16", "int8", "w8a8"]
OPS = get_ops("auto", torch.device("cpu"))


def kept_packed(model, stage):
    """Whether each kept matrix is packed, one list a copy."""
    return [[is_packed(m) for m in kept] for kept in getattr(model, stage).generate.__self__.conversions.kept()]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", PRECISIONS)
def test_the_same_bits(weights, bias):
    module = build(SMALL, bias=bias).fine_acoustics
    narrow, spec = convert(transformer_weights("fine", module), weights), transformer_spec(module)
    for rows, frames in ((1, 64), (2, 50)):
        hidden = torch.randn(rows, frames, spec.width)
        with torch.no_grad():
            expected, got = (
                bidirectional_forward(w, spec, hidden.clone(), OPS, 3, 40) for w in (narrow, packed(narrow, OPS))
            )
        assert torch.equal(got, expected) and got.abs().sum() > 0


@pytest.mark.parametrize("weights", PRECISIONS)
def test_only_the_fine_stage_s_layers_are_packed(small_model, monkeypatch, weights):
    fast = accelerated_copy(small_model, weights=weights)
    codes = run(fast, 0, **INPUTS, **OPTIONS)[0]["fine"]
    layers = 4 * fast.fine_acoustics.config.num_layers
    heads = fast.fine_acoustics.config.n_codes_total - fast.fine_acoustics.config.n_codes_given
    assert kept_packed(fast, "fine_acoustics") == [[True] * layers + [False] * heads]
    assert not any(map(any, kept_packed(fast, "semantic") + kept_packed(fast, "coarse_acoustics")))
    monkeypatch.setattr(fine, "packed", lambda converted, ops: converted)
    assert free_memory(fast) > 0
    assert torch.equal(run(fast, 0, **INPUTS, **OPTIONS)[0]["fine"], codes)
    assert not any(map(any, kept_packed(fast, "fine_acoustics")))


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"release_originals": True}])
def test_nothing_is_packed_for_plain_torch_or_beside_released_weights(small_model, options):
    fast = accelerated_copy(small_model, weights="int8", **options)
    run(fast, 0, **INPUTS, **OPTIONS)
    assert not any(map(any, kept_packed(fast, "fine_acoustics")))


def test_a_width_that_panels_do_not_divide():
    fast = accelerate_bark(build(SMALL, width=24), weights="int8")
    run(fast, 0, **INPUTS, **OPTIONS)
    assert kept_packed(fast, "fine_acoustics") and not any(map(any, kept_packed(fast, "fine_acoustics")))


def test_weights_that_are_the_models_own_are_not_copied():
    fast = accelerate_bark(build(SMALL).half(), weights="float16")
    run(fast, 0, **INPUTS, **OPTIONS)
    assert kept_packed(fast, "fine_acoustics") and not any(map(any, kept_packed(fast, "fine_acoustics")))
