"""Streams of the trained model in the package: other rates, windows and codebooks than suno's, utterances that end."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.parity import SOUND_TOLERANCE, accelerated_copy, assert_equal_to_stock
from transformers import AutoProcessor

from bark_accel import AudioStreamer, FallbackKind, acceleration_report, small_bark_path, stream
from bark_accel.hf.stage_trace import trace_stages

TEXTS = ["three five seven nine", "hello my dog is cute"]
VOICE = small_bark_path() / "speaker_embeddings" / "rms.npz"


@pytest.fixture(scope="module")
def pair(speaking_model):
    return speaking_model, accelerated_copy(speaking_model)


def inputs_of(rows, voice):
    return dict(AutoProcessor.from_pretrained(small_bark_path())(TEXTS[:rows], voice_preset=voice and str(voice)))


def said(model, inputs, **options):
    """(waveform, output lengths, tokens of each stage)."""
    torch.manual_seed(3)
    with trace_stages(model) as trace:
        audio, lengths = model.generate(**copy.deepcopy(inputs), return_output_lengths=True, **options)
    return audio, lengths, trace.outputs


def streamed(model, inputs, **settings):
    torch.manual_seed(3)
    streamer = AudioStreamer(model, **settings)
    return torch.cat(list(stream(model, **inputs, streamer=streamer)), dim=1), streamer


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("voice", [None, VOICE], ids=["no preset", "preset"])
@pytest.mark.parametrize("policy", ["exact", "low_latency"])
def test_tokens_are_stocks_and_seams_are_none(pair, rows, voice, policy):
    stock, fast = pair
    inputs = inputs_of(rows, voice)
    expected, lengths, tokens = said(stock, inputs)
    audio, streamer = streamed(
        fast, inputs, policy=policy, first_chunk_frames=7, max_chunk_frames=20, lookahead_frames=5
    )
    assert streamer.row_lengths_samples == lengths and audio.shape == expected.shape
    if policy == "exact":
        torch.testing.assert_close(audio, expected, rtol=0, atol=SOUND_TOLERANCE)
    offset, size = stock.generation_config.semantic_config["semantic_vocab_size"], stock.generation_config.codebook_size
    for row, made in enumerate(streamer.presets):
        semantic = made["semantic_prompt"]
        np.testing.assert_array_equal(semantic, tokens["semantic"][row, : len(semantic)])
        coarse = (tokens["coarse"][row].reshape(-1, 2).T - offset).remainder(size)
        np.testing.assert_array_equal(made["coarse_prompt"], coarse[:, : made["coarse_prompt"].shape[1]])
        at_once = stock.codec_decode(torch.from_numpy(made["fine_prompt"])[None]).detach()
        torch.testing.assert_close(audio[row : row + 1, : lengths[row]], at_once, rtol=0, atol=SOUND_TOLERANCE)


@pytest.mark.parametrize("voice", [None, VOICE], ids=["no preset", "preset"])
def test_low_latency_with_one_chunk_equals_stock(pair, voice):
    inputs = inputs_of(2, voice)
    audio, _ = streamed(pair[1], inputs, first_chunk_frames=400)
    torch.testing.assert_close(audio, said(pair[0], inputs)[0], rtol=0, atol=SOUND_TOLERANCE)


def test_a_preview_is_the_coarse_codebooks_decoded(pair):
    stock, fast = pair
    inputs = inputs_of(1, None)
    tokens = said(stock, inputs)[2]["coarse"]
    offset, size = stock.generation_config.semantic_config["semantic_vocab_size"], stock.generation_config.codebook_size
    codes = (tokens.reshape(1, -1, 2).transpose(1, 2) - offset).remainder(size)
    audio, _ = streamed(fast, inputs, policy="preview", first_chunk_frames=4)
    torch.testing.assert_close(audio, stock.codec_decode(codes).detach(), rtol=0, atol=SOUND_TOLERANCE)


@pytest.mark.parametrize("interleave", [False, True])
def test_streams_are_the_same_with_and_without_drafts(speaking_model, interleave):
    """And int8 drafts of trained weights are mostly right."""
    heard = []
    for speculate in (False, True):
        fast = accelerated_copy(speaking_model, speculate=speculate)
        heard.append(streamed(fast, inputs_of(1, VOICE), interleave=interleave)[0])
    assert torch.equal(*heard) and heard[0].numel() > 0
    for module in (fast.semantic, fast.coarse_acoustics):
        counts = module.generate.__self__.draft_counts
        assert counts.accepted_tokens > 0.6 * counts.drafted_tokens > 6


def test_transformers_own_loop_gives_the_same(speaking_model):
    """What the compiled loop does not do."""
    fast = accelerated_copy(speaking_model, strict=False)
    assert_equal_to_stock(speaking_model, fast, **inputs_of(2, VOICE), no_repeat_ngram_size=3)
    assert {reason.kind for reason in acceleration_report(fast).token_choices} == {FallbackKind.LOGITS_PROCESSOR}
