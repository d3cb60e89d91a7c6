"""What is streamed: stock's tokens, and the waveform of exactly the codes that each policy promises."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, build, preset, stage_configs, texts
from support.parity import accelerated_copy
from support.stock_limits import skip_where_stock_fails
from transformers.generation.logits_process import (
    LogitsProcessor,
)

from bark_accel import AccelerationError, AudioStreamer, FallbackKind, acceleration_report, stream
from bark_accel.hf import compat
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.patches.audio_generation import AudioGeneration
from bark_accel.stages.codec import CodecStage
from bark_accel.stages.semantic import SemanticStage
from bark_accel.streaming.pipeline import ChunkDecoder

ONE = texts(SMALL, [6])
TWO = texts(SMALL, [4, 9])
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 80, "fine_temperature": 0.6}
# 90 tokens are 135 frames, more than a fine window of 96.
LONG = {"do_sample": True, "semantic_max_new_tokens": 90, "fine_temperature": 0.6}
POLICIES = ["exact", "low_latency", "preview"]


def build_ending(score):
    """A model that gives the end of speech this score at every step (the others are around 0)."""
    model = build(SMALL, seed=4, bias=True)
    head, norm = model.semantic.lm_head.weight, model.semantic.layernorm_final
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, 1
        head[:, 0] = 0
        head[SMALL.semantic_vocab] = 0
        head[SMALL.semantic_vocab, 0] = score
    return model


@pytest.fixture(scope="module")
def pair(small_model):
    return small_model, accelerated_copy(small_model)


@pytest.fixture(scope="module")
def endless():
    """Never ends an utterance itself."""
    model = build_ending(-50.0)
    return model, accelerated_copy(model)


def streamed(model, seed=3, streamer=None, **kwargs):
    """All chunks of a stream from a freshly seeded generator."""
    torch.manual_seed(seed)
    return list(stream(model, streamer=streamer or AudioStreamer(model), **kwargs))


def generated(model, seed=3, **kwargs):
    torch.manual_seed(seed)
    with trace_stages(model) as trace:
        audio = model.generate(**kwargs)
    return audio, trace.outputs


@pytest.fixture
def tapped(monkeypatch):
    """What the decoder and the codec were given: `semantic` [B, T], `coarse` list of [B], `codes` list of [B, K, T]."""
    seen = {"coarse": [], "codes": []}
    push, set_semantic, decode = ChunkDecoder.push, ChunkDecoder.set_semantic, CodecStage.push

    def tap_push(self, tokens):
        seen["coarse"].append(tokens)
        push(self, tokens)

    def tap_semantic(self, tokens, *, final):
        seen["semantic"] = tokens.clone()
        set_semantic(self, tokens, final=final)

    def tap_codec(self, state, codes, **kwargs):
        seen["codes"].append(codes)
        return decode(self, state, codes, **kwargs)

    monkeypatch.setattr(ChunkDecoder, "push", tap_push)
    monkeypatch.setattr(ChunkDecoder, "set_semantic", tap_semantic)
    monkeypatch.setattr(CodecStage, "push", tap_codec)
    return seen


@pytest.mark.parametrize("history", [None, preset(SMALL, 12, 20), preset(SMALL, 40, 60)], ids=["none", "short", "full"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("texts_", [ONE, TWO], ids=["one", "two"])
def test_tokens_equal_those_of_a_run_without_streaming(endless, tapped, policy, history, texts_):
    _, fast = endless
    _, expected = generated(fast, **texts_, history_prompt=history, **LONG)
    streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=8, max_chunk_frames=20, lookahead_frames=5)
    chunks = streamed(fast, streamer=streamer, **texts_, history_prompt=history, **LONG)
    assert torch.equal(tapped["semantic"], expected["semantic"])
    assert torch.equal(torch.stack(tapped["coarse"], dim=1), expected["coarse"])
    assert len(chunks) > (1 if policy == "exact" else 5)
    if policy == "preview":
        coarse = expected["coarse"].view(len(chunks[0]), -1, 2) - SMALL.semantic_vocab
        assert torch.equal(torch.cat(tapped["codes"], 2), coarse.remainder(SMALL.codebook_size).transpose(1, 2))


@pytest.mark.parametrize("history", [None, preset(SMALL, 40, 60)], ids=["none", "full"])
@pytest.mark.parametrize("temperature", [0.6, None])
def test_exact_equals_stock(endless, history, temperature):
    """Several fine windows, the first of them long before the last coarse token: waveform and random state."""
    stock, fast = endless
    options = {**LONG, "fine_temperature": temperature}
    expected, _ = generated(stock, **ONE, history_prompt=history, **options)
    state = torch.get_rng_state()
    chunks = streamed(fast, streamer=AudioStreamer(fast, policy="exact"), **ONE, history_prompt=history, **options)
    assert len(chunks) > 1 and expected.shape[1] == 135 * 320
    torch.testing.assert_close(torch.cat(chunks, 1), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_exact_gives_out_frames_before_coarse_has_ended(endless, tapped):
    _, fast = endless
    audio = stream(fast, streamer=AudioStreamer(fast, policy="exact", max_queued_chunks=1), **ONE, **LONG)
    next(audio)
    assert len(tapped["coarse"]) < 270
    audio.close()


@pytest.mark.parametrize("history", [None, preset(SMALL, 40, 60)], ids=["none", "full"])
@pytest.mark.parametrize("options", [SAMPLED, LONG], ids=["short", "long"])
def test_low_latency_with_one_chunk_equals_stock(endless, history, options):
    stock, fast = endless
    expected, _ = generated(stock, **ONE, history_prompt=history, **options)
    state = torch.get_rng_state()
    streamer = AudioStreamer(fast, first_chunk_frames=400)
    chunks = streamed(fast, streamer=streamer, **ONE, history_prompt=history, **options)
    assert len(chunks) == 1
    torch.testing.assert_close(chunks[0], expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("texts_", [ONE, TWO], ids=["one", "two"])
def test_each_low_latency_hop_is_stocks_fine_pass(endless, tapped, texts_):
    """On what was given out as history, and the frames of the hop and its lookahead."""
    stock, fast = endless
    history = preset(SMALL, 40, 20)
    options = {**LONG, "fine_temperature": None}
    streamer = AudioStreamer(fast, first_chunk_frames=11, max_chunk_frames=50, lookahead_frames=7)
    streamed(fast, streamer=streamer, **texts_, history_prompt=history, **options)
    coarse = torch.stack(tapped["coarse"], dim=1)
    for row in range(coarse.shape[0]):
        past, start = history["fine_prompt"], 0
        for codes in tapped["codes"]:
            frames = codes.shape[2]
            seen = coarse[row : row + 1, 2 * start : 2 * (start + frames + 7)]
            with torch.no_grad():
                expected = stock.fine_acoustics.generate(
                    seen,
                    **stage_configs(stock),
                    codebook_size=SMALL.codebook_size,
                    history_prompt={"fine_prompt": past},
                    temperature=None,
                )
            assert torch.equal(codes[row], expected[0, :, :frames])
            past, start = torch.cat([past, codes[row]], dim=1), start + frames
    assert [c.shape[2] for c in tapped["codes"]] == [11, 50, 50, 24]


@pytest.mark.parametrize("policy", POLICIES)
def test_seams_are_those_of_the_codes_decoded_at_once(endless, tapped, policy):
    stock, fast = endless
    streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=3, max_chunk_frames=16, lookahead_frames=2)
    chunks = streamed(fast, streamer=streamer, **ONE, **LONG)
    whole = torch.cat(chunks, dim=1)
    at_once = stock.codec_decode(torch.cat(tapped["codes"], dim=2)).detach()
    torch.testing.assert_close(whole, at_once, rtol=0, atol=1e-6)
    seam = 0
    for chunk in chunks[:-1]:
        seam += chunk.shape[1]
        jumps = [float((audio[0, seam] - audio[0, seam - 1]).abs()) for audio in (whole, at_once)]
        assert jumps[0] <= jumps[1] + 2e-6


def test_generate_returns_what_was_streamed(pair):
    _, fast = pair
    streamer = AudioStreamer(fast, first_chunk_frames=9)
    audio, lengths = fast.generate(**TWO, **SAMPLED, streamer=streamer, return_output_lengths=True)
    assert torch.equal(audio, torch.cat(list(streamer), dim=1))
    assert lengths == streamer.row_lengths_samples and max(lengths) == audio.shape[1]
    assert list(streamer) == []
    assert torch.is_tensor(fast.generate(**ONE, **SAMPLED, streamer=AudioStreamer(fast)))


def test_rows_are_silent_after_their_end(pair):
    """And up to there they are what stock decodes for each row."""
    stock, fast = pair
    for seed in range(20):
        torch.manual_seed(seed)
        expected, lengths = stock.generate(**TWO, **SAMPLED, return_output_lengths=True)
        if len(set(lengths)) == 2:
            break
    streamer = AudioStreamer(fast, first_chunk_frames=400)
    chunks = streamed(fast, seed, streamer=streamer, **TWO, **SAMPLED)
    assert streamer.row_lengths_samples == lengths and len(set(lengths)) == 2
    torch.testing.assert_close(torch.cat(chunks, 1), expected, rtol=0, atol=1e-6)
    many = AudioStreamer(fast, policy="preview", first_chunk_frames=2)
    audio = torch.cat(streamed(fast, seed, streamer=many, **TWO, **SAMPLED), dim=1)
    for row, length in enumerate(lengths):
        assert audio[row, :length].abs().max() > 0 and not audio[row, length:].any()


def test_an_utterance_that_ends_at_once_is_empty():
    fast = accelerated_copy(build_ending(50.0))
    streamer = AudioStreamer(fast)
    audio = fast.generate(**ONE, streamer=streamer)
    assert audio.shape == (1, 0) and list(streamer) == [] and streamer.row_lengths_samples == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_models_stream_float32(small_model, dtype):
    fast = accelerated_copy(copy.deepcopy(small_model).to(dtype))
    streamer = AudioStreamer(fast, first_chunk_frames=9)
    audio = fast.generate(**ONE, **SAMPLED, streamer=streamer)
    chunks = list(streamer)
    assert all(chunk.dtype == torch.float32 and chunk.device.type == "cpu" for chunk in chunks)
    assert audio.dtype == dtype and torch.equal(audio.float(), torch.cat(chunks, dim=1))


class TestInterleave:
    def test_starts_before_the_semantic_stage_has_ended(self, endless, monkeypatch):
        _, fast = endless
        tokens, steps = [], []
        step, push = SemanticStage.step, ChunkDecoder.push
        monkeypatch.setattr(SemanticStage, "step", lambda self, state: steps.append(1) or step(self, state))
        monkeypatch.setattr(ChunkDecoder, "push", lambda self, t: tokens.append(len(steps)) or push(self, t))
        streamed(fast, streamer=AudioStreamer(fast, interleave=True), **ONE, **LONG)
        # Without a preset the first window needs as many semantic tokens as it reads.
        assert tokens[0] == SMALL.max_input and len(steps) == 90

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("texts_", [ONE, TWO], ids=["one", "two"])
    def test_is_reproducible_with_stocks_semantic_tokens(self, pair, tapped, policy, texts_):
        stock, fast = pair
        options = {"policy": policy, "first_chunk_frames": 8, "interleave": True}
        first = torch.cat(streamed(fast, streamer=AudioStreamer(fast, **options), **texts_, **SAMPLED), 1)
        semantic = tapped["semantic"]
        again = torch.cat(streamed(fast, streamer=AudioStreamer(fast, **options), **texts_, **SAMPLED), 1)
        assert torch.equal(first, again)
        _, expected = generated(stock, **texts_, **SAMPLED)
        pad = SMALL.semantic_vocab + 2 * SMALL.codebook_size
        assert torch.equal(
            semantic, expected["semantic"].masked_fill(expected["semantic"] == SMALL.semantic_vocab, pad)
        )
        assert first.shape[1] == expected["codec"].shape[1]

    def test_greedy_equals_stock(self, pair):
        stock, fast = pair
        options = {"semantic_max_new_tokens": 60, "fine_temperature": None}
        expected, _ = generated(stock, **ONE, **options)
        streamer = AudioStreamer(fast, policy="exact", interleave=True)
        audio = torch.cat(streamed(fast, streamer=streamer, **ONE, **options), dim=1)
        torch.testing.assert_close(audio, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {**TWO, "history_prompt": [preset(SMALL, 9, 15), None]},
            {"history_prompt": preset(SMALL, 60, 91), "fine_temperature": 0.6},
            {"semantic_repetition_penalty": 1.3, "coarse_bad_words_ids": [[130], [170]], "semantic_min_new_tokens": 40},
            {"min_eos_p": 0.02, **TWO},
        ],
        ids=["plain", "voices", "voice, drawn codes", "edits", "ends"],
    )
    @pytest.mark.parametrize("weights", ["same", "int8"])
    def test_greedy_is_interleaved_by_itself(self, small_model, monkeypatch, policy, options, weights):
        """With the sound, codes and random state of a stream that is not."""
        fast = accelerated_copy(small_model, weights=weights)
        inputs = {**ONE, "do_sample": False, "fine_temperature": None, "semantic_max_new_tokens": 88, **options}
        interleaved, run = [], AudioGeneration._run_interleaved
        monkeypatch.setattr(
            AudioGeneration, "_run_interleaved", lambda self, to: interleaved.append(1) or run(self, to)
        )
        heard = []
        for interleave in (False, None):
            streamer = AudioStreamer(fast, policy=policy, first_chunk_frames=8, interleave=interleave)
            chunks = streamed(fast, streamer=streamer, **inputs)
            heard.append((torch.cat(chunks, 1), torch.get_rng_state(), [c.shape for c in chunks], streamer.presets))
        assert len(interleaved) == 1
        assert torch.equal(heard[0][0], heard[1][0]) and torch.equal(heard[0][1], heard[1][1])
        assert heard[0][2] == heard[1][2]
        if policy != "preview":
            for one, other in zip(heard[0][3], heard[1][3], strict=True):
                assert all((one[part] == other[part]).all() for part in one)

    @pytest.mark.parametrize("drawn", ["semantic_do_sample", "coarse_do_sample"])
    def test_what_is_drawn_is_not_interleaved_by_itself(self, pair, monkeypatch, drawn):
        _, fast = pair
        monkeypatch.setattr(AudioGeneration, "_run_interleaved", None)
        inputs = {**ONE, "semantic_do_sample": False, "coarse_do_sample": False, drawn: True}
        assert streamed(fast, **inputs, semantic_max_new_tokens=60)


class Favour(LogitsProcessor):
    """A user's own: pushes ids that can be divided by `n`."""

    def __init__(self, n):
        self.n = n

    def __call__(self, input_ids, scores):
        return scores + 3.0 * (torch.arange(scores.shape[1]) % self.n == 0)


