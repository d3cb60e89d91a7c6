"""What runs on a GPU, as far as a CPU can tell: no step looks at data, every torch op has a CUDA kernel."""

from __future__ import annotations

from importlib.resources import files
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from support.bark_models import SMALL, build, preset, texts
from support.call_capturer import CallCapturer
from support.parity import accelerated_copy
from torch.utils._python_dispatch import TorchDispatchMode

from bark_accel.decoding.sampling import Sampler, SamplingConfig, TokenRange
from bark_accel.decoding.step_captures import StepCaptures
from bark_accel.decoding.step_graphs import StepGraphs
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import reference as torch_ops
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache, KVCachePool
from bark_accel.transformer.precision import convert

META = torch.device("meta")
CONFIGS = {
    "greedy": SamplingConfig(do_sample=False, max_new_tokens=5),
    "all options": SamplingConfig(True, 5, 0.7, top_k=7, top_p=0.9, min_eos_p=0.1, renormalize=True),
}


@pytest.mark.parametrize("precision", ("same", "float16", "int8", "w8a8"))
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_a_step_over_torch_ops_needs_no_data(
    monkeypatch: pytest.MonkeyPatch, config: SamplingConfig, precision: str
) -> None:
    """A meta tensor has none to look at, copy to the host or branch on."""
    monkeypatch.setattr("bark_accel.ops.checks.is_capturing", lambda tensor: tensor.is_meta)
    monkeypatch.setattr("bark_accel.ops.checks._require_apart", lambda *arguments: None)  # they have no address either
    module = build(SMALL).to("meta").semantic
    weights, spec = transformer_weights("semantic", module), transformer_spec(module)
    model = CausalModel(convert(weights, precision), spec, get_ops("torch", META))
    shape = (spec.num_layers, 3, spec.num_heads, spec.block_size, spec.head_size)
    keys, values = (torch.empty(shape, dtype=model.weights.cache_dtype, device=META) for _ in range(2))
    cache = KVCache(keys, values, torch.zeros(3, dtype=torch.int64, device=META))
    # A meta device has no generator.
    captures = StepCaptures(CallCapturer(), CallCapturer, {})
    replays = StepGraphs(captures, model, cache, generator=None)  # type: ignore[arg-type]
    replays.start(model)
    block = replays.block(torch.zeros(3, dtype=torch.int64, device=META), cache, Sampler.of(model, config))
    captures.steps((TokenRange(0, 100, eos=100),), block).run()


@torch.no_grad()
def test_that_such_a_step_would_notice_a_look() -> None:
    ids = torch.zeros(3, dtype=torch.int64, device=META)
    with pytest.raises(RuntimeError):
        torch_ops._checked("fused_sample", ids)


@torch.no_grad()
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("tokens", (1, 3))
def test_attention_behind_a_mask_equals_attention_to_what_is_filled(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int
) -> None:
    query, key, value = torch.randn(3, 2, tokens, 4, 8).to(dtype)
    caches = torch.randn(2, 2, 4, 20, 8).to(dtype)
    for lengths in ((0, 0), (7, 7), (20 - tokens, 20 - tokens), (3, 9), (-1, 5)):
        filled, masked = caches.clone(), caches.clone()
        expected = torch_ops.static_cache_attention(query, key, value, *filled, torch.tensor(lengths))
        with monkeypatch.context() as patch:
            patch.setattr("bark_accel.ops.checks.on_host", lambda tensor: False)
            got = torch_ops.static_cache_attention(query, key, value, *masked, torch.tensor(lengths))
        atol = 1e-6 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(got, expected, atol=atol, rtol=1e-5, equal_nan=True)
        assert torch.equal(filled, masked)


@torch.no_grad()
@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("bad", ("id", "length", "idle"))
def test_what_does_not_fit_gives_nan_and_then_an_error(bad: str) -> None:
    module = build(SMALL).semantic
    weights, spec = transformer_weights("semantic", module), transformer_spec(module)
    model = CausalModel(weights, spec, get_ops("torch", torch.device("cpu")))
    with KVCachePool().borrow(spec, 2, torch.float32, torch.device("cpu")) as cache:
        cache.keys.zero_(), cache.values.zero_()
        ids = torch.tensor([[3], [len(weights.token_tables[0])] if bad == "id" else [4]])
        cache.length.copy_(torch.tensor([5, {"id": 5, "length": spec.block_size, "idle": -1}[bad]]))
        logits = model.step_logits(ids, cache, slice(0, 9))[:, -1]
        assert logits.isnan().all(1).tolist() == [False, True]
        assert bad == "id" or not (cache.keys[:, 1].any() or cache.values[:, 1].any()), "something was written"
        with pytest.raises(ValueError, match=r"without NaN .* in row 1"):
            torch_ops.fused_sample(logits, None, 0, torch.tensor([[0, 9, -1]]))


@torch.no_grad()
@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("bad", (-1, 37))
def test_a_code_that_does_not_fit_gives_nan_in_its_frame(bad: int) -> None:
    codes = torch.randint(0, 37, (2, 5, 4))
    codes[0, 2, 3] = codes[1, 3, 1] = bad  # of a codebook that is not summed, and of one that is
    tables, positions = [*torch.randn(3, 37, 8)], torch.randn(6, 8)
    wrong = torch_ops.codebook_embedding_sum(codes, tables, positions).isnan()
    assert wrong[1, 3].all() and wrong.sum() == 8


