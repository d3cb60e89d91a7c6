"""The versions of `make matrix`."""

from __future__ import annotations

import matrix

from bark_accel.patches import compat


def test_the_matrix_runs_every_version_that_counts_as_tested():
    assert matrix.VERSIONS == compat.TESTED_VERSIONS


def test_rows_of_earlier_runs_stay_in_the_table():
    row = {"versions": dict.fromkeys(matrix.SHOWN, "1.0"), "passed": 3, "failed": 0, "skipped": 1}
    header, _, earlier, later = matrix.render([row, {**row, "commit": "abc"}]).splitlines()
    assert header.count("|") == earlier.count("|") == later.count("|")
    assert earlier.endswith("| 3 | 0 | 1 |  |") and later.endswith("| 3 | 0 | 1 | abc |")
