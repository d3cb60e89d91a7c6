"""Dense parts of a model through a backend of `torch.compile`: one program for each shape, checked before it is used.

A part is a function of weights and tensors in plain torch. Its caller pads what it feeds to few lengths, so that
nothing is compiled twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from bark_accel.report import CompiledPart

from .weights import map_tensors, tensors_of

# Backends that a package of its own registers: what to import, what to install.
_PACKAGES = {
    "tensorrt": ("torch_tensorrt", "torch-tensorrt"),
    "torch_tensorrt": ("torch_tensorrt", "torch-tensorrt"),
    "openvino": ("openvino.torch", "openvino"),
    "openxla": ("torch_xla", "torch_xla"),
    "tvm": ("tvm", "apache-tvm"),
}
# Left alone, OpenVINO computes float32 in bfloat16 where the CPU can, and TensorRT in TF32; and TensorRT would run what
# it cannot build in torch.
_OPTIONS: dict[str, dict[str, Any]] = {
    "openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}},
    "tensorrt": {"disable_tf32": True, "pass_through_build_failures": True},
}
_OPTIONS["torch_tensorrt"] = _OPTIONS["tensorrt"]
# Where OpenVINO says, at the level of debugging, that it leaves a graph to inductor or to torch.
_OPENVINO_LOGGER = "openvino.frontend.pytorch.torchdynamo"
_FLOAT32_ERROR = 2e-5
# Some backends number their programs in a global variable, or have one place for results: one call at a time.
_ONE_AT_A_TIME = threading.RLock()
# The process that compiled first: threads of compilers and of their programs do not survive a fork.
_compiled_in: int | None = None


def check_compile_backend(backend: str, device: torch.device) -> None:
    """Raise unless `torch.compile` has this backend and what it needs on `device` is installed.

    Raises
    ------
    TypeError
        Not a string.
    ValueError
        A name that nobody has registered.
    ImportError
        The backend's package, or the compiler that it calls, is missing.
    """
    if not isinstance(backend, str):
        raise TypeError(f"compile_backend: expected None or the name of a backend, got {backend!r}")
    if backend in _PACKAGES:
        module, package = _PACKAGES[backend]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"compile_backend={backend!r}: expected the module {module} (pip install {package}, in a version for "
                f"torch {torch.__version__}), got {type(error).__name__}: {error}"
            ) from error
    known = sorted({*torch._dynamo.list_backends(exclude_tags=()), *_PACKAGES})
    if backend not in torch._dynamo.list_backends(exclude_tags=()):
        raise ValueError(
            f"compile_backend: expected one of {', '.join(map(repr, known))}, or a name given to "
            f"torch._dynamo.register_backend, got {backend!r}"
        )
    if backend == "inductor":
        _check_inductor(device)


def _check_inductor(device: torch.device) -> None:
    from torch._inductor import config

    # Read from CXX when torch was imported, and started as it stands: "ccache g++" would be the name of a file.
    compiler: Any = config.cpp.cxx[-1]
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ImportError(
            "compile_backend='inductor': expected a C++ compiler, g++ or in CXX the name or path of one program, "
            f"without arguments, got {compiler!r}, which is none"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ImportError("compile_backend='inductor': expected triton for a GPU (pip install triton), got none")


class Compiler:
    """Programs of one model by one backend; a copied or unpickled one starts without any.

    Parameters
    ----------
    backend : str
        A name that `check_compile_backend` takes.
    """

    def __init__(self, backend: str):
        self.backend = backend
        self._programs: dict[tuple[Any, ...], _Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def parts(self) -> tuple[CompiledPart, ...]:
        """Name what has been compiled and checked so far."""
        with _ONE_AT_A_TIME:
            return tuple(part for program in self._programs.values() for part in program.parts)

    def run(self, name: str, function: Callable[..., Any], weights: Any, *inputs: Any) -> Any:
        """Return `function(weights, *inputs)`, which changes none of them.

        Parameters
        ----------
        name : str
            What it is, shape included, for reports.
        function : function
            Plain torch; gives a tensor or a tuple of tensors.
        weights : frozen dataclass of tensors
            Read at every call: they may be others than before.
        *inputs : tensors, or frozen dataclasses of numbers

        Raises
        ------
        RuntimeError
            The backend failed, left the work to torch, or computed something else than torch does; or this process
            was forked from one that had compiled.
        """
        _check_not_forked(self.backend)
        # Programs are made for tensors that autograd knows, whatever mode the caller is in.
        with _ONE_AT_A_TIME, torch.inference_mode(False), torch.no_grad():
            arguments = (weights, *(_ready(each) for each in inputs))
            facts = tuple(
                (each.shape, each.dtype, each.device) if isinstance(each, Tensor) else each for each in arguments[1:]
            )
            key = (name, function, frozenset(tensor.dtype for tensor in tensors_of(weights)), *facts)
            if key not in self._programs:
                check_compile_backend(self.backend, next(tensors_of(weights)).device)
                self._programs[key] = _Program(name, function, self.backend)
            return self._programs[key](*arguments)


class _Program:
    """One function for one shape, compared with plain torch in its calls 1, 2, 4, 8, ...

    torch.compile compiles again where a setting of the process has changed (the number of threads, say): that is
    checked and reported again.
    """

    def __init__(self, name: str, function: Any, backend: str):
        self._name, self._function, self._backend = name, function, backend
        self.parts: list[CompiledPart] = []
        self._is_compiled, self._calls = False, 0
        # torch keeps programs by code object and gives up after some of one: each shape has its own.
        code = function.__code__.replace(co_name=f"{function.__name__}_{id(self)}")
        own = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
        self._compiled = torch.compile(own, backend=self._compile, dynamic=False, fullgraph=True)

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self._is_compiled, self._calls = True, 0
        given = {"options": _OPTIONS[self._backend]} if self._backend in _OPTIONS else {}
        chosen: Any = torch._dynamo.lookup_backend(self._backend)
        # OpenVINO traces once more, and what it is given would have sizes without a source in torch's own trace.
        with torch._guards.tracing(None) if self._backend == "openvino" else nullcontext():
            return chosen(graph, inputs, **given)

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            with _openvino_watched() if self._backend == "openvino" else nullcontext():
                # Copies: what a backend returns may be its own memory, which its next call writes to.
                result = map_tensors(self._compiled(*arguments), torch.clone)
            if not self._is_compiled:
                raise RuntimeError("torch.compile is switched off (TORCH_COMPILE_DISABLE, a stance, a dispatch mode)")
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            raise RuntimeError(f"{self._where}: expected a program, got {reason}") from error
        self._calls += 1
        if self._calls & (self._calls - 1) == 0:
            found, limit = self._check(result, arguments)
            if self._calls == 1:
                self.parts.append(CompiledPart(self._name, self._backend, time.perf_counter() - start, found, limit))
            elif found > self.parts[-1].error:
                self.parts[-1] = replace(self.parts[-1], error=found, limit=limit)
        return result

    @property
    def _where(self) -> str:
        return f"compile_backend={self._backend!r}, {self._name}"

    def _check(self, result: Any, arguments: tuple[Any, ...]) -> tuple[float, float]:
        """Compare a result with torch's on the same inputs; return its error and the limit.

        Float32 has to agree to `_FLOAT32_ERROR` of the largest number; smaller weights must not be further from
        float32 than twice what torch is with them.
        """
        eager, exact = self._function(*arguments), self._function(*map_tensors(arguments, _float32))
        error, limit = _difference(result, exact), max(_FLOAT32_ERROR, 2 * _difference(eager, exact))
        if not error <= limit:
            call = self._calls
            self._calls -= 1  # so that the next one is compared as well
            raise RuntimeError(
                f"{self._where}: expected an error of at most {limit:.1e} of the largest number, as the precision of "
                f"the weights allows, got {error:.1e} in call {call}; leave compile_backend out, or take another"
            )
        return error, limit


def _check_not_forked(backend: str) -> None:
    global _compiled_in
    _compiled_in = os.getpid() if _compiled_in is None else _compiled_in
    if _compiled_in != os.getpid():
        raise RuntimeError(
            f"compile_backend={backend!r}: expected the process that compiled first, got a child forked from it, where "
            "compilers can wait for ever; start processes with multiprocessing's 'spawn', or leave compile_backend out"
        )


def _ready(value: Any) -> Any:
    """A tensor in memory order, of no inference mode."""
    if not isinstance(value, Tensor):
        return value
    return value.clone(memory_format=torch.contiguous_format) if value.is_inference() else value.contiguous()


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _difference(result: Any, expected: Any) -> float:
    """The largest difference in parts of the largest number; inf for other shapes, NaN where there are some."""
    if isinstance(expected, tuple):
        fits = isinstance(result, (tuple, list)) and len(result) == len(expected)
        worst = [_difference(*pair) for pair in zip(result, expected, strict=True)] if fits else [float("inf")]
        return next((each for each in worst if each != each), max(worst))
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        return float("inf")
    expected = expected.double() if expected.device.type == "cpu" else expected.float()
    return float((result.to(expected.dtype) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@contextmanager
def _openvino_watched() -> Iterator[None]:
    """Raise `RuntimeError` after work that OpenVINO has left to inductor or to torch: it only logs that."""
    log, gave_up = logging.getLogger(_OPENVINO_LOGGER), _Messages()
    before = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(gave_up)
    try:
        yield
    finally:
        log.removeHandler(gave_up)
        log.setLevel(before[0])
        log.propagate = before[1]
    if gave_up.messages:
        raise RuntimeError(f"OpenVINO left it to torch: {gave_up.messages[0]}")


class _Messages(logging.Handler):
    """Keeps the messages that tell of a failure."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "execution failed" in message or "Failed in OpenVINO" in message:
            self.messages.append(message)
