"""What holds for every op: a sample exists, opcheck passes, the references match, threads do not matter."""

import inspect

import pytest
import torch
from support.op_calls import call

from bark_accel.ops import _library
from bark_accel.ops import native as ops
from bark_accel.ops import reference as torch_ops
from bark_accel.ops._compiled import op

from .conftest import (
    APPROXIMATE,
    OP_SAMPLES,
    attention_inputs,
    decode_inputs,
    embedding_inputs,
    exponential,
    float32_conv_inputs,
    float32_linear_inputs,
    int16_attention_inputs,
    int16_linear_inputs,
    lstm_layer_inputs,
    rules,
)

NAMESPACE = "bark_accel::"
CUDA_ONLY = {"draw_next", "decode_tokens"}  # tests/cpp/fused_sample.cpp and decode_step.cpp, tests/gpu
PACKED = {"pack_linear", "packed_linear"}  # test_packed_linear.py


def registered_ops() -> set[str]:
    _library.load()
    schemas = torch._C._jit_get_all_schemas()
    return {s.name.removeprefix(NAMESPACE) for s in schemas if s.name.startswith(NAMESPACE)}


def test_every_registered_op_has_a_sample() -> None:
    assert registered_ops() == set(OP_SAMPLES) | CUDA_ONLY | PACKED


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_opcheck(name: str) -> None:
    op(name)
    for arguments in OP_SAMPLES[name]():
        torch.library.opcheck(getattr(torch.ops.bark_accel, name).default, arguments)


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_samples_equal_the_torch_twin(name: str, isa: str) -> None:
    for arguments in OP_SAMPLES[name]():
        expected = call(torch_ops, name, *arguments)
        got = call(ops, name, *arguments)
        assert got.dtype == expected.dtype
        tolerance = {"atol": APPROXIMATE[name], "rtol": 0} if name in APPROXIMATE else {}
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_backends_share_one_signature(name: str) -> None:
    assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(torch_ops, name))
    assert getattr(ops, name).__doc__.count("Raises") == 1


@pytest.mark.parametrize("name", OP_SAMPLES)
def test_thread_count_does_not_change_results(name: str, isa: str) -> None:
    arguments = {
        "fused_sample": lambda: (
            torch.randn(300, 1024),
            exponential(300, 1024),
            *rules(0, 0, 1024, temperature=0.7, top_k=50, top_p=0.9),
        ),
        "fused_multinomial": lambda: (
            torch.randn(300, 1024),
            torch.Generator().manual_seed(0),
            1024,
            *rules(0, 0, 1024, temperature=0.7, top_k=50, top_p=0.9),
        ),
        "codebook_embedding_sum": lambda: embedding_inputs(2, 300, 8, 8, 256),
        "static_cache_attention": lambda: attention_inputs(2, 130, 4, 64, 100),
        "decode_step": lambda: decode_inputs(3, 1, 72, 3, 40, torch.int8, bias=True),
        "float32_linear": lambda: float32_linear_inputs(300, 33, 600, bias=True, gelu=True),
        "float32_conv": lambda: float32_conv_inputs(2, 900, 64, 3, 70, bias=True, elu=True),
        "lstm_layer": lambda: lstm_layer_inputs(4, 9, 272),
        "float32_attention": lambda: int16_attention_inputs(2, 130, 4, 64, 300),
        "int16_linear": lambda: int16_linear_inputs(300, 33, 600, torch.float16),
        "int8_linear": lambda: int16_linear_inputs(300, 33, 600, torch.int8, bias=True),
        "int16_attention": lambda: int16_attention_inputs(2, 130, 4, 64, 300),
    }[name]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(call(ops, name, *arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
