"""Long texts on a tiny model: chunks, seeds, voices, batches, streams, pauses."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy
from support.tiny_text import CHUNKS, PARAGRAPH_ENDS, TEXT

from bark_accel import BarkEngine, SpeechRequest, generate_with_preset, long_form, save_voice_preset
from bark_accel.decoding import rng
from bark_accel.engine import scheduler
from bark_accel.longform.reader import chunk_seed

# Ends some utterances early.
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30, "min_eos_p": 0.01}
# Long enough for a voice to be carried on.
LONG = {"do_sample": True, "semantic_max_new_tokens": 60}


def assert_same(one, other) -> None:
    one, other = list(one), list(other)
    assert [(c.index, c.text, c.pause_samples, c.final, c.cut) for c in one] == [
        (c.index, c.text, c.pause_samples, c.final, c.cut) for c in other
    ]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.audio, b.audio)
        assert (a.preset is None) == (b.preset is None)
        for key in a.preset or ():
            np.testing.assert_array_equal(a.preset[key], b.preset[key])


def one_by_one(model, processor, voice=None, carry=False, options=SAMPLED):
    """The chunks as a user would say them: seed, generate, take the codes."""
    for index, text in enumerate(CHUNKS):
        torch.manual_seed(chunk_seed(7, index))
        inputs = processor(text, max_length=SMALL.max_input, voice_preset=voice)
        audio, made = generate_with_preset(model, **inputs, **options)
        yield audio[0], made
        if carry and made["coarse_prompt"].shape[1] >= 75:
            voice = made


@pytest.mark.parametrize("stock", [False, True])
def test_chunks_are_what_generate_says(small_model, fast, processor, stock):
    model = small_model if stock else fast
    said = list(long_form(model, processor, TEXT, seed=7, **SAMPLED))
    assert [chunk.text for chunk in said] == CHUNKS and [chunk.index for chunk in said] == list(range(len(CHUNKS)))
    for chunk, (audio, made) in zip(said, one_by_one(model, processor), strict=True):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
        for key, codes in made.items():
            np.testing.assert_array_equal(chunk.preset[key], codes)
        assert chunk.final and chunk.cut == (len(codes[0]) == int(30 * 75 / 49.9))
    assert len({len(chunk.audio) for chunk in said}) > 2


def test_a_voice_is_carried_from_chunk_to_chunk(fast, processor):
    said = long_form(fast, processor, TEXT, seed=7, carry_voice=True, **LONG)
    carried, alone = (list(one_by_one(fast, processor, carry=carry, options=LONG)) for carry in (True, False))
    for chunk, (audio, _) in zip(said, carried, strict=True):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
    assert any(len(a[0]) != len(b[0]) for a, b in zip(carried, alone, strict=True))


def test_a_short_chunk_passes_on_the_voice_it_had(fast, processor):
    voice = preset(SMALL, 60, 90)
    short = {**LONG, "semantic_max_new_tokens": 40}
    carried = long_form(fast, processor, TEXT, voice=voice, carry_voice=True, **short)
    assert_same(carried, long_form(fast, processor, TEXT, voice=voice, batch_size=1, **short))


def test_a_voice_is_given_in_three_ways(fast, small_model, processor, tmp_path):
    voice = {key: codes.numpy() for key, codes in preset(SMALL, 60, 90).items()}
    save_voice_preset(tmp_path / "me.npz", voice)
    named = copy.copy(processor)
    named.speaker_embeddings = {"me": dict.fromkeys(voice, "")}
    named._load_voice_preset = lambda name, **options: voice
    expected = list(one_by_one(fast, processor, voice=voice))
    for given in (voice, tmp_path / "me.npz", str(tmp_path / "me.npz"), "me"):
        said = long_form(fast, named, TEXT, seed=7, voice=given, batch_size=1, **SAMPLED)
        for chunk, (audio, _) in zip(said, expected, strict=True):
            torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=0)
    stock = long_form(small_model, processor, TEXT, seed=7, voice=tmp_path / "me.npz", batch_size=1, **SAMPLED)
    torch.testing.assert_close(next(iter(stock)).audio, expected[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 20}, {"stream": True, "policy": "exact"}])
def test_a_chunk_is_what_it_is_alone(fast, processor, options):
    """To the bit, whoever is beside it."""
    said = list(long_form(fast, processor, TEXT, seed=7, **options, **SAMPLED))
    for index, (audio, made) in enumerate(one_by_one(fast, processor)):
        pieces = [chunk for chunk in said if chunk.index == index]
        assert torch.equal(torch.cat([piece.audio for piece in pieces]), audio)
        for key, codes in made.items():
            np.testing.assert_array_equal(pieces[-1].preset[key], codes)


@pytest.mark.parametrize("settings", [{"weights": "int8"}, {"fit_windows": True}, {"backend": "torch"}], ids=str)
def test_so_it_is_with_other_settings(small_model, processor, settings):
    model = accelerated_copy(small_model, **settings)
    for chunk, (audio, _) in zip(
        long_form(model, processor, TEXT, seed=7, **SAMPLED), one_by_one(model, processor), strict=True
    ):
        torch.testing.assert_close(chunk.audio, audio, rtol=0, atol=1e-6 if "backend" in settings else 0)


def test_a_function_draws_and_counts_as_it_does_one_by_one(fast, processor):
    """Whatever the batch size: its random numbers are the chunk's, and it sees one chunk after the other."""

    def some(row, ids):
        return torch.randint(0, SMALL.semantic_vocab, (12,)).tolist()

    options = {**SAMPLED, "semantic_prefix_allowed_tokens_fn": some}
    said = [long_form(fast, processor, TEXT, seed=7, batch_size=size, **options).waveform() for size in (1, 4)]
    assert torch.equal(*said)


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_lacks_is_generated_one_by_one(fast, processor, stream):
    options = {**SAMPLED, "semantic_max_time": 600.0, "fine_temperature": None}
    said = list(long_form(fast, processor, TEXT, seed=7, stream=stream, policy="exact", **options))
    for index, (audio, _) in enumerate(one_by_one(fast, processor, options=options)):
        assert torch.equal(torch.cat([chunk.audio for chunk in said if chunk.index == index]), audio)


