"""The typer app. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from .measuring_commands import bench, check, demo, info
from .serving_commands import corpus, serve
from .speech_commands import read, say

app = typer.Typer(
    help="Bark text-to-speech, accelerated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (demo, say, read, serve, bench, check, corpus, info):
    app.command()(_command)


def _print_version(asked: bool) -> None:
    if asked:
        from bark_accel import __version__

        typer.echo(f"bark_accel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
