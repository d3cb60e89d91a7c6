"""Measures on a GPU: the decode step, time to first sound, whole generations beside stock.

Writes DIRECTORY/cuda_DEVICE.json after every row, so that what was measured stays when the time is over, and two plots
at the end. Run by `make gpu`, after the parity tests. Weights are random and of bark's real shapes; nothing is
downloaded. The protocol of the generations is that of Hugging Face's post "Optimizing a Text-To-Speech model using
Transformers": 256 semantic tokens, batches of 1 and 8, after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_plots import save_plots

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, graphs, restore_bark, stream
from bark_accel._library import cuda_archs, load
from bark_accel.backend import get_ops
from bark_accel.cli.measure import Run, commit, machine_facts, run_once, token_differences, versions
from bark_accel.gpt import CausalModel
from bark_accel.kv_cache import KVCachePool
from bark_accel.patches import checkpoints, extract
from bark_accel.precision import convert
from bark_accel.sampling import SamplingConfig, TokenRange
from bark_accel.streamer import POLICIES

TEXT = "Hello, my dog is cute"
OURS: dict[str, dict[str, Any]] = {
    "bark_accel, graphs": {},
    "bark_accel, eager": {"cuda_graphs": False},
    "bark_accel, graphs, torch ops": {"backend": "torch"},
    "bark_accel, graphs, int8 weights": {"weights": "int8"},
}


@dataclass
class Plan:
    """What to measure, and where."""

    device: torch.device
    shapes: tuple[str, ...] = ("bark-small", "bark")
    batch_sizes: tuple[int, ...] = (1, 8)
    semantic_tokens: int = 256
    context_tokens: int = 600
    repeats: int = 4
    probe_bytes: int = 2**32
    seconds: float = 330
    build: Callable[[str], Any] = checkpoints.random_bark
    started_s: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        return self.started_s + self.seconds - time.monotonic()

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


class Results:
    """A JSON file that grows row by row. A case that fails leaves a row that says how, one without time a note."""

    def __init__(self, path: Path, plan: Plan):
        self._path, self._plan = path, plan
        facts = {"device": str(plan.device), "driver": driver(), "cuda": torch.version.cuda, "archs": cuda_archs()}
        self.content: dict[str, Any] = {
            "machine": {**machine_facts(), **facts},
            "versions": versions(),
            "commit": commit(),
            "semantic_tokens": plan.semantic_tokens,
            "context_tokens": plan.context_tokens,
            "decode_step": [],
            "first_sound": [],
            "generate": [],
            "left_out_for_lack_of_time": [],
        }
        self.save()

    def save(self) -> None:
        self._path.write_text(json.dumps(self.content, indent=2) + "\n")

    def add(self, table: str, case: dict[str, Any], measure: Callable[[], dict[str, Any]], needs_s: float) -> None:
        """Measure a case that takes about `needs_s` seconds."""
        label = ", ".join(map(str, case.values()))
        if self._plan.left_s < needs_s:
            self.content["left_out_for_lack_of_time"].append(f"{table}: {label}")
        else:
            try:
                with time_limit(max(self._plan.left_s, 1)):
                    row = measure()
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {error}"[:500]}
            self.content[table].append({**case, **row})
            print(f"{table}: {label}: {summary(row)}", flush=True)
        self.save()


def summary(row: dict[str, Any]) -> str:
    numbers = {k: v for k, v in row.items() if isinstance(v, (float, str))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` inside: what compiles may take any time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def timed_ms(plan: Plan, call: Callable[[], Any], rounds: int, inner: int = 1) -> float:
    """Median milliseconds of one call: by CUDA events, or the clock on a CPU."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        if plan.on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(inner):
                call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / inner)
        else:
            began = time.perf_counter()
            for _ in range(inner):
                call()
            times.append((time.perf_counter() - began) / inner * 1e3)
    return statistics.median(times)


