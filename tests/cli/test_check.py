"""`bark-accel check`, with the small Bark and with checkpoints that lack something."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from support import command
from support.bark_models import SUNO, build

import bark_accel.bench.check
import bark_accel.bench.speaker
import bark_accel.cli.check
import bark_accel.cli.check_run
from bark_accel import accelerate_bark, small_bark_path
from bark_accel.bench.check import TEXTS, requests
from bark_accel.bench.forced import distances, recorded
from bark_accel.bench.launches import counted, kernels_per_token, stage_launches, tokens_of_a_row
from bark_accel.bench.measure import Run, run_once
from bark_accel.bench.models import load_bark, shared_copy, unknown_words
from bark_accel.bench.speaker import encoder_weights
from bark_accel.cli.check import _without_folders, _write
from bark_accel.cli.check_page import _kernels_text
from bark_accel.cli.check_run import Budget, _begun_within, fitting_tokens
from bark_accel.stages.fine import FineStage

installed = pytest.mark.skipif(encoder_weights() is None, reason="the weights of Resemblyzer are not installed")
QUICK = ("--minutes", 0, "--seconds", 0.2)
WHOLE = ("--minutes", 10, "--seconds", 0.2)


@pytest.fixture
def few_texts(monkeypatch):
    """Four texts, one in each way: then there is time for everything."""
    monkeypatch.setattr(bark_accel.bench.check, "TEXTS", TEXTS[:4])


def run(*arguments: object):
    return command.run("check", *arguments)


def test_the_small_bark(tmp_path, few_texts):
    """Every finding; the file names no folder."""
    folder = tmp_path / "home" / "checkpoint"
    shutil.copytree(small_bark_path(), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    result = run(*WHOLE, "--model", folder, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    for said in ("Stock's tokens in all of 16 requests of 4 texts", "first sound", "KL, nats", "mel, dB"):
        assert said in result.output
    assert "no time was left" not in result.output
    _, page = result.output.split(" s of audio, median of 16 runs")
    ways = ("default", "float16", "bfloat16", "int8 ", "w8a8", "int8 cache", "long windows", "preview", "another draw")
    for way in (*ways, "fitting windows", "low_latency"):
        assert sum(line.strip().startswith(way) for line in page.splitlines()) == (2 if way == "int8 " else 1), page
    tables, _ = page.split("first sound of a stream")
    assert len(page.splitlines()) < 40 and max(map(len, tables.splitlines())) <= 80
    text = (tmp_path / "report.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
    report = json.loads(text)
    assert report["model"] == "checkpoint" and report["versions"]["torch"] == torch.__version__
    ways = {(request["voice"] is not None, request["do_sample"]) for request in report["requests"]}
    assert len(ways) == 4 and not any(request["wrong"] for request in report["requests"]) and report["left_out"] == []
    scored = report["against_stock"]
    cache, long = scored.pop("int8 cache"), scored.pop("long coarse windows")
    errors = {weights: far["semantic"]["relative_error"] for weights, far in scored.items()}
    assert errors["same"] < 1e-5 < errors["float16"] < errors["bfloat16"] < errors["int8"] < 0.1
    assert set(cache) == {"semantic", "coarse"} and errors["same"] < cache["coarse"]["relative_error"] < errors["int8"]
    # The small Bark's positions have room for no more than one of stock's windows after a voice.
    assert long == {"coarse": {"relative_error": 0, "kl_nats": 0, "top_1_agreement": 1}}
    sounds = report["sound_beside_stock"]
    assert sounds["stock"]["same_fine_codes"] == 1 and sounds["preview"]["same_fine_codes"] is None
    assert sounds["stock"]["mel_cepstral_distortion_db"] == 0 < sounds["preview"]["mel_cepstral_distortion_db"]
    assert {"int8", "fitting windows", "low_latency"} < set(sounds)
    assert report["summary"]["total"]["ratio"] > 0 and report["first_sound_s"] > 0
    assert report["voices"] is None and report["kernels_per_token"] is None
    assert "kernels per token" not in result.output


def test_what_there_was_no_time_for_is_named(tmp_path):
    """Four requests are made in any case, one in each way."""
    result = run(*QUICK, "--json", tmp_path / "report.json")
    said = "Stock's tokens in all of 4 requests of 4 texts, greedy and sampled, with voices and without;"
    assert result.exit_code == 0 and said in " ".join(result.output.split()), result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert {(one["voice"] is None, one["do_sample"]) for one in report["requests"]} == {
        (voice, sampled) for voice in (True, False) for sampled in (True, False)
    }
    named = " ".join(result.output.split())
    for left_out in (
        "6 of 10 texts",
        "scores of int8",
        "scores of long coarse windows",
        "sound of low_latency",
        "30 of 30 texts in other ways",
    ):
        assert left_out in report["left_out"] and left_out in named
    assert report["against_stock"] == report["sound_beside_stock"] == {} and "KL, nats" not in result.output


def test_a_budget():
    budget = Budget(1.0)
    assert 0 < budget.left(0.5) <= 30 < budget.left() <= 60 and not budget.is_up and Budget(0).is_up


@pytest.mark.parametrize("seconds, tokens", [(10.0, 50), (4.0, 10), (2.0, -4)])
def test_utterances_are_as_long_as_fits(seconds, tokens):
    """Of 10 tokens, 1.5 s grow with them and 2.5 s do not."""
    stock = {"semantic": 0.5, "coarse": 0.5, "fine": 1.0, "codec": 1.0}
    accelerated = {"semantic": 0.0, "coarse": 0.5, "fine": 0.5, "codec": 0.0}
    runs = [Run(its, sum(its.values()), {"semantic": torch.zeros(1, 10)}, 0.2) for its in (stock, accelerated)]
    assert fitting_tokens(runs, seconds) == tokens


def test_utterances_are_shortened_where_ten_would_not_fit(tmp_path, few_texts, monkeypatch):
    monkeypatch.setattr(bark_accel.cli.check_run, "fitting_tokens", lambda runs, seconds: 17)
    result = run("--minutes", 10, "--seconds", 2, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert result.exit_code == 0 and all(one["audio_s"] <= 17 / 25 for one in report["requests"])
    assert report["semantic_max_new_tokens"] == 17
    assert max(one["audio_s"] for one in report["requests"]) > 0.5


@installed
def test_voices_are_ranked(tmp_path, few_texts):
    """Both voices of the small Bark, each by what it says; the speaker of a sound is compared in every way."""
    result = run(*WHOLE, "--voices", "--json", tmp_path / "report.json")
    assert result.exit_code == 0 and "to its preset" in result.output and " speaker" in result.output, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    means = [sum(its["to_preset"]) / len(its["to_preset"]) for its in report["voices"]]
    assert {its["voice"] for its in report["voices"]} == {"slt", "rms"} and means == sorted(means, reverse=True)
    for its in report["voices"]:
        assert len(its["to_preset"]) == 4 and min(its["to_preset"]) > max(its["to_others"])
    assert all(0.5 < sound["speaker_similarity"] < 1.001 for sound in report["sound_beside_stock"].values())


@installed
def test_a_checkpoint_without_voices(tmp_path):
    build(SUNO).save_pretrained(tmp_path / "model")
    result = run(*QUICK, "--voices", "--model", tmp_path / "model")
    assert result.exit_code == 2 and "--voices: expected a checkpoint with voices" in " ".join(result.output.split())


def test_without_resemblyzer_speakers_are_not_compared(monkeypatch):
    monkeypatch.setattr(bark_accel.bench.speaker, "find_spec", lambda name: None)
    result = run(*QUICK)
    assert result.exit_code == 0 and " speaker " not in result.output
    assert "speakers were not compared: that needs `pip install --no-deps resemblyzer`" in result.output


def test_a_model_in_a_folder_behind_a_link_is_named_by_the_link(tmp_path):
    """What was asked for; nothing of where it leads."""
    private = tmp_path / "of-a-person" / "private-name"
    shutil.copytree(small_bark_path(), private, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (tmp_path / "checkpoint").symlink_to(private)
    result = run(*QUICK, "--model", tmp_path / "checkpoint", "--json", tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert result.exit_code == 0 and "private-name" not in text and str(tmp_path) not in text
    assert json.loads(text)["model"] == "checkpoint"


def test_kernels_are_counted_by_stage_and_token():
    """On a CPU its ops stand for kernels: an eager step of stock's takes dozens, our compiled one a few."""
    loaded = load_bark()
    inputs = {**loaded.inputs(TEXTS[0]), "semantic_max_new_tokens": 6, "do_sample": True}
    fast = accelerate_bark(shared_copy(loaded.model.float()))
    found = {}
    for name, model in (("stock", loaded.model), ("accelerated", fast)):
        run_once(model, dict(inputs), 0)  # what happens once
        counts, run = stage_launches(model, dict(inputs), 0, on_gpu=False)
        assert counts.keys() == {"semantic", "coarse", "fine", "codec"}
        assert tokens_of_a_row(run)["semantic"] == 6
        found[name] = kernels_per_token(counts, tokens_of_a_row(run))
        assert found[name]["semantic"] == counts["semantic"]["kernels"] / 6
    assert found["stock"]["semantic"] > 100 and 0 < 3 * found["accelerated"]["semantic"] < found["stock"]["semantic"]
    text = _kernels_text(found)
    assert text.startswith(f"semantic {found['stock']['semantic']:.0f} stock, ") and "; coarse " in text
    assert _kernels_text("not permitted") == "not counted (not permitted)"


