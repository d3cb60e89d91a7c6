"""The command line on a tiny checkpoint, the trace of the stages and the loader."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from support.bark_models import SUNO, build, submodels
from typer.testing import CliRunner

import bark_accel
from bark_accel import accelerate_bark, restore_bark, small_bark_path
from bark_accel.bench import measure
from bark_accel.bench import models as checkpoints
from bark_accel.bench.models import fake_inputs, load_bark, semantic_tokens, shared_copy
from bark_accel.cli import bench as bench_module
from bark_accel.cli import demo, playback
from bark_accel.cli.app import app
from bark_accel.hf.stage_trace import STAGES, trace_stages
from bark_accel.stages.fine import FineStage

OPTIONS = {"semantic_max_new_tokens": 8}


def run(*arguments: str):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a saved tiny model and no tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bark")
    build(SUNO).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(suno_model):
    return shared_copy(suno_model)


def test_info_shows_the_build():
    result = run("info")
    assert result.exit_code == 0
    for fact in (bark_accel.__version__, torch.__version__, "instruction sets", "in use"):
        assert fact in result.output


def test_info_says_what_to_run_when_the_library_is_missing(monkeypatch):
    def missing():
        raise ImportError("the compiled library is missing; run make setup")

    monkeypatch.setattr("bark_accel.ops._library.load", missing)
    result = run("info")
    assert result.exit_code == 1
    assert "run make setup" in result.output and torch.__version__ in result.output


def test_demo_compares_and_writes(checkpoint, tmp_path, monkeypatch):
    out, runs = tmp_path / "demo", []
    monkeypatch.setattr(demo, "run_once", lambda *a, **k: runs.append(measure.run_once(*a, **k)) or runs[-1])
    result = run("demo", "--model", checkpoint, "--seconds", 0.2, "--out", out)
    assert result.exit_code == 0, result.output
    samples = [run.outputs["codec"].shape for run in runs]
    assert len(samples) == 4 and samples[:2] == samples[2:], "expected both to be warm at the length that is measured"
    assert "All tokens are equal" in result.output and "no usable tokenizer" in result.output
    for words in ("real-time factor", "ratio", "fell back: never", "1 thread\n"):
        assert words in result.output
    stock, rate = soundfile.read(out / "stock.wav")
    accelerated, _ = soundfile.read(out / "accelerated.wav")
    assert rate == 24_000 and len(stock) > 0
    np.testing.assert_allclose(accelerated, stock, atol=1e-4)
    for name in ("spectrogram.png", "stage_times.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_demo_fails_where_tokens_differ(checkpoint, tmp_path, monkeypatch):
    draw = FineStage._draw
    monkeypatch.setattr(FineStage, "_draw", lambda *arguments: draw(*arguments).index_fill(0, torch.tensor([3]), 0))
    result = run("demo", "--model", checkpoint, "--seconds", 0.1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "NOT equal" in result.output and "fine: " in result.output and "coarse: " not in result.output


def test_demo_speaks_with_the_small_bark_where_no_model_is_named(tmp_path):
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "the small Bark" in result.output and "All tokens are equal" in result.output
    assert "Hello, my dog is cute" in result.output and "made-up ids" not in result.output
    assert soundfile.info(tmp_path / "accelerated.wav").samplerate == 16_000


@pytest.mark.parametrize("options", [[], ["--stream"], ["--voice", small_bark_path() / "speaker_embeddings/rms.npz"]])
def test_say_speaks_with_the_small_bark_where_no_model_is_named(tmp_path, options):
    result = run("say", "Hello, my dog is 4!", "-o", tmp_path / "a.wav", "--max-seconds", 1, *options)
    assert result.exit_code == 0, result.output
    assert soundfile.info(tmp_path / "a.wav").samplerate == 16_000 and soundfile.info(tmp_path / "a.wav").frames > 0


@pytest.mark.parametrize("as_file", [False, True])
def test_words_that_the_small_bark_does_not_know_are_named(tmp_path, as_file):
    text, out = "Hello Zorro, my crocodile is cute; hello Zorro", tmp_path / "a.wav"
    (tmp_path / "a.txt").write_text(text)
    result = run(*(["read", tmp_path / "a.txt"] if as_file else ["say", text]), "-o", out)
    assert result.exit_code == 2 and not out.exists()
    message = " ".join(result.output.split())
    assert "does not know: Zorro, crocodile. It only says digits and these words: zero, one, " in message
    assert "--model suno/bark-small" in message


def test_the_tokenizers_own_signs_are_no_words(tmp_path):
    result = run("say", "hello [PAD] five [UNK]", "-o", tmp_path / "a.wav")
    assert result.exit_code == 2 and "does not know: [PAD], [UNK]. It only says" in " ".join(result.output.split())


@pytest.mark.parametrize("as_file", [False, True])
def test_a_text_of_signs_alone_has_no_words(tmp_path, as_file):
    (tmp_path / "a.txt").write_text("!!!")
    result = run(*(["read", tmp_path / "a.txt"] if as_file else ["say", "!!!"]), "-o", tmp_path / "a.wav")
    assert result.exit_code == 2 and "the text has no words" in " ".join(result.output.split())


def test_another_model_is_asked_for_any_word(checkpoint):
    loaded = load_bark(str(checkpoint))
    assert loaded.vocabulary is None and load_bark().vocabulary[:2] == ("zero", "one")


def test_say_writes_a_file_with_a_voice(checkpoint, tmp_path):
    voice, out = tmp_path / "voice.npz", tmp_path / "out.wav"
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 1024, (8, 60))
    np.savez(voice, semantic_prompt=rng.integers(0, 10_000, 40), coarse_prompt=fine[:2], fine_prompt=fine)
    result = run("say", "hello there", "-o", out, "--model", checkpoint, "--voice", voice, "--max-seconds", 0.2)
    assert result.exit_code == 0, result.output
    samples, rate = soundfile.read(out)
    assert rate == 24_000 and len(samples) == 15 * 320
    assert "wrote" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["   "], "the text is empty"),
        (["hello", "--model", "no/such/folder/anywhere"], "no/such/folder/anywhere"),
        (["hello", "--voice", "missing.npz"], "there is no file missing.npz"),
        (["hello", "--voice", "v2/en_speaker_6"], "no named voices"),
        (["hello", "--max-seconds", "100"], "expected at most"),
        (["hello", "--seed", "-1"], "--seed"),
    ],
)
def test_say_explains_bad_input(checkpoint, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in arguments else ["--model", checkpoint]
    result = run("say", *arguments, "-o", tmp_path / "out.wav", *model)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out.wav").exists()


def test_say_refuses_a_voice_of_the_wrong_kind(checkpoint, tmp_path):
    voice = tmp_path / "voice.npz"
    for content, message in (({"other": np.zeros(3)}, "expected the keys"), (None, "voice.npz")):
        if content is None:
            voice.write_bytes(b"not an archive")
        else:
            np.savez(voice, **content)
        result = run("say", "hello", "-o", tmp_path / "out.wav", "--model", checkpoint, "--voice", voice)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_say_warns_of_a_text_that_is_cut(checkpoint, tmp_path):
    text = "word " * 300
    result = run("say", text, "-o", tmp_path / "out.wav", "--model", checkpoint, "--max-seconds", 0.1)
    assert result.exit_code == 0, result.output
    assert "300 tokens and Bark reads 256" in result.output


STREAM = ("--stream", "--policy", "preview", "--max-seconds", 1.0)


def test_say_streams_into_a_file(checkpoint, tmp_path):
    whole, streamed = tmp_path / "whole.wav", tmp_path / "streamed.wav"
    assert run("say", "hello", "-o", whole, "--model", checkpoint, "--max-seconds", 1.0).exit_code == 0
    result = run("say", "hello", "-o", streamed, "--model", checkpoint, *STREAM)
    assert result.exit_code == 0, result.output
    for words in ("s of audio", "first sound after", "real-time factor", f"wrote {streamed.name}"):
        assert words in result.output.replace(f"{tmp_path}/", "")
    assert soundfile.info(streamed).frames == soundfile.info(whole).frames > 0


def test_a_streamed_file_is_valid_while_it_grows(tmp_path):
    path = tmp_path / "a.wav"
    with playback.sink(path, 24_000) as write:
        for chunks in (1, 2, 3):
            assert write(np.full(100, 0.5, dtype=np.float32))
            assert soundfile.info(path).frames == 100 * chunks and soundfile.info(path).samplerate == 24_000
    np.testing.assert_allclose(soundfile.read(path)[0], np.full(300, 0.5), atol=1e-4)


def test_a_stream_that_fails_at_once_leaves_the_file_alone(checkpoint, tmp_path):
    path, voice = tmp_path / "a.wav", tmp_path / "voice.npz"
    path.write_bytes(b"of yesterday")
    np.savez(voice, semantic_prompt=np.zeros(3, dtype=np.int64))
    result = run("say", "hello", "-o", path, "--model", checkpoint, "--voice", voice, *STREAM)
    assert result.exit_code == 2 and "expected the keys" in result.output
    assert path.read_bytes() == b"of yesterday"


def test_say_streams_into_a_pipe(checkpoint, tmp_path):
    """16-bit samples and nothing else on stdout, all words on stderr."""
    file = tmp_path / "streamed.wav"
    assert run("say", "hello", "-o", file, "--model", checkpoint, *STREAM).exit_code == 0
    result = run("say", "hello", "-o", "-", "--model", checkpoint, *STREAM)
    assert result.exit_code == 0, result.stderr
    samples = np.frombuffer(result.stdout_bytes, dtype="<i2")
    np.testing.assert_allclose(samples, soundfile.read(file, dtype="int16")[0], atol=1)
    assert "real-time factor" in result.stderr and "wrote" not in result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/guide/streaming.md"])
def test_the_player_is_told_the_rate_of_the_small_bark(page):
    """Where a page's command names no model; the command itself says which rate its samples have."""
    result = run("say", "hello", "-o", "-", "--stream")
    assert "raw PCM: s16le, mono, 16000 Hz" in result.stderr
    lines = [
        line
        for line in (Path(__file__).parents[1] / page).read_text().splitlines()
        if "aplay" in line and "--model" not in line
    ]
    assert lines and all("-o - | aplay -f S16_LE -r 16000" in line for line in lines)


