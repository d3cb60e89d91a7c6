"""Finds and loads the compiled library, or says exactly why it cannot and what to run.

``BARK_ACCEL_ISA`` (``generic``, ``avx2``, ``avx512`` or ``avx512_vnni``) picks the kernels' instruction set when the
library loads; unset, the best one of this CPU is used.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from types import ModuleType

import torch

ISA_VARIABLE = "BARK_ACCEL_ISA"
_MODULE = "bark_accel._C"
_PACKAGE = _MODULE.partition(".")[0]
_REBUILD = "run `pip install --no-build-isolation .` (or `make setup`) in the repository"


def _release(version: str) -> str:
    """``2.13.0+cpu`` -> ``2.13``: the part of torch's version that fixes its C++ interface."""
    return ".".join(version.split(".")[:2])


def _missing() -> str:
    """Say where the compiled library was looked for, and what to do: build it, or leave the folder of the sources."""
    here = Path(str(sys.modules[_PACKAGE].__file__)).resolve().parent
    installed = _installed_elsewhere(here)
    if installed is None:
        return f"bark_accel: the compiled library ({_MODULE}) is missing in {here}; {_REBUILD}"
    return (
        f"bark_accel: Python imports the sources in {here}, where the compiled library ({_MODULE}) is missing, instead "
        f"of the installed package in {installed}, because {here.parent} comes first on sys.path: start Python in "
        "another folder, or build in place with `pip install --no-build-isolation -e .`"
    )


def _installed_elsewhere(here: Path) -> Path | None:
    """The folder of another copy of this package on the path, with a compiled library."""
    for entry in sys.path:
        spec = PathFinder.find_spec(_PACKAGE, [entry])
        folder = Path(spec.origin).resolve().parent if spec is not None and spec.origin else here
        if folder != here and any((folder / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            return folder
    return None


def _check_torch(module: ModuleType) -> None:
    built, running = module.build_info()["torch"], torch.__version__
    if _release(built) != _release(running):
        raise ImportError(
            f"bark_accel: the compiled library was built for torch {built}, "
            f"but torch {running} is installed; {_REBUILD}"
        )


def _choose_isa(module: ModuleType) -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return
    available = module.available_isas()
    if wanted not in available:
        raise ValueError(f"{ISA_VARIABLE}: expected one of {', '.join(available)} on this CPU, got {wanted!r}")
    module.set_isa(wanted)


@functools.lru_cache(maxsize=1)
def load() -> ModuleType:
    """Load ``bark_accel._C``, which registers the ops; later calls return the same module.

    Returns
    -------
    ModuleType
        With ``build_info()``, ``isa()``, ``available_isas()`` and ``set_isa(name)``.

    Raises
    ------
    ImportError
        The library is missing, or was built for another torch.
    ValueError
        ``BARK_ACCEL_ISA`` names an instruction set that this CPU or build does not have.
    """
    try:
        module = importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        raise ImportError(_missing()) from error
    except ImportError as error:
        raise ImportError(
            f"bark_accel: the compiled library does not load with torch {torch.__version__}, "
            f"it was most likely built for another one; {_REBUILD}. The loader said: {error}"
        ) from error
    _check_torch(module)
    _choose_isa(module)
    return module


def cuda_archs() -> str | None:
    """The GPU architectures that the compiled library has kernels for, or None if it has none or is missing."""
    try:
        archs = load().build_info()["cuda"]
    except ImportError:
        return None
    return None if archs == "none" else archs


def release_memory() -> int:
    """Free the ops' scratch of this thread and its team, and give free heap back to the system; bytes of scratch."""
    return load().release_memory()
