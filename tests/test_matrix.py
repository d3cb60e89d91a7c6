"""The versions of `make matrix`."""

from __future__ import annotations

import matrix

from bark_accel.patches import compat


def test_the_matrix_runs_every_version_that_counts_as_tested():
    assert matrix.VERSIONS == compat.TESTED_VERSIONS