def test_say_ends_with_its_player(checkpoint):
    command = [sys.executable, "-m", "bark_accel", "say", "hello", "-o", "-", "--model", str(checkpoint), "--stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) == 0, errors
    assert "closed the pipe" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-o", "-"], "--out -: expected --stream with it"),
        (["-o", "x.wav", "--policy", "exact"], "--policy exact: expected --stream with it"),
        (["-o", "x.wav", "--stream", "--policy", "fast"], "expected one of exact, low_latency, preview, got fast"),
    ],
)
def test_say_explains_bad_streaming_options(arguments, message):
    result = run("say", "hello", *arguments, "--model", "not/looked/at")
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_bench_writes_what_it_measured(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: tiny)
    arguments = ["--seconds", 0.1, "--repeats", 2, "--json", tmp_path / "b.json", "--plot", tmp_path / "b.png"]
    result = run("bench", *arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "b.json").read_text())
    assert {"machine", "versions", "commit", "settings", "summary", "runs"} <= set(record)
    assert record["tokens_equal"] and len(record["runs"]) == 2
    assert set(record["summary"]) == {*STAGES, "total"}
    assert (tmp_path / "b.png").exists()


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_stock_and_accelerated_are_warmed_up_alike(tiny, tmp_path, monkeypatch, command):
    """Each generates once before either is measured, then they take turns."""
    ran = []

    def spy(model, on_stage):
        ran.append("accelerated" if "generate" in vars(model) else "stock")
        return trace_stages(model, on_stage)

    monkeypatch.setattr("bark_accel.hf.stage_trace.trace_stages", spy)
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: tiny)
    options = {"demo": ["--out", tmp_path], "bench": ["--repeats", 1, "--no-baselines"]}[command]
    assert run(command, "--seconds", 0.1, *options).exit_code == 0
    assert ran == ["stock", "accelerated"] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bench_measures_what_a_user_can_do_without_us(tiny, tmp_path, monkeypatch, dtype):
    """In float32; a model in 16 bits has no such rows."""
    monkeypatch.setattr(checkpoints, "random_bark", lambda shape: copy.deepcopy(tiny))
    file = tmp_path / "b.json"
    result = run("bench", "--seconds", 0.1, "--repeats", 2, "--dtype", dtype, "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())["baselines"]
    names = ["stock bfloat16", "stock dynamic int8"] if dtype == "float32" else []
    assert list(found) == names and all(name in result.output for name in names)
    assert all(len(runs) == 2 and set(runs[0]) == {*STAGES, "total"} for runs in found.values())


def test_bench_refuses_an_unknown_dtype():
    assert run("bench", "--dtype", "int4").exit_code == 2
    assert "float32" in bench_module.DTYPES


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_recorder_leaves_no_trace(tiny, accelerated, fails):
    if accelerated:
        accelerate_bark(tiny)
    owners = [tiny, *submodels(tiny)]
    before = [dict(vars(owner)) for owner in owners]
    inputs = {} if fails else fake_inputs(tiny, "hello")
    try:
        with trace_stages(tiny) as trace:
            tiny.generate(**inputs, **OPTIONS)
    except Exception:
        assert fails
    else:
        assert not fails and set(trace.outputs) == set(trace.seconds) == set(STAGES)
    assert [dict(vars(owner)) for owner in owners] == before
    restore_bark(tiny)


def test_recorder_copies_what_a_later_stage_overwrites(tiny):
    started: list[str] = []
    with trace_stages(tiny, started.append) as trace:
        tiny.generate(**fake_inputs(tiny, "hello"), **OPTIONS, return_output_lengths=True)
    assert started == list(STAGES)
    assert trace.outputs["semantic"].shape == (1, 8)
    assert trace.outputs["coarse"].shape == (1, 24) and trace.outputs["fine"].shape == (1, 8, 12)
    assert [waveform.shape for waveform in trace.outputs["codec"]] == [(12 * 320,)]


def test_a_saved_model_loads_back(checkpoint):
    loaded = load_bark(str(checkpoint))
    assert loaded.processor is None and "no usable tokenizer" in loaded.processor_problem
    assert not loaded.model.training
    expected, inputs = build(SUNO), loaded.inputs("hello there")
    torch.testing.assert_close(
        loaded.model.generate(**inputs, **OPTIONS), expected.generate(**inputs, **OPTIONS), rtol=0, atol=0
    )


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="expected one of 'bark-small', 'bark', got 'bark-huge'"):
        checkpoints.random_bark("bark-huge")