@pytest.fixture
def steps(monkeypatch):
    """Rows of each shared step."""
    rows, take_together = [], scheduler.take_together

    def note(steps):
        rows.append(len(steps))
        return take_together(steps)

    monkeypatch.setattr(scheduler, "take_together", note)
    return rows


def test_chunks_share_their_steps(small_model, processor, steps):
    fast = accelerated_copy(small_model, weights="int8")
    list(long_form(fast, processor, TEXT, batch_size=3, **LONG))
    assert 2 <= max(steps) <= 3
    steps.clear()
    list(long_form(fast, processor, TEXT, batch_size=1, **LONG))
    assert max(steps, default=1) == 1


def begun_of(monkeypatch) -> list:
    """Requests as they are submitted."""
    requests, submit = [], BarkEngine.submit

    def note(self, **arguments):
        requests.append(submit(self, **arguments))
        return requests[-1]

    monkeypatch.setattr(BarkEngine, "submit", note)
    return requests


def test_who_listens_slowly_has_no_more_than_two_batches_ahead(fast, processor, monkeypatch):
    requests = begun_of(monkeypatch)
    chunks = iter(long_form(fast, processor, TEXT, batch_size=2, **SAMPLED))
    for index in range(len(CHUNKS)):
        next(chunks)
        assert len(requests) == min(index + 4, len(CHUNKS))
        for request in requests:
            request.result(60)
    chunks.close()


def test_the_next_chunk_of_a_stream_begins_with_the_first_sound(fast, processor, monkeypatch):
    requests, ready = begun_of(monkeypatch), []
    submit = BarkEngine.submit
    monkeypatch.setattr(
        BarkEngine,
        "submit",
        lambda self, **arguments: ready.append([r.seconds_ready for r in requests]) or submit(self, **arguments),
    )
    pieces = iter(long_form(fast, processor, TEXT, stream=True, policy="preview", **LONG))
    next(pieces)
    assert len(requests) == 2 and requests[1]._after is requests[0], "before the first sound is played"
    assert ready[0] == [] and ready[1][0] > 0, "not before it is there"
    pieces.close()
    assert all(request.done() for request in requests)


