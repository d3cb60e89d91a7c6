"""Rows that have ended: they cost nothing, are trimmed, and are silent in streams."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL
from support.batches import INPUTS, SAMPLED, SHARED, VOICES, row_of

from bark_accel import (
    AudioStreamer,
    stream,
    trim_rows,
)
from bark_accel.stages.fine import FineStage
from bark_accel.transformer.causal import CausalModel


@pytest.fixture
def model_rows(monkeypatch):
    """Rows of every single-token step of the causal models by head, and of every pass of the fine one."""
    counts = {"steps": [], "fine": []}
    next_logits, fill = CausalModel.next_logits, FineStage._fill

    def counting(self, ids, cache, rows):
        if ids.shape[1] == 1:
            counts["steps"].append((self.spec.output_vocab_size, ids.shape[0]))
        return next_logits(self, ids, cache, rows)

    def counting_fill(self, window, *args):
        counts["fine"].append(window.shape[0])
        return fill(self, window, *args)

    monkeypatch.setattr(CausalModel, "next_logits", counting)
    monkeypatch.setattr(FineStage, "_fill", counting_fill)
    return counts


def steps_of(counts, vocab):
    return [rows for size, rows in counts["steps"] if size == vocab]


def test_ended_rows_cost_nothing(fast, fixed, alone, model_rows):
    spoken = [alone(row, SHARED)[0] for row in range(4)]
    semantic = sum(s["semantic"].shape[1] - 1 for s in spoken)  # the prompt gives the first
    for model in (fast, fixed):
        model_rows["steps"].clear()
        model_rows["fine"].clear()
        model.generate(**INPUTS, history_prompt=SHARED)
        assert sum(steps_of(model_rows, SMALL.semantic_outputs)) == semantic
        coarse = steps_of(model_rows, SMALL.coarse_vocab)
        if model is fast:
            assert set(coarse) == {4}, "stock's tokens need every row"
        else:
            # The prompt gives the first token of a window, fed with more than one or with the last token alone.
            lengths = [s["coarse"].shape[1] for s in spoken]
            windows = sum(-(-length // SMALL.window) for length in lengths)
            assert sum(lengths) - windows <= sum(coarse) <= sum(lengths)
    hop = SMALL.fine_history
    room = SMALL.fine_input - min(hop, SHARED["fine_prompt"].shape[1])
    windows = [max(0, -(-(s["fine"].shape[2] - room) // hop)) + 1 for s in spoken]
    assert sum(model_rows["fine"]) == sum(windows) < 4 * max(windows)


def test_trim(stock, fast):
    options = {**INPUTS, **SAMPLED}
    torch.manual_seed(2)
    expected, lengths = stock.generate(**options, return_output_lengths=True)
    torch.manual_seed(2)
    rows = fast.generate(**options, trim=True)
    assert [len(row) for row in rows] == lengths and len(set(lengths)) > 1
    for row, whole in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, whole[: len(row)], rtol=0, atol=1e-6)
    torch.manual_seed(2)
    rows, again = fast.generate(**options, trim=True, return_output_lengths=True)
    assert isinstance(rows, list) and again == lengths


def test_trim_of_a_stream(fast):
    streamer = AudioStreamer(fast, policy="preview", max_queued_chunks=1000)
    rows = fast.generate(**INPUTS, history_prompt=VOICES, streamer=streamer, trim=True)
    for row, whole in zip(rows, trim_rows(torch.cat(list(streamer), 1), streamer.row_lengths_samples), strict=True):
        assert torch.equal(row, whole)


@pytest.mark.parametrize(
    "audio, lengths, message",
    [
        (torch.zeros(2, 5), [5], r"got \[2, 5\] and 1 lengths"),
        (torch.zeros(5), [5], r"got \[5\] and 1 lengths"),
        (torch.zeros(2, 5), [5, 6], "expected lengths of 0 to 5 samples"),
        (torch.zeros(2, 5), torch.tensor([-1, 5]), r"got \[-1, 5\]"),
    ],
)
def test_trim_rows_that_do_not_fit(audio, lengths, message):
    with pytest.raises(ValueError, match=message):
        trim_rows(audio, lengths)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("history", [VOICES, SHARED], ids=["voices", "a voice"])
def test_an_exact_stream_is_what_generate_returns(fixed, history, options):
    torch.manual_seed(1)
    expected, lengths = fixed.generate(**INPUTS, history_prompt=history, return_output_lengths=True, **options)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    streamer = AudioStreamer(fixed, policy="exact", max_queued_chunks=1000)
    chunks = list(stream(fixed, **INPUTS, history_prompt=history, streamer=streamer, **options))
    torch.testing.assert_close(torch.cat(chunks, 1), expected, rtol=0, atol=1e-6)
    assert streamer.row_lengths_samples == lengths
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("policy", ["preview", "low_latency"])
def test_streamed_rows_hear_nothing_of_the_others(fast, policy, interleave):
    """A row's first chunk is that of the same text alone; with low latency, later ones depend on where it ends."""
    settings = {"policy": policy, "first_chunk_frames": 10, "max_chunk_frames": 40, "lookahead_frames": 5}

    def streamed(history, **inputs):
        streamer = AudioStreamer(fast, **settings, max_queued_chunks=1000, interleave=interleave)
        chunks = list(stream(fast, **inputs, history_prompt=history, streamer=streamer))
        return torch.cat(chunks, 1), chunks[0].shape[1], streamer.row_lengths_samples

    audio, first, lengths = streamed(VOICES, **INPUTS)
    for row, voice in enumerate(VOICES):
        expected, _, own = streamed(voice, **row_of(INPUTS, row))
        assert lengths[row] == own[0]
        end = own[0] if policy == "preview" else first
        torch.testing.assert_close(audio[row, :end], expected[0, :end], rtol=0, atol=1e-6)
        assert not audio[row, own[0] :].any()
