"""What scripts of the Bark blog do to a model before it is accelerated: it is read all the same."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, submodels, texts
from support.parity import assert_equal_to_stock
from transformers import BarkModel
from transformers.models.bark import modeling_bark as hf

from bark_accel import accelerate_bark, acceleration_report, small_bark_path
from bark_accel.hf.module_checks import BETTER_TRANSFORMER, class_name

INPUTS = texts(SMALL, [4, 9])
SHORT = {"semantic_max_new_tokens": 30, "do_sample": True, "fine_temperature": 0.7}


def test_torch_dtype():
    model = BarkModel.from_pretrained(small_bark_path(), torch_dtype=torch.float16).eval()
    assert model.semantic.lm_head.weight.dtype == torch.float16
    fast = accelerate_bark(model, strict=True)
    audio = fast.generate(torch.ones(1, 16, dtype=torch.int64), semantic_max_new_tokens=12)
    assert torch.isfinite(audio).all() and acceleration_report(fast).fallbacks == ()


_ATTENTION = """
from transformers.models.bark.modeling_bark import BarkSelfAttention

class {name}(BarkSelfAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)
"""


@pytest.fixture
def better_transformer(monkeypatch) -> Any:
    """`to_bettertransformer`: optimum's own where it is installed beside an old Transformers, else one of its shape."""
    if hasattr(BarkModel, "to_bettertransformer"):
        try:
            import optimum.bettertransformer  # noqa: F401
        except ImportError:
            pass
        else:
            return BarkModel.to_bettertransformer
    place, _, name = BETTER_TRANSFORMER.rpartition(".")
    module = types.ModuleType(place)
    # Made in that module, as optimum's is.
    exec(_ATTENTION.format(name=name), vars(module))
    kind = vars(module)[name]
    monkeypatch.setitem(sys.modules, place, module)

    def convert(model: Any) -> Any:
        for block in (block for part in submodels(model) for block in part.layers):
            block.attn.__class__ = kind
        return model

    return convert


def test_better_transformer(small_model, better_transformer):
    fast = accelerate_bark(better_transformer(copy.deepcopy(small_model)), strict=True)
    assert class_name(type(fast.semantic.layers[0].attn)) == BETTER_TRANSFORMER
    assert_equal_to_stock(small_model, fast, **INPUTS, **SHORT)


def test_a_better_transformer_of_somebody_else_is_refused(small_model):
    model = copy.deepcopy(small_model)
    kind = type("BarkAttentionLayerBetterTransformer", (hf.BarkSelfAttention,), {"__module__": "elsewhere"})
    model.semantic.layers[0].attn.__class__ = kind
    with pytest.raises(ValueError, match="attention is a BarkAttentionLayerBetterTransformer"):
        accelerate_bark(model)


def test_flash_attention_2(small_model):
    """Its layers have stock's weights and names; only the class is another one, which needs flash-attn to run."""
    model = copy.deepcopy(small_model)
    for block in (block for part in submodels(model) for block in part.layers):
        block.attn.__class__ = hf.BARK_ATTENTION_CLASSES["flash_attention_2"]
    assert_equal_to_stock(small_model, accelerate_bark(model, strict=True), **INPUTS, **SHORT)
