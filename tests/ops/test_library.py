"""The loader: one clear error for a missing library, another torch, or an unknown instruction set."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.waiting import LIMIT_S

import bark_accel
from bark_accel.ops import _library


@pytest.fixture
def fresh_loader() -> Iterator[None]:
    _library.load.cache_clear()
    yield
    _library.load.cache_clear()


def test_missing_library(monkeypatch: pytest.MonkeyPatch, fresh_loader: None, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "LIBRARY", tmp_path / "_C.so")
    monkeypatch.setattr(_library, "_installed_elsewhere", lambda here: None)
    with pytest.raises(ImportError, match=r"is missing in .*; run `pip install --no-build-isolation"):
        _library.load()


@pytest.mark.parametrize("installed", [False, True])
def test_sources_that_stand_before_the_installed_package_are_named(tmp_path: Path, installed: bool) -> None:
    """As after `pip install .`, when Python starts in the clone."""
    package = Path(bark_accel.__file__).parent
    if package.parent.name == "site-packages":
        pytest.skip("the installed package would be found beside the one made here")
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(package, clone / "bark_accel", ignore=shutil.ignore_patterns("*.so", "small_bark", "__pycache__"))
    (site / "bark_accel").mkdir(parents=True)
    (site / "bark_accel" / "__init__.py").touch()
    if installed:
        (site / "bark_accel" / "_C.so").touch()
    # Without the finder of an editable install, which knows a library of its own.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
    command = [sys.executable, "-c", f"{code}from {_library.__package__} import _library; _library.load()"]
    done = subprocess.run(
        command, cwd=clone, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )
    message = done.stderr.splitlines()[-1]
    if installed:
        assert f"imports the sources in {clone}/bark_accel" in message and f"package in {site}/bark_accel" in message
        assert "start Python in another folder, or build in place with `pip install --no-build-isolation -e" in message
    else:
        assert f"is missing in {clone}/bark_accel; run `pip install --no-build-isolation" in message


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, fresh_loader: None, tmp_path: Path) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_library, "LIBRARY", broken)
    with pytest.raises(ImportError, match=r"does not load with torch .*; run .*make setup.*_C.so: file too short"):
        _library.load()


def test_a_library_that_is_another_one(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    other = next((Path(torch.__file__).parent / "lib").glob("libc10.so"))
    monkeypatch.setattr(_library, "LIBRARY", other)
    with pytest.raises(ImportError, match=r"does not load with torch .*undefined symbol"):
        _library.load()


def test_a_package_that_is_imported_anew() -> None:
    """Its ops are the process's; so are another copy's."""
    script = (
        "import sys; from bark_accel.ops import _library; _library.load()\n"
        "for name in [n for n in sys.modules if n.startswith('bark_accel')]: del sys.modules[name]\n"
        "from bark_accel.ops import _library; _library.load()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ImportError: bark_accel: expected to define its ops once in a process" in done.stderr, done.stderr


@pytest.mark.parametrize("version", ["1.13.1", "2.10.0+cpu", "2.9.1"])
def test_old_torch(monkeypatch: pytest.MonkeyPatch, fresh_loader: None, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    message = rf"needs torch 2\.11 or later, but torch {re.escape(version)} is installed; run `pip install --upgrade"
    with pytest.raises(ImportError, match=message):
        _library.load()


@pytest.mark.parametrize("version", ["2.11.0", "2.15.0.dev20261101+cu130", "3.0.0"])
def test_later_torch_does_not_matter(monkeypatch: pytest.MonkeyPatch, fresh_loader: None, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert _library.load().isa()


def test_library_describes_itself() -> None:
    library = _library.load()
    assert set(library.build_info()) == {"torch", "compiler", "cuda"}
    assert library.available_isas()[0] == "generic"
    assert library.isa() in library.available_isas()


def test_set_isa_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"set_isa: expected one of generic.*, got sse9"):
        _library.load().set_isa("sse9")


@pytest.mark.parametrize(
    ("isa", "expected"), [("generic", "generic"), ("sse9", "BARK_ACCEL_ISA: expected one of generic")]
)
def test_isa_variable(isa: str, expected: str) -> None:
    script = "from bark_accel.ops import _library; print(_library.load().isa())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BARK_ACCEL_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (isa == "generic")
    assert expected in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("kernels", "False"),
        ("persistent", "cuda"),
        ("one", "BARK_ACCEL_CUDA_STEP: expected kernels, persistent, torch or trial"),
    ],
)
def test_step_variable(step: str, expected: str) -> None:
    """A library without CUDA kernels has no step to choose."""
    script = "from bark_accel.ops import _library; x = _library.load(); print(x.persistent_step, x.build_info())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BARK_ACCEL_CUDA_STEP": step},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout + done.stderr
    if step == "persistent":
        assert done.stdout.startswith("True") == ("'cuda': 'none'" not in done.stdout)


def test_two_threads_that_come_first_together() -> None:
    """Fakes are registered once: some versions of torch refuse a second one."""
    script = """
import threading, time, torch
from bark_accel.ops import native
from bark_accel.ops._compiled import op

register, barrier, registered = torch.library.register_fake, threading.Barrier(4), []

def slowly(name, fake):
    time.sleep(0.01)
    registered.append(name)
    register(name, fake)

def first(name):
    barrier.wait()
    op(name)

torch.library.register_fake = slowly
names = ("fused_sample", "decode_step", "fused_sample", "int16_linear")
threads = [threading.Thread(target=first, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert registered and len(registered) == len(set(registered)), registered
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        ("3", "3"),
        ("", str(_library.ALL_THREADS)),
        ("auto", "0"),
        ("0", "expected auto or a number of threads, at least 1, got '0'"),
        ("two", "got 'two'"),
    ],
)
def test_threads_variable(threads: str, expected: str) -> None:
    script = "from bark_accel.ops import _library; print(_library.load().fixed_step_threads)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BARK_ACCEL_STEP_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (threads in ("3", "", "auto"))
    assert expected in done.stdout + done.stderr