def test_an_error_waits_for_its_turn(fast, processor, monkeypatch):
    """Chunks before it are given out, those after it are not."""
    deliver = SpeechRequest.deliver

    def fail(self, chunk):
        if self.seed == chunk_seed(7, 3):
            raise KeyError("planted")
        deliver(self, chunk)

    monkeypatch.setattr(SpeechRequest, "deliver", fail)
    before, said = set(threading.enumerate()), []
    with pytest.raises(KeyError, match="planted"):
        for chunk in long_form(fast, processor, TEXT, seed=7, batch_size=9, **SAMPLED):
            said.append(chunk.index)
    assert said == [0, 1, 2]
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("left", ["closed", "interrupted"])
def test_who_leaves_ends_what_was_begun(fast, processor, left, monkeypatch):
    requests, before = begun_of(monkeypatch), set(threading.enumerate())
    chunks = iter(long_form(fast, processor, TEXT, **LONG))
    next(chunks)
    if left == "closed":
        chunks.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            chunks.throw(KeyboardInterrupt)
    assert len(requests) == 8 and all(request.done() for request in requests)
    assert set(threading.enumerate()) == before


def test_other_threads_may_draw_meanwhile(fast, processor):
    expected = list(long_form(fast, processor, TEXT, **SAMPLED))
    said = []
    for chunk in long_form(fast, processor, TEXT, **SAMPLED):
        torch.rand(5)
        fast.generate(**texts(SMALL, [3]), semantic_max_new_tokens=3)
        said.append(chunk)
    assert_same(said, expected)


@pytest.fixture
def global_seeds(monkeypatch):
    """Calls that would reach the generators of every device."""
    calls = []
    for owner, name in (
        (torch, "manual_seed"),
        (torch.random, "manual_seed"),
        (torch.cuda, "manual_seed_all"),
        (torch.mps, "manual_seed"),
        (torch.xpu, "manual_seed_all"),
    ):
        monkeypatch.setattr(owner, name, lambda seed, owner=owner: calls.append(owner))
    return calls


@pytest.mark.parametrize("stream", [False, True])
def test_other_devices_generators_are_left_alone(fast, processor, global_seeds, stream):
    assert len(list(long_form(fast, processor, "One.", stream=stream, **SAMPLED))) > 0
    assert global_seeds == []


def test_only_the_generator_of_the_device_is_seeded(monkeypatch):
    class Gpu:
        init = staticmethod(lambda: None)
        current_device = staticmethod(lambda: 1)
        default_generators = tuple(torch.Generator().manual_seed(i) for i in range(3))

    monkeypatch.setattr(torch, "get_device_module", lambda device: Gpu)
    every = [torch.default_generator, *Gpu.default_generators]
    states = [generator.get_state() for generator in every]
    for device, used in (("cuda", 2), ("cuda:2", 3), ("cpu", 0)):
        with pytest.raises(KeyError), rng.seeded(5, torch.device(device)):
            expected = [5 if i == used else generator.initial_seed() for i, generator in enumerate(every)]
            torch.rand(3, generator=every[used])
            assert [generator.initial_seed() for generator in every] == expected
            raise KeyError
        assert all(torch.equal(g.get_state(), state) for g, state in zip(every, states, strict=True))


