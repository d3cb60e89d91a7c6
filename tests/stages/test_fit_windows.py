"""Fine windows that end soon after their last frame, against Transformers' fine model run by that definition."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, run
from transformers.models.bark import generation_configuration_bark as configs

from bark_accel import AudioStreamer, acceleration_report, stream
from bark_accel.patches.speaker import model_digest
from bark_accel.stages import fine

PADDING, MULTIPLE = 8, SMALL.fine_input // 16


def fitted(frames: int) -> int:
    return min(SMALL.fine_input, -(-(frames + PADDING) // MULTIPLE) * MULTIPLE)


@torch.no_grad()
def reference(model, codes, history, temperature):
    """Codes [B, 8, T] of coarse codes [B, T, 2]: noise as in a whole window, drawn by torch.multinomial."""
    batch, frames, _ = codes.shape
    past = 0 if history is None else history.shape[1]
    window = torch.full((batch, fitted(past + frames), SMALL.codebooks), SMALL.codebook_size)
    if past:
        window[:, :past] = history.t()
    window[:, past : past + frames, :2] = codes
    for codebook in range(2, SMALL.codebooks):
        scores = model.fine_acoustics(codebook, window).logits[:, past:, : SMALL.codebook_size]
        if temperature is None:
            window[:, past:, codebook] = scores.argmax(-1)
            continue
        drawn = torch.full((batch, SMALL.fine_input - past, SMALL.codebook_size), 1 / SMALL.codebook_size)
        drawn[:, : scores.shape[1]] = (scores / temperature).softmax(-1)
        ids = torch.multinomial(drawn.flatten(0, 1), 1).view(batch, -1)
        window[:, past:, codebook] = ids[:, : scores.shape[1]]
    return window[:, past : past + frames].transpose(1, 2)


def fine_codes(model, tokens, history_prompt, temperature):
    """The same of coarse tokens, by the fine model's own `generate`."""
    given = model.generation_config
    stages = (
        configs.BarkSemanticGenerationConfig(**given.semantic_config),
        configs.BarkCoarseGenerationConfig(**given.coarse_acoustics_config),
        configs.BarkFineGenerationConfig(**given.fine_acoustics_config),
    )
    kwargs = {"history_prompt": history_prompt, "temperature": temperature, "codebook_size": SMALL.codebook_size}
    return model.fine_acoustics.generate(tokens, *stages, **kwargs)


@pytest.fixture
def windows(monkeypatch):
    """Frames of each pass."""
    seen = []
    forward = fine.bidirectional_forward

    def spy(weights, spec, hidden, *others):
        seen.append(hidden.shape[1])
        return forward(weights, spec, hidden, *others)

    monkeypatch.setattr(fine, "bidirectional_forward", spy)
    return seen


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize(
    "batch, frames, past", [(1, 1, 0), (1, 10, 0), (1, 11, 0), (1, 90, 0), (3, 20, 0), (1, 10, 30), (2, 40, 48)]
)
def test_codes_are_those_of_the_definition(small_model, windows, temperature, batch, frames, past):
    fast = accelerated_copy(small_model, fit_windows=True)
    codes = torch.randint(0, SMALL.codebook_size, (batch, frames, 2))
    history = torch.randint(0, SMALL.codebook_size, (SMALL.codebooks, past)) if past else None
    torch.manual_seed(1)
    expected, state = reference(small_model, codes, history, temperature), torch.get_rng_state()
    torch.manual_seed(1)
    prompt = {"fine_prompt": history} if past else None
    got = fine_codes(fast, codes.flatten(1) + SMALL.semantic_vocab, prompt, temperature)
    assert torch.equal(got, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(windows) == {fitted(past + frames)}


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_only_fine_codes_differ_from_stock_s(small_model, temperature):
    """And the generator ends where stock's does."""
    inputs = {**texts(SMALL, [5]), "semantic_max_new_tokens": 20, "fine_temperature": temperature}
    expected, got = run(small_model, 0, **inputs), run(accelerated_copy(small_model, fit_windows=True), 0, **inputs)
    for stage in ("semantic", "coarse"):
        assert torch.equal(got[0][stage], expected[0][stage])
    assert torch.equal(got[0]["fine"][:, :2], expected[0]["fine"][:, :2])
    assert got[0]["fine"].shape == expected[0]["fine"].shape
    assert not torch.equal(got[0]["fine"], expected[0]["fine"]), "a window of another length"
    assert torch.equal(got[2], expected[2])


def test_long_utterances_have_stock_s_windows(small_model, windows):
    inputs = {**texts(SMALL, [5]), "semantic_max_new_tokens": 90}
    expected, got = run(small_model, 0, **inputs), run(accelerated_copy(small_model, fit_windows=True), 0, **inputs)
    assert torch.equal(got[0]["fine"], expected[0]["fine"])
    assert set(windows) == {SMALL.fine_input}


@pytest.mark.parametrize("past", [0, 20])
def test_rows_as_if_alone_have_windows_of_their_own(small_model, windows, past):
    fast = accelerated_copy(small_model, fit_windows=True)
    codes = torch.randint(0, SMALL.codebook_size, (2, 60, 2))
    histories = [preset(SMALL, 20, past) if past else None, None]
    tokens = codes.flatten(1) + SMALL.semantic_vocab
    tokens[1, 2 * 15 :] = 0
    got = fine_codes(fast, tokens, histories, None)
    first = reference(small_model, codes[:1], histories[0]["fine_prompt"] if past else None, None)
    second = reference(small_model, codes[1:, :15], None, None)
    assert torch.equal(got[0], first[0])
    assert torch.equal(got[1, :, :15], second[0]) and not got[1, :, 15:].any()
    assert set(windows) == {fitted(60 + past), fitted(15)}


def test_streams_have_fitting_windows(small_model, windows):
    """A stream of one chunk, and "exact", give what `generate` gives; shorter chunks cost shorter windows."""
    fast = accelerated_copy(small_model, fit_windows=True)
    inputs = {**texts(SMALL, [5]), "semantic_max_new_tokens": 30}
    torch.manual_seed(0)
    whole = fast.generate(**inputs)
    for settings in ({"policy": "exact"}, {"first_chunk_frames": 200, "max_chunk_frames": 200}):
        torch.manual_seed(0)
        chunks = list(stream(fast, **inputs, streamer=AudioStreamer(fast, **settings)))
        torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=0, atol=1e-6)
    windows.clear()
    torch.manual_seed(0)
    settings = {"first_chunk_frames": 10, "max_chunk_frames": 20, "lookahead_frames": 5}
    chunks = list(stream(fast, **inputs, streamer=AudioStreamer(fast, **settings)))
    assert torch.cat(chunks, 1).shape == whole.shape and len(chunks) > 1
    assert windows[0] == fitted(15) < SMALL.fine_input


def test_the_report_and_a_long_text_s_folder_know(small_model):
    plain, fast = accelerated_copy(small_model), accelerated_copy(small_model, fit_windows=True)
    assert not acceleration_report(plain).fit_windows and acceleration_report(fast).fit_windows
    line = "fine windows end with the speech"
    assert line in str(acceleration_report(fast)) and line not in str(acceleration_report(plain))
    assert model_digest(plain) != model_digest(fast) == model_digest(copy.deepcopy(fast))
    assert model_digest(plain) == model_digest(accelerated_copy(small_model))
