"""The versions of `make matrix`."""

from __future__ import annotations

import matrix

from bark_accel.hf import compat


def test_the_matrix_runs_every_version_that_counts_as_tested():
    assert matrix.VERSIONS == compat.TESTED_VERSIONS


def test_the_document_has_the_last_table():
    rows = matrix.load_table()
    assert matrix.BEGIN + matrix.render(rows) + "\n" + matrix.END in matrix.DOCUMENT.read_text()
    assert {row["versions"]["transformers"] for row in rows} == set(matrix.VERSIONS)
    assert all(row["passed"] > 400 and row["failed"] == 0 for row in rows)


def test_rows_of_earlier_runs_stay_in_the_table():
    row = {"versions": dict.fromkeys(matrix.SHOWN, "1.0"), "passed": 3, "failed": 0, "skipped": 1}
    header, _, earlier, later = matrix.render([row, {**row, "commit": "abc"}]).splitlines()
    assert header.count("|") == earlier.count("|") == later.count("|")
    assert earlier.endswith("| 3 | 0 | 1 |  |") and later.endswith("| 3 | 0 | 1 | abc |")


def test_a_kept_result_is_that_of_the_same_code_and_versions(monkeypatch, tmp_path):
    """Two environments with the same Transformers and another torch; then one of them has changed."""
    tokenizers = {"one": "1", "two": "1"}

    def versions(python):
        torch = {"one": "2.9.0+cpu", "two": "2.10.0+cpu"}[python]
        return {"transformers": "5.0.0", "tokenizers": tokenizers[python], "huggingface_hub": "1", "torch": torch}

    ran = []

    def run(python, versions, selection, jobs):
        ran.append(python)
        return {"versions": versions, "passed": 1, "failed": 0, "skipped": 0}

    monkeypatch.setattr(matrix, "ENVIRONMENTS", tmp_path / "matrix")
    monkeypatch.setattr(matrix, "_versions", versions)
    monkeypatch.setattr(matrix, "_run", run)
    results = [matrix._result(python, False, False) for python in ("one", "two", "one", "two")]
    assert ran == ["one", "two"] and results[:2] == results[2:]
    assert results[0]["versions"]["torch"] == "2.9.0+cpu" and results[1]["versions"]["torch"] == "2.10.0+cpu"
    assert sorted(results, key=matrix._key)[0] is results[0], "2.9 is before 2.10"
    tokenizers["one"] = "2"
    assert matrix._result("one", False, False)["versions"]["tokenizers"] == "2" and ran == ["one", "two", "one"]


def test_a_row_of_a_version_that_is_not_out_yet():
    rows = [{"versions": {"transformers": "5.0.0", "torch": torch}} for torch in ("2.14.0.dev1+cpu", "2.13.0+cu126")]
    assert sorted(rows, key=matrix._key) == rows[::-1]
    assert matrix._key(rows[1]) == matrix._key({"versions": {"transformers": "5.0.0", "torch": "2.13.0"}})


def test_a_commit_is_dirty_by_its_code_alone(monkeypatch, tmp_path):
    """Tables are written by every run."""
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    for folder in ("tests", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("as it was")
    matrix._git("init", "--quiet")
    matrix._git("add", ".")
    matrix._git("-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "-m", "as it was")
    (tmp_path / "docs/file").write_text("another")
    assert matrix._commit() == matrix._git("rev-parse", "--short", "HEAD").strip()
    (tmp_path / "tests/file").write_text("another")
    assert matrix._commit().endswith("-dirty")