def test_copies_are_no_kernels():
    assert counted([("gemv", 7, 1.0), ("Memcpy DtoH", 2, 1.0), ("Memset", 1, 1.0)]) == {"kernels": 7, "copies": 3}


def test_other_tokens_than_stocks(tmp_path, monkeypatch):
    """Said, written and told by the exit status; a checkpoint without a tokenizer has made-up ids and no voices."""
    build(SUNO).save_pretrained(tmp_path / "model")
    draw = FineStage._draw
    monkeypatch.setattr(FineStage, "_draw", lambda *arguments: draw(*arguments).index_fill(0, torch.tensor([3]), 0))
    result = run(*QUICK, "--model", tmp_path / "model", "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "NOT stock's speech in 4 of 4 requests" in result.output and "fine: " in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"].startswith("NOT") and all(request["wrong"] for request in report["requests"])
    assert {request["voice"] for request in report["requests"]} == {None} and report["text_ids"] == "made up"
    assert "greedy and sampled, without voices" in report["verdict"]


def test_a_codec_that_is_broken(monkeypatch):
    """Equal tokens are not all: the sound of NaN is none."""
    accelerate = bark_accel.cli.check.accelerate_bark

    def broken(model, **options):
        fast = accelerate(model, **options)
        fast.codec_model = copy.deepcopy(fast.codec_model)
        with torch.no_grad():
            next(fast.codec_model.decoder.parameters()).fill_(float("nan"))
        return fast

    monkeypatch.setattr(bark_accel.cli.check, "accelerate_bark", broken)
    result = run(*QUICK)
    assert result.exit_code == 1 and "NOT stock's tokens" not in result.output, result.output
    assert "NOT stock's speech in 4 of 4" in result.output and "codec: expected stock's samples" in result.output


def test_an_error_of_the_accelerated_model_is_written(tmp_path, monkeypatch):
    """What a bug report needs, without the user's folder; the traceback goes on its way."""
    where = Path.home() / "private-name"

    def fail(*arguments):
        raise RuntimeError(f"CUDA error: no kernel image, in {where}\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(FineStage, "_draw", fail)
    result = run(*QUICK, "--json", tmp_path / "report.json")
    assert result.exit_code == 1 and isinstance(result.exception, RuntimeError)
    report = json.loads((tmp_path / "report.json").read_text())
    stopped_by = "RuntimeError: CUDA error: no kernel image, in ~/private-name"
    assert report["verdict"] == f"INCOMPLETE, stopped by {stopped_by}. Until then: Nothing was compared."
    assert report["versions"]["torch"] == torch.__version__ and report["machine"]["cpu"] and report["settings"]


def test_the_file_of_a_trial_is_named_without_its_folder():
    line = "float32 blocks: products torch (trial, kept in /home/a person/.cache/bark_accel/float32-1.json)"
    assert _without_folders(line) == ["float32 blocks: products torch (trial, kept in float32-1.json)"]


def test_numbers_that_json_lacks_are_text(tmp_path):
    """A matrix beyond float16 has infinite scores there: any reader of JSON takes the file."""

    def refuse(name):
        raise ValueError(name)

    _write(tmp_path / "report.json", {"kl_nats": float("nan"), "errors": [float("inf"), 0.5]})
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert report == {"kl_nats": "NaN", "errors": ["Infinity", 0.5]}


def test_a_voice_that_the_checkpoint_names_and_lacks(tmp_path, monkeypatch):
    """As of a model that was downloaded without its voices: said before any work."""
    folder = tmp_path / "model"
    shutil.copytree(small_bark_path(), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file in (folder / "speaker_embeddings").glob("rms*"):
        file.write_bytes(b"junk")
    monkeypatch.setattr(bark_accel.cli.check, "accelerate_bark", None)
    result = run(*QUICK, "--model", folder)
    assert result.exit_code == 2 and "voice rms of " in result.output, result.output


def test_utterances_begin_within_their_time(monkeypatch):
    now = iter((0.0, 4.0, 6.0))
    monkeypatch.setattr(bark_accel.cli.check_run.time, "monotonic", lambda: next(now))
    assert list(_begun_within(5.0, ["a", "b", "c"])) == ["a", "b"]


@pytest.mark.parametrize(
    "options, message",
    [
        (("--device", "nowhere"), "--device: expected cpu"),
        (("--json", "no/such/folder/report.json"), "--json"),
        (("--model", "no/such/folder/at/all"), "no such folder"),
        (("--seconds", 1000), "seconds: expected at most"),
        (("--minutes", "inf"), "--minutes"),
        (("--minutes", "nan"), "--minutes"),
    ],
)
def test_bad_input_is_one_message(options, message):
    result = run(*options)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_the_small_bark_knows_every_word_of_the_texts():
    assert len(set(TEXTS)) == 10 and not [word for text in TEXTS for word in unknown_words(load_bark(), text)]


def test_every_text_comes_before_one_comes_again():
    """And every text in each way, once."""
    wanted = requests(load_bark(), 0)
    assert [request.text for request in wanted[:10]] == list(TEXTS)
    ways = {(request.text, request.voice is None, request.do_sample) for request in wanted}
    assert len(ways) == len(wanted) == 40 and {request.voice for request in wanted} == {None, "slt", "rms"}


def test_distances_are_those_of_the_weights_that_speak():
    """A head that is a tenth off is; stock's own module is left as it was."""
    loaded = load_bark()
    model = loaded.model.float()
    inputs = {**loaded.inputs(TEXTS[0]), "semantic_max_new_tokens": 5, "do_sample": True}

    def generate(stock):
        run_once(stock, dict(inputs), 0)
        with torch.no_grad():
            stock.coarse_acoustics.lm_head.weight.mul_(1.1)

    stock = shared_copy(model)
    found = distances(stock, recorded(stock, generate), "same")
    assert found["semantic"].relative_error < 1e-5 and abs(found["coarse"].relative_error - 0.1) < 1e-3
    assert found["fine"].top_1_agreement > 0.999 and found["coarse"].kl_nats > 1e-3
    assert "forward" not in vars(model.semantic) | vars(model.fine_acoustics)
