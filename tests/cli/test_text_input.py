"""Texts from files of any encoding, from standard input and from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run
from support.waiting import LIMIT_S

from bark_accel.cli.console import UserError
from bark_accel.cli.text_input import check_text, read_text

TEXT = "Grüße, Zoë.\n\nEnd."


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_a_text_in_any_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt", encoding) == TEXT


def test_the_mark_of_utf_8_is_not_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode("utf-8-sig"))
    assert read_text(tmp_path / "a.txt", "utf-8") == TEXT


@pytest.mark.parametrize(
    "content, encoding, message",
    [
        (TEXT.encode("latin-1"), "utf-8", "expected a text in utf-8, got .*; name its encoding, such as --encoding l"),
        (TEXT.encode("utf-16"), "utf-8", "name its encoding, such as --encoding"),
        (b"odd", "utf-16", "expected a text in utf-16, got .*--encoding"),
        (b"\\udce9", "unicode_escape", "with lone surrogates; name its encoding"),
        (b"text", "klingon", "--encoding: expected one such as utf-8, .*, got klingon"),
        (b"text", "hex", "--encoding: expected one such as"),
        (b" \n", "utf-8", "is empty: there is nothing to say"),
    ],
)
def test_another_encoding_is_explained(tmp_path, content, encoding, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "a.txt", encoding)


def test_what_is_no_file_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"there is no file missing\.txt"):
        read_text(Path("missing.txt"), "utf-8")
    with pytest.raises(UserError, match="expected a text file, got the folder"):
        read_text(tmp_path, "utf-8")


@pytest.mark.parametrize(
    "name, text, code, words", [("-", "hello", 0, "1 chunk,"), ("/dev/stdin", "zorro", 2, "does not know: zorro")]
)
def test_standard_input_is_read(tmp_path, name, text, code, words):
    """Once: a pipe has nothing for a second look."""
    command = [sys.executable, "-m", "bark_accel", "read", name, "-o", str(tmp_path / "a.wav"), "--max-seconds", "0.2"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == code and words in done.stdout + done.stderr, done.stderr


def test_a_file_reaches_the_model_in_its_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("Zoë".encode("latin-1"))
    arguments = ["read", str(tmp_path / "a.txt"), "-o", str(tmp_path / "a.wav")]
    assert "does not know: Zoë." in run(*arguments, "--encoding", "latin-1").output
    refused = run(*arguments)
    assert refused.exit_code == 2 and "--encoding" in refused.output


def test_a_text_in_another_encoding_than_the_terminals(tmp_path):
    """Python hands its bytes on as surrogates."""
    with pytest.raises(UserError, match="bark-accel read FILE --encoding latin-1"):
        check_text("Zo\udceb")
    result = run("say", "Zo\udceb", "-o", str(tmp_path / "a.wav"))
    assert result.exit_code == 2 and "read FILE --encoding" in result.output
