"""Printing and failing, the same for every command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
DEBUG_VARIABLE = "BARK_ACCEL_DEBUG"


class PatientConsole(Console):
    """A console whose command goes on, silently, after the reader of its output has left (`| head -1`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # So that nothing fails when Python flushes the stream at its end.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


out = PatientConsole(highlight=False)
err = PatientConsole(stderr=True, highlight=False)


class UserError(Exception):
    """Bad input, or something that the machine lacks: the message is all that a user needs."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into a `UserError`; for code that checks or reads what the user named."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error) or type(error).__name__) from error


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print an expected error as one message and leave; anything else is a bug and keeps its traceback.

    With BARK_ACCEL_DEBUG=1 every error keeps it.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0") or not _is_expected(error):
            raise
        fail(str(error) or type(error).__name__, EXIT_BAD_INPUT)


def _is_expected(error: Exception) -> bool:
    from bark_accel.report import AccelerationError

    if isinstance(error, ImportError):
        # Raised with a sentence (a missing package or library). Python's own carry the name of a module.
        return error.name is None
    if isinstance(error, ValueError):
        # Those that show only while a model generates: a work folder in use, a voice of another model, an overflow.
        return str(error).startswith(("work_dir:", "history_prompt")) or "NaN" in str(error)
    return isinstance(error, (UserError, OSError, AccelerationError))


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    err.print("[bold yellow]warning:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)


def numbered(count: int, thing: str) -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
