"""The loader: one clear error for a missing library, another torch, or an unknown instruction set."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bark_accel
from bark_accel.ops import _library


@pytest.fixture
def fresh_loader() -> Iterator[None]:
    _library.load.cache_clear()
    yield
    _library.load.cache_clear()


def fail_import(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    def import_module(name: str) -> None:
        raise error

    monkeypatch.setattr(_library, "importlib", SimpleNamespace(import_module=import_module))


def test_missing_library(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    fail_import(monkeypatch, ModuleNotFoundError("No module named 'bark_accel._C'", name="bark_accel._C"))
    with pytest.raises(ImportError, match=r"is missing in .*; run `pip install --no-build-isolation"):
        _library.load()


@pytest.mark.parametrize("installed", [False, True])
def test_sources_that_stand_before_the_installed_package_are_named(tmp_path: Path, installed: bool) -> None:
    """As after `pip install .`, when Python starts in the clone."""
    package = Path(bark_accel.__file__).parent
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(package, clone / "bark_accel", ignore=shutil.ignore_patterns("*.so", "small_bark", "__pycache__"))
    (site / "bark_accel").mkdir(parents=True)
    (site / "bark_accel" / "__init__.py").touch()
    if installed:
        (site / "bark_accel" / f"_C{EXTENSION_SUFFIXES[0]}").touch()
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


def test_undefined_symbol(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    fail_import(monkeypatch, ImportError("undefined symbol: _ZN3c104impl"))
    with pytest.raises(ImportError, match=r"built for another one; run .*make setup.*undefined symbol"):
        _library.load()


def test_a_missing_dependency_is_not_blamed_on_the_library(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    fail_import(monkeypatch, ModuleNotFoundError("No module named 'other'", name="other"))
    with pytest.raises(ModuleNotFoundError, match="other"):
        _library.load()


def test_wrong_torch(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    monkeypatch.setattr(torch, "__version__", "1.2.3+cpu")
    with pytest.raises(ImportError, match=r"built for torch .*, but torch 1\.2\.3\+cpu is installed; run"):
        _library.load()


def test_patch_release_and_build_tag_do_not_matter(monkeypatch: pytest.MonkeyPatch, fresh_loader: None) -> None:
    release = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr(torch, "__version__", f"{release}.99+cu130")
    assert _library.load() is importlib.import_module("bark_accel._C")


def test_library_describes_itself() -> None:
    library = _library.load()
    assert set(library.build_info()) >= {"torch", "compiler"}
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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
