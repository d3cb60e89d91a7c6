"""Measures on a GPU: the decode step, time to first sound, whole generations beside stock.

Writes DIRECTORY/cuda_DEVICE.json after every row, so that what was measured stays when the time is over, and two plots
at the end. Run by `make gpu`, after the parity tests. Weights are random and of bark's real shapes; nothing is
downloaded. The protocol of the generations is that of Hugging Face's post "Optimizing a Text-To-Speech model using
Transformers": 256 semantic tokens, batches of 1 and 8, after a warm-up; the table `docs` is that of Transformers'
documentation of Bark: 400 semantic tokens, batches up to 16.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_generate import measure_docs, measure_first_sound, measure_generations, measure_variants
from gpu_plots import save_plots
from gpu_results import TABLES, Plan, Results
from gpu_steps import measure_steps, read_bandwidth

from bark_accel.ops._library import cuda_archs


@torch.no_grad()
def measure_all(plan: Plan, path: Path, parity: Path | None = None) -> dict[str, Any]:
    """Everything, the most telling first; returns what was written to `path`."""
    results = Results(path, plan, parity)
    with results.noting("read_bandwidth"):
        results.content["read_bandwidth_bytes_per_s"] = read_bandwidth(plan)
    for shape in plan.shapes:
        with results.noting(shape):
            measure_shape(plan, results, shape)
    for shape in plan.shapes if "docs" in plan.tables else ():
        with results.noting(f"docs: {shape}"):
            measure_docs(plan, results, shape, plan.build(shape).to(plan.device, torch.float16))
    for shape in plan.shapes if "variants" in plan.tables else ():
        measure_variants(plan, results, shape)
    if find_spec("matplotlib") is None:
        results.leave_out("plots", {}, "matplotlib is not installed")
    else:
        with results.noting("plots"):
            save_plots(results.content, path)
    return results.content


def measure_shape(plan: Plan, results: Results, shape: str) -> None:
    """One model at a time: the peak of memory is a figure too."""
    model = plan.build(shape).to(plan.device)
    if "decode_step" in plan.tables:
        measure_steps(plan, results, shape, model.semantic)
    for dtype in (torch.float32, torch.float16):
        model.to(dtype)
        for batch_size in plan.batch_sizes if "generate" in plan.tables else ():
            measure_generations(plan, results, shape, model, batch_size)
    if "first_sound" in plan.tables:
        measure_first_sound(plan, results, shape, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="time for all measurements")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="in a file of their own")
    parser.add_argument("--parity", type=Path, help="--junitxml of the parity tests, to be told in the results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or cuda_archs() is None:
        sys.exit("benchmarks/gpu.py: expected a GPU and a library built with CUDA (`make gpu` builds it)")
    device = torch.device("cuda", torch.cuda.current_device())
    name = f"cuda_{torch.cuda.get_device_name(device).lower().replace(' ', '_')}"
    if set(arguments.tables) != set(TABLES):
        name = "_".join([name, *arguments.tables])
    plan = Plan(device, seconds=arguments.seconds, tables=tuple(arguments.tables))
    content = measure_all(plan, arguments.directory / f"{name}.json", arguments.parity)
    print(f"wrote {arguments.directory / name}.json")
    if content["failed"]:
        sys.exit(f"benchmarks/gpu.py: {len(content['failed'])} parts failed, the last: {content['failed'][-1]}")


if __name__ == "__main__":
    main()
