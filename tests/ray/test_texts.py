"""Tables that a corpus is read from, and refused before any work."""

from __future__ import annotations

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("ray")

from bark_accel.ray.corpus import read_texts, synthesize_corpus  # noqa: E402
from bark_accel.ray.parts import DRAFT_SUFFIX, PartFolder  # noqa: E402


def test_texts_of_digits_stay_texts(tmp_path):
    (tmp_path / "texts.csv").write_text("text,voice,seed\n007,1,5\n12,2,6\n")
    assert read_texts(tmp_path / "texts.csv").to_pydict() == {
        "text": ["007", "12"],
        "voice": ["1", "2"],
        "seed": [5, 6],
    }


def test_a_column_that_the_manifest_adds_is_refused(tmp_path):
    for names in (["text", "file"], ["text", "note", "note"]):
        table = pa.table([["one"]] * len(names), names=names)
        with pytest.raises(ValueError, match="expected columns of different names, none of them 'file'"):
            synthesize_corpus(table, tmp_path / "out", model=None)
    assert not (tmp_path / "out").exists()


def test_arguments_that_a_folder_cannot_keep(tmp_path):
    with pytest.raises(ValueError, match="expected arguments of numbers, strings and lists"):
        synthesize_corpus(pa.table({"text": ["one"]}), tmp_path / "out", semantic_suppress_tokens=object())
    assert not (tmp_path / "out").exists()


def test_a_draft_of_a_run_that_was_killed_blocks_nobody(tmp_path):
    (tmp_path / f".corpus.json.1{DRAFT_SUFFIX}").write_text("{")
    with PartFolder(tmp_path, "parquet", 1).locked({"seed": 1}):
        assert (tmp_path / "corpus.json").exists()