def test_seeds_differ_and_leave_the_caller_alone(fast, processor):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (list(long_form(fast, processor, TEXT, seed=seed, **SAMPLED)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(first, again)
    assert not torch.equal(first[0].audio, other[0].audio)
    assert len({chunk_seed(seed, index) for seed in range(10) for index in range(100)}) == 1000


@pytest.mark.parametrize("policy", ["exact", "low_latency", "preview"])
def test_a_stream_gives_pieces_in_order(fast, processor, policy):
    options = {"seed": 7, "stream": True, "policy": policy, **LONG}
    pieces = list(long_form(fast, processor, TEXT, **options))
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    ends = [piece for piece in pieces if piece.final]
    assert [end.text for end in ends] == CHUNKS and len(pieces) >= 2 * len(CHUNKS)
    assert all(piece.preset is None and piece.pause_samples == 0 for piece in pieces if not piece.final)
    joined = [torch.cat([p.audio for p in pieces if p.index == index]) for index in range(len(CHUNKS))]
    for audio, end, (whole, made) in zip(joined, ends, one_by_one(fast, processor, options=LONG), strict=True):
        assert len(audio) == len(whole) and (end.preset is None) == (policy == "preview")
        if policy == "exact":
            torch.testing.assert_close(audio, whole, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(end.preset["fine_prompt"], made["fine_prompt"])
    assert_same(pieces, long_form(fast, processor, TEXT, **options))


def test_a_stream_that_is_left_stops(fast, processor):
    state = torch.get_rng_state()
    pieces = iter(long_form(fast, processor, TEXT, stream=True, policy="preview", **LONG))
    next(pieces)
    pieces.close()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert fast.generate(**texts(SMALL, [3]), semantic_max_new_tokens=3).shape[1] > 0


def test_pauses_follow_paragraphs_and_chunks(fast, processor):
    options = {"paragraph_pause_s": 0.5, "chunk_pause_s": 0.125, **SAMPLED}
    speech = long_form(fast, processor, TEXT, **options)
    said = list(speech)
    last = len(CHUNKS) - 1
    pauses = [0 if i == last else 12_000 if i in PARAGRAPH_ENDS else 3_000 for i in range(len(CHUNKS))]
    assert [chunk.pause_samples for chunk in said] == pauses and speech.sampling_rate == 24_000
    silence = torch.zeros(12_000)
    parts = [part for c in said for part in (c.audio, silence[: c.pause_samples])]
    assert torch.equal(speech.waveform(), torch.cat(parts))


def test_a_paragraph_without_words_is_two_pauses(fast, processor):
    speech = long_form(fast, processor, "One.\n\n* * *\n\nTwo.\n\nThree.\n\n***", paragraph_pause_s=0.5, **SAMPLED)
    assert [chunk.pause_samples for chunk in speech] == [24_000, 12_000, 0]


@pytest.mark.parametrize("language, characters", [("en", 182), ("zh-CN", 45), ("ja", 58), ("ko", 71), ("hi", 143)])
def test_a_chunk_is_as_long_as_its_language_needs(small_model, processor, language, characters):
    """Of 13 seconds."""
    model = copy.copy(small_model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.semantic_config["max_input_semantic_length"] = 256
    longest = max(len(chunk.text) for chunk in long_form(model, processor, "字" * 300, language=language).chunks)
    assert longest == characters
    given = long_form(model, processor, "字" * 300, language=language, characters_per_second=np.float32(10)).chunks
    assert max(len(chunk.text) for chunk in given) == 130


def test_numbers_of_numpy(fast, processor):
    plain = {"seed": 3, "batch_size": 2, "max_chunk_s": 2.0, "chunk_pause_s": 1.0}
    numpy = {name: np.asarray(value)[()] for name, value in plain.items()}
    assert_same(*(long_form(fast, processor, "One. Two.", **options, **SAMPLED) for options in (plain, numpy)))


def test_progress_is_told(fast, processor):
    told: list[tuple[int, int]] = []
    speech = long_form(fast, processor, TEXT, on_progress=lambda *n: told.append(n), **SAMPLED)
    for chunk in speech:
        assert chunk.index < told[-1][0] <= chunk.index + 8, "those ahead may be ready, too"
    assert told == [(count + 1, len(CHUNKS)) for count in range(len(CHUNKS))]


def test_a_chunk_that_fills_the_model_is_reported(fast, processor):
    with pytest.warns(UserWarning, match=r"chunk 0 is as long as Bark can speak at once \(1.8 s\)"):
        (chunk,) = long_form(fast, processor, "Hello.", do_sample=False, fine_temperature=None)
    assert chunk.cut and len(chunk.audio) == 135 * 320


def test_a_chunk_without_sound_is_empty(small_model, processor):
    model = accelerated_copy(small_model)
    for options in ({}, {"stream": True}, {"carry_voice": True}):
        *_, end = long_form(model, processor, "Hello.", semantic_max_new_tokens=1, min_eos_p=1e-9, **options)
        assert end.final and len(end.audio) == 0 and end.preset is None


BEYOND = {**preset(SMALL, 20, 30), "semantic_prompt": np.full(9, 5000)}
BAD = {
    "model": ({"model": torch.nn.Linear(1, 1)}, TypeError, "expected a transformers.BarkModel, got Linear"),
    "text": ({"text": None}, TypeError, "text: expected a str, got NoneType"),
    "no words": ({"text": " \n\n "}, ValueError, "text: expected at least one word"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size: expected a whole number >= 1, got 0"),
    "batch and carry": ({"batch_size": 2, "carry_voice": True}, ValueError, "expected 1 with carry_voice or stream"),
    "batch and stream": ({"batch_size": 2, "stream": True}, ValueError, "expected 1 with carry_voice or stream"),
    "flag": ({"stream": "yes"}, TypeError, "stream: expected True or False, got 'yes'"),
    "policy": ({"policy": "fast"}, ValueError, "policy: expected one of 'exact', .* got 'fast'"),
    "preview": (
        {"policy": "preview", "stream": True, "carry_voice": True},
        ValueError,
        "carry_voice: expected another",
    ),
    "seed": ({"seed": -1}, ValueError, "seed: expected a whole number >= 0, got -1"),
    "limit": ({"max_chunk_s": 0}, ValueError, "max_chunk_s: expected a number > 0, got 0"),
    "limits": ({"max_chunk_s": -1, "characters_per_second": -9}, ValueError, "max_chunk_s: expected a number > 0"),
    "a limit as a string": ({"max_chunk_s": "13"}, ValueError, "max_chunk_s: expected a number > 0, got '13'"),
    "a rate as a string": ({"characters_per_second": "9"}, ValueError, "characters_per_second: .* got '9'"),
    "a pause as a string": ({"paragraph_pause_s": "1"}, ValueError, "paragraph_pause_s: expected seconds .* got '1'"),
    "a pause of None": ({"chunk_pause_s": None}, ValueError, "chunk_pause_s: expected seconds .* got None"),
    "a seed as a string": ({"seed": "1"}, ValueError, "seed: expected a whole number >= 0, got '1'"),
    "a batch as a string": ({"batch_size": "4"}, ValueError, "batch_size: expected a whole number >= 1, got '4'"),
    "language": ({"language": "english"}, ValueError, "language: expected an ISO 639-1 code such as 'en'"),
    "short": ({"max_chunk_s": 0.01}, ValueError, "expected at least 1 character a chunk, got 0.14"),
    "progress": ({"on_progress": 3}, TypeError, "on_progress: expected a callable or None, got int"),
    "processor": ({"processor": None}, TypeError, "processor: expected a BarkProcessor, got NoneType"),
    "codes": ({"voice": BEYOND}, ValueError, r"voice\['semantic_prompt'\]: expected codes in 0..100, got 5000..5000"),
    "pause": ({"chunk_pause_s": -0.1}, ValueError, "chunk_pause_s: expected seconds >= 0, got -0.1"),
    "taken": ({"history_prompt": {}}, ValueError, "history_prompt: expected no such argument"),
    "fine temperature": ({"fine_temperature": 0.0}, ValueError, "fine temperature: expected None or a number"),
    "top-k": ({"do_sample": True, "coarse_top_k": -2}, ValueError, "top_k"),
    "top-k of a stream": ({"stream": True, "do_sample": True, "semantic_top_k": -2}, ValueError, "top_k"),
    "two streamers": ({"stream": True, "coarse_streamer": "me"}, ValueError, "got both"),
    "voice": ({"voice": 3}, TypeError, "voice: expected a preset, an .npz file or a name, got int"),
    "name": ({"voice": "me"}, ValueError, "got 'me'; this checkpoint has no named voices"),
    "file": ({"voice": "missing.npz"}, ValueError, "there is no file missing.npz"),
    "preset": ({"voice": {"a": 1}}, ValueError, "expected the keys semantic_prompt, .* got a"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(fast, processor, case, tmp_path):
    wrong, error, message = BAD[case]
    arguments = {"model": fast, "processor": processor, "text": TEXT, "work_dir": tmp_path / "work", **wrong}
    with pytest.raises(error, match=message):
        long_form(**arguments)
    assert not (tmp_path / "work").exists()


def test_a_stream_needs_an_accelerated_model(small_model, processor):
    with pytest.raises(ValueError, match="expected a BarkModel made faster with accelerate_bark"):
        long_form(small_model, processor, TEXT, stream=True)
