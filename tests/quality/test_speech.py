"""The small Bark is understood whichever way it is made to speak: few texts; `python -m benchmarks speech` has many."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from bark_accel import AudioStreamer, accelerate_bark, small_bark_path
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.stages.fine import row_histories

pytest.importorskip("pocketsphinx", reason="pocketsphinx, which reads what was said, is not installed")
# ruff: isort: split
from recipes.small_bark.evaluate import KINDS, Heard, held, listen, say, texts
from recipes.small_bark.recogniser import Errors, compare, rate_difference, word_error_rate

# For each kind, one batch.
TEXTS = 20
SEED = 7
# Twenty texts of a kind are about 180 words in all: two standard errors of a rate of 5 % are 4 points.
STOCK_LIMIT = 0.12
MORE_THAN_STOCK = 0.05


class Speech:
    """What the model says each way, and what is heard of it, both once."""

    def __init__(self, stock):
        self.stock = stock
        self.processor = AutoProcessor.from_pretrained(small_bark_path())
        self.said = {kind: texts(kind, "test", TEXTS, SEED) for kind in KINDS}
        self._audio: dict[str, dict[str, list[np.ndarray]]] = {}
        self._heard: dict[str, list[Heard]] = {}

    def audio(self, way):
        if way not in self._audio:
            generate = self._generate(way)
            self._audio[way] = {
                kind: say(generate, self.processor, self.said[kind], None, TEXTS, SEED) for kind in KINDS
            }
        return self._audio[way]

    def heard(self, way):
        if way not in self._heard:
            audio = self.audio(way)
            self._heard[way] = [item for kind in KINDS for item in listen(audio[kind], self.said[kind], kind)]
        return self._heard[way]

    def rate(self, way):
        return word_error_rate([item.errors for item in self.heard(way)])[0]

    def _generate(self, way):
        if way == "stock":
            return self.stock.generate
        weights = way if way in ("float16", "int8") else "same"
        model = accelerate_bark(copy.deepcopy(self.stock), weights=weights, strict=True)
        if way == "low_latency":
            return lambda **inputs: model.generate(**inputs, streamer=AudioStreamer(model, policy=way))
        return model.generate


@pytest.fixture(scope="module")
def speech(speaking_model):
    return Speech(speaking_model)


def test_stock_is_understood(speech):
    assert sum(item.errors.words for item in speech.heard("stock")) > 100
    assert speech.rate("stock") <= STOCK_LIMIT, [(i.text, i.heard) for i in speech.heard("stock") if i.errors.errors]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_decides_what_is_heard(speech, kind):
    """The measure can fail: other texts' audio is not understood."""
    said = speech.said[kind]
    heard = listen(speech.audio("stock")[kind][1:], said[:-1], kind)
    assert word_error_rate([item.errors for item in heard])[0] > 0.5


def test_float32_says_the_very_same(speech):
    """A token of one utterance may be a near tie, decided by rounding."""
    ours, stocks = ([wave for kind in KINDS for wave in speech.audio(way)[kind]] for way in ("float32", "stock"))
    said = [text for kind in KINDS for text in speech.said[kind]]
    other = [
        text
        for text, one, expected in zip(said, ours, stocks, strict=True)
        if one.shape != expected.shape or np.abs(one - expected).max() > 1e-5
    ]
    assert len(other) <= 1, other


@pytest.mark.parametrize("way", ["float16", "int8", "low_latency"])
def test_the_fast_ways_are_understood_as_well(speech, way):
    assert speech.rate(way) <= speech.rate("stock") + MORE_THAN_STOCK


@pytest.mark.parametrize("way", ["stock", "float16", "int8", "low_latency"])
def test_every_utterance_ends_by_itself(speech, way):
    assert [item.text for item in speech.heard(way) if not item.ended] == []


def test_a_stream_is_as_long_as_the_utterance(speech):
    for kind in KINDS:
        lengths = [[len(wave) for wave in speech.audio(way)[kind]] for way in ("stock", "low_latency")]
        assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    "expected, heard, errors",
    [("one two", "one two", 0), ("one two", "", 2), ("one", "one one", 1), ("one two three", "two four three", 2)],
)
def test_word_errors(expected, heard, errors):
    assert compare(expected.split(), heard.split()) == Errors(errors, len(expected.split()))


def test_differences_are_of_the_same_texts():
    baseline = [Errors(1, 4), Errors(0, 6)] * 30
    worse = [Errors(2, 4), Errors(1, 6)] * 30
    difference, low, high = rate_difference(worse, baseline)
    assert difference == pytest.approx(0.2) and low == pytest.approx(0.2, abs=0.03) and low <= difference <= high
    # The same utterances are drawn of both, so that what both have does not widen the interval.
    assert high - low < 0.2 * (word_error_rate(worse)[2] - word_error_rate(worse)[1]) + 0.03
    assert rate_difference(baseline, baseline) == (0, 0, 0)
    with pytest.raises(ValueError, match="same texts"):
        rate_difference(worse, baseline[::-1])


