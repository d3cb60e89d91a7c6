"""The way into the benchmarks: every one has a name, the list needs nothing, names that there are not are refused."""

from __future__ import annotations

import argparse
import ast
import copy
import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.tiny_text import tiny_processor
from support.waiting import LIMIT_S

from bark_accel import accelerate_bark
from bark_accel.bench.baselines import BASELINES
from bark_accel.bench.measure import machine_facts, run_once, versions
from benchmarks.__main__ import COMMANDS, file_of, is_suite, listing, main, purpose
from benchmarks.generation import load, load_figures, steps, streams, utterances
from benchmarks.generation.mode_names import some_of
from benchmarks.generation.plots import save_load
from benchmarks.generation.timeline import Chunk, Timeline
from benchmarks.ops import anchor
from benchmarks.report import generation_tables, part_tables, summarise

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def start(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A run that shares its tests would have the benchmarks switched off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, timeout=LIMIT_S, env=environment
    )


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_benchmark_has_a_name():
    can_run = {file for file in FILES if "main" in functions(file) or file.name.startswith("bench_")}
    assert can_run - {ROOT / "benchmarks" / "__main__.py"} == {file_of(name) for name in COMMANDS}
    assert all(is_suite(name) or "main" in functions(file_of(name)) for name in COMMANDS)


def test_the_list_names_all_and_needs_no_package():
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'transformers', 'pytest'))); "
    done = start("-c", f"{code}from benchmarks.__main__ import main; sys.exit(main([]))")
    assert done.stdout == listing() + "\n" and done.returncode == 0, done.stderr
    assert all(name in done.stdout and purpose(name).rstrip(".:") in done.stdout for name in COMMANDS)


def test_a_name_that_there_is_not():
    done = start("-m", "benchmarks", "generations")
    assert done.returncode == 2 and "expected one of ops, decode, " in done.stderr and "'generations'" in done.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if not is_suite(name)])
def test_every_command_helps(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python -m benchmarks {name} ")


def test_a_suite_is_pytests():
    """In a process of its own, as all commands are started; the other suites are found in the same way."""
    done = start("-m", "benchmarks", "decode", "--collect-only", "-q")
    assert done.returncode == 0 and "benchmarks/ops/bench_decode.py::" in done.stdout, done.stdout + done.stderr
    assert sum(map(is_suite, COMMANDS)) == 3


def test_the_older_spelling_of_a_gpu_run_works_from_any_folder(tmp_path):
    done = start(str(ROOT / "benchmarks" / "gpu.py"), "--help", folder=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m benchmarks gpu "), done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_changes_where_modules_come_from(file):
    assert "sys.path" not in file.read_text()


@pytest.mark.parametrize("name", BASELINES)
@torch.no_grad()
def test_baselines_are_stock_s_with_other_weights(small_model, name):
    model = BASELINES[name](small_model)
    assert "generate" not in vars(model) and small_model.dtype == torch.float32
    head = model.semantic.lm_head.weight
    weight = head() if callable(head) else head
    assert weight.dtype == (torch.bfloat16 if name == "stock bfloat16" else torch.qint8)
    audio = model.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8)
    assert audio.shape == small_model.generate(**texts(SMALL, [4]), semantic_max_new_tokens=8).shape


def test_names_with_commas_are_separated_by_semicolons():
    parse = some_of(utterances.MODES)
    assert parse("float32, no drafts; int8;") == ["float32, no drafts", "int8"]
    for wrong in ("float32,int8", "float32; int9", " ; "):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected some of float32; .* \(separated by ;\), got"):
            parse(wrong)


def test_streams_with_a_plan_are_measured_and_reported(small_model, monkeypatch):
    """Every case, mode and way in each round, and no round that has no time left."""
    monkeypatch.setattr(utterances, "fake_inputs", lambda model, text: texts(SMALL, [4]))
    monkeypatch.setattr(utterances, "full_preset", lambda: preset(SMALL, 20, 30))
    monkeypatch.setattr(streams, "LONG_TEXT_S", (0.8,))
    monkeypatch.setattr(streams, "ENDS_EARLY_S", 0.5)
    monkeypatch.setattr(streams, "WordProcessor", lambda model: tiny_processor())
    cases = [utterances.Case(1.2, with_preset, 1, "") for with_preset in (False, True)]
    cases.append(utterances.Case(0.5, False, 1, ""))
    records = []
    for limit_s in (math.inf, 0.0):
        streams.measure(small_model, cases, rounds=2, limit_s=limit_s, stock_s=0.4, write=records.append)
    assert [record["rounds"] for record in records] == [1, 2, 1]
    record = records[1]
    head, *lines = generation_tables.planned_streams(record).splitlines()
    told = " for 0.4 s of speech, in turns with all of it. 2 rounds. "
    assert head.startswith("Stock took ") and told in head
    ways = [(case, its) for case in record["cases"] for its in case["ways"]]
    assert [(its["mode"], its["way"]) for _, its in ways[:6]] == list(product(streams.MODES, streams.WAYS))
    assert [its["way"] for _, its in ways[6:9]] == [*streams.PRESET_WAYS]
    early = ways[21:]
    assert [its["way"] for _, its in early] == [f"{way}, 1.2 s allowed" for _ in streams.MODES for way in streams.WAYS]
    for (_, its), (_, longer), (_, own) in zip(early, ways[:6], ways[15:21], strict=True):
        assert its["plan"] == longer["plan"] != own["plan"]
    assert len(ways) == 27 and len(lines) == 3 + 27 + 3
    for (case, its), line in zip(ways, lines[3:], strict=False):
        speech = f"{case['seconds']:g} s{', full preset' * case['preset']}"
        assert line.startswith(f"| {speech} | {its['mode']} | {its['way']} | {its['first_sound_s']['median']:.2f} (")
        assert line.endswith(f" | {its['plan']['silence_s']:.2f} | {', '.join(f'{s:.1f}' for s in its['chunks_s'])} |")
        assert 0 < sum(its["chunks_s"]) < case["seconds"] + 0.05
        assert 0 < its["first_sound_s"]["median"] <= its["total_s"]["median"]
    assert lines[-1].startswith(f"| long text, first chunk of 0.8 s | {[*streams.MODES][-1]} | plain | ")
    assert f" | {record['long_text'][-1]['first_sound_s']['median']:.2f} (" in lines[-1]


def test_an_anchor_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(SystemExit, match=r"expected the package ctranslate2 \(`pip install ctranslate2`\)"):
        anchor.ctranslate2()


def test_an_anchor_computes_the_same_and_is_reported(small_model):
    """All ways choose stock's tokens, given the same matrices; rounding of int8 may lead to others."""
    pytest.importorskip("ctranslate2", reason="an optional anchor of the benchmarks: pip install ctranslate2")
    rows = anchor.measure(anchor.ctranslate2(), small_model, (30,), tokens=6, rounds=2)
    assert {row["way"] for row in rows} == {anchor.STOCK, *anchor.OURS, *anchor.THEIRS}
    assert all(row["tokens_of_stock"] == 10 for row in rows if "float32" in row["way"])
    lines = part_tables.anchor({"rows": rows}).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].startswith("| stock, float32 | ") and lines[2].endswith(" | all |")


