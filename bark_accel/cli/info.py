"""`info`: facts of the build and of the machine."""

from __future__ import annotations

from typing import Any

from bark_accel.bench.measure import machine_facts, versions

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
    build = dict(library.build_info())
    return {
        "built for torch": build.pop("torch"),
        **build,
        "instruction sets": ", ".join(library.available_isas()),
        "in use": library.isa(),
        "threads a step": library.fixed_step_threads or "as many as take the least time",
    }


def _section(title: str, facts: dict[str, object]) -> None:
    out.print(f"[bold]{title}[/]")
    for name, value in facts.items():
        out.print(f"  {name:<18}{value}", markup=False, soft_wrap=True)
