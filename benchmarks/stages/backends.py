"""Dense parts by backends of `torch.compile`, in turns with Transformers' own code and our kernels.

Random weights of bark-small's shapes, one row. `python -m benchmarks backends --backends inductor [--json PATH]`; rows
are added to a file that is there, so that a busy machine can be measured in pieces (`--parts "fine window"`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel

from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers, random_bark
from bark_accel.hf.codec import codec_weights
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.stages.codec import CodecStage
from bark_accel.transformer.bidirectional import bidirectional_forward, compiled_bidirectional_forward
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.dynamo import Compiler, check_compile_backend
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.layers import linear, output_rows
from bark_accel.transformer.precision import convert

CPU = torch.device("cpu")
STOCK, OURS = "stock", "ours"
# A way to compute a part: with a compiler, or with our own kernels.
Make = Callable[[Compiler | None], Callable[[], Tensor]]


def fine_window(model: BarkModel, weights: str) -> tuple[Callable[[], Tensor], Make]:
    """The last pass over a window of 1024 frames: scores of all frames."""
    fine, ops = model.fine_acoustics, get_ops("auto", CPU)
    own, spec = convert(transformer_weights("fine", fine), weights), transformer_spec(fine)
    codes = _ids((1, 1024, 8), 1024)

    def make(compiler: Compiler | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            hidden = ops.codebook_embedding_sum(codes, own.token_tables, own.positions)
            if compiler is None:
                hidden = bidirectional_forward(own, spec, hidden, ops)
            else:
                hidden = compiled_bidirectional_forward(own, spec, hidden, compiler)
            return linear(hidden, output_rows(own.heads[-1], 0, 1024), ops)

        return run

    return lambda: fine(7, codes).logits[..., :1024], make


def prompt(tokens: int) -> Callable[[BarkModel, str], tuple[Callable[[], Tensor], Make]]:
    """A prompt of the coarse stage: scores after its last token."""

    def part(model: BarkModel, weights: str) -> tuple[Callable[[], Tensor], Make]:
        coarse, ops = model.coarse_acoustics, get_ops("auto", CPU)
        own, spec = convert(transformer_weights("coarse", coarse), weights), transformer_spec(coarse)
        ids = _ids((1, tokens), 10_000)
        cache = KVCache.empty(spec, 1, own.cache_dtype, CPU)

        def make(compiler: Compiler | None) -> Callable[[], Tensor]:
            causal = CausalModel(own, spec, ops, compiler)

            def run() -> Tensor:
                cache.truncate(0)
                return causal.next_logits(ids, cache, slice(0, spec.output_vocab_size))

            return run

        return lambda: coarse(ids, use_cache=True).logits[:, -1], make

    return part


def sound(model: BarkModel, weights: str) -> tuple[Callable[[], Tensor], Make]:
    """The codec's waveform of 5 seconds; its weights are float32 always."""
    own, codes = codec_weights(model.codec_model), _ids((1, 8, 375), 1024)

    def make(compiler: Compiler | None) -> Callable[[], Tensor]:
        stage = CodecStage(own, compiler)
        return lambda: stage.run(codes)

    return lambda: type(model).codec_decode(model, codes), make


PARTS = {
    "fine window of 1024 frames": fine_window,
    "prompt of 257 tokens": prompt(257),
    "prompt of 887 tokens": prompt(887),
    "sound of 375 frames": sound,
}


def _ids(shape: tuple[int, ...], end: int) -> Tensor:
    return torch.randint(0, end, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int64)


@torch.no_grad()
def measure(name: str, weights: str, backends: list[str], rounds: int) -> list[dict[str, Any]]:
    """One row for each way: median seconds, seconds of the first call, and how far it is from stock's result."""
    stock, make = PARTS[name](random_bark("bark-small"), weights)
    compilers = {backend: Compiler(backend) for backend in backends}
    ways = {STOCK: stock, OURS: make(None), **{backend: make(compiler) for backend, compiler in compilers.items()}}
    first, results = {}, {}
    for way, call in ways.items():
        first[way], results[way] = _timed(call)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            seconds[way].append(_timed(call)[0])
    expected = results[STOCK].double()
    rows = []
    for way in ways:
        parts = compilers[way].parts if way in compilers else ()
        assert len(parts) == (way in compilers), f"expected one program of a part, got {parts}"
        rows.append(
            {
                "part": name,
                "weights": weights,
                "way": way,
                "median_s": statistics.median(seconds[way]),
                "all_s": seconds[way],
                "first_call_s": first[way],
                "error": float((results[way].double() - expected).abs().max() / expected.abs().max()),
                "checked_error": parts[0].error if parts else None,
                "checked_limit": parts[0].limit if parts else None,
            }
        )
    return rows


def _timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["inductor"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help="beginnings of their names")
    parser.add_argument("--weights", default="same", choices=("same", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    quiet_transformers()
    for backend in given.backends:
        check_compile_backend(backend, CPU)
    torch._inductor.config.force_disable_caches = True  # a first call compiles
    names = [name for name in PARTS if name.startswith(tuple(given.parts))]
    if not names:
        parser.error(f"--parts: expected beginnings of {', '.join(PARTS)}, got {' '.join(given.parts)}")
    rows = []
    for name in names:
        rows += measure(name, given.weights, given.backends, given.rounds)
        for row in rows[-2 - len(given.backends) :]:
            print(f"{name}, {row['way']}: {row['median_s']:.3f} s, error {row['error']:.1e}", flush=True)
    if given.json:
        kept = json.loads(given.json.read_text())["rows"] if given.json.exists() else []
        packages = {name: metadata.version(name) for name in given.backends if _is_installed(name)}
        content = {"machine": machine_facts(), "versions": versions() | packages, "commit": commit()}
        given.json.write_text(json.dumps({**content, "rows": kept + rows}, indent=2) + "\n")


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