@torch.no_grad()
def test_a_load_is_measured_and_reported(small_model, tmp_path, monkeypatch):
    given = {
        "requests": 3,
        "seconds": [0.2, 0.6],
        "seed": 0,
        "rows": [2],
        "open_rows": [2],
        "loads": [50.0],
        "stock": 2,
        "once": False,
    }
    options = argparse.Namespace(**given)
    monkeypatch.setattr(load, "fake_inputs", lambda model, text: texts(SMALL, [4]))
    facts = {"shape": "tiny", "requests": 3, "seconds": [0.2, 0.6], "machine": machine_facts(), "versions": versions()}
    facts = json.loads(json.dumps({**facts, "commit": None}))
    file = tmp_path / "load.json"
    points = load.Points(file, facts, minutes=10)
    load.measure(small_model, "int8", options, points)
    load.measure_stock(small_model, options, points)
    record = json.loads(file.read_text())
    assert record == points.record
    (way,) = record["ways"]
    (closed,), (opened,) = way["closed"], way["open"]
    assert closed["equal"] == 3 and closed["rows"] == 2 and 0.6 < closed["spoken_s"] < 1.8
    spent = [closed[part] for part in ("prompts_s", "steps_s", "sound_s")]
    assert min(spent) > 0 and sum(spent) <= closed["took_s"], "one thread does one after the other"
    assert opened["load"] == 50 and 0 < opened["first_sound_p50_s"] <= opened["first_sound_p95_s"]
    assert [point["when"] for point in way["alone"]] == ["before", "after"]
    assert [point["how"] for point in record["stock"]] == ["alone", "batch"]
    assert all(point["requests"] == 2 and 0.4 < point["spoken_s"] < 1.2 for point in record["stock"])
    rate, alone = closed["speech_a_second"], load_figures.speech_alone(way)
    text = generation_tables.load(record, "here.png")
    assert f"| int8 | 2 | {rate:.2f} | 3 of 3 | {alone:.2f} | {rate / alone:.2f}x |" in text
    assert f" | {spent[0]:.0f}, {spent[1]:.0f}, {spent[2]:.0f} |" in text
    before = {**record, "ways": [{**way, "closed": [{**closed}]}]}
    for part in ("prompts_s", "steps_s", "sound_s"):
        del before["ways"][0]["closed"][0][part]
    assert "seconds: prompts" in text and "seconds: prompts" not in generation_tables.load(before, "here.png")
    assert text.endswith("(here.png)")
    (line,) = load_figures.comparisons(record)
    assert line.startswith(f"int8, 2 rows: {rate:.2f} s of speech a second, 3 of 3 as alone; {rate / alone:.2f} x gen")
    for point in record["stock"]:
        other = point["speech_a_second"]
        assert f", {rate / other:.2f} x stock {point['how']} ({other:.2f})" in line
    unmeasured = {"way": "no time was left", "alone": [], "closed": [], "open": []}
    save_load(tmp_path / "load.png", {**record, "ways": [way, unmeasured]})
    assert (tmp_path / "load.png").stat().st_size > 10_000

    once = load.Points(None, facts, minutes=10)
    load.measure(small_model, "w8a8-fit-long", argparse.Namespace(**{**given, "open_rows": [], "once": True}), once)
    (way,) = once.record["ways"]
    assert [point["when"] for point in way["alone"]] == ["before"] and way["closed"][0]["equal"] == 3

    monkeypatch.setattr(load, "one_after_the_other", lambda *asked: ([], 1.0))
    again = load.Points(file, facts, minutes=0)
    load.measure(small_model, "int8", argparse.Namespace(**{**given, "rows": [2, 4]}), again)
    assert again.record == record and again.left == ["int8 {'rows': 4}"], "what is there is kept; there is no time left"
    with pytest.raises(SystemExit, match=r"expected points of \{'shape': 'other'\}, got those of \{'shape': 'tiny'\}"):
        load.Points(file, {**facts, "shape": "other"}, minutes=10)


