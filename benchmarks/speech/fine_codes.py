"""Distance from stock of the approximate fine stages: small Bark, the same coarse codes each way.

python -m benchmarks fine-codes --json NEW.json

The small Bark's fine stage takes the most likely code; "stock, another draw" draws as suno's models do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bark_accel.bench.approximations import WAYS, Way, say, sound_distances
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import load_bark, quiet_transformers
from recipes.small_bark.evaluate import KINDS, texts

SEED = 2_027
_CHUNKS_OF_8 = {"policy": "low_latency", "first_chunk_frames": 8, "max_chunk_frames": 8, "lookahead_frames": 0}
MORE_WAYS = {
    **WAYS,
    "low_latency, fitting windows": Way({"fit_windows": True}, {"policy": "low_latency"}),
    "chunks of 8 frames": Way({}, _CHUNKS_OF_8),
}


def measure(count: int) -> dict[str, dict[str, Any]]:
    loaded = load_bark()
    said = [text for kind in KINDS for text in texts(kind, "test", count // len(KINDS), SEED)]
    model = loaded.model.float()
    spoken = (say(model, loaded.inputs(text), SEED) for text in said)
    found = sound_distances(model, spoken, ways=MORE_WAYS)
    return {name: {"utterances": utterances, **asdict(its)} for name, (its, utterances) in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="texts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    found = measure(options.count)
    for name, figures in found.items():
        print(f"{name:30}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items() if v is not None))
    if options.json:
        record = {"machine": machine_facts(), "versions": versions(), "commit": commit(), "ways": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
