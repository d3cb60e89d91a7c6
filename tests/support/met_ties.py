"""Ties that tests met: a plugin of pytest that reports them."""

from __future__ import annotations

import warnings

import pytest

TIES: list[str] = []
"""Differences of this test's tokens that ties explain."""


@pytest.fixture(autouse=True)
def report_ties(request):
    """Tokens that differ from stock's because of a tie: a warning, a line of the summary, a property in junit's XML."""
    TIES.clear()
    yield
    for tie in TIES:
        request.node.user_properties.append(("tie", tie))
        warnings.warn(f"a tie was decided the other way than by stock: {tie}", stacklevel=1)


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ties = [
        f"{report.nodeid}: {value}"
        for report in reports
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == "tie"
    ]
    if ties:
        terminalreporter.section("tokens that differ from stock's where rounding decides (bark_accel.bench.ties)")
        terminalreporter.write_line("\n".join([f"{len(ties)} in all", *ties]))
