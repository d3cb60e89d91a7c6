"""Writes docs/benchmarks.md from the result files that `make bench` leaves in benchmarks/results.

python -m benchmarks report benchmarks/results docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .cells import case, measured_on
from .generation_tables import generations, load, memory, planned_streams, streams
from .part_tables import anchor, backends, generation_steps, isas, options
from .quality_tables import coarse_windows, fine_codes, layouts, quality, speech, voices
from .summarise import table

_NOT_MEASURED = "There is no result file yet."


def _optional(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _load(folder: Path, name: str) -> str:
    record = _optional(folder, name)
    return load(record, f"{name}.png") if record else _NOT_MEASURED


def report(folder: Path) -> str:
    """The whole page."""
    names = ("steps", "generation", "memory", "quality", "speech_quality", "streaming_layout")
    files = {name: folder / f"cpu_{name}.json" for name in names}
    # Memory is measured on Linux only, speech where pocketsphinx is installed.
    optional = ("memory", "speech_quality", "streaming_layout")
    read = {n: json.loads(file.read_text()) for n, file in files.items() if n not in optional or file.exists()}
    zen5 = {
        name: json.loads((folder / f"zen5_{name}.json").read_text())
        for name in ("generation", "generation_avx2", "steps", "options", "fine_codes", "voices")
    }
    zen3 = json.loads((folder / "zen3_generation.json").read_text())
    planned = _optional(folder, "zen5_streams")
    compiled = _optional(folder, "zen5_backends")
    anchored = _optional(folder, "zen5_anchor")
    inside = _optional(folder, "zen5_generation_steps")
    sets = _optional(folder, "zen5_isas")
    attention = _optional(folder, "zen5_attention")
    windows, spoken = (
        json.loads((folder / f"zen5_{n}.json").read_text()) for n in ("coarse_windows", "speech_quality")
    )
    text = (Path(__file__).parent / "page.md").read_text()
    records = [*read["generation"], *zen5["generation"], *zen5["generation_avx2"], *zen3]
    different = [case(r) for r in records if r["token_differences"].get("float32")]
    if different:
        raise SystemExit(f"expected float32 runs with stock's tokens, got other ones in: {'; '.join(different)}")
    ties = [tie for record in read["generation"] for tie in record.get("ties", [])]
    parts = {
        **{name: _load(folder, name) for name in ("zen5_load", "zen3_load", "zen3_load_long")},
        "options_machine": measured_on(zen5["options"]),
        "options": options(zen5["options"]),
        "fine_codes_machine": measured_on(zen5["fine_codes"]),
        "fine_codes": fine_codes(zen5["fine_codes"]),
        "coarse_windows_machine": measured_on(windows),
        "coarse_windows_size": "{utterances} texts, {tokens} tokens".format(**windows["ways"]["stock"]),
        "coarse_windows": coarse_windows(windows),
        "zen5_speech": speech(spoken),
        "planned_streams": planned_streams(planned) if planned else _NOT_MEASURED,
        "voices": voices(zen5["voices"]),
        "backends_machine": measured_on(compiled) if compiled else "",
        "backends": backends(compiled) if compiled else _NOT_MEASURED,
        "anchor_version": anchored["versions"]["ctranslate2"] if anchored else "",
        "anchor_machine": measured_on(anchored) if anchored else "",
        "anchor": anchor(anchored) if anchored else _NOT_MEASURED,
        "inside_machine": measured_on(inside) if inside else "",
        "inside": generation_steps(inside) if inside else _NOT_MEASURED,
        "attention_machine": measured_on(attention) if attention else "",
        "attention": table(attention) if attention else _NOT_MEASURED,
        "isas_machine": measured_on(sets) if sets else "",
        "isas": isas(sets) if sets else _NOT_MEASURED,
        "zen5_machine": measured_on(zen5["generation"][0]),
        "zen5_generations": generations(zen5["generation"]),
        "avx2_machine": measured_on(zen5["generation_avx2"][0]),
        "avx2_generations": generations(zen5["generation_avx2"]),
        "zen3_machine": measured_on(zen3[0]),
        "zen3_generations": generations(zen3),
        "zen5_steps_machine": measured_on(zen5["steps"]),
        "zen5_steps": table(zen5["steps"]),
        "steps_machine": measured_on(read["steps"]),
        "steps": table(read["steps"]),
        "generation_machine": measured_on(read["generation"][0]),
        "generations": generations(read["generation"]),
        "ties": f"; but for {len(ties)} that rounding decides" if ties else "",
        "streams": streams(read["generation"]),
        "memory_machine": measured_on(read["memory"]) if "memory" in read else "",
        "memory": memory(read["memory"]) if "memory" in read else _NOT_MEASURED,
        "quality": quality(read["quality"]),
        "speech": speech(read["speech_quality"]) if "speech_quality" in read else _NOT_MEASURED,
        "layouts": layouts(read["streaming_layout"]) if "streaming_layout" in read else _NOT_MEASURED,
    }
    for name, part in parts.items():
        assert f"[[{name}]]" in text, name
        text = text.replace(f"[[{name}]]", part)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the result files")
    parser.add_argument("page", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    given.page.write_text(report(given.folder))
