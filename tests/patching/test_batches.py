"""Batches: rows that end at different times, a voice for each row, rows as if generated alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, build, preset, stage_configs, texts
from support.call_capturer import CallCapturer
from support.parity import (
    TOKEN_STAGES,
    accelerated_copy,
    assert_equal_to_stock,
    assert_same_run,
    assert_same_tokens,
    assert_stock_gives,
    run,
)
from support.stock_limits import skip_where_stock_fails

from bark_accel import (
    AudioStreamer,
    acceleration_report,
    restore_bark,
    stream,
    trim_rows,
)
from bark_accel.decoding import cuda_graphs as graphs
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.stages.fine import FineStage
from bark_accel.transformer.causal import CausalModel

INPUTS = texts(SMALL, [4, 9, 2, 12])
VOICES = [None, preset(SMALL, 12, 20, seed=1), preset(SMALL, 40, 60, seed=2), preset(SMALL, 41, 60, seed=3)]
SHARED = preset(SMALL, 40, 60, seed=2)
SAMPLED = {"do_sample": True, "fine_temperature": 0.7}


@pytest.fixture(scope="module")
def stock():
    """Says the end of speech where it would have said token 49: after 11 to 90 tokens, in each row elsewhere."""
    model = build(SMALL, seed=7)
    head, end = model.semantic.lm_head.weight, SMALL.semantic_vocab
    with torch.no_grad():
        head[[49, end]] = head[[end, 49]]
    return model


@pytest.fixture(scope="module")
def endless():
    """Never ends an utterance itself."""
    model = build(SMALL, seed=4, bias=True)
    head, norm = model.semantic.lm_head.weight, model.semantic.layernorm_final
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, 1
        head[:, 0] = 0
        head[SMALL.semantic_vocab, 0] = -50
    return model


@pytest.fixture(scope="module")
def fast(stock):
    return accelerated_copy(stock)


@pytest.fixture(scope="module")
def fixed(stock):
    return accelerated_copy(stock, fix_stock_bugs=["batch_tails"])


@pytest.fixture(scope="module")
def alone(stock):
    """Greedy outputs of stock for one row of INPUTS: (tokens of each stage, waveform [S])."""
    kept = {}

    def generate(row, history):
        key = row, id(history)
        if key not in kept:
            kept[key] = generate_alone(stock, row, history)
        return kept[key]

    return generate


def row_of(inputs, row):
    return {k: v[row : row + 1] for k, v in inputs.items()}


def generate_alone(model, row, history, **options):
    tokens, audio, _ = run(model, 0, **row_of(INPUTS, row), history_prompt=history, **options)
    return tokens, audio[0]


def assert_row(row, expected, got, *, tails=True):
    """The tokens of a row are those of the same text alone, its end included; `tails`: and nothing follows."""
    padding = {"semantic": SMALL.semantic_vocab, "coarse": 0, "fine": 0}
    for stage in TOKEN_STAGES:
        own = expected[stage][0]
        tokens = got[stage][row]
        assert_same_tokens(f"row {row}, {stage}", own, tokens[..., : own.shape[-1]])
        if tails:
            assert (tokens[..., own.shape[-1] :] == padding[stage]).all()


def assert_row_alone(stock, row, history, got, *, place=None, inputs=INPUTS, audio=None, length=None, **options):
    """Row `place` (default: `row`) is what stock makes of the text alone: tokens, `audio` [S] and its `length`."""

    def check(alone):
        tokens, waveform, _ = alone
        assert_row(row if place is None else place, tokens, got)
        if audio is not None:
            torch.testing.assert_close(audio[: waveform.shape[1]], waveform[0], rtol=0, atol=1e-6)
            assert not audio[waveform.shape[1] :].any()
        assert length in (None, waveform.shape[1])

    assert_stock_gives(check, stock, **row_of(inputs, row), history_prompt=history, **options)


# What stock does.


@pytest.mark.parametrize("history", [None, SHARED], ids=["no voice", "a voice"])
def test_stocks_rows_differ_from_alone_in_the_fine_stage_only(stock, alone, history):
    got, _, _ = run(stock, 0, **INPUTS, history_prompt=history)
    lengths, different = [], []
    for row in range(4):
        tokens, _ = alone(row, history)
        for stage in ("semantic", "coarse"):
            own = tokens[stage][0]
            assert_same_tokens(stage, own, got[stage][row, : len(own)])
        frames = tokens["fine"].shape[-1]
        lengths.append(frames)
        different.append(not torch.equal(tokens["fine"][0], got["fine"][row, :, :frames]))
    assert len(set(lengths)) > 2
    assert different == [frames < max(lengths) for frames in lengths]


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("settings", [{}, {"backend": "torch"}], ids=str)
def test_by_default_batches_are_stocks(stock, settings, options):
    quick = accelerated_copy(stock, **settings)
    for history in (None, SHARED):
        for seed in (3, 6):
            assert_equal_to_stock(
                stock, quick, seed, **INPUTS, history_prompt=history, return_output_lengths=True, **options
            )


def test_by_default_rows_of_a_wide_batch_are_stocks(stock, fast):
    """More rows than share one reading of the weights, until enough of them have ended."""
    lengths = [1 + i % 14 for i in range(19)]
    tokens = assert_equal_to_stock(stock, fast, **texts(SMALL, lengths), **SAMPLED, semantic_max_new_tokens=60)
    ended = (tokens["semantic"] == SMALL.semantic_vocab).any(1).sum()
    assert 3 < ended < 19


# Rows as if alone.


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


# Same seed.


def test_tokens_of_a_seed_with_batch_tails(stock, fixed):
    """Noise is drawn for ended rows too: semantic and coarse tokens are stock's, each row up to its end."""
    got, _, _ = run(fixed, 5, **INPUTS, **SAMPLED)
    spoken = got["coarse"] != 0
    assert not spoken.all() and spoken.any()

    def check(expected):
        assert_same_tokens("semantic", expected[0]["semantic"], got["semantic"])
        assert torch.equal(got["coarse"][spoken], expected[0]["coarse"][spoken])

    assert_stock_gives(check, stock, 5, **INPUTS, **SAMPLED)


