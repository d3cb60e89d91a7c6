"""A coarse stage that starts before the semantic one has ended."""

from __future__ import annotations

import pytest
import torch
from support.bark_models import SMALL, preset
from support.parity import accelerated_copy
from support.streams import LONG, ONE, POLICIES, SAMPLED, TWO, generated, streamed

from bark_accel import AudioStreamer
from bark_accel.patches.audio_generation import AudioGeneration
from bark_accel.stages.coarse_rows import CoarseRows
from bark_accel.stages.semantic import SemanticStage
from bark_accel.streaming.pipeline import ChunkDecoder


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

    @pytest.mark.parametrize("history", [None, preset(SMALL, 60, 91), [preset(SMALL, 9, 15), None]])
    def test_semantic_tokens_wait_until_they_can_settle_something(self, endless, monkeypatch, history):
        """Each coarse token comes after the same semantic token as where all are handed on at once."""
        _, fast = endless
        inputs = {**(TWO if isinstance(history, list) else ONE), **LONG, "history_prompt": history}
        steps, tokens, pushes = [], [], []
        step, push, feed = SemanticStage.step, ChunkDecoder.push, CoarseRows.push
        monkeypatch.setattr(SemanticStage, "step", lambda self, state: steps.append(1) or step(self, state))
        monkeypatch.setattr(ChunkDecoder, "push", lambda self, t: tokens.append(len(steps)) or push(self, t))
        monkeypatch.setattr(CoarseRows, "push", lambda self, t, final: pushes.append(1) or feed(self, t, final=final))

        def heard():
            for counted in (steps, tokens, pushes):
                counted.clear()
            chunks = streamed(fast, streamer=AudioStreamer(fast, interleave=True, first_chunk_frames=8), **inputs)
            return torch.cat(chunks, 1), [*tokens], len(pushes)

        waiting = heard()
        monkeypatch.setattr(CoarseRows, "needed_semantic", 0)
        at_once = heard()
        assert torch.equal(waiting[0], at_once[0]) and waiting[1] == at_once[1]
        assert waiting[2] < at_once[2] == 90

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