@torch.no_grad()
def test_the_embedding_sum_looks_at_no_code() -> None:
    """In each of the fine stage's passes the device would be waited for. A meta tensor has no data to look at."""
    codes = torch.zeros(2, 5, 4, dtype=torch.int64, device=META)
    tables, positions = [torch.empty(37, 8, device=META) for _ in range(3)], torch.empty(6, 8, device=META)
    assert torch_ops.codebook_embedding_sum(codes, tables, positions).shape == (2, 5, 8)


def test_statuses_of_rows_that_cannot_be_sampled() -> None:
    logits = torch.randn(4, 6)
    logits[1, 2], logits[2] = torch.nan, -torch.inf
    noise = torch.rand(4, 6) + 0.1
    noise[3] = 0
    ids = torch_ops.sample(logits, noise, 0, torch.tensor([[0, 6, -1]]), temperature=torch.tensor([0.7]).double())
    assert ids[0] >= 0 and ids[1:].tolist() == [-1, -2, -3]


@pytest.mark.parametrize("path", ("host", "device"))
def test_int16_ops_are_float16_beyond_the_cpu(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    seen: list[torch.dtype] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op.overloadpacket in (torch.ops.aten.mm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu):
                seen.append(args[0].dtype)
            return op(*args, **(kwargs or {}))

    monkeypatch.setattr("bark_accel.ops.checks.on_host", lambda tensor: path == "host")
    int8, scales = torch.randint(-127, 128, (9, 70), dtype=torch.int8), torch.rand(9, 2) / 64
    x, heads = torch.randn(5, 70), torch.randn(3, 1, 5, 2, 8)
    with Spy(), torch.no_grad():
        product = torch_ops.int16_linear(x, int8, scales)
        attended = torch_ops.int16_attention(heads[0], heads[1].transpose(1, 2), heads[2].transpose(1, 2), causal=True)
    exact = x @ (int8.float() * scales.repeat_interleave(64, 1)[:, :70]).t()
    torch.testing.assert_close(product, exact, atol=2e-2, rtol=1e-2)
    assert product.dtype == attended.dtype == torch.float32
    assert set(seen) == {torch.float32 if path == "host" else torch.float16}


def test_a_whole_prompt_is_left_to_flash_attention() -> None:
    """Which takes causal, but no mask."""
    heads = torch.randn(3, 1, 6, 2, 8).half()
    with mock.patch.object(
        torch_ops.F, "scaled_dot_product_attention", wraps=torch_ops.F.scaled_dot_product_attention
    ) as sdpa:
        for tokens in (6, 1, 3):
            keys, values = (heads[i].transpose(1, 2) for i in (1, 2))
            torch_ops.int16_attention(heads[0][:, -tokens:].float(), keys, values, causal=True)
    masks = [call.kwargs["attn_mask"] is not None for call in sdpa.call_args_list]
    causal = [call.kwargs["is_causal"] for call in sdpa.call_args_list]
    assert masks == [False, False, True] and causal == [True, False, False]


class OpNames(TorchDispatchMode):
    """Which ops ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))


def kernels() -> dict[str, dict[str, Any]]:
    """torch's own list of its ops, by name with overload."""
    listed = files("torchgen").joinpath("packaged/ATen/native/native_functions.yaml").read_text()
    return {f"aten::{entry['func'].partition('(')[0]}": entry for entry in yaml.load(listed, yaml.CSafeLoader)}


def has_cuda_kernel(name: str, entry: dict[str, Any], listed: dict[str, dict[str, Any]]) -> bool:
    if "structured_delegate" in entry:
        return has_cuda_kernel(name, listed[f"aten::{entry['structured_delegate']}"], listed)
    keys = {key.strip() for group in entry.get("dispatch", {"CompositeImplicit": ""}) for key in group.split(",")}
    return "ufunc_inner_loop" in entry or any(key == "CUDA" or key.startswith("Composite") for key in keys)


# What torch runs on a GPU in place of a kernel for CPUs only, chosen by the same function.
STANDS_FOR = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "aten::_scaled_dot_product_flash_attention",
    "aten::mkldnn_rnn_layer": "aten::_cudnn_rnn",
}


@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("weights", ("same", "float16", "int8"))
def test_every_op_of_every_stage_has_a_cuda_kernel(capturer: CallCapturer, small_model: Any, weights: str) -> None:
    fast = accelerated_copy(small_model, backend="torch", weights=weights)
    listed = kernels()
    with OpNames() as ran:
        for options in ({"history_prompt": preset(SMALL, 20, 40)}, {"min_eos_p": 0.02, "top_k": 9, "top_p": 0.9}):
            fast.generate(**texts(SMALL, [6, 4]), do_sample=True, semantic_max_new_tokens=20, **options)
    names = {STANDS_FOR.get(name, name).removesuffix(".default") for name in ran.names}
    ours = {name for name in names if not name.startswith("aten::")}
    assert not ours, f"ops that torch does not know on a GPU: {ours}"
    without = {name for name in names if not has_cuda_kernel(name, listed[name], listed)}
    assert len(names) > 40 and not without


def test_that_the_list_would_tell() -> None:
    listed = kernels()
    assert has_cuda_kernel("", listed["aten::addmm"], listed)
    assert not any(has_cuda_kernel(name, listed[name], listed) for name in STANDS_FOR)
