"""`bark-accel check`, ended by Ctrl-C or SIGTERM: what was found so far is written and shown, as incomplete."""

from __future__ import annotations

import contextlib
import json
import signal

import pytest
from support.command import run
from support.waiting import LIMIT_S

import bark_accel.bench.approximations
import bark_accel.bench.check
import bark_accel.bench.voices
import bark_accel.cli.check_run
from bark_accel.bench.check import TEXTS
from bark_accel.bench.speaker import encoder_weights
from bark_accel.cli import check as check_module
from bark_accel.cli.stopping import SIGNALS, Stopping

installed = pytest.mark.skipif(encoder_weights() is None, reason="the weights of Resemblyzer are not installed")
LATER = ["first sound", "scores", "sounds", "texts in other ways"]


@pytest.fixture(autouse=True)
def not_ignored():
    """A shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stop(monkeypatch):
    """Sends the process a signal when the function of that name is called for the n-th time."""

    def at(module, name, nth, number=signal.SIGINT):
        called, calls = getattr(module, name), iter(range(1, 10_000))

        def counted(*arguments, **options):
            if next(calls) == nth:
                signal.raise_signal(number)
            return called(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setattr(bark_accel.bench.check, "TEXTS", TEXTS[:4])
    return at


@pytest.fixture
def check(tmp_path):
    """Exit status, what was printed as one line, and the file."""

    def checked(*options):
        file = tmp_path / "report.json"
        done = run("check", "--minutes", "10", "--seconds", "0.2", "--json", str(file), *options)
        return done.exit_code, " ".join(done.output.split()), json.loads(file.read_text())

    return checked


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_between_two_texts(number, status, check, stop):
    """Two requests were compared: stock was about to say the third."""
    stop(bark_accel.bench.check, "run_once", 5, number)
    handlers = [signal.getsignal(one) for one in SIGNALS]
    code, said, report = check()
    assert code == status and [signal.getsignal(one) for one in SIGNALS] == handlers
    verdict = f"INCOMPLETE, stopped by {number.name}. Until then: Stock's tokens in all of 2 requests of 2 texts"
    assert verdict in said and report["verdict"].startswith(verdict)
    assert len(report["requests"]) == 2 and report["left_out"] == ["texts", *LATER] and report["report"]
    assert "median of 2 runs" in said and f"not done: texts, {', '.join(LATER)}" in said and "--minutes" not in said
    assert report["first_sound_s"] is None and report["summary"]["total"]["ratio"] > 0


def test_before_anything_was_compared(check, stop):
    stop(bark_accel.cli.check_run, "run_once", 2)
    code, said, report = check()
    assert code == 130 and "INCOMPLETE, stopped by SIGINT. Until then: Nothing was compared." in said
    assert report["requests"] == [] and report["summary"] == {} and report["versions"]


def test_among_the_sounds(check, stop):
    """The sounds that were known are a row each."""
    stop(bark_accel.bench.approximations, "_in_that_way", 2)
    code, said, report = check()
    assert code == 130 and set(report["sound_beside_stock"]) > {"preview", "float16"}
    assert "bfloat16" not in report["sound_beside_stock"] and "bfloat16" in report["against_stock"]
    assert report["left_out"] == ["sounds", "texts in other ways"] and "distance from stock" in said


@installed
def test_among_the_voices(check, stop):
    """The voices that were heard are ranked."""
    stop(bark_accel.bench.voices.Presets, "add", 3)
    code, said, report = check("--voices")
    assert code == 130 and [len(voice["to_preset"]) for voice in report["voices"]] == [1, 1]
    assert "to its preset" in said and report["left_out"] == ["voices", "texts in other ways"]


def test_wrong_tokens_are_told_all_the_same(check, stop, monkeypatch):
    monkeypatch.setattr(bark_accel.bench.check, "_wrong_sound", lambda stock, accelerated: ["codec: planted"])
    stop(bark_accel.bench.check, "run_once", 3)
    code, said, _ = check()
    assert code == 130 and "Until then: NOT stock's speech in 1 of 1 requests" in said and "codec: planted" in said


def test_signals_while_findings_are_told(check, stop, monkeypatch):
    """An impatient user's, and the second that `timeout` sends."""
    write = check_module._write

    def slowly(*arguments):
        signal.raise_signal(signal.SIGTERM)
        write(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(check_module, "_write", slowly)
    stop(bark_accel.bench.check, "run_once", 5)
    code, said, report = check()
    assert code == 130 and len(report["requests"]) == 2 and "stopped by SIGINT. Until then: Stock's tokens" in said


def test_an_error_of_another_kind_loses_nothing(check, monkeypatch):
    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(bark_accel.bench.check, "TEXTS", TEXTS[:4])
    monkeypatch.setattr(bark_accel.bench.check, "first_sound", full)
    code, said, report = check()
    assert code == 2 and len(report["requests"]) == 4 and "median of 4 runs" in said
    assert report["verdict"].startswith("INCOMPLETE, stopped by OSError: no space left on device. Until then: Stock's")


def test_a_file_that_cannot_be_written_is_shown_all_the_same(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(bark_accel.bench.check, "TEXTS", TEXTS[:4])
    monkeypatch.setattr(check_module, "_write", full)
    done = run("check", "--minutes", "0.01", "--seconds", "0.2")
    assert done.exit_code == 2 and "median of 4 runs" in done.output and "no space left" in done.output


def test_two_signals_at_once_are_one(monkeypatch):
    """The second comes while the first unwinds."""
    monkeypatch.setattr("bark_accel.cli.stopping.SAME_WISH_S", LIMIT_S)
    said: list[str] = []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            said.append("unwound")

    with Stopping() as stopping:
        assert stopping.until_stopped(work) is signal.SIGTERM and said == ["unwound"]
        signal.raise_signal(signal.SIGTERM)


def test_one_more_signal_ends_work_that_the_first_did_not(monkeypatch):
    monkeypatch.setattr("bark_accel.cli.stopping.SAME_WISH_S", 0.0)

    def work():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with Stopping() as stopping:
        assert stopping.until_stopped(work) is signal.SIGTERM


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stopping() as stopping:
        assert stopping.until_stopped(lambda: signal.raise_signal(signal.SIGINT)) is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_work_that_ends_by_itself():
    """No signal: None, and its own errors pass."""
    done: list[int] = []
    with Stopping() as stopping:
        assert stopping.until_stopped(lambda: done.append(1)) is None and done == [1]
        with pytest.raises(ZeroDivisionError):
            stopping.until_stopped(lambda: 1 / 0)
