"""`progress=` of `generate`, `stream` and `long_form`: what is told, and that nothing else changes."""

from __future__ import annotations

import copy
import io
import threading
from collections import defaultdict
from contextlib import redirect_stderr
from typing import ClassVar

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.parity import accelerated_copy, assert_equal_to_stock, run
from support.stock_limits import skip_where_stock_fails

from bark_accel import AudioStreamer, BarkEngine, accelerate_bark, acceleration_report, stream
from bark_accel.stages.fine import FineStage
from bark_accel.streaming import progress as progress_module

INPUTS = texts(SMALL, [9])
VOICES = [preset(SMALL, 0, 12), None]
PARTS = ["semantic", "coarse", "sound"]


class Told:
    """A function for `progress=` that keeps what each part was told, (done, most)."""

    def __init__(self):
        self.parts: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def __getitem__(self, part: str) -> list[tuple[int, int]]:
        return self.parts[part]

    def __call__(self, part: str, done: int, most: int) -> None:
        self.parts[part].append((done, most))

    @property
    def done(self) -> dict[str, int]:
        """What was done of each part; no part goes back, or beyond what was said, and each ends."""
        for told in self.parts.values():
            counts = [done for done, _ in told]
            assert counts[0] == 0 and counts == sorted(counts)
            assert all(done <= most for done, most in told) and told[-1][0] == told[-1][1]
        return {part: told[-1][0] for part, told in self.parts.items()}


@pytest.fixture
def fast(small_model):
    return accelerated_copy(small_model)


def heard(model, seed=0, **kwargs) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.cat([*stream(model, **kwargs)], 1)


@pytest.mark.parametrize("voices", [None, preset(SMALL, 0, 12)])
@pytest.mark.parametrize("do_sample", [True, False])
def test_all_of_a_generation_is_counted_and_its_tokens_are_stocks(small_model, fast, do_sample, voices):
    arguments = {**texts(SMALL, [9, 4]), "do_sample": do_sample, "history_prompt": voices}
    outputs = assert_equal_to_stock(small_model, fast, **arguments)
    told = Told()
    again, _, state = run(fast, 0, **arguments, progress=told)
    assert all(again[stage].equal(outputs[stage]) for stage in ("semantic", "coarse", "fine"))
    assert state.equal(torch.get_rng_state())
    expected = [outputs["semantic"].shape[1], outputs["coarse"].shape[1], outputs["fine"].shape[2]]
    assert told.done == dict(zip(PARTS, expected, strict=True)) and list(told.parts) == PARTS
    assert told["semantic"][0] == (0, SMALL.max_new_tokens)
    assert len(told["semantic"]) in (expected[0] + 1, expected[0] + 2), "each token, and the length at last"
    assert [done for done, _ in told["coarse"]] == [*range(expected[1] + 1)]
    passes = {done for done, _ in told["sound"]} - {0, expected[2]}
    assert len(passes) >= 6, "each pass"


@pytest.mark.parametrize("policy", ["low_latency", "exact", "preview"])
@pytest.mark.parametrize("do_sample", [True, False])
def test_a_stream_is_counted(fast, policy, do_sample):
    arguments = {**INPUTS, "do_sample": do_sample}
    settings = {"policy": policy, "first_chunk_frames": 5, "max_chunk_frames": 10, "lookahead_frames": 2}
    expected = heard(fast, **arguments, streamer=AudioStreamer(fast, **settings))
    told = Told()
    got = heard(fast, **arguments, streamer=AudioStreamer(fast, **settings), progress=told)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    frames = expected.shape[1] // 320
    assert told.done == {"semantic": told["semantic"][-1][0], "coarse": 2 * frames, "sound": frames}
    assert policy != "low_latency" or len({done for done, _ in told["sound"]}) > 3, "chunk by chunk"
    if do_sample:
        assert all(most == frames for _, most in told["sound"]), "known once the semantic stage has ended"


OTHERS = {
    "beams": ({"semantic_num_beams": 2, "do_sample": False}, {}),
    "beams of a model in training": ({"semantic_num_beams": 2, "do_sample": False}, {"training": True}),
    "a criterion": ({"semantic_max_time": 1e4, "coarse_max_time": 1e4}, {}),
    "a processor": ({"semantic_no_repeat_ngram_size": 3}, {}),
    "a model in training": ({}, {"training": True}),
    "a voice for each row": ({**texts(SMALL, [9, 4]), "history_prompt": VOICES}, {}),
    "voices of a model in training": ({**texts(SMALL, [9, 4]), "history_prompt": VOICES}, {"training": True}),
}


# Stock refuses a streamer beside beams.
ONE_BY_ONE = [(case, streamed) for case in OTHERS for streamed in (False, True)]
ONE_BY_ONE.remove(("beams of a model in training", True))


