"""What every command prints with, and how it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from bark_accel.report import AccelerationError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

# What the loaders, the checks of `accelerate_bark` and of `generate` raise for bad input.
_EXPECTED = (ValueError, TypeError, ImportError, OSError, AccelerationError)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print an expected error as one message and leave; anything else is a bug and keeps its traceback."""
    try:
        yield
    except _EXPECTED as error:
        fail(str(error) or type(error).__name__, EXIT_BAD_INPUT)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    err.print("[bold yellow]warning:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
