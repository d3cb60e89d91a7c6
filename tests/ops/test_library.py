"""The loader: one clear error for a missing library, another torch, or an unknown instruction set."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

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
    with pytest.raises(ImportError, match="is missing; run `pip install --no-build-isolation"):
        _library.load()


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
    script = "from bark_accel import _library; print(_library.load().isa())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BARK_ACCEL_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (isa == "generic")
    assert expected in done.stdout + done.stderr