@pytest.fixture
def a_tiny_shape(monkeypatch):
    monkeypatch.setitem(checkpoints.SHAPES, "tiny", {"num_layers": 1, "num_heads": 1, "hidden_size": 8})


def test_random_weights_leave_every_generator_alone(a_tiny_shape, monkeypatch):
    """torch.manual_seed would seed the generators of every device."""
    before = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", mock.Mock(side_effect=AssertionError("seeds all devices")))
    first, again, other = (checkpoints.random_bark("tiny", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(first.semantic.lm_head.weight, other.semantic.lm_head.weight)


def test_random_weights_are_drawn_on_the_device(a_tiny_shape, monkeypatch):
    seen, draw = [], checkpoints._draw_weights

    def watched(submodel):
        seen.extend(parameter.device.type for parameter in submodel.parameters())
        draw(submodel)

    monkeypatch.setattr(checkpoints, "_draw_weights", watched)
    model = checkpoints.random_bark("tiny", device="meta")
    assert len(seen) > 20 and set(seen) == {"meta"}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_fake_inputs_are_the_same_every_time(suno_model):
    first, again = (fake_inputs(suno_model, "one two one") for _ in range(2))
    assert torch.equal(first["input_ids"], again["input_ids"]) and first["input_ids"].shape == (1, 256)
    ids = first["input_ids"][0]
    assert ids[0] == ids[2] != ids[1] and first["attention_mask"].sum() == 3
    with pytest.raises(ValueError, match="at least one word"):
        fake_inputs(suno_model, " ")


def test_a_shared_copy_shares_weights_and_nothing_else(suno_model):
    copy = shared_copy(suno_model)
    pairs = zip(suno_model.parameters(), copy.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    accelerate_bark(copy)
    assert "generate" not in vars(suno_model) and "generate" not in vars(suno_model.semantic)


def test_lengths_are_asked_for_in_seconds(suno_model):
    assert semantic_tokens(suno_model, 2.0) == 100
    for too_long in (16, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"seconds: expected at most 15.* got {too_long:g}"):
            semantic_tokens(suno_model, too_long)


def test_differences_are_found():
    tokens = {stage: torch.zeros(1, 4, dtype=torch.int64) for stage in measure.TOKEN_STAGES}
    other = {**tokens, "coarse": torch.tensor([[0, 0, 5, 0]]), "fine": torch.zeros(1, 3)}
    stock, accelerated = (measure.Run({}, 1.0, outputs, 1.0) for outputs in (tokens, other))
    assert measure.token_differences(stock, stock) == []
    coarse, fine = measure.token_differences(stock, accelerated)
    assert coarse == "coarse: 1 of 4 tokens differ, first at [0, 2]" and "shape" in fine
