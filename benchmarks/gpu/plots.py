"""Pictures of a run on a GPU: latency of whole generations, and decode steps against the memory bandwidth.

python -m benchmarks gpu-plots FILE.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def save_plots(content: dict[str, Any], path: Path) -> list[Path]:
    """Write `<path>_generate.png` and `<path>_decode_step.png`; rows with an error are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for table, draw in (("generate", _draw_generations), ("decode_step", _draw_steps)):
        rows = [row for row in content[table] if "error" not in row]
        figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.22 * len(rows)), layout="constrained")
        draw(axes, rows, content)
        axes.spines[["top", "right"]].set_visible(False)
        written.append(path.with_name(f"{path.stem}_{table}.png"))
        figure.savefig(written[-1], dpi=150)
        pyplot.close(figure)
    return written


def _draw_generations(axes: Any, rows: list[dict[str, Any]], content: dict[str, Any]) -> None:
    labels = [f"{r['shape']}, {r['dtype']}, batch {r['batch_size']}: {r['name']}" for r in rows]
    colours = ["#9aa5b1" if r["name"].startswith("stock") else "#1f77b4" for r in rows]
    bars = axes.barh(range(len(rows)), [r["median_s"] for r in rows], color=colours)
    axes.bar_label(bars, [f"{r['median_s']:.2f} s" for r in rows], padding=3, fontsize=7)
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds for {content['plan']['semantic_tokens']} semantic tokens, on {_device(content)}")


def _draw_steps(axes: Any, rows: list[dict[str, Any]], content: dict[str, Any]) -> None:
    """Each step's time over the bytes it has to read; the line is what the memory gives."""
    styles = {"native_eager_ms": "o", "native_graph_ms": "s", "native_graph_launched_in_turn_ms": "^"}
    styles |= {"native_graph_persistent_ms": "d", "native_many_tokens_ms": "*"}
    styles |= {"torch_eager_ms": "x", "torch_graph_ms": "+"}
    for name, marker in styles.items():
        points = [(r["bytes_read"], r[name]) for r in rows if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=name.removesuffix("_ms").replace("_", " "))
    if rows and content["read_bandwidth_bytes_per_s"] is not None:
        ends = sorted(r["bytes_read"] for r in rows)[:: max(1, len(rows) - 1)]
        floor = [1e3 * count / content["read_bandwidth_bytes_per_s"] for count in ends]
        axes.plot(ends, floor, "-", color="#9aa5b1", label="read bandwidth")
    if rows:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    axes.set_xlabel("bytes a decode step reads")
    axes.set_ylabel(f"milliseconds, on {_device(content)}")


def _device(content: dict[str, Any]) -> str:
    return str(content["machine"].get("gpu") or content["machine"].get("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of `python -m benchmarks gpu`")
    for path in parser.parse_args().results:
        save_plots(json.loads(path.read_text()), path)
