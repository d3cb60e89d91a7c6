"""The optional flash-attn package, by a stand-in with its signature: layout, masks, and when it may be chosen."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.parity import accelerated_copy
from torch import Tensor

from bark_accel import accelerate_bark, acceleration_report
from bark_accel.ops import cpu as cpu_ops
from bark_accel.ops import flash_attention, tensor_cores
from bark_accel.ops import reference as torch_ops
from bark_accel.ops.backend import get_ops
from bark_accel.ops.interface import Ops

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Dtypes that the stand-in was called with."""
    seen: list[torch.dtype] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, causal: bool = False) -> Tensor:
        assert q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype
        seen.append(q.dtype)
        tokens, keys = q.shape[1], k.shape[1]
        mask = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens) if causal else None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return seen


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("causal", (False, True))
def test_equals_torchs_own(package: list[torch.dtype], dtype: torch.dtype, causal: bool) -> None:
    query, cached = torch.randn(2, 5, 3, 8), torch.randn(2, 2, 3, 9, 8).to(dtype)
    chosen = get_ops("torch", CUDA, "flash_attn")
    got = chosen.int16_attention(query, cached[0], cached[1], causal)
    expected = tensor_cores.int16_attention(query, cached[0], cached[1], causal)
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=0)
    torch.testing.assert_close(
        expected.float(), torch_ops.int16_attention(query, cached[0], cached[1], causal), atol=2e-2, rtol=0
    )
    assert package == [got.dtype] == [torch.float16 if dtype == torch.float32 else dtype]


@pytest.mark.usefixtures("package")
def test_chosen_for_gpus_only_and_for_nothing_else() -> None:
    assert get_ops("native", CPU, "flash_attn") == cpu_ops.OPS
    assert get_ops("torch", CUDA, "sdpa") == Ops.of(torch_ops)
    chosen = get_ops("torch", CUDA, "flash_attn")
    assert chosen.int16_attention is flash_attention.int16_attention
    assert chosen.decode_step is torch_ops.decode_step


@pytest.mark.usefixtures("package")
def test_refused_where_it_is_of_no_use() -> None:
    flash_attention.check_attention("flash_attn", CUDA, exact=False)
    with pytest.raises(ValueError, match=r"on an NVIDIA GPU .* got one on cpu"):
        flash_attention.check_attention("flash_attn", CPU, exact=False)
    with pytest.raises(ValueError, match="got one on cuda:0 with float32 products"):
        flash_attention.check_attention("flash_attn", CUDA, exact=True)


def test_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="flash-attn is not installed"):
        flash_attention.check_attention("flash_attn", CUDA, exact=False)


def test_a_model_that_refuses_it_is_left_alone(small_model: Any) -> None:
    fast = accelerated_copy(small_model)
    for wanted, message in (("flash_attn", "got one on cpu with float32 products"), ("xformers", "got 'xformers'")):
        with pytest.raises(ValueError, match=message):
            accelerate_bark(fast, attention=wanted)
    assert acceleration_report(fast).attention == "sdpa"
