"""A program for tests/patching/test_memory.py: generates again and again, and prints what the process holds.

Arguments: how many generations to measure (after a warm-up with the largest of them), and the options of
`accelerate_bark` as JSON. Prints a JSON object of lists with one entry a generation: peak resident KiB, tensors that
the garbage collector knows, bytes of the key/value cache that is kept.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path

import torch

from bark_accel import AudioStreamer, accelerate_bark, acceleration_report, stream
from support.bark_models import SMALL, build, preset, texts


def peak_kib() -> int:
    """The most that was resident since the last `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def generate(model, tokens: int, rows: int, full_preset: bool, streamed: bool) -> None:
    inputs = {
        **texts(SMALL, [6] * rows),
        "history_prompt": preset(SMALL, 40, 60) if full_preset else None,
        "do_sample": True,
        "semantic_max_new_tokens": tokens,
    }
    if streamed:
        streamer = AudioStreamer(model, policy="low_latency", first_chunk_frames=8, max_chunk_frames=20)
        for _ in stream(model, streamer=streamer, **inputs):
            pass
    else:
        model.generate(**inputs)


def main(count: int, options: dict) -> None:
    torch.set_num_threads(1)
    model = accelerate_bark(build(SMALL, width=64, heads=4), strict=True, **options)
    for i in range(8):
        generate(model, 20, 2 if i % 2 else 1, i % 4 > 1, i > 3)
    vary = random.Random(0)
    held: dict[str, list[int]] = {"peak_kib": [], "tensors": [], "cache_bytes": []}
    for i in range(count):
        forget_peak()
        generate(model, vary.randint(1, 20), 1 + (i % 5 == 4), i % 3 == 2, i % 7 == 6)
        gc.collect()
        held["peak_kib"].append(peak_kib())
        held["tensors"].append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
        held["cache_bytes"].append(acceleration_report(model).kv_cache_bytes)
    print(json.dumps(held))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