def test_more_phrases_than_a_split_has_are_refused():
    """And not looked for without end."""
    assert len(texts("phrases", "dev", held("dev"), SEED)) == held("dev")
    with pytest.raises(ValueError, match=f"expected at most {held('dev')}, the phrases of the split dev, got 200"):
        texts("phrases", "dev", 200, SEED)


@pytest.fixture
def measurement():
    return importlib.import_module("benchmarks.speech.quality")


def test_the_measurement_finds_what_is_not_stocks(measurement, tmp_path):
    said = {"digits": ["one two", "three"]}
    heard = [Heard(text, text, 1.0, True) for text in said["digits"]]
    suite = measurement.Suite(Path(small_bark_path()), said, SEED, tmp_path)
    stock = {"digits": {"heard": [vars(item) for item in heard], "same_codes": None}}
    (tmp_path / "stock.json").write_text(json.dumps(stock))
    waves = [np.ones(50, np.float32), np.zeros(60, np.float32)]
    np.savez(tmp_path / "stock, digits.npz", *waves)
    way = measurement.WAYS["float32"]
    assert suite._as_stock("float32", way, "digits", [wave + 1e-6 for wave in waves]) == heard
    for other in (waves[1] + 1e-3, waves[1][:-1], waves[1] * np.nan):
        with pytest.raises(SystemExit, match=r"expected stock's audio, got other for \['three'\]"):
            suite._as_stock("float32", way, "digits", [waves[0], other])


def test_a_way_that_there_is_not_is_refused(measurement, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks speech", "--only", "flot16"])
    with pytest.raises(SystemExit):
        measurement.main()
    assert "invalid choice: 'flot16'" in capsys.readouterr().err


@pytest.mark.parametrize("split, phrases", [("test", 192), ("dev", 192)])
def test_the_record_counts_what_was_said(measurement, monkeypatch, tmp_path, split, phrases):
    """Whole batches, on both splits; nothing is generated here."""
    monkeypatch.setattr(
        measurement, "say", lambda generate, processor, said, *_: [np.zeros(9, np.float32) for _ in said]
    )
    monkeypatch.setattr(measurement, "listen", lambda audio, said, kind: [Heard(its, its, 1.0, True) for its in said])
    record = tmp_path / "record.json"
    arguments = ["--only", "stock", "--split", split, "--work", str(tmp_path / "work"), "--json", str(record)]
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks speech", *arguments])
    measurement.main()
    read = json.loads(record.read_text())
    assert read["texts"] == {"digits": 400, "phrases": phrases}
    assert read["ways"]["stock"]["utterances"] == sum(read["texts"].values())


class _Window:
    """In place of a fine stage: notes how much of what was said before it is shown, and how many frames are new."""

    def __init__(self, spec, shown):
        self.spec, self._shown = spec, shown

    def begin(self, tokens, histories, sampling):
        frames = tokens.shape[1] // self.spec.num_coarse_codebooks
        (past,) = row_histories(self.spec, histories, 1, tokens.device)
        self._shown.append((past.shape[1], frames))
        return self

    def advance(self, state): ...

    def ready(self, state):
        return False

    def result(self, end):
        return torch.zeros(1, self.spec.num_codebooks, end, dtype=torch.int64)


def test_anchored_layouts_show_all_there_is_room_for(speaking_model):
    layouts = importlib.import_module("benchmarks.speech.layouts")
    bench = object.__new__(layouts.Bench)
    bench.spec = GenerationConfigs.of(speaking_model).fine_spec

    def shown(layout, frames):
        windows: list[tuple[int, int]] = []
        bench._stage = lambda kind, spec: _Window(spec, windows)
        bench.stage = _Window(bench.spec, windows)
        assert bench._streamed(layout, torch.zeros(6, frames, dtype=torch.int64)).shape == (6, frames)
        return windows

    for layout in (layout for layout in layouts.LAYOUTS if layout.anchored):
        others = [shown(replace(layout, anchored=False), frames) for frames in (150, 220)]
        ours = [shown(layout, frames) for frames in (150, 220)]
        assert ours != others
        for one, other in zip(ours, others, strict=True):
            said = 0
            for (past, new), (least, as_new) in zip(one, other, strict=True):
                assert new == as_new and least == min(said, 64) and past == min(said, max(64, 128 - new))
                said += new - layout.lookahead
