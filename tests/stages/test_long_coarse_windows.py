"""Coarse windows that end when they are full, against Transformers' token loop run by that definition."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from support.bark_models import SMALL, SUNO, build, layout_of, preset, stage_configs, texts
from support.parity import accelerated_copy, run
from support.stock_limits import skip_where_stock_fails
from transformers import GenerationMixin
from transformers.generation.logits_process import AlternatingCodebooksLogitsProcessor

from bark_accel import AccelerationError, AudioStreamer, accelerate_bark, acceleration_report, stream, stream_speed
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.patches.speaker import model_digest
from bark_accel.stages.coarse import CoarseStage, prompts
from bark_accel.stages.spec import CoarseSpec

# As suno's generation configs have it.
SPEC = CoarseSpec(10_000, 12_048, 49.9, 12_050, 1024, 2, 75, 256, 630, 60, fill_positions=SUNO.block_size)
# Windows end where the positions do, and where the semantic tokens of the prompt do.
LAYOUTS = [replace(SMALL, max_input=45, block_size=size) for size in (176, 210)]
HISTORIES = [None, preset(SMALL, 12, 20), preset(SMALL, 60, 91)]
ONE = {**texts(LAYOUTS[0], [5]), "semantic_min_new_tokens": 80, "semantic_max_new_tokens": 80}


@pytest.fixture(scope="module", params=LAYOUTS, ids=["positions", "semantic tokens"])
def model(request):
    return build(request.param)


@torch.no_grad()
def reference(model, semantic, history, **options):
    """Coarse tokens of semantic tokens [B, T], each window by Transformers' own loop; and the windows' lengths."""
    configs = stage_configs(model)
    semantic_config, config = configs["semantic_generation_config"], configs["coarse_generation_config"]
    rate = config.coarse_rate_hz / semantic_config.semantic_rate_hz * 2
    before, tokens = model.coarse_acoustics.preprocess_histories(
        SMALL.max_coarse_history, rate, len(semantic), semantic_config, SMALL.codebook_size, history
    )
    layout, given, first = layout_of(model), before.shape[1], tokens.shape[1]
    total, lengths = 2 * math.floor(semantic.shape[1] * rate / 2), []
    semantic = torch.hstack([before, semantic])
    while sum(lengths) < total:
        start = max(0, given + round(sum(lengths) / rate) - math.floor(SMALL.max_coarse_history / rate))
        part = semantic[:, start : start + layout.max_input]
        part = F.pad(part, (0, layout.max_input - part.shape[1]), value=config.coarse_semantic_pad_token)
        infer = torch.full((len(semantic), 1), config.coarse_infer_token)
        prompt = torch.hstack([part, infer, tokens[:, -SMALL.max_coarse_history :]])
        positions = layout.block_size - prompt.shape[1] + 1
        told = math.floor((start + layout.max_input - given) * rate) - sum(lengths)
        longest = max(SMALL.window, min(positions, told) // SMALL.window * SMALL.window)
        lengths.append(min(longest, total - sum(lengths)))
        rules = [AlternatingCodebooksLogitsProcessor(prompt.shape[1], SMALL.semantic_vocab, SMALL.codebook_size)]
        drawn = GenerationMixin.generate(
            model.coarse_acoustics,
            prompt,
            logits_processor=rules,
            max_new_tokens=lengths[-1],
            generation_config=config,
            **options,
        )
        tokens = torch.hstack([tokens, drawn[:, prompt.shape[1] :]])
    return tokens[:, first:], lengths


@pytest.fixture
def windows(monkeypatch):
    """Tokens of each window, and what it was fed as it opened."""
    seen, feed = [], CoarseStage.feed

    def spy(self, state):
        opens, fed = len(state.window) == state.window_tokens, feed(self, state)
        if opens:
            seen.append((state.window_tokens, fed.tokens.shape[1], state.semantic_history, state.coarse_history))
        return fed

    monkeypatch.setattr(CoarseStage, "feed", spy)
    return seen


def coarse(model, semantic, history, **options):
    configs = stage_configs(model)
    kwargs = {"history_prompt": history, "codebook_size": SMALL.codebook_size, **options}
    stages = [configs[f"{stage}_generation_config"] for stage in ("semantic", "coarse")]
    return model.coarse_acoustics.generate(semantic.clone(), *stages, **kwargs)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0.8, "top_k": 50, "repetition_penalty": 1.2}]
)
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("batch, length, speculate", [(1, 80, False), (1, 80, True), (1, 7, True), (2, 61, False)])
def test_tokens_are_those_of_the_definition(model, windows, batch, length, history, speculate, options):
    fast = accelerated_copy(model, long_coarse_windows=True, speculate=speculate)
    semantic = torch.randint(0, SMALL.semantic_vocab, (batch, length))
    torch.manual_seed(1)
    expected, lengths = reference(model, semantic, history, **options)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(coarse(fast, semantic, history, **options), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert [seen[0] for seen in windows] == lengths
    assert length < 10 or lengths[0] > SMALL.window


def test_windows_of_suno_s_models():
    """Without a voice preset, its semantic tokens end the first window; with a full one, positions do."""
    assert [SPEC.longest_window(0, 0, done) for done in (0, 768)] == [720, 120]
    assert [SPEC.longest_window(209, 626, done) for done in (0, 120)] == [120, 120]
    assert SUNO.block_size >= 256 + 1 + 630 + 120 - 1


@pytest.mark.parametrize("history", HISTORIES)
def test_prompts_are_those_of_the_stage(model, windows, history):
    fast = accelerated_copy(model, long_coarse_windows=True, speculate=False)
    coarse(fast, torch.randint(0, SMALL.semantic_vocab, (1, 90)), history)
    spec = replace(GenerationConfigs.of(model).coarse_spec, fill_positions=layout_of(model).block_size)
    expected = list(islice(prompts(spec, *windows[0][2:]), len(windows)))
    assert len(windows) > 2 and [seen[:2] for seen in windows[:-1]] == expected[:-1]
    assert windows[-1][1] == expected[-1][1], "the last window may be shorter"


@pytest.mark.parametrize("history", HISTORIES)
def test_streams_have_the_same_tokens(model, history):
    """In stock's order, and, where nothing is drawn, while the semantic stage goes on."""
    fast = accelerated_copy(model, long_coarse_windows=True)
    for options in (
        {"do_sample": True, "policy": "exact"},
        {"do_sample": False, "policy": "exact", "interleave": True},
    ):
        inputs = {**ONE, "history_prompt": history, "do_sample": options.pop("do_sample")}
        torch.manual_seed(0)
        whole = fast.generate(**inputs)
        torch.manual_seed(0)
        chunks = list(stream(fast, **inputs, streamer=AudioStreamer(fast, **options)))
        torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=0, atol=1e-6)


