"""Kernels that a GPU is asked for: of a token's graph, and of a window of the fine stage. Counted without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bark_models import SMALL, texts
from support.call_capturer import CallCapturer
from support.launches import Launches
from support.parity import accelerated_copy

from bark_accel.decoding import graph_parts, step_graphs
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops import cpu, cuda, native
from bark_accel.ops.graph_draw import NextStep
from bark_accel.ops.interface import Ops
from bark_accel.stages.fine import FineStage
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FineSpec
from bark_accel.transformer.precision import ConvertedWeights, convert


@pytest.mark.usefixtures("like_a_device")
@pytest.mark.parametrize("precision", ("float16", "int8"))
@pytest.mark.parametrize("layers, most", [(12, 940), (24, 1804)])
def test_kernels_of_a_fine_window(small_model: Any, layers: int, most: int, precision: str) -> None:
    """Of 1,951 (3,583), when every product gave float32: casts follow LayerNorms only, int8 weights have a copy."""
    module = small_model.fine_acoustics
    spec = transformer_spec(module)
    fine = FineSpec(SMALL.semantic_vocab, SMALL.codebook_size, 2, 8, spec.block_size // 2, spec.block_size)
    weights = transformer_weights("fine", module)
    weights = convert(replace(weights, layers=weights.layers[:1] * layers), precision)
    on_cpu = Ops.of(native)
    ops = replace(cuda.OPS, fused_sample=on_cpu.fused_sample, codebook_embedding_sum=on_cpu.codebook_embedding_sum)
    frames = fine.max_input_frames
    coarse = torch.randint(0, fine.codebook_size, (1, frames, fine.num_coarse_codebooks))
    tokens = coarse + fine.semantic_vocab_size + torch.arange(fine.num_coarse_codebooks) * fine.codebook_size
    with Launches() as launched:
        codes = FineStage(weights, spec, fine, ops).run(tokens.flatten(1), [None], FineSampling(None))
    assert codes.shape[1] == fine.num_codebooks
    passes = fine.num_codebooks - fine.num_coarse_codebooks
    assert launched.counts.total() <= most * passes / 6, launched.counts
    assert launched.counts["_to_copy"] <= passes * (2 * layers + 6), launched.counts


def test_a_tokens_graph_is_a_step_and_a_draw(
    small_model: Any, capturer: CallCapturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel for the draw; those of the step are counted by tests/cpp/decode_step.cpp: 61 of bark-small's."""
    seen: list[Launches] = []

    def capture(step: Any, generator: Any) -> Any:
        with Launches() as launched:
            step()
        seen.append(launched)
        return step

    def draw_next(logits: Any, philox: Any, vocab_size: int, step: NextStep, *rules: Any) -> Any:
        return torch.ops.aten.set_.source_Tensor(step.ids.flatten(), step.ids.flatten())

    monkeypatch.setattr(capturer, "capture", capture)
    monkeypatch.setattr(step_graphs, "follows_torch", lambda device, draw: True)
    monkeypatch.setattr(cpu, "OPS", replace(cpu.OPS, draw_next=draw_next))
    fast = accelerated_copy(small_model, speculate=False)
    fast.generate(**texts(SMALL, [6]), do_sample=False, semantic_max_new_tokens=20)
    assert seen
    for launched in seen:
        tokens = launched.counts["decode_step"]
        assert tokens in (1, graph_parts.GRAPH_TOKENS) and launched.counts == {"decode_step": tokens, "set_": tokens}


@torch.no_grad()
def test_a_look_at_the_weights_does_not_wait_for_each_matrix(small_model: Any) -> None:
    weights = transformer_weights("semantic", small_model.semantic)
    kept = ConvertedWeights()
    first = kept.get(weights, "int8")
    with Launches() as launched:
        assert kept.get(weights, "int8").layers[0].qkv.weight is first.layers[0].qkv.weight
    assert launched.counts == {"cat": 1, "equal": 1}
