"""Windows that continue the one before, and tokens that are settled early."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, SUNO, build, preset, stage_configs

from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.hf.specs import coarse_spec
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.stages.coarse import CoarseStage
from bark_accel.transformer import causal as gpt
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool

CPU = torch.device("cpu")
SAMPLING = SamplingConfig(do_sample=True, max_new_tokens=21, temperature=0.8, top_k=50)


def make_stage(model, layout):
    configs = stage_configs(model)
    spec = coarse_spec(configs["semantic_generation_config"], configs["coarse_generation_config"], layout.codebook_size)
    weights = transformer_weights("coarse", model.coarse_acoustics)
    causal = CausalModel(weights, transformer_spec(model.coarse_acoustics), get_ops("native", CPU))
    return CoarseStage(causal, spec), causal


def generate(model, layout, semantic, parts, history=None):
    """Coarse tokens of `semantic` pushed in `parts`, as many tokens drawn after each push as are ready."""
    stage, causal = make_stage(model, layout)
    torch.manual_seed(0)
    early = []
    with KVCachePool().borrow(causal.spec, semantic.shape[0], causal.weights.dtype, CPU) as cache:
        state = stage.start(semantic.shape[0], [history], SAMPLING, cache)
        chunks = semantic.split(parts, dim=1)
        for i, chunk in enumerate(chunks):
            stage.push(state, chunk, final=i == len(chunks) - 1)
            while stage.ready(state):
                stage.step(state)
            early.append(state.generated_tokens)
        return state.result(), early


@pytest.fixture
def prefills(monkeypatch):
    """Token counts of every forward pass of more than one token."""
    counts = []
    prefill = gpt.prefill

    def counting(weights, spec, hidden, cache, ops):
        counts.append(hidden.shape[1])
        return prefill(weights, spec, hidden, cache, ops)

    monkeypatch.setattr(gpt, "prefill", counting)
    return counts


def test_five_seconds_without_a_preset_need_three_prefills(suno_model, prefills):
    """Transformers prefills all 13 windows."""
    semantic = torch.randint(0, 10_000, (1, 250))
    tokens, _ = generate(suno_model, SUNO, semantic, [250])
    assert tokens.shape == (1, 750)
    assert prefills == [257, 257 + 630, 257 + 630]


def test_a_full_preset_prefills_every_window(suno_model, prefills):
    semantic = torch.randint(0, 10_000, (1, 60))
    history = preset(SUNO, 400, 600)
    parts = history["semantic_prompt"], history["coarse_prompt"]
    tokens, _ = generate(suno_model, SUNO, semantic, [60], parts)
    assert tokens.shape == (1, 180) and len(prefills) == 3


@pytest.mark.parametrize("history", [None, preset(SMALL, 12, 20), preset(SMALL, 40, 60)])
@pytest.mark.parametrize("parts", [[5] * 12, [17, 20, 23], [59, 1]])
def test_pushing_in_parts_gives_the_same_tokens(small_model, parts, history):
    """The readiness rule never lets a token be drawn that later semantic tokens would change."""
    semantic = torch.randint(0, SMALL.semantic_vocab, (2, 60))
    history = history and (history["semantic_prompt"], history["coarse_prompt"])
    whole, _ = generate(small_model, SMALL, semantic, [60], history)
    pushed, early = generate(small_model, SMALL, semantic, parts, history)
    assert torch.equal(pushed, whole)
    assert early[-2] > 0, "something was expected to be ready before the end"


def test_early_start_needs_what_the_design_says(suno_model):
    """256 semantic tokens without a preset, 47 with a full one (209 tokens of history are used)."""
    for history, needed in ((None, 256), (preset(SUNO, 400, 600), 47)):
        stage, causal = make_stage(suno_model, SUNO)
        parts = history and (history["semantic_prompt"], history["coarse_prompt"])
        with KVCachePool().borrow(causal.spec, 1, causal.weights.dtype, CPU) as cache:
            state = stage.start(1, [parts], SAMPLING, cache)
            base = 0 if history is None else 209
            assert state.semantic_history == base
            stage.push(state, torch.zeros(1, 256 - base - 1, dtype=torch.int64), final=False)
            assert not stage.ready(state)
            stage.push(state, torch.zeros(1, 1, dtype=torch.int64), final=False)
            assert stage.ready(state)
            assert 256 - base == needed


def test_no_semantic_tokens_give_no_coarse_tokens():
    model = build(SMALL)
    stage, causal = make_stage(model, SMALL)
    with KVCachePool().borrow(causal.spec, 2, causal.weights.dtype, CPU) as cache:
        state = stage.start(2, [None], SAMPLING, cache)
        pad = SMALL.semantic_vocab + 2 * SMALL.codebook_size
        stage.push(state, torch.full((2, 3), pad), final=True)
        assert not stage.ready(state) and state.result().shape == (2, 0)