def test_batch_tails_change_nothing_where_rows_are_equally_long(endless):
    """Nor for one row, whatever its voice."""
    fixed = accelerated_copy(endless, fix_stock_bugs=["batch_tails"])
    for inputs in (texts(SMALL, [6]), texts(SMALL, [4, 9])):
        for history in (None, SHARED):
            options = {**SAMPLED, "semantic_max_new_tokens": 80, "history_prompt": history}
            assert_equal_to_stock(endless, fixed, 3, **inputs, **options)


def test_equal_voices_in_a_list_are_one_for_all(endless):
    fast = accelerated_copy(endless)
    options = {**texts(SMALL, [4, 9]), **SAMPLED, "semantic_max_new_tokens": 40}
    got = run(fast, 3, **options, history_prompt=[SHARED, SHARED])
    assert_stock_gives(lambda expected: assert_same_run(expected, got), endless, 3, **options, history_prompt=SHARED)


def test_a_seed_gives_the_same_again_with_and_without_drafts(stock, fast):
    expected, _, _ = run(fast, 4, **INPUTS, **SAMPLED, history_prompt=VOICES)
    for model in (fast, accelerated_copy(stock, speculate=False), accelerated_copy(stock, backend="torch")):
        got, _, _ = run(model, 4, **INPUTS, **SAMPLED, history_prompt=VOICES)
        for stage in TOKEN_STAGES:
            assert_same_tokens(stage, expected[stage], got[stage])
    assert not torch.equal(run(fast, 5, **INPUTS, **SAMPLED, history_prompt=VOICES)[0]["coarse"], expected["coarse"])


# Cost.


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


# Lengths and trimmed rows.


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


# Streams.


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


# Transformers' own loops.

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


# Everything around it.


def test_sub_models_take_lists(stock, fast):
    configs = stage_configs(fast)
    semantic_config = configs["semantic_generation_config"]
    mask = INPUTS["attention_mask"]
    semantic = fast.semantic.generate(INPUTS["input_ids"], semantic_config, VOICES, mask)
    spoken = semantic.clone()
    two = {k: v for k, v in configs.items() if not k.startswith("fine")}
    rest = {"codebook_size": SMALL.codebook_size, "history_prompt": VOICES}
    coarse, lengths = fast.coarse_acoustics.generate(semantic, **two, **rest, return_output_lengths=True)
    fine = fast.fine_acoustics.generate(coarse, **configs, **rest)
    for row, voice in enumerate(VOICES):
        assert_row_alone(stock, row, voice, {"semantic": spoken, "coarse": coarse, "fine": fine})
        assert lengths[row] == (coarse[row] != 0).sum()
    for call in (
        lambda: fast.semantic.generate(INPUTS["input_ids"], semantic_config, VOICES[:3], mask),
        lambda: fast.coarse_acoustics.generate(semantic, **two, **{**rest, "history_prompt": VOICES[:3]}),
        lambda: fast.fine_acoustics.generate(coarse, **configs, **{**rest, "history_prompt": VOICES[:3]}),
    ):
        with pytest.raises(ValueError, match="for each of 4 rows, got a list of 3"):
            call()


def test_copies_and_the_restored_model(stock, fast):
    copied = copy.deepcopy(fast)
    got, _, _ = run(copied, 0, **INPUTS, history_prompt=VOICES)
    assert_row_alone(stock, 2, VOICES[2], got)
    with pytest.raises(TypeError):
        restore_bark(copied).generate(**INPUTS, history_prompt=VOICES)


def test_bad_input(fast):
    state = torch.get_rng_state()
    for options, error, message in (
        ({"trim": 1}, TypeError, "trim: expected True or False, got 1"),
        ({"coarse_streamer": object()}, ValueError, "coarse streamer: expected none with a list of voice presets"),
        ({"input_ids": INPUTS["input_ids"][:2], "attention_mask": None}, ValueError, "each of 2 rows, got a list of 4"),
    ):
        with pytest.raises(error, match=message):
            fast.generate(**{**INPUTS, "history_prompt": VOICES, **SAMPLED, **options})
    assert torch.equal(torch.get_rng_state(), state)


def test_presets_of_numpy_and_any_dtype(fast):
    options = {**INPUTS, "semantic_max_new_tokens": 20}
    with trace_stages(fast) as trace:
        fast.generate(**options, history_prompt=VOICES)
        expected = trace.outputs["fine"]
        narrow = [v and {k: part.numpy().astype(np.uint16) for k, part in v.items()} for v in VOICES]
        fast.generate(**options, history_prompt=narrow)
    assert torch.equal(trace.outputs["fine"], expected)