def test_rows_of_a_batch_are_as_if_alone(model):
    fast = accelerated_copy(model, long_coarse_windows=True)
    semantic = torch.randint(0, SMALL.semantic_vocab, (3, 70))
    semantic[1, 30:] = SMALL.semantic_vocab
    together = coarse(fast, semantic, HISTORIES)
    for row, history in enumerate(HISTORIES):
        own = semantic[row : row + 1, : 30 if row == 1 else 70]
        alone = coarse(fast, own, history)
        assert torch.equal(together[row, : alone.shape[1]], alone[0]) and not together[row, alone.shape[1] :].any()


def test_only_what_follows_the_first_window_differs_from_stock_s(model):
    inputs = {**ONE, "do_sample": True}
    expected, got = run(model, 0, **inputs), run(accelerated_copy(model, long_coarse_windows=True), 0, **inputs)
    assert torch.equal(got[0]["semantic"], expected[0]["semantic"])
    assert got[0]["coarse"].shape == expected[0]["coarse"].shape
    same = got[0]["coarse"] == expected[0]["coarse"]
    assert same[:, : SMALL.window].all() and not same.all()


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"coarse_num_beams": 2}, {"coarse_max_time": 60.0}])
def test_what_only_transformers_can_do_is_refused(model, monkeypatch, asked):
    """Before any work; stock's windows would be other ones than were asked for."""
    fast = accelerate_bark(copy.deepcopy(model), long_coarse_windows=True)
    monkeypatch.setattr(fast.semantic, "forward", None)
    for call in (fast.generate, lambda **inputs: list(stream(fast, **inputs))):
        with pytest.raises(
            AccelerationError, match=r"long_coarse_windows=True .*rules out Transformers' own code: coarse"
        ):
            call(**ONE, **asked)


def test_a_model_that_cannot_run_accelerated_is_refused(model):
    fast = accelerate_bark(copy.deepcopy(model), long_coarse_windows=True)
    with pytest.raises(AccelerationError, match="training mode"):
        fast.train().generate(**ONE)
    fast.eval()
    del vars(fast.coarse_acoustics)["generate"]
    with pytest.raises(AccelerationError, match="was replaced or restored"):
        fast.generate(**ONE)


def test_beams_of_the_other_stage_are_no_matter(model):
    skip_where_stock_fails("beams")
    fast = accelerate_bark(copy.deepcopy(model), long_coarse_windows=True)
    assert fast.generate(**texts(LAYOUTS[0], [5]), semantic_max_new_tokens=12, semantic_num_beams=2).shape[1] > 0


def test_the_report_and_a_long_text_s_folder_know(model):
    plain, fast = accelerated_copy(model), accelerated_copy(model, long_coarse_windows=True)
    assert acceleration_report(fast).long_coarse_windows and not acceleration_report(plain).long_coarse_windows
    line = "coarse windows end when they are full"
    assert line in str(acceleration_report(fast)) and line not in str(acceleration_report(plain))
    fitting = accelerated_copy(model, fit_windows=True)
    assert len({model_digest(model) for model in (plain, fast, fitting, copy.deepcopy(fast))}) == 3


def test_a_trial_of_the_machine_is_no_longer(model, windows):
    stream_speed(accelerated_copy(model, long_coarse_windows=True, fit_windows=True))
    assert {seen[0] for seen in windows} == {SMALL.window}
