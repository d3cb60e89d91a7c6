"""Measures on a GPU: the decode step, and whole generations beside stock. Writes benchmarks/results/cuda_*.json.

Run by `make gpu`, after the parity tests. Weights are random and of bark's real shapes; nothing is downloaded. What
does not fit into the time is left out and named in the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bark_accel import accelerate_bark, cuda_ops
from bark_accel._library import cuda_archs, load
from bark_accel.cli.measure import commit, machine_facts, versions
from bark_accel.gpt import flat_weights
from bark_accel.kv_cache import KVCachePool
from bark_accel.patches import checkpoints, extract
from bark_accel.precision import convert

RESULTS = Path(__file__).parent / "results"
SHAPES = ("bark-small", "bark")
CONTEXT = 600
SEMANTIC_TOKENS = 256


class Deadline:
    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether about `seconds` are left; notes what is left out otherwise."""
        if time.monotonic() + seconds < self._end:
            return True
        self.left_out.append(what)
        return False


def timed(call: Callable[[], Any], rounds: int, inner: int = 1) -> dict[str, float]:
    """Milliseconds of one call, by CUDA events."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}


def read_bandwidth() -> float:
    """Bytes a second of a large reduction, the ceiling that steps are compared with."""
    data = torch.ones(2**30, dtype=torch.float32, device="cuda")
    return data.nbytes / timed(lambda: data.sum(), 10)["median_ms"] * 1e3


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def decode_steps(shape: str, ceiling: float) -> list[dict[str, Any]]:
    """One step of the semantic model at a context of 600: eager, as a graph, and with dependent launch."""
    model = checkpoints.random_bark(shape).semantic.cuda()
    spec, exact = extract.transformer_spec(model), extract.transformer_weights("semantic", model)
    norms = [n for layer in exact.layers for n in (layer.norm_1, layer.norm_2)]
    eps = [n.eps for n in (*norms, exact.norm_final)]
    rows = []
    for precision in ("same", "float16", "bfloat16", "int8"):
        weights = convert(exact, precision)
        head = weights.heads[0]
        for batch_size in (1, 8):
            dtype = torch.float32 if precision == "same" else torch.float16
            with KVCachePool().borrow(spec, batch_size, dtype, torch.device("cuda")) as cache:
                cache.keys.normal_()
                cache.values.normal_()
                cache.truncate(CONTEXT)
                ids = torch.zeros(batch_size, 1, dtype=torch.int64, device="cuda")
                flat = flat_weights(weights)
                arguments = (ids, weights.token_tables[0], weights.positions, flat, eps, head.weight, head.scales)
                arguments += (spec.num_heads, cache.keys, cache.values, cache.length)  # type: ignore[assignment]

                def step(arguments: tuple = arguments) -> Tensor:
                    return cuda_ops.decode_step(*arguments)

                held = [t for t in (*flat, head.weight, head.scales) if t is not None]
                cached = 2 * cache.keys[:, :, :, :CONTEXT].numel() * cache.keys.element_size()
                read = sum(t.nbytes for t in held) + cached
                timings = {"eager": timed(step, 20), "graph": timed(graphed(step), 50, 10)}
                load().set_dependent_launch(True)
                timings["graph_dependent_launch"] = timed(graphed(step), 50, 10)
                load().set_dependent_launch(False)
                best = min(t["median_ms"] for t in timings.values())
                row = {"shape": shape, "weights": precision, "batch_size": batch_size, "bytes_read": read, **timings}
                rows.append({**row, "fraction_of_read_bandwidth": read / best * 1e3 / ceiling})
    return rows


def generations(shape: str, batch_size: int, repeats: int, deadline: Deadline) -> list[dict[str, Any]]:
    """Stock and accelerated models, 256 semantic tokens: latency, peak memory, seconds of audio."""
    rows = []
    for name, dtype, options in (
        ("stock float32", torch.float32, None),
        ("bark_accel float32", torch.float32, {}),
        ("bark_accel float32, torch ops", torch.float32, {"backend": "torch"}),
        ("stock float16", torch.float16, None),
        ("bark_accel float16", torch.float16, {}),
        ("bark_accel float32, int8 weights", torch.float32, {"weights": "int8"}),
    ):
        if not deadline.allows(f"{name}, {shape}, batch {batch_size}", 60):
            continue
        model = checkpoints.random_bark(shape).to(dtype).cuda()
        if options is not None:
            model = accelerate_bark(model, strict=True, **options)
        inputs = checkpoints.fake_inputs(model, "Hello, my dog is cute")
        inputs = {k: v.repeat_interleave(batch_size, 0).cuda() for k, v in inputs.items()}
        seconds, audio_s = [], 0.0
        torch.cuda.reset_peak_memory_stats()
        for repeat in range(-1, repeats):  # the first one warms up
            torch.manual_seed(max(repeat, 0))
            torch.cuda.synchronize()
            start = time.perf_counter()
            copied = {k: v.clone() for k, v in inputs.items()}
            audio = model.generate(**copied, semantic_max_new_tokens=SEMANTIC_TOKENS)
            torch.cuda.synchronize()
            if repeat >= 0:
                seconds.append(time.perf_counter() - start)
            audio_s = audio.shape[-1] / checkpoints.sample_rate(model)
        rows.append(
            {
                "name": name,
                "shape": shape,
                "batch_size": batch_size,
                "median_s": statistics.median(seconds),
                "all_s": seconds,
                "audio_s": audio_s,
                "real_time_factor": statistics.median(seconds) / audio_s if audio_s else None,
                "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            }
        )
        print(f"{name:34} {shape:10} batch {batch_size}: {rows[-1]['median_s']:.3f} s, {audio_s:.2f} s of audio")
        del model
        torch.cuda.empty_cache()
    return rows


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=420, help="time for all measurements")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or cuda_archs() is None:
        sys.exit("benchmarks/gpu.py: expected a GPU and a library built with CUDA (`make gpu` builds it)")
    deadline, steps, runs = Deadline(arguments.seconds), [], []
    with torch.no_grad():
        ceiling = read_bandwidth()
        for shape in SHAPES:
            steps += decode_steps(shape, ceiling)
        for batch_size in (1, 8):
            for shape in SHAPES:
                runs += generations(shape, batch_size, arguments.repeats, deadline)
    result = {
        "machine": {**machine_facts(), "driver": driver(), "cuda": torch.version.cuda, "archs": cuda_archs()},
        "versions": versions(),
        "commit": commit(),
        "read_bandwidth_bytes_per_s": ceiling,
        "decode_step": steps,
        "generate": runs,
        "left_out_for_lack_of_time": deadline.left_out,
    }
    name = torch.cuda.get_device_name().lower().replace(" ", "_")
    path = RESULTS / f"cuda_{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