@pytest.mark.parametrize(("case", "streamed"), ONE_BY_ONE)
def test_loops_that_are_not_ours_are_counted(small_model, case, streamed):
    if "beams" in case:
        skip_where_stock_fails("beams")
    arguments, state = OTHERS[case]
    fast = accelerate_bark(copy.deepcopy(small_model))
    fast.train(state.get("training", False))
    expected = run(fast, 0, **{**INPUTS, **arguments, **({"streamer": AudioStreamer(fast)} if streamed else {})})
    told = Told()
    given = {**INPUTS, **arguments, **({"streamer": AudioStreamer(fast)} if streamed else {})}
    torch.manual_seed(0)
    got = fast.generate(**given, progress=told)
    torch.testing.assert_close(got, expected[1], rtol=0, atol=0)
    assert list(told.parts) == PARTS and told.done["coarse"] > 0 and told.done["sound"] == expected[1].shape[1] // 320
    assert "beams" in case or len(told["semantic"]) > 5, "its tokens one by one"


def test_a_streamer_of_tokens_hears_them_beside_it(fast):
    class Tokens(list):
        put = list.append

        def end(self):
            self.append(None)

    def both(**options):
        tokens = Tokens()
        torch.manual_seed(0)
        fast.generate(**INPUTS, **options, streamer=tokens)
        return [None if t is None else t.tolist() for t in tokens]

    assert both(progress=Told()) == both()
    looped = {"semantic_max_time": 1e4, "coarse_max_time": 1e4}
    assert both(**looped, progress=Told()) == both(**looped)


def test_bars(fast):
    expected = run(fast, 0, **INPUTS)
    shown = io.StringIO()
    with redirect_stderr(shown):
        got = run(fast, 0, **INPUTS, progress=True)
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=0)
    frames = expected[0]["fine"].shape[2]
    for line in ("semantic: 100%", "coarse: 100%", f"{2 * frames}/{2 * frames}", "sound: 100%", f"{frames}/{frames}"):
        assert line in shown.getvalue()


@pytest.mark.parametrize("off", [{}, {"progress": False}, {"progress": None}])
def test_off_by_default(fast, monkeypatch, off):
    monkeypatch.setattr(progress_module, "tqdm", None)
    shown = io.StringIO()
    with redirect_stderr(shown):
        fast.generate(**INPUTS, **off)
    assert not shown.getvalue()


class Bar:
    """What a bar of a notebook is made of."""

    open: ClassVar[set[Bar]] = set()

    def __init__(self, *, total: int, desc: str, unit: str):
        self.n, self.total = 0, total
        self.container = type("Box", (), {"children": (None, type("Widget", (), {"max": total})(), None)})()
        Bar.open.add(self)

    def update(self, count: int) -> None:
        self.n += count
        assert self.n <= self.total == self.container.children[1].max

    def close(self) -> None:
        Bar.open.discard(self)


@pytest.mark.parametrize(
    ("end", "streamed"),
    [("whole", False), ("whole", True), ("fails", False), ("fails", True), ("cancelled", True)],
)
def test_bars_are_closed_whatever_happens(fast, monkeypatch, streamed, end):
    monkeypatch.setattr(progress_module, "tqdm", Bar)
    Bar.open.clear()
    before = acceleration_report(fast).kv_cache_bytes
    streamer = AudioStreamer(fast)

    def fill(*args, **kwargs):
        assert Bar.open
        if end == "cancelled":
            streamer.cancel()
            streamer.check()
        raise RuntimeError("planted")

    if end != "whole":
        monkeypatch.setattr(FineStage, "_fill", fill)
    arguments = {**INPUTS, "progress": True, **({"streamer": streamer} if streamed else {})}
    if end == "fails":
        with pytest.raises(RuntimeError, match="planted"):
            fast.generate(**arguments)
    else:
        fast.generate(**arguments)
    assert not Bar.open
    monkeypatch.undo()
    fast.generate(**INPUTS)
    assert acceleration_report(fast).kv_cache_bytes >= before


def test_what_the_function_raises_ends_the_generation(fast):
    told = []

    def stop(part: str, done: int, most: int) -> None:
        told.append(part)
        if part == "coarse" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast.generate(**INPUTS, progress=stop)
    assert told[-1] == "coarse" and "sound" not in told
    with pytest.raises(KeyboardInterrupt):
        heard(fast, **INPUTS, progress=stop)
    expected = run(fast, 0, **INPUTS)
    torch.testing.assert_close(run(fast, 0, **INPUTS)[1], expected[1])


def test_it_is_told_in_the_thread_that_generates(fast):
    threads = set()
    heard(fast, **INPUTS, progress=lambda *told: threads.add(threading.current_thread().name))
    assert threads == {"bark_accel.stream"}


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_anything_else_is_refused_before_any_work(fast, monkeypatch, call):
    monkeypatch.setattr(type(fast.semantic), "generate", None)
    message = r"^progress: expected True, False or a function, got 'yes'"
    with pytest.raises(TypeError, match=message):
        fast.generate(**INPUTS, progress="yes") if call == "generate" else stream(fast, **INPUTS, progress="yes")


def test_stock_refuses_it(small_model):
    with pytest.raises(ValueError, match="progress"):
        copy.deepcopy(small_model).generate(**INPUTS, progress=True)


def test_an_engine_refuses_it(fast):
    with BarkEngine(fast) as engine, pytest.raises(ValueError, match=r"^progress: expected none for a request"):
        engine.submit(**INPUTS, progress=True)
