"""The command line, in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from bark_accel.cli.app import app


def run(*arguments: object) -> Result:
    """Output and exit status of `bark-accel` with these arguments, which are made into text."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
