"""Finds and loads the compiled library, or says exactly why it cannot and what to run.

``BARK_ACCEL_ISA`` (``generic``, ``avx2``, ``avx_vnni``, ``avx512`` or ``avx512_vnni``) picks the kernels' instruction
set when the library loads; unset, the best one of this CPU is used. ``BARK_ACCEL_CUDA_STEP`` chooses the kernels
of a decode step on a GPU (`step_choice`).
``BARK_ACCEL_STEP_THREADS=N`` has each decode step on a CPU share N threads (at most torch's), ``auto`` as many as take
the least time, within the CPU time that the process may use; unset, as many as torch has. The bits do not depend on it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from bark_accel._cpus import step_threads

from . import schemas, step_choice

ISA_VARIABLE = "BARK_ACCEL_ISA"
THREADS_VARIABLE = "BARK_ACCEL_STEP_THREADS"
ALL_THREADS = 1 << 20  # more than any machine has
LIBRARY = Path(__file__).resolve().parents[1] / "_C.so"
_PACKAGE = LIBRARY.parent.name
_SOFT_PAUSE = 1  # omp_pause_soft
OLDEST_TORCH = (2, 11)  # whose C interface the library calls; csrc/ is compiled against it as well
_REBUILD = "run `pip install --no-build-isolation .` (or `make setup`) in the repository"


def _missing() -> str:
    """Say where the compiled library was looked for, and what to do: build it, or leave the folder of the sources."""
    here = LIBRARY.parent
    installed = _installed_elsewhere(here)
    if installed is None:
        return f"bark_accel: the compiled library ({LIBRARY.name}) is missing in {here}; {_REBUILD}"
    return (
        f"bark_accel: Python imports the sources in {here}, where the compiled library ({LIBRARY.name}) is missing, "
        f"instead of the installed package in {installed}, because {here.parent} comes first on sys.path: start Python "
        "in another folder, or build in place with `pip install --no-build-isolation -e .`"
    )


def _installed_elsewhere(here: Path) -> Path | None:
    """The folder of another copy of this package on the path, with a compiled library."""
    for entry in sys.path:
        spec = PathFinder.find_spec(_PACKAGE, [entry])
        folder = Path(spec.origin).resolve().parent if spec is not None and spec.origin else here
        if folder != here and (folder / LIBRARY.name).is_file():
            return folder
    return None


class Library:
    """The functions of csrc/c_interface.cpp."""

    def __init__(self, file: Path):
        self.file = file
        self._functions = ctypes.CDLL(str(file))
        self.persistent_step = False
        """Whether a decode step of up to four rows is one CUDA kernel."""
        self.fixed_step_threads = ALL_THREADS
        """Threads of a decode step on a CPU, at most torch's; 0: as many as turn out best."""

    def build_info(self) -> dict[str, str]:
        """Return the versions it was built with, and the GPU architectures it has kernels for (`none`)."""
        return {name: self._text(name) for name in ("torch", "compiler", "cuda")}

    def has_threads(self) -> bool:
        """Tell whether its kernels run on more than one thread."""
        return "without OpenMP" not in self._text("compiler")

    def isa(self) -> str:
        """Return the instruction set in use."""
        return self._text("isa")

    def available_isas(self) -> list[str]:
        """Return those this CPU can run, the worst first; ``generic`` is always there."""
        return self._text("available_isas").split(",")

    def set_isa(self, name: str) -> None:
        """Use another instruction set. Raises `ValueError` for one that is not available."""
        if not self._function("set_isa", ctypes.c_bool, ctypes.c_char_p)(name.encode()):
            raise ValueError(f"set_isa: expected one of {', '.join(self.available_isas())}, got {name}")

    def set_step_threads(self, fixed: int = ALL_THREADS, start: int = 0, most: int = 0) -> None:
        """Give decode steps on a CPU `fixed` threads, or (0) as many as turn out best, from `start` on, up to `most`.

        Never more than torch has; 0 for `start` and `most` means as many. What was found out before is forgotten.
        """
        numbers = (ctypes.c_int64,) * 3
        self._function("set_step_threads", None, *numbers)(fixed, start, most)
        self.fixed_step_threads = fixed

    def last_step_threads(self) -> int:
        """Return how many threads the last decode step on a CPU had; 0 before the first."""
        return self._function("last_step_threads", ctypes.c_int64)()

    def last_refusal(self) -> str:
        """Return the message of the last arguments that an op refused on this thread; empty before the first."""
        return self._text("last_refusal")

    def release_memory(self) -> int:
        """Free the ops' scratch of this thread and its team, and free heap; return the bytes of scratch."""
        return self._function("release_memory", ctypes.c_int64)()

    def end_idle_threads(self) -> None:
        """End this thread's OpenMP threads, where the runtime is libgomp; its next parallel operation starts others."""
        # Part of libgomp, which the library is linked with. LLVM's and Intel's runtimes, which may stand in its place
        # (conda) and have `kmp_` functions as well, would pause other threads, too.
        is_gomp = sys.platform == "linux" and not hasattr(self._functions, "kmp_set_blocktime")
        pause = getattr(self._functions, "omp_pause_resource_all", None) if is_gomp else None
        if pause is not None:
            pause(_SOFT_PAUSE)

    def draw_noise(self, state: int, noise: int, count: int) -> None:
        """Draw exponential noise [count] float32 from the state of a CPU generator, which advances; two addresses."""
        self._function("draw_noise", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(state, noise, count)

    def cuda_stream(self, device: int) -> int:
        """Return the stream that the ops launch on: torch's current one."""
        return self._function("cuda_stream", ctypes.c_size_t, ctypes.c_int64)(device)

    def set_dependent_launch(self, on: bool) -> None:
        """Turn programmatic dependent launch on (at first, from compute capability 9.0 on) or off."""
        self._function("set_dependent_launch", None, ctypes.c_bool)(on)

    def set_persistent_step(self, on: bool) -> None:
        """Make a decode step of up to four rows one CUDA kernel (`on`), or one for each of its parts."""
        self._function("set_persistent_step", None, ctypes.c_bool)(on)
        self.persistent_step = on

    def runs_all_blocks_at_once(self, device: int) -> bool:
        """Tell whether the blocks of a CUDA kernel may wait for each other on a device."""
        return self._function("runs_all_blocks_at_once", ctypes.c_bool, ctypes.c_int64)(device)

    def _text(self, name: str) -> str:
        return self._function(name, ctypes.c_char_p)().decode()

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._functions[f"bark_accel_{name}"]
        function.restype, function.argtypes = result, arguments
        return function


def _check_torch() -> None:
    running = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if running < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"bark_accel: the compiled library needs torch {oldest} or later, but torch {torch.__version__} is "
            "installed; run `pip install --upgrade torch`"
        )


