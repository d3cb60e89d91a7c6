"""The table of versions in the README is that of the last `make matrix`, and complete."""

from __future__ import annotations

import matrix

from bark_accel.patches import compat


def test_the_matrix_runs_every_version_that_counts_as_tested():
    assert matrix.VERSIONS == compat.TESTED_VERSIONS


def test_the_readme_has_the_last_table():
    rows = matrix.load_table()
    assert matrix.BEGIN + matrix.render(rows) + "\n" + matrix.END in matrix.README.read_text()
    assert tuple(row["versions"]["transformers"] for row in rows) == matrix.VERSIONS
    assert all(row["passed"] > 400 and row["failed"] == 0 for row in rows)