def test_ways_of_a_load():
    assert load.way_arguments("float32") == {}
    both = {"weights": "w8a8", "fit_windows": True, "long_coarse_windows": True}
    assert load.way_arguments("int8-kv8") == {"weights": "int8", "kv_cache_dtype": "int8"}
    assert load.way_arguments("w8a8-fit-long") == both == load.way_arguments("w8a8-long-fit")
    for way in ("int4", "int8-fast", "fit", ""):
        with pytest.raises(ValueError, match=r"expected one of float32, .*, with any of -fit, -long, -kv8, got"):
            load.way_arguments(way)


def test_arrivals_and_latencies_of_a_load():
    times = load.arrivals(2000, 4.0, seed=1)
    assert times == load.arrivals(2000, 4.0, seed=1) != load.arrivals(2000, 4.0, seed=2)
    assert times[0] == 0 and times == sorted(times) and times[-1] == pytest.approx(500, rel=0.1)
    late = Timeline((Chunk(1.0, 0.5), Chunk(2.0, 1.0), Chunk(2.5, 1.0)), 2.5)
    figures = load.latencies([late, Timeline((Chunk(3.0, 1.0),), 3.0)])
    assert (figures["first_sound_p50_s"], figures["gap_p50_s"]) == (2.0, 0.75)
    assert (figures["underruns"], figures["silence_s_a_request"]) == (1, 0.25)


@torch.no_grad()
def test_steps_inside_a_generation_are_timed_and_change_nothing(small_model):
    inputs = texts(SMALL, [4])
    model = accelerate_bark(copy.deepcopy(small_model), speculate=False)
    semantic = [run_once(model, inputs, 0, semantic_max_new_tokens=50).outputs["semantic"]]
    clock = steps.StepClock(steps.stages_of(small_model))
    with clock.running():
        semantic.append(run_once(model, inputs, 0, semantic_max_new_tokens=50).outputs["semantic"])
    assert torch.equal(*semantic)
    kind = clock.kinds["semantic, float32, 1 x 1"]
    probes = len(clock.probe_s)
    assert probes >= 2 and sum(len(k.seconds) for k in clock.kinds.values()) + probes >= 50
    assert len(kind.again_s) == len(kind.again_bytes) > 0
    config = small_model.semantic.config
    entry = 2 * 4 * config.num_layers * config.hidden_size  # keys and values of one more position
    assert set(torch.tensor(kind.bytes_read).diff().tolist()) <= {entry, 2 * entry}
    measured_on = {"machine": machine_facts(), "versions": versions(), "commit": None}
    record = {**measured_on, "modes": {"float32": steps.summary(clock)}}
    assert "| float32 | " in part_tables.generation_steps(
        record
    ) and "semantic, float32, 1 x 1" in part_tables.generation_steps(record)


def test_a_verification_is_a_share_of_a_step():
    seconds = {"stock": [4.0], "a step of one token": [2.0], "read probe": [1.0]}
    full = {"group": "g", "extra_info": {"baselines": seconds}, "stats": {"data": [2.5]}}
    summary = summarise.summarise({"benchmarks": [full]})
    assert summary["groups"]["g"]["of_a_step"] == 1.25 and "(1.25 of a step's time)" in summarise.table(summary)