def read_bandwidth(plan: Plan) -> float:
    """Bytes a second of a large reduction, the ceiling that steps are compared with."""
    data = torch.ones(plan.probe_bytes // 4, dtype=torch.float32, device=plan.device)
    return data.nbytes / timed_ms(plan, data.sum, 10) * 1e3


def measure_steps(plan: Plan, results: Results, shape: str, module: Any) -> None:
    """One step of the semantic model: scores and the drawn token, ids and position moved on by the device."""
    exact = extract.transformer_weights("semantic", module)
    for precision in ("same", "float16", "bfloat16", "int8"):
        weights = convert(exact, precision)
        for batch_size in plan.batch_sizes:
            case = {"shape": shape, "weights": precision, "batch_size": batch_size}
            results.add("decode_step", case, lambda w=weights, b=batch_size: step(plan, results, module, w, b), 5)


def step(plan: Plan, results: Results, module: Any, weights: Any, batch_size: int) -> dict[str, Any]:
    spec, row = extract.transformer_spec(module), {}
    allowed = TokenRange(0, min(10_000, spec.output_vocab_size))
    config = SamplingConfig(True, 1, temperature=0.7, top_k=50)
    with KVCachePool().borrow(spec, batch_size, weights.cache_dtype, plan.device) as cache:
        cache.keys.normal_()
        cache.values.normal_()
        for name, backend in (("native", "auto"), ("torch", "torch")):
            model = CausalModel(weights, spec, get_ops(backend, plan.device))
            sampler = model.sampler(config)
            generator = torch.Generator(plan.device)
            ids = torch.zeros(batch_size, 1, dtype=torch.int64, device=plan.device)

            def once(model: Any = model, sampler: Any = sampler, ids: Tensor = ids, g: Any = generator) -> None:
                cache.length.fill_(plan.context_tokens)
                logits = model.step_logits(ids, cache, allowed.head_rows)[:, -1]
                ids.copy_(sampler.draw(logits, allowed, g)[:, None])

            row[f"{name}_eager_ms"] = timed_ms(plan, once, plan.repeats)
            recorder = graphs.make_recorder(plan.device)
            if recorder is None:
                continue
            row[f"{name}_graph_ms"] = timed_ms(plan, recorder.record(once, generator), plan.repeats, 10)
            if name == "native" and plan.on_gpu:
                load().set_dependent_launch(True)
                try:
                    replay = recorder.record(once, generator)
                    row["native_graph_dependent_launch_ms"] = timed_ms(plan, replay, plan.repeats, 10)
                finally:
                    load().set_dependent_launch(False)
        valid = cache.keys[:, :, :, : plan.context_tokens]
        tables = (weights.token_tables[0], weights.positions)
        read = sum(t.nbytes for t in model.matrices if all(t is not table for table in tables))
    best = min(ms for ms in row.values())
    row["bytes_read"] = read + 2 * valid.numel() * valid.element_size()
    row["fraction_of_read_bandwidth"] = row["bytes_read"] / best * 1e3 / results.content["read_bandwidth_bytes_per_s"]
    return row


def measure_first_sound(plan: Plan, results: Results, shape: str, model: Any) -> None:
    """Seconds from the call to the first chunk, by policy, 5 seconds of speech at most."""
    fast = accelerate_bark(model, strict=True)
    tokens = min(plan.semantic_tokens, 250)
    for policy in POLICIES:
        case = {"shape": shape, "dtype": str(model.dtype).removeprefix("torch."), "policy": policy}
        results.add("first_sound", case, lambda p=policy: first_sound(plan, fast, p, tokens), 10)
    restore_bark(fast)


def first_sound(plan: Plan, model: Any, policy: str, tokens: int) -> dict[str, Any]:
    times = []
    for _ in range(plan.repeats + 1):  # the first one warms up
        torch.manual_seed(0)
        began = time.perf_counter()
        chunks = stream(
            model,
            streamer=AudioStreamer(model, policy=policy),
            **batch_of(plan, model, 1),
            semantic_max_new_tokens=tokens,
        )
        next(chunks)
        first_s = time.perf_counter() - began
        chunks.close()
        times.append(first_s)
    return {"first_sound_s": statistics.median(times[1:]), "all_s": times[1:]}


def batch_of(plan: Plan, model: Any, rows: int) -> dict[str, Tensor]:
    inputs = checkpoints.fake_inputs(model, TEXT)
    return {k: v.repeat_interleave(rows, 0).to(plan.device) for k, v in inputs.items()}


def measure_generations(plan: Plan, results: Results, shape: str, model: Any, batch_size: int) -> None:
    """Stock and ours in the model's dtype; float32 rows say which tokens differ from stock's."""
    dtype = str(model.dtype).removeprefix("torch.")
    case = {"shape": shape, "dtype": dtype, "batch_size": batch_size}
    stock: list[Run] = []
    needs_s = 15.0 * len(plan.shapes) if plan.on_gpu else 1.0
    results.add("generate", {**case, "name": "stock"}, lambda: generate(plan, model, batch_size, 1, stock), needs_s)
    for name, options in OURS.items():

        def measure(options: dict[str, Any] = options) -> dict[str, Any]:
            fast, runs = accelerate_bark(model, strict=True, **options), list[Run]()
            try:
                repeats = plan.repeats if options.get("cuda_graphs", True) else 1
                row = generate(plan, fast, batch_size, repeats, runs)
                report = acceleration_report(fast)
                ops = {s.stage: s.ops for s in report.stages}
                row |= {"ops": ops, "captured_graphs": report.captured_graphs}
            finally:
                restore_bark(fast)
            if stock and dtype == "float32" and "weights" not in options:
                row["token_differences"] = token_differences(stock[0], runs[0])
            return row

        results.add("generate", {**case, "name": name}, measure, needs_s / 3)


def generate(plan: Plan, model: Any, batch_size: int, repeats: int, runs: list[Run], **options: Any) -> dict[str, Any]:
    """Latency, peak memory, seconds of audio; appends the first run after a short warm-up to `runs`."""
    inputs, seconds = batch_of(plan, model, batch_size), []
    run_once(model, inputs, 0, semantic_max_new_tokens=max(2, plan.semantic_tokens // 8), **options)
    if plan.on_gpu:
        torch.cuda.reset_peak_memory_stats(plan.device)
    for _ in range(repeats):
        plan.synchronize()
        began = time.perf_counter()
        run = run_once(model, inputs, 0, semantic_max_new_tokens=plan.semantic_tokens, **options)
        plan.synchronize()
        seconds.append(time.perf_counter() - began)
        runs.append(run)
    median = statistics.median(seconds)
    audio_s = run.audio_s * batch_size
    return {
        "median_s": median,
        "all_s": seconds,
        "audio_s": audio_s,
        "real_time_factor": median / run.audio_s,
        "audio_s_per_s": audio_s / median,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(plan.device) if plan.on_gpu else None,
    }


def measure_static_stock(plan: Plan, results: Results, shape: str) -> None:
    """Stock with its static cache, which Transformers compiles on a GPU: last, for nobody knows how long that takes."""
    case = {"shape": shape, "dtype": "float16", "batch_size": 1, "name": "stock, static"}

    def measure() -> dict[str, Any]:
        model = plan.build(shape).to(plan.device, torch.float16)
        return generate(plan, model, 1, 1, [], cache_implementation="static")

    results.add("generate", case, measure, 60 if plan.on_gpu else 1)


@torch.no_grad()
def measure_all(plan: Plan, path: Path) -> dict[str, Any]:
    """Everything, the most telling first; returns what was written to `path`."""
    results = Results(path, plan)
    results.content["read_bandwidth_bytes_per_s"] = read_bandwidth(plan)
    for shape in plan.shapes:
        model = plan.build(shape).to(plan.device)  # one at a time: the peak of memory is a figure too
        measure_steps(plan, results, shape, model.semantic)
        for dtype in (torch.float32, torch.float16):
            model.to(dtype)
            for batch_size in plan.batch_sizes:
                measure_generations(plan, results, shape, model, batch_size)
        measure_first_sound(plan, results, shape, model)
        del model
    for shape in plan.shapes:
        measure_static_stock(plan, results, shape)
    save_plots(results.content, path)
    return results.content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="time for all measurements")
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or cuda_archs() is None:
        sys.exit("benchmarks/gpu.py: expected a GPU and a library built with CUDA (`make gpu` builds it)")
    device = torch.device("cuda", torch.cuda.current_device())
    path = arguments.directory / f"cuda_{torch.cuda.get_device_name(device).lower().replace(' ', '_')}.json"
    measure_all(Plan(device, seconds=arguments.seconds), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
