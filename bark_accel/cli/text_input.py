"""Texts to be said, from the command line, a file or standard input."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from .console import UserError

_STDIN = Path("-")
_ANOTHER = "name its encoding, such as --encoding latin-1 or cp1252"


def check_text(text: str) -> str:
    """Return a text from the command line; raise `UserError` unless it can be said."""
    if not text.strip():
        raise UserError("the text is empty: there is nothing to say")
    if _has_surrogates(text):
        raise UserError(
            "the text is not in the terminal's encoding, UTF-8 mostly; "
            "write it into a file and name its encoding: bark-accel read FILE --encoding latin-1"
        )
    return text


def read_text(file: Path, encoding: str) -> str:
    """Read a file, or standard input where it is `-`; raise `UserError` unless it is a text that can be said."""
    name = "standard input" if file == _STDIN else str(file)
    content = _content(file)
    try:
        # A mark at the beginning says UTF-8, and is not said.
        text = content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except LookupError:
        raise UserError(f"--encoding: expected one such as utf-8, latin-1, cp1252 or utf-16, got {encoding}") from None
    except UnicodeError as error:
        raise UserError(f"expected a text in {encoding}, got {name} ({error}); {_ANOTHER}") from None
    if _has_surrogates(text):
        raise UserError(f"expected a text in {encoding}, got {name} with lone surrogates; {_ANOTHER}")
    if not text.strip():
        raise UserError(f"{name} is empty: there is nothing to say")
    return text


def _content(file: Path) -> bytes:
    if file == _STDIN:
        if sys.stdin is None:
            raise UserError("-: standard input is closed")
        return sys.stdin.buffer.read()
    if file.is_dir():
        raise UserError(f"expected a text file, got the folder {file}")
    if not file.exists():
        raise UserError(f"there is no file {file}")
    return file.read_bytes()


def _has_surrogates(text: str) -> bool:
    """Tell whether the text has surrogates: bytes that Python could not decode, which tokenizers refuse."""
    return any("\ud800" <= character <= "\udfff" for character in text)
