"""What `stream` and `AudioStreamer` refuse, and what their checks leave alone."""

from __future__ import annotations

import functools

import pytest
import torch
from support.bark_models import SMALL, build, texts
from support.generations import INPUTS, OPTIONS, Generation
from support.parity import accelerated_copy

from bark_accel import AudioStreamer, StreamPlan, restore_bark, stream

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind", "uncaught")
BAD = {
    "ids": ({"input_ids": torch.zeros(1, 3, dtype=torch.int64)}, ValueError, "input_ids: expected"),
    "no ids": ({"input_ids": None}, TypeError, "input_ids: expected"),
    "two streamers": ({"semantic_streamer": object()}, ValueError, "got both"),
    "a voice": ({"history_prompt": "v2/en_speaker_6"}, TypeError, "history_prompt: expected a mapping"),
    "trim": ({"trim": 1}, TypeError, "trim: expected True or False, got 1"),
    "fine temperature": ({"fine_temperature": 0.0}, ValueError, "fine temperature: expected None or a number"),
    "semantic temperature": ({"do_sample": True, "semantic_temperature": -1.0}, ValueError, "temperature"),
    "coarse top-k": ({"do_sample": True, "coarse_top_k": -2}, ValueError, "top_k"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_at_the_call(fast, case):
    """Before a web server has sent its headers, and with the streamer free for better arguments."""
    wrong, error, message = BAD[case]
    state, streamer = torch.get_rng_state(), AudioStreamer(fast)
    with pytest.raises(error, match=message):
        stream(fast, **{**INPUTS, **OPTIONS, **wrong}, streamer=streamer)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(stream(fast, **INPUTS, **OPTIONS, streamer=streamer))


def test_a_check_leaves_the_sound_as_it_is(fast):
    torch.manual_seed(0)
    streamer = AudioStreamer(fast)
    generation = Generation(fast, streamer, do_sample=True)
    expected = torch.cat(list(streamer), dim=1)
    generation.join()
    torch.manual_seed(0)
    chunks = stream(fast, **INPUTS, **OPTIONS, do_sample=True)
    assert iter(chunks) is chunks and torch.equal(torch.cat(list(chunks), dim=1), expected)


def test_a_check_has_the_modes_of_the_generation(fast):
    """A strict model refuses autocast, which is the calling thread's alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert list(stream(fast, **INPUTS, **OPTIONS))


def test_what_a_wrapper_adds_is_not_missed_at_the_call():
    fast = accelerated_copy(build(SMALL))
    generate = fast.generate

    @functools.wraps(generate)
    def of_text(text, **kwargs):
        return generate(**texts(SMALL, [len(text)]), **kwargs)

    fast.generate = of_text
    assert list(stream(fast, text="hello", **OPTIONS))


def test_a_replaced_sub_model_is_checked_as_far_as_it_goes():
    fast = accelerated_copy(build(SMALL), strict=False)
    del fast.semantic.generate
    assert list(stream(fast, **INPUTS, **OPTIONS))
    with pytest.raises(ValueError, match="fine temperature"):
        stream(fast, **INPUTS, fine_temperature=0.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policy": "fast"}, r"policy: expected one of 'exact', 'low_latency', 'preview', got 'fast'"),
        ({"first_chunk_frames": 0}, "first_chunk_frames: expected a whole number >= 1, got 0"),
        ({"first_chunk_frames": 2.5}, "first_chunk_frames: expected a whole number"),
        ({"max_chunk_frames": 29}, "max_chunk_frames: expected a whole number >= 30, got 29"),
        ({"lookahead_frames": -1}, "lookahead_frames: expected a whole number >= 0"),
        ({"max_queued_chunks": True}, "max_queued_chunks: expected a whole number >= 1, got True"),
        ({"timeout": 0}, "timeout: expected None or seconds > 0, at most .*, got 0"),
        ({"timeout": float("inf")}, "timeout: expected None or seconds > 0, at most .*, got inf"),
        ({"start": "late"}, "start: expected one of 'soonest', 'smooth', got 'late'"),
        ({"plan": [30]}, r"plan: expected None or a StreamPlan, got \[30\]"),
        ({"plan": StreamPlan((30,), 15, 128), "policy": "preview"}, "plan: expected policy 'low_latency' with it"),
        ({"speed": 2.0}, "speed: expected None or a StreamSpeed, got 2.0"),
        ({"interleave": 1}, "interleave: expected None, True or False"),
    ],
)
def test_bad_settings(fast, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AudioStreamer(fast, **options)


def test_settings_that_are_the_streamers(fast):
    with pytest.raises(TypeError, match=r"policy: expected in streamer=AudioStreamer\(model, policy=...\)"):
        stream(fast, **INPUTS, policy="preview")


def test_a_model_that_is_not_accelerated():
    model = build(SMALL)
    for call in (AudioStreamer, stream):
        with pytest.raises(ValueError, match="expected a BarkModel made faster with accelerate_bark"):
            call(model)
    fast = accelerated_copy(model)
    streamer = AudioStreamer(fast)
    with pytest.raises(TypeError, match="accelerate_bark"):
        restore_bark(fast).generate(**INPUTS, **OPTIONS, streamer=streamer)
    with pytest.raises(TypeError, match="expected an AudioStreamer, got int"):
        stream(accelerated_copy(model), streamer=3)
    other = accelerated_copy(model)
    other.generation_config.sample_rate = 8_000
    with pytest.raises(ValueError, match="expected one made for this model"):
        stream(other, **INPUTS, streamer=AudioStreamer(accelerated_copy(model)))