class TestChosenByTransformers:
    """Options that our sampler does not have."""

    @pytest.mark.parametrize(
        "options",
        [
            {"semantic_no_repeat_ngram_size": 3},
            {"coarse_no_repeat_ngram_size": 3},
            {"no_repeat_ngram_size": 3, "min_eos_p": 0.01},
            {"semantic_min_p": 0.05, "coarse_typical_p": 0.9},
            {"semantic_max_time": 60.0},
            {"coarse_max_time": 60.0, "semantic_min_p": 0.05},
        ],
        ids=str,
    )
    def test_streams_stocks_tokens(self, small_model, tapped, options):
        fast = accelerated_copy(small_model)
        options = {**SAMPLED, **options}
        expected_audio, expected = generated(small_model, **TWO, **options)
        assert (expected["semantic"].shape[1] < 80) == ("min_eos_p" in options)
        streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=10)
        chunks = streamed(fast, streamer=streamer, **TWO, **options)
        assert torch.equal(torch.stack(tapped["coarse"], dim=1), expected["coarse"])
        assert len(chunks) >= expected["fine"].shape[2] // 10
        assert acceleration_report(fast).token_choices
        exact = AudioStreamer(fast, policy="exact")
        audio = torch.cat(streamed(fast, streamer=exact, **ONE, **options), 1)
        torch.testing.assert_close(audio, generated(small_model, **ONE, **options)[0], rtol=0, atol=1e-6)
        assert expected_audio.shape[1] == sum(chunk.shape[1] for chunk in chunks)

    @pytest.mark.parametrize("loop", ["ours", "its"])
    def test_a_users_processor_follows_barks_rules(self, small_model, tapped, loop):
        """In our own loop and in Transformers', whose `BarkModel.generate` itself cannot take one."""
        fast = accelerated_copy(small_model, strict=False)
        if loop == "its":
            for stage in (fast.semantic, fast.coarse_acoustics):
                stage.layers[0].mlp.register_forward_hook(lambda module, args, output: output)
        chunks = streamed(
            fast,
            **ONE,
            semantic_max_new_tokens=40,
            semantic_logits_processor=[Favour(3)],
            coarse_logits_processor=[Favour(2)],
        )
        assert bool(acceleration_report(fast).fallbacks) == (loop == "its")
        assert chunks and (tapped["semantic"] % 3 == 0).float().mean() > 0.8
        coarse = torch.stack(tapped["coarse"], dim=1)
        assert (coarse % 2 == 0).float().mean() > 0.8
        assert int(coarse.min()) >= SMALL.semantic_vocab

    def test_a_coarse_stage_cut_short(self, small_model, tapped):
        """A stopping criterion of the coarse stage's own."""
        fast = accelerated_copy(small_model, strict=False)
        stop = {"coarse_eos_token_id": list(range(100, 164)), "semantic_max_new_tokens": 12}
        _, expected = generated(small_model, **ONE, semantic_max_new_tokens=12)
        streamer = AudioStreamer(fast, policy="preview", first_chunk_frames=2)
        torch.manual_seed(3)
        # Windows of a single token each: two of them are one frame.
        audio = torch.cat(list(stream(fast, streamer=streamer, **ONE, **stop)), dim=1)
        assert 2 * audio.shape[1] // 320 == len(tapped["coarse"]) < expected["coarse"].shape[1]
        assert streamer.row_lengths_samples == [audio.shape[1]]
        stop["semantic_max_new_tokens"] = 18
        with pytest.raises(ValueError, match="expected a multiple of 2 tokens before it stops, got 3"):
            list(stream(fast, **ONE, **stop))

    def test_strict_raises_before_any_work(self, small_model):
        strict = accelerated_copy(small_model)
        with pytest.raises(AccelerationError, match="pad_token_id"):
            list(stream(strict, **ONE, coarse_pad_token_id=5))

    @pytest.mark.skipif(not compat._takes_custom_loop(), reason="stock takes no callable custom_generate")
    @pytest.mark.parametrize("stage", ["semantic", "coarse"])
    def test_a_users_own_loop_is_used(self, small_model, stage):
        calls = []

        def loop(model, *args, **prepared):
            calls.append(model)
            return model._sample(*args, **prepared)

        fast = accelerated_copy(small_model, strict=False)
        chunks = streamed(fast, **ONE, **{f"{stage}_custom_generate": loop}, semantic_max_new_tokens=20)
        assert len(chunks) == 1 and calls
        kinds = {(reason.stage, reason.kind) for reason in acceleration_report(fast).fallbacks}
        assert kinds == {(stage, FallbackKind.ARGUMENTS)}

    @pytest.mark.parametrize(
        "options, kind",
        [({"semantic_num_beams": 2}, FallbackKind.GENERATION_MODE), ({}, FallbackKind.REPLACED_MODULE)],
        ids=["beams", "fine layer"],
    )
    def test_one_chunk_where_nothing_can_be_given_out_early(self, small_model, options, kind):
        if "semantic_num_beams" in options:
            skip_where_stock_fails("beams")
        stock = copy.deepcopy(small_model)
        if not options:
            stock.fine_acoustics.layers[0].mlp.gelu = torch.nn.ReLU()
        fast = accelerated_copy(small_model, strict=False)
        fast.fine_acoustics.layers[0].mlp.gelu = copy.deepcopy(stock.fine_acoustics.layers[0].mlp.gelu)
        options = {**options, "semantic_max_new_tokens": 30}
        torch.manual_seed(3)
        expected, lengths = stock.generate(**TWO, **options, return_output_lengths=True)
        streamer = AudioStreamer(fast)
        chunks = streamed(fast, streamer=streamer, **TWO, **options)
        assert len(chunks) == 1 and streamer.row_lengths_samples == lengths
        torch.testing.assert_close(chunks[0], expected, rtol=0, atol=1e-6)
        report = acceleration_report(fast)
        assert kind in {reason.kind for reason in (*report.fallbacks, *report.token_choices)}