def _choose_isa(library: Library) -> None:
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return
    available = library.available_isas()
    if wanted not in available:
        raise ValueError(f"{ISA_VARIABLE}: expected one of {', '.join(available)} on this CPU, got {wanted!r}")
    library.set_isa(wanted)


def _choose_threads(library: Library) -> None:
    wanted = os.environ.get(THREADS_VARIABLE)
    if wanted == "auto":
        start, most = step_threads()
        library.set_step_threads(fixed=0, start=start, most=most)
        return
    if wanted and (not wanted.isdigit() or int(wanted) < 1):
        raise ValueError(f"{THREADS_VARIABLE}: expected auto or a number of threads, at least 1, got {wanted!r}")
    library.set_step_threads(fixed=int(wanted or ALL_THREADS))


def _choose_step(library: Library) -> None:
    if step_choice.wanted() == "persistent" and library.build_info()["cuda"] != "none":
        library.set_persistent_step(True)


@functools.lru_cache(maxsize=1)
def load() -> Library:
    """Load the compiled library, which registers the ops; later calls return the same one.

    Raises
    ------
    ImportError
        The library is missing or another one, torch is too old for it, or another copy of the package is in use.
    ValueError
        ``BARK_ACCEL_ISA`` names an instruction set that this CPU or build does not have, ``BARK_ACCEL_CUDA_STEP`` no
        way to compute a step, or ``BARK_ACCEL_STEP_THREADS`` no number.
    """
    _check_torch()
    if not LIBRARY.is_file():
        raise ImportError(_missing())
    # Before the library, which would take the place of another copy's.
    schemas.define()
    try:
        library = Library(LIBRARY)
        library.isa()
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"bark_accel: the compiled library does not load with torch {torch.__version__}; {_REBUILD}. "
            f"The loader said: {error}"
        ) from error
    _choose_isa(library)
    _choose_step(library)
    _choose_threads(library)
    return library


def cuda_archs() -> str | None:
    """The GPU architectures that the compiled library has kernels for, or None if it has none or is missing."""
    try:
        archs = load().build_info()["cuda"]
    except ImportError:
        return None
    return None if archs == "none" else archs


def is_loaded() -> bool:
    """Tell whether this process has loaded the compiled library."""
    return load.cache_info().currsize > 0


def release_memory() -> int:
    """Free the ops' scratch of this thread and its team, and give free heap back to the system; bytes of scratch."""
    return load().release_memory()
