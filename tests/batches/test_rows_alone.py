"""Rows as if generated alone: a voice for each row, or `fix_stock_bugs=["batch_tails"]`."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.batches import INPUTS, SHARED, VOICES, assert_row, assert_row_alone, generate_alone, row_of
from support.call_capturer import CallCapturer
from support.parity import (
    accelerated_copy,
    run,
)
from support.stock_limits import skip_where_stock_fails

from bark_accel import (
    AudioStreamer,
    acceleration_report,
    restore_bark,
    stream,
)
from bark_accel.decoding import cuda_graphs as graphs


@pytest.mark.parametrize("settings", [{}, {"backend": "torch"}, {"speculate": False}], ids=str)
def test_a_voice_for_each_row(stock, settings):
    quick = accelerated_copy(stock, **settings)
    got, (audio, lengths), _ = run(quick, 0, **INPUTS, history_prompt=VOICES, return_output_lengths=True)
    assert len(set(lengths)) > 2
    for row, voice in enumerate(VOICES):
        assert_row_alone(stock, row, voice, got, audio=audio[row], length=lengths[row])


@pytest.mark.parametrize("history", [None, SHARED], ids=["no voice", "a voice"])
def test_batch_tails(stock, fixed, history):
    got, audio, _ = run(fixed, 0, **INPUTS, history_prompt=history)
    for row in range(4):
        assert_row_alone(stock, row, history, got, audio=audio[row])


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 1, 2, 2, 0], [2]], ids=str)
def test_any_order_of_rows(stock, fast, order):
    inputs = {k: v[order] for k, v in INPUTS.items()}
    got, _, _ = run(fast, 0, **inputs, history_prompt=tuple(VOICES[i] for i in order))
    for row, index in enumerate(order):
        assert_row_alone(stock, index, VOICES[index], got, place=row)


def test_wide_batches(stock, fixed):
    lengths = [1 + i % 14 for i in range(18)]
    inputs = texts(SMALL, lengths)
    got, _, _ = run(fixed, 0, **inputs)
    for row in (0, 7, 17):
        assert_row_alone(stock, row, None, got, inputs=inputs)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_smaller_weights(stock, weights):
    """Against the same model alone: roundings are not those of float32."""
    quick = accelerated_copy(stock, weights=weights)
    got, _, _ = run(quick, 0, **INPUTS, history_prompt=VOICES)
    for row, voice in enumerate(VOICES):
        assert_row(row, generate_alone(quick, row, voice)[0], got)


def test_half_precision_models():
    quick = accelerated_copy(build(SMALL, seed=1, bias=True, dtype=torch.float16))
    got, audio, _ = run(quick, 0, **INPUTS, history_prompt=VOICES, semantic_max_new_tokens=30)
    assert audio.dtype == torch.float16
    for row, voice in enumerate(VOICES):
        assert_row(row, generate_alone(quick, row, voice, semantic_max_new_tokens=30)[0], got)


def test_over_captured_steps(stock, monkeypatch):
    """A graph keeps its batch whole; what ended rows give is dropped."""
    capturer = CallCapturer()
    monkeypatch.setattr(graphs, "make_capturer", lambda device: capturer)
    quick = accelerated_copy(stock, speculate=False, fix_stock_bugs=["batch_tails"])
    for history in (VOICES, SHARED):
        got, _, _ = run(quick, 0, **INPUTS, history_prompt=history)
        for row in range(4):
            assert_row_alone(stock, row, history[row] if history is VOICES else history, got)
    assert capturer.replayed > 0


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_rows_without_a_word(stock, first):
    """A row that ends at once, beside one that goes on."""
    model = copy.deepcopy(stock)
    tokens = run(stock, 0, **INPUTS, semantic_max_new_tokens=20)[0]["semantic"].tolist()
    silent, other = next((a, b) for a in range(4) for b in range(4) if tokens[a][0] not in tokens[b])
    head, end = model.semantic.lm_head.weight, SMALL.semantic_vocab
    with torch.no_grad():
        head[[tokens[silent][0], end]] = head[[end, tokens[silent][0]]]
    quick = accelerated_copy(model, fix_stock_bugs=["batch_tails"])
    rows = [silent, other] if first else [other, silent]
    inputs = {k: v[rows] for k, v in INPUTS.items()}
    for history in (None, [None, None]):
        audio, lengths = quick.generate(
            **inputs, history_prompt=history, return_output_lengths=True, semantic_max_new_tokens=20
        )
        assert lengths[rows.index(silent)] == 0 and not audio[rows.index(silent)].any()
        expected = model.generate(**row_of(INPUTS, other), semantic_max_new_tokens=20)
        torch.testing.assert_close(audio[rows.index(other)], expected[0], rtol=0, atol=1e-6)
        streamer = AudioStreamer(quick, policy="low_latency", first_chunk_frames=10, lookahead_frames=2)
        chunks = list(stream(quick, **inputs, history_prompt=history, streamer=streamer, semantic_max_new_tokens=20))
        assert len(chunks) > 1 and not torch.cat(chunks, 1)[rows.index(silent)].any()


BEAMS = {"semantic": {"semantic_num_beams": 2}, "coarse": {"coarse_num_beams": 2}}


@pytest.mark.parametrize("stage", [*BEAMS, "fine"])
def test_in_stocks_own_loop_rows_run_one_by_one(stock, stage):
    quick = accelerated_copy(stock, strict=False)
    options = BEAMS.get(stage, {})
    if options:
        skip_where_stock_fails("beams")
    if stage == "fine":
        quick.fine_acoustics.layers[0].mlp.in_proj.register_forward_hook(lambda module, args, output: output)
    got, audio, _ = run(quick, 0, **INPUTS, history_prompt=VOICES, semantic_max_new_tokens=40, **options)
    report = acceleration_report(quick)
    assert {reason.stage for reason in (*report.fallbacks, *report.token_choices)} == {stage}
    for row, voice in enumerate(VOICES):
        assert_row_alone(stock, row, voice, got, semantic_max_new_tokens=40, **options)
    streamer = AudioStreamer(quick, max_queued_chunks=1000)
    chunks = list(
        stream(quick, **INPUTS, history_prompt=VOICES, semantic_max_new_tokens=40, streamer=streamer, **options)
    )
    assert len(chunks) == 1, "nothing to listen to row by row"
    torch.testing.assert_close(chunks[0], audio, rtol=0, atol=1e-6)


def test_batch_tails_in_stocks_own_loop(stock):
    """Without and with a streamer, which listens to the loop."""
    quick = accelerated_copy(stock, strict=False, fix_stock_bugs=["batch_tails"])
    quick.coarse_acoustics.layers[0].mlp.register_forward_hook(lambda module, args, output: output)
    options = {"semantic_max_new_tokens": 40}
    got, audio, _ = run(quick, 0, **INPUTS, **options)
    for row in range(4):
        assert_row_alone(stock, row, None, got, **options)
    streamer = AudioStreamer(quick, policy="exact", max_queued_chunks=1000)
    chunks = list(stream(quick, **INPUTS, **options, streamer=streamer))
    torch.testing.assert_close(torch.cat(chunks, 1), audio, rtol=0, atol=1e-6)


def test_copies_and_the_restored_model(stock, fast):
    copied = copy.deepcopy(fast)
    got, _, _ = run(copied, 0, **INPUTS, history_prompt=VOICES)
    assert_row_alone(stock, 2, VOICES[2], got)
    with pytest.raises(TypeError):
        restore_bark(copied).generate(**INPUTS, history_prompt=VOICES)
