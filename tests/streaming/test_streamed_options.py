"""Streams of options that our sampler lacks: our loop calls Transformers' own objects, or there is one chunk."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bark_models import SMALL
from support.parity import accelerated_copy
from support.stock_limits import skip_where_stock_fails
from support.streams import ONE, SAMPLED, TWO, generated, streamed
from transformers.generation.logits_process import (
    LogitsProcessor,
)

from bark_accel import AccelerationError, AudioStreamer, FallbackKind, acceleration_report, stream
from bark_accel.hf import compat


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
