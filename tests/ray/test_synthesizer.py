"""The actor's class and the folder of parts by themselves: no cluster is started."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from support.command import run
from transformers import BarkModel

from bark_accel import (
    BarkEngine,
    EngineClosed,
    accelerate_bark,
    generate_with_preset,
    save_voice_preset,
    small_bark_path,
)

pa = pytest.importorskip("pyarrow", reason="Ray's data library is not installed")
pytest.importorskip("ray.data", reason="Ray's data library is not installed")

from bark_accel.cli import corpus  # noqa: E402
from bark_accel.ray import Synthesizer, synthesize_corpus  # noqa: E402
from bark_accel.ray.corpus import actor_options, read_texts  # noqa: E402
from bark_accel.ray.parts import PartFolder  # noqa: E402

TABLE = pa.table(
    {"text": ["one two", "three", "four"], "voice": ["slt", "", None], "seed": [7, None, 9], "kept": [1, 2, 3]}
)


@pytest.fixture(scope="module")
def synthesizer():
    synthesizer = Synthesizer(voice="rms", seed=5, max_rows=2, max_seconds=1.0)
    yield synthesizer
    synthesizer.close()


def without_reports(table):
    return table.drop_columns("report").to_pylist()


def test_audio_depends_on_no_batch(synthesizer):
    """Nor on its format."""
    whole = without_reports(synthesizer(TABLE))
    pieces = [row for i in (2, 0, 1) for row in without_reports(synthesizer(TABLE.slice(i, 1)))]
    assert [pieces[1], pieces[2], pieces[0]] == whole
    arrays = {name: np.array(TABLE[name].to_pylist(), object) for name in ("text", "voice", "kept")}
    arrays["seed"] = np.array([7, np.nan, 9])
    assert without_reports(synthesizer(arrays)) == whole
    assert without_reports(synthesizer(TABLE.to_pandas())) == whole
    assert [row["kept"] for row in whole] == [1, 2, 3] and len({row["seed"] for row in whole}) == 3


def test_a_row_is_what_generate_gives(synthesizer):
    row = without_reports(synthesizer(TABLE.slice(1, 1)))[0]
    model, processor = synthesizer._loaded.model, synthesizer._loaded.processor
    torch.manual_seed(row["seed"])
    audio = model.generate(**processor("three", voice_preset="rms"), semantic_max_new_tokens=25)[0]
    assert row["audio"] == audio.tolist() and row["seconds"] == len(audio) / 16_000


def test_an_approximate_row_is_what_generate_gives():
    given = {"weights": "int8", "kv_cache_dtype": "int8", "fit_windows": True, "long_coarse_windows": True}
    synthesizer = Synthesizer(max_rows=2, max_seconds=1.0, **given)
    row = synthesizer({"text": ["three"], "seed": [3]}).to_pylist()[0]
    synthesizer.close()
    model = accelerate_bark(BarkModel.from_pretrained(small_bark_path()), **given)
    torch.manual_seed(3)
    audio = model.generate(**synthesizer._loaded.processor("three"), semantic_max_new_tokens=25)[0]
    assert row["audio"] == audio.tolist()
    assert {name: json.loads(row["report"])[name] for name in given} == given


def test_the_command_hands_its_approximations_on(tmp_path, monkeypatch):
    (tmp_path / "texts.csv").write_text("text\none\n")
    given = []
    monkeypatch.setattr(corpus, "_synthesize", lambda texts, out, cluster, options: given.append(options))
    options = ("--weights", "w8a8", "--kv-cache-dtype", "int8", "--fit-windows", "--long-coarse-windows")
    run("corpus", tmp_path / "texts.csv", tmp_path / "out", *options)
    approximations = {"weights": "w8a8", "kv_cache_dtype": "int8", "fit_windows": True, "long_coarse_windows": True}
    assert given[0].items() >= approximations.items()


def test_a_voice_of_a_file(synthesizer, tmp_path):
    _, preset = generate_with_preset(synthesizer._loaded.model, **synthesizer._loaded.processor("one"))
    save_voice_preset(tmp_path / "mine.npz", preset)
    said = synthesizer({"text": ["two"], "voice": [str(tmp_path / "mine.npz")]}).to_pylist()[0]
    assert said["error"] is None and said["seconds"] > 0.1


@pytest.mark.parametrize(
    "row, error",
    [
        ({"text": None}, "text: expected a str, got NoneType"),
        ({"text": ""}, "empty text"),
        ({"text": "one " * 300}, "expected at most 16 text tokens, got 300"),
        ({"text": "eleven"}, "got eleven"),
        ({"text": "one", "voice": "no.npz"}, "there is no file no.npz"),
        ({"text": "one", "seed": -1}, "seed: expected a whole number"),
    ],
)
def test_a_bad_row_fails_alone(synthesizer, row, error):
    good = {"text": "two", "voice": None, "seed": 3}
    bad, said = synthesizer(pa.Table.from_pylist([{**good, **row}, good])).to_pylist()
    assert error in bad["error"] and bad["audio"] is None
    assert said["error"] is None and said["seconds"] > 0.1 and json.loads(said["report"])["fell_back"] == []


def test_what_fails_while_it_is_said_is_an_error_of_its_row(synthesizer, monkeypatch):
    submit = BarkEngine.submit

    def late(engine, *arguments, **options):
        return submit(engine, *arguments, deadline_s=1e-9 if options["seed"] == 7 else None, **options)

    monkeypatch.setattr(BarkEngine, "submit", late)
    errors = synthesizer(TABLE)["error"].to_pylist()
    assert errors[0].startswith("DeadlineExceeded: ") and errors[1:] == [None, None]


def test_an_engine_that_ended_is_no_error_of_a_row():
    synthesizer = Synthesizer()
    synthesizer.close()
    with pytest.raises(EngineClosed):
        synthesizer(TABLE)


@pytest.mark.parametrize(
    "columns, message", [(["words"], "a column 'text', got 'words'"), (["text", "audio"], "'audio'")]
)
def test_columns_that_do_not_fit(synthesizer, columns, message, tmp_path):
    table = pa.table({name: ["one"] for name in columns})
    with pytest.raises(ValueError, match=message):
        synthesizer(table)
    with pytest.raises(ValueError, match=message):
        synthesize_corpus(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "mp3"}, "format: expected one of 'parquet', 'wav'"),
        ({"num_actors": 0}, "num_actors"),
        ({"threads": 1.5}, "threads"),
        ({"num_gpus": 1.5}, "num_gpus: expected a fraction of one GPU"),
        ({"rows_per_part": 0}, "rows_per_part"),
    ],
)
def test_bad_arguments_come_before_any_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        synthesize_corpus(TABLE, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_resources_of_an_actor():
    options = actor_options(3, 2, 0.25)
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0.25) and options["compute"].max_size == 3


def test_tables_that_are_read(tmp_path):
    (tmp_path / "texts.csv").write_text("text,voice\none two,slt\nthree,\n")
    assert read_texts(tmp_path / "texts.csv").to_pylist()[1] == {"text": "three", "voice": ""}
    (tmp_path / "texts.txt").write_text("one two")
    with pytest.raises(ValueError, match=r"expected a Parquet or \.csv file, got .*texts\.txt"):
        read_texts(tmp_path / "texts.txt")


def test_wav_files_and_their_manifest(synthesizer, tmp_path):
    files, said = PartFolder(tmp_path, "wav", 2), synthesizer(TABLE.append_column("x", [["a", "b", "c"]]))
    with files.locked({}):
        for part in range(2):
            files.write(part, said.slice(2 * part, 2))
        manifest = files.write_manifest(2).to_pylist()
    assert [row["x"] for row in manifest] == ["a", "b", "c"] and "audio" not in manifest[0]
    for row, audio in zip(manifest, said["audio"].to_pylist(), strict=True):
        samples, rate = soundfile.read(tmp_path / row["file"])
        assert rate == 16_000
        np.testing.assert_allclose(samples, audio, atol=1 / 32_000)


def test_failed_parts_are_made_again_on_request(synthesizer, tmp_path):
    files = PartFolder(tmp_path, "parquet", 1)
    with files.locked({}):
        for part, text in enumerate(("one", "eleven")):
            files.write(part, synthesizer({"text": [text]}))
        assert files.missing(3, retry_failed=False) == [2] and files.missing(3, retry_failed=True) == [1, 2]


def lock(folder, format="wav", rows_per_part=2, texts="a"):
    with PartFolder(folder, format, rows_per_part).locked({"texts": texts}):
        pass


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with PartFolder(tmp_path, "wav", 2).locked({"texts": "a"}), pytest.raises(ValueError, match="another run is using"):
        lock(tmp_path)
    lock(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    lock(tmp_path / "out")
    with pytest.raises(ValueError, match="holds a run with another rows_per_part, texts"):
        lock(tmp_path / "out", rows_per_part=3, texts="b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        lock(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
