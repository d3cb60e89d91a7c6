"""`info`: facts of the build and of the machine."""

from __future__ import annotations

from typing import Any

from bark_accel.bench.measure import machine_facts, versions
from bark_accel.ops._library import ALL_THREADS

from .console import EXIT_FAILED, fail, out


def info() -> None:
    _section("versions", {name.replace("_", " "): value for name, value in versions().items()})
    _section("machine", machine_facts())
    try:
        from bark_accel.ops._library import load

        library = load()
    except (ImportError, ValueError) as error:
        _section("compiled ops", {"state": "not usable"})
        fail(f"{error}. Until then, accelerate_bark(model, backend='torch') works without them.", EXIT_FAILED)
    else:
        _section("compiled ops", _build_facts(library))


def _build_facts(library: Any) -> dict[str, object]:
    build, fixed = dict(library.build_info()), library.fixed_step_threads
    return {
        "built for torch": build.pop("torch"),
        **build,
        "instruction sets": ", ".join(library.available_isas()),
        "in use": library.isa(),
        "threads a step": {ALL_THREADS: "torch's", 0: "as many as take the least time"}.get(fixed, fixed),
    }


def _section(title: str, facts: dict[str, object]) -> None:
    out.print(f"[bold]{title}[/]")
    for name, value in facts.items():
        out.print(f"  {name:<18}{value}", markup=False, soft_wrap=True)
