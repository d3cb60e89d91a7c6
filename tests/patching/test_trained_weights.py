"""The trained model in the package: rows of batches, drafts, captured steps, smaller weights, long text."""

from __future__ import annotations

import pytest
import torch
from support.call_capturer import CallCapturer
from support.parity import (
    TOKEN_STAGES,
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_tokens,
    assert_stock_gives,
    run,
)
from transformers import AutoProcessor

from bark_accel import acceleration_report, batch_inputs, load_voice_preset, long_form, small_bark_path
from bark_accel.decoding import cuda_graphs as graphs

TEXTS = ["three five seven nine", "hello my dog is cute", "no", "good evening turn off the music"]
FOLDER = small_bark_path()
VOICES = [None, *(load_voice_preset(FOLDER / "speaker_embeddings" / f"{name}.npz") for name in ("rms", "slt")), None]
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def fast(speaking_model):
    return accelerated_copy(speaking_model)


def history_of(voice):
    return None if voice is None else {key: torch.from_numpy(part.astype("int64")) for key, part in voice.items()}


@pytest.mark.parametrize("fix", [False, True])
def test_rows_are_what_they_are_alone(speaking_model, processor, fix):
    """With a voice each; with one voice for all where stock's bug is fixed."""
    model = accelerated_copy(speaking_model, fix_stock_bugs=["batch_tails"] if fix else False)
    voices = [VOICES[1]] * 4 if fix else VOICES
    history = history_of(VOICES[1]) if fix else VOICES
    got, (audio, lengths), _ = run(
        model, 0, **{**processor(TEXTS), "history_prompt": history}, return_output_lengths=True, **GREEDY
    )
    assert len(set(lengths)) > 2
    for row, voice in enumerate(voices):

        def check(alone, row=row):
            tokens, waveform, _ = alone
            for stage in TOKEN_STAGES:
                own = tokens[stage][0]
                assert_same_tokens(f"row {row}, {stage}", own, got[stage][row][..., : own.shape[-1]])
            assert lengths[row] == waveform.shape[1]
            torch.testing.assert_close(audio[row, : lengths[row]], waveform[0], rtol=0, atol=1e-6)

        inputs = processor([TEXTS[row]])
        assert_stock_gives(check, speaking_model, **inputs, history_prompt=history_of(voice), **GREEDY)


def test_trimmed_rows_of_named_voices(fast, speaking_model, processor):
    rows = fast.generate(**batch_inputs(processor, TEXTS[:2], [None, FOLDER / "speaker_embeddings" / "rms"]), trim=True)
    assert len({len(row) for row in rows}) == 2 and all(row.isfinite().all() and row.any() for row in rows)


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("voice", [0, 1])
def test_one_utterance_of_a_seed_is_stocks(speaking_model, processor, speculate, voice):
    fast = accelerated_copy(speaking_model, speculate=speculate)
    for row, text in enumerate(TEXTS):
        assert_equal_to_stock(speaking_model, fast, row, **processor([text]), history_prompt=history_of(VOICES[voice]))
    for module in (fast.semantic, fast.coarse_acoustics):
        assert (module.generate.__self__.draft_counts.accepted_tokens > 50) == speculate


@pytest.mark.parametrize("weights", ["float16", "bfloat16", "int8", "w8a8"])
def test_smaller_weights_draw_the_same_with_and_without_drafts(speaking_model, processor, weights):
    """int8 weights have no drafts, and say the same again."""
    said = []
    for speculate in (False, None):
        fast = accelerated_copy(speaking_model, weights=weights, speculate=speculate)
        said.append(run(fast, 2, **processor([TEXTS[1]]), history_prompt=history_of(VOICES[1])))
        for module in (fast.semantic, fast.coarse_acoustics):
            drafted = module.generate.__self__.draft_counts.accepted_tokens
            assert (drafted > 10) == (speculate is None and weights not in ("int8", "w8a8"))
    for stage in TOKEN_STAGES:
        assert_same_tokens(stage, said[0][0][stage], said[1][0][stage])
    assert torch.equal(said[0][1], said[1][1]) and torch.equal(said[0][2], said[1][2])


@pytest.mark.parametrize("rows", [1, 3])
def test_over_captured_steps(speaking_model, processor, monkeypatch, rows):
    capturer = CallCapturer()
    monkeypatch.setattr(graphs, "make_capturer", lambda device: capturer)
    fast = accelerated_copy(speaking_model, speculate=False)
    for seed in (0, 1):
        history = history_of(VOICES[2]) if seed else None
        assert_equal_to_stock(speaking_model, fast, seed, **processor(TEXTS[:rows]), history_prompt=history)
    assert capturer.replayed > 50 and acceleration_report(fast).captured_graphs > 0


def test_a_long_text_in_paragraphs(fast, speaking_model, processor):
    said = {}
    for name, model in (("stock", speaking_model), ("ours", fast)):
        said[name] = list(long_form(model, processor, "\n\n".join(TEXTS), voice=VOICES[1], batch_size=1))
    for one, other in zip(said["stock"], said["ours"], strict=True):
        assert one.text == other.text and not one.cut
        torch.testing.assert_close(one.audio, other.audio, rtol=0, atol=1e-6)


def test_a_penalty_leaves_drafts_right(speaking_model, processor):
    """Of random weights, whose scores it brings close together, fewer are (`python -m benchmarks options`)."""
    for penalty in (1.0, 1.2, 1.5):
        fast = accelerated_copy(speaking_model, speculate=True)
        for seed in range(4):
            torch.manual_seed(seed)
            fast.generate(**processor(TEXTS[1]), do_sample=True, semantic_repetition_penalty=penalty)
        drafts = acceleration_report(fast).stages[0].drafts
        assert drafts.accepted_tokens / drafts.drafted_tokens > 0.95, penalty
