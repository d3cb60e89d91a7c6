"""Plan of a run: what it measures, in which order, how long at most. Imports no torch, nor does the timekeeper."""

from __future__ import annotations

from dataclasses import dataclass

# The most telling first: what there is no time for comes last.
ROUNDS = (("generate", "static", "decode_step"), ("first_sound", "kernels"), ("serving",), ("docs",), ("variants",))
TABLES = tuple(table for tables in ROUNDS for table in tables)
# Without as much, a process for a table is not begun.
LEAST_JOB_S = 10.0


@dataclass(frozen=True)
class Plan:
    """Sizes of what is measured; `device` as torch spells it."""

    device: str = "cuda:0"
    shapes: tuple[str, ...] = ("bark-small", "bark")
    batch_sizes: tuple[int, ...] = (1, 8)
    semantic_tokens: int = 256
    smoke_semantic_tokens: int = 32
    profiled_semantic_tokens: int = 16
    docs_batch_sizes: tuple[int, ...] = (1, 4, 8, 16)
    docs_semantic_tokens: int = 400
    engine_rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    engine_semantic_tokens: int = 128
    context_tokens: int = 600
    repeats: int = 4
    stock_repeats: int = 1
    probe_bytes: int = 2**32

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


# A dry run: every line of the measurements with the small Bark that comes with the package, on the CPU.
DRY = Plan("cpu", ("small_bark",), (1, 2), 9, 6, 4, (1, 3), 12, (1, 2), 8, 20, 1, 1, 2**20)


@dataclass(frozen=True)
class Job:
    """A table of one shape, measured in a process of its own by `measure` ("module:function")."""

    table: str
    measure: str
    shape: str
    dtype: str = "float16"
    limit_s: float = 60

    @property
    def name(self) -> str:
        return f"{self.table}, {self.shape}, {self.dtype}"


# dtypes and the limit of a process, twice as long for a large model.
_MEASURES = {
    "generate": ("benchmarks.gpu.generate:measure_generations", ("float32", "float16"), 75),
    "static": ("benchmarks.gpu.variants:measure_static", ("float16",), 110),  # torch compiles steps of two stages
    "decode_step": ("benchmarks.gpu.steps:measure_steps", ("float32",), 45),
    "first_sound": ("benchmarks.gpu.generate:measure_first_sound", ("float16",), 30),
    "kernels": ("benchmarks.gpu.profile:measure_kernels", ("float32",), 45),
    "serving": ("benchmarks.gpu.serving:measure_serving", ("float16",), 60),
    "docs": ("benchmarks.gpu.variants:measure_docs", ("float16",), 120),
    "variants": ("benchmarks.gpu.variants:measure_variants", ("float16",), 60),
}


def machine_job(plan: Plan) -> Job:
    """Return the job that is measured once: which machine it is, and how fast its memory is read."""
    return Job("machine", "benchmarks.gpu.rows:measure_machine", plan.shapes[0], limit_s=90)


def smoke_job(plan: Plan) -> Job:
    return Job("smoke", "benchmarks.gpu.generate:measure_smoke", plan.shapes[0], "float32", 60)


def table_jobs(plan: Plan, tables: tuple[str, ...] = TABLES) -> list[Job]:
    """All processes of the measurements, the most telling first."""
    jobs = []
    for table_round in ROUNDS:
        for shape in plan.shapes:
            for table in (table for table in table_round if table in tables):
                measure, dtypes, limit_s = _MEASURES[table]
                # A run of stock's is half a minute with a large model and eight rows.
                limit_s = limit_s * (2 if shape == "bark" else 1) + 30 * (plan.stock_repeats - 1)
                jobs += [Job(table, measure, shape, dtype, limit_s) for dtype in dtypes]
    return jobs
