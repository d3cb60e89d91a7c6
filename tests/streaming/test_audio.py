"""What is streamed: stock's tokens, and the waveform of exactly the codes that each policy promises."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL, preset, stage_configs
from support.parity import accelerated_copy
from support.streams import LONG, ONE, POLICIES, SAMPLED, TWO, build_ending, generated, streamed

from bark_accel import AudioStreamer, stream


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
