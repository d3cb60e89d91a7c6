"""The lock of a work folder, on this system and on one that locks bytes as Windows does."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from bark_accel.longform import file_lock


class Windows(ModuleType):
    """The part of `msvcrt` that locks: bytes from where the file stands, for one handle at a time."""

    LK_NBLCK = 2

    def __init__(self):
        super().__init__("msvcrt")
        self._owners: dict[tuple[int, int], int] = {}

    def locking(self, handle: int, mode: int, nbytes: int) -> None:
        assert mode == self.LK_NBLCK and nbytes == 1
        owner = self._owners.setdefault((os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)), handle)
        if owner != handle:
            raise PermissionError(13, "Permission denied")


@pytest.fixture(params=["here", "win32"])
def try_lock(request, monkeypatch):
    """`try_lock` as it is here, and as it is there."""
    if request.param == "here":
        return file_lock.try_lock
    monkeypatch.setattr(sys, "platform", request.param)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Windows())
    there: dict = {"__name__": "there"}
    with open(file_lock.__file__) as source:
        exec(compile(source.read(), file_lock.__file__, "exec"), there)
    return there["try_lock"]


def test_one_at_a_time(try_lock, tmp_path):
    """Wherever the files stand, and whatever is in them."""
    path = tmp_path / ".lock"
    path.write_text("content")
    with path.open("a") as first, path.open("a") as second, (tmp_path / "other").open("a") as other:
        second.seek(0)
        assert try_lock(first) and not try_lock(second) and try_lock(other)
    assert path.read_text() == "content"


def test_a_lock_goes_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    hold = "import sys; from bark_accel.longform.file_lock import try_lock; file = open(sys.argv[1], 'a')"
    command = [sys.executable, "-c", f"{hold}; print(try_lock(file), flush=True); input()", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        with path.open("a") as file:
            assert not file_lock.try_lock(file)
            holder.kill()
            holder.wait()
            assert file_lock.try_lock(file)
