"""Writes docs/benchmarks.md from the result files that `make bench` leaves in benchmarks/results.

python -m benchmarks report benchmarks/results docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bark_accel.bench.measure import spread_of
from benchmarks.generation.load_figures import speech_alone
from benchmarks.report.summarise import table
from benchmarks.speech import figures

STAGES = ("semantic", "coarse", "fine", "codec", "total")
_NOT_MEASURED = "There is no result file yet."


def generations(records: list[dict[str, Any]]) -> str:
    """Seconds by stage of every case and mode."""
    lines = [
        "| speech | mode | semantic | coarse | fine | codec | all | times faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for mode, its in record["modes"].items():
            cells = [_seconds(its[stage]) for stage in STAGES]
            faster = "" if mode == "stock" else f"{its['times_faster']:.2f}x"
            lines.append(f"| {_case(record)} | {mode} | {' | '.join(cells)} | {faster} |")
    return "\n".join(lines)


def streams(records: list[dict[str, Any]]) -> str:
    """First sound, and whether playing stalls."""
    lines = [
        "| speech | mode, policy | first sound | of stock's time | all | of stock's time | gap p50 / p95 | silences |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for name, its in record["streams"].items():
            gaps = " / ".join("-" if its[key] is None else f"{its[key]:.1f} s" for key in ("gap_p50_s", "gap_p95_s"))
            first = f"{its['first_sound_s']:.2f} s | {its['first_sound_of_stock']:.1%}"
            total = f"{its['total_s']:.1f} s | {its['total_of_stock']:.0%}"
            silences = f"{its['underruns']} ({its['stalled_s']:.1f} s)"
            lines.append(f"| {_case(record)} | {name} | {first} | {total} | {gaps} | {silences} |")
    return "\n".join(lines)


def memory(record: dict[str, Any]) -> str:
    lines = [
        "| shape | mode | after loading, MiB | while generating, MiB | of stock's |",
        "|---|---|---|---|---|",
    ]
    for shape, modes in record["shapes"].items():
        for mode, its in modes.items():
            numbers = f"{its['after_loading_mib']:.0f} | {its['while_generating_mib']:.0f}"
            lines.append(f"| {shape} | {mode} | {numbers} | {its['of_stock_while_generating']:.2f} |")
    return "\n".join(lines)


def quality(record: dict[str, Any]) -> str:
    lines = ["| scores | weights | relative error | KL, nats | same most likely token |", "|---|---|---|---|---|"]
    for name, precisions in record["against_float32"].items():
        for precision, its in precisions.items():
            numbers = f"{its['relative_error']:.1e} | {its['kl_nats']:.1e} | {its['top_1_agreement']:.1%}"
            lines.append(f"| {name} | {precision} | {numbers} |")
    return "\n".join(lines)


def options(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks options`."""
    lines = [
        "| option | weights | texts at once | tokens/s of a text | of plain | of plain without drafts | of stock |",
        "|---|---|---|---|---|---|---|",
    ]
    for its in sorted(record["rows"], key=lambda its: (its["weights"] != "same", its["rows"])):
        weights = "float32" if its["weights"] == "same" or its["option"] == "stock" else its["weights"]
        shares = ("of_plain", "of_plain_without_drafts")
        cells = " | ".join("" if its[share] is None else f"{its[share]:.0%}" for share in shares)
        times = its["of_stock_with_repetition_penalty"]
        stock = "" if times is None else f"{times:.1f}x"
        rate = f"{its['tokens_per_s']:.0f}"
        lines.append(f"| {its['option']} | {weights} | {its['rows']} | {rate} | {cells} | {stock} |")
    return "\n".join(lines)


def backends(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks backends`."""
    lines = [
        "| part | weights | by | ms | times faster than stock | first call | error |",
        "|---|---|---|---|---|---|---|",
    ]
    stock = {(r["part"], r["weights"]): r["median_s"] for r in record["rows"] if r["way"] == "stock"}
    for its in record["rows"]:
        weights = "float32" if its["weights"] == "same" else its["weights"]
        first = f"{its['first_call_s']:.1f} s" if its["checked_limit"] else ""
        faster = stock[its["part"], its["weights"]] / its["median_s"]
        figures = f"{1000 * its['median_s']:.0f} | {faster:.2f}x | {first} | {its['error']:.1e}"
        lines.append(f"| {its['part']} | {weights} | {its['way']} | {figures} |")
    return "\n".join(lines)


def load(record: dict[str, Any]) -> str:
    """Write the tables and the picture of `python -m benchmarks load`."""
    stock, (low, high) = {point["how"]: point for point in record["stock"]}, record["seconds"]
    lines = [f"{record['requests']} requests of {low:g} to {high:g} s. {_measured_on(record)}"]
    if "batch" in stock:
        alone, batch = (stock[how]["speech_a_second"] for how in ("alone", "batch"))
        lines[0] += (
            f" Stock says {alone:.2f} s a second one after the other and {batch:.2f} s in one batch "
            f"({stock['batch']['requests']} of the requests)."
        )
    alone = "`generate`, one after the other | | of stock, one after the other | of stock's batch"
    lines += ["", f"| all at once | rows | s of speech a second | as alone | {alone} |", "|---" * 8 + "|"]
    for its in record["ways"]:
        for row in its["closed"]:
            both = row["speech_a_second"], speech_alone(its)
            of_stock = " | ".join(
                f"{both[0] / stock[how]['speech_a_second']:.1f}x" if how in stock else "" for how in ("alone", "batch")
            )
            equal = f"{row['equal']} of {record['requests']}"
            cells = f"{both[0]:.2f} | {equal} | {both[1]:.2f} | {both[0] / both[1]:.2f}x | {of_stock}"
            lines.append(f"| {its['way']} | {row['rows']} | {cells} |")
    heads = "first sound p50 / p95 | gap p50 / p95 | silences | silence a request"
    if any(its["open"] for its in record["ways"]):
        lines += ["", f"| Poisson arrivals | rows | offered load | s of speech a second | {heads} |", "|---" * 8 + "|"]
    for its in record["ways"]:
        for row in its["open"]:
            first, gap = (
                f"{row[f'{name}_p50_s']:.1f} / {row[f'{name}_p95_s']:.1f} s" for name in ("first_sound", "gap")
            )
            cells = f"{row['load']:g} | {row['speech_a_second']:.2f} | {first} | {gap} | {row['underruns']}"
            lines.append(f"| {its['way']} | {row['rows']} | {cells} | {row['silence_s_a_request']:.1f} s |")
    if any(its["open"] for its in record["ways"]):
        lines += ["", "![throughput by rows, first sound by load](load.png)"]
    return "\n".join(lines)


def speech(record: dict[str, Any]) -> str:
    texts = " and ".join(f"{count} of {kind}" for kind, count in record["texts"].items())
    facts = f"{texts}, split {record['split']}, seed {record['seed']}, in batches of {record['batch']}."
    return f"{facts} {_measured_on(record)}\n\n{figures.table(record['ways'])}"


def layouts(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks layouts`."""
    rate, (low, high) = record["whole"]["word_error_rate"], record["whole"]["interval"]
    count = record["texts_of_each_kind"]
    lines = [
        f"{count} digits, {count} phrases, split {record['split']}, seed {record['seed']}; said as a whole, {rate:.1%} "
        f"({low:.1%} to {high:.1%}) of {record['whole']['words']} words are wrong. {_measured_on(record)}",
        "",
        "| chunks, frames | same fine codes | log-spectral distance | above the whole, points |",
        "|---|---|---|---|",
    ]
    for name, its in record["layouts"].items():
        low, high = (100 * bound for bound in its["above_whole"]["interval"])
        points = f"{100 * its['above_whole']['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {name} | {its['same_fine_codes']:.0%} | {its['log_spectral_distance_db']:.2f} dB | {points} |")
    return "\n".join(lines)


def voices(record: dict[str, Any]) -> str:
    """Write the tables of `python -m benchmarks voices`."""
    pairs = {name: record["speakers"][name] for name in ("same", "different")}
    ranges = {its: f"{s['mean']:.2f} ({s['lowest']:.2f} to {s['highest']:.2f})" for its, s in pairs.items()}
    lines = [
        f"{record['chunks']} chunks in each of two voices, runs: {record['runs']}, seed {record['seed']}. Chunks of "
        f"different texts, by stock: the same speaker {ranges['same']}, two speakers {ranges['different']}; the sounds "
        f"of the two presets {record['speakers']['presets']:.2f}. {_measured_on(record)}",
        "",
        "| way | to its preset | lowest | to the other preset | first five chunks | last five | to stock's chunk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, its in record["ways"].items():
        cells = [_similarity(its["to_preset"]), f"{its['lowest_to_preset']:.2f}"]
        cells += [_similarity(its[key]) for key in ("to_other_preset", "first_five", "last_five", "to_stock")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    nearer = {name: its["nearer_to_other_preset"] for name, its in record["ways"].items()}
    chunks = sum(its["chunks"] for its in record["ways"].values())
    lines += ["", f"Nearer to the other preset than to its own were {sum(nearer.values())} of all {chunks} chunks."]
    return "\n".join(lines)


def _similarity(its: dict[str, Any]) -> str:
    low, high = its["interval"]
    return f"{its['mean']:.3f} ({low:.3f} to {high:.3f})"


def _case(record: dict[str, Any]) -> str:
    extras = [record["shape"]] if record["shape"] != "bark-small" else []
    extras += [f"batch of {record['batch']}"] if record["batch"] > 1 else []
    extras += ["full preset"] if record["preset"] else []
    return ", ".join([f"{record['seconds']:g} s", *extras])


def _seconds(spread: dict[str, float]) -> str:
    same = spread["p20"] == spread["p80"]
    return f"{spread['median']:.2f}" + ("" if same else f" ({spread['p20']:.2f} to {spread['p80']:.2f})")


def anchor(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks anchor`: ways in lines, contexts in columns."""
    rows = {(row["way"], row["context"]): row for row in record["rows"]}
    contexts = list(dict.fromkeys(row["context"] for row in record["rows"]))
    heads = " | ".join(f"after {context}, ms | of stock's tokens" for context in contexts)
    lines = [f"| | {heads} |", "|---" * (1 + 2 * len(contexts)) + "|"]
    for way in dict.fromkeys(row["way"] for row in record["rows"]):
        cells = []
        for context in contexts:
            its = rows[way, context]
            rounds = spread_of(its["medians_of_rounds_ms"])
            cells.append(f"{its['median_ms']:.2f} ({rounds.p20:.2f}-{rounds.p80:.2f})")
            cells.append("all" if its["tokens_of_stock"] == its["all_tokens"] else f"first {its['tokens_of_stock']}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def generation_steps(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks steps`."""
    lines = ["| mode | probe, GB/s | steps: stage, weights, rows x tokens | ms | of the probe | back to back |"]
    lines += ["|---" * 6 + "|"]
    for mode, its in record["modes"].items():
        for name, step in its["steps"].items():
            again = step.get("back_to_back_of_probe")
            shares = f"{step['of_probe']:.0%} | " + ("" if again is None else f"{again:.0%}")
            lines.append(f"| {mode} | {its['read_probe_gb_s']:.0f} | {name} | {step['step_ms']:.2f} | {shares} |")
    return "\n".join(lines)


def isas(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks isas`: calls in lines, instruction sets in columns."""
    found = {(row["call"], row["isa"]): row for row in record["rows"]}
    sets = list(dict.fromkeys(row["isa"] for row in record["rows"]))
    lines = ["| | " + " | ".join(f"{isa}, ms" for isa in sets) + " |", "|---" * (1 + len(sets)) + "|"]
    for call in dict.fromkeys(row["call"] for row in record["rows"]):
        cells = []
        for isa in sets:
            its = found[call, isa]
            share = f", {its['of_read_probe']:.0%} of the probe" if "of_read_probe" in its else ""
            cells.append(f"{its['ms']['median']:.2f} ({its['ms']['p20']:.2f}-{its['ms']['p80']:.2f}){share}")
        lines.append(f"| {call} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured_on(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads; torch {versions['torch']}, Transformers "
        f"{versions['transformers']}, commit {(record['commit'] or 'unknown')[:10]}."
    )


def fine_codes(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks fine-codes`."""
    lines = [
        "| | utterances | equal codes | nats a code | log-spectral distance | mel-cepstral distortion |",
        "|---|---|---|---|---|---|",
    ]
    for way, its in record["ways"].items():
        codes = " | ".join(
            "-" if its[key] is None else f"{its[key]:{form}}"
            for key, form in (("same_fine_codes", ".0%"), ("nats_a_fine_code", ".3f"))
        )
        distances = f"{its['log_spectral_distance_db']:.2f} dB | {its['mel_cepstral_distortion_db']:.2f} dB"
        lines.append(f"| {way} | {its['utterances']} | {codes} | {distances} |")
    return "\n".join(lines)


def coarse_windows(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks coarse-windows`."""
    lines = [
        "| | nats a token by stock's windows | above stock | by long windows | KL to stock, nats | same best code |",
        "|---|---|---|---|---|---|",
    ]
    for way, its in record["ways"].items():
        low, high = its["nats_stock"]["interval"]
        above = f"{its['nats_stock']['above_stock']:+.3f} ({low:+.3f} to {high:+.3f})"
        nats = f"{its['nats_stock']['mean']:.3f} | {above} | {its['nats_long']['mean']:.3f}"
        lines.append(f"| {way} | {nats} | {its['kl_nats']:.1e} | {its['same_best']:.1%} |")
    return "\n".join(lines)


def planned_streams(record: dict[str, Any]) -> str:
    """Write first sound and silence of streams with a plan, and stock's whole generation beside them."""
    stock, stock_s = record["stock"], record["stock"]["total_s"]["median"]
    lines = [
        f"Stock took {_seconds(stock['total_s'])} s for {stock['seconds']:g} s of speech, in turns with all of it. "
        f"{record['rounds']} rounds. {_measured_on(record)}",
        "",
        "| speech | weights | | first sound, s | of stock's 2 s | silence after it, s | planned | chunks, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        speech = f"{case['seconds']:g} s{', full preset' * case['preset']}"
        for its in case["ways"]:
            planned = "" if its["plan"] is None else f"{its['plan']['silence_s']:.2f}"
            chunks = ", ".join(f"{seconds:.1f}" for seconds in its["chunks_s"])
            first, silence = _seconds(its["first_sound_s"]), _seconds(its["silence_s"])
            of_stock = f"{its['first_sound_s']['median'] / stock_s:.0%}"
            lines.append(
                f"| {speech} | {its['mode']} | {its['way']} | {first} | {of_stock} | {silence} | {planned} | {chunks} |"
            )
    for its in record["long_text"]:
        first, of_stock = _seconds(its["first_sound_s"]), f"{its['first_sound_s']['median'] / stock_s:.0%}"
        speech = f"long text, first chunk of {its['seconds']:g} s"
        lines.append(f"| {speech} | {its['mode']} | plain | {first} | {of_stock} | | | |")
    return "\n".join(lines).replace("of stock's 2 s", f"of stock's {stock['seconds']:g} s")


def _optional(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def report(folder: Path) -> str:
    """The whole page."""
    names = ("steps", "generation", "memory", "quality", "speech_quality", "streaming_layout")
    files = {name: folder / f"cpu_{name}.json" for name in names}
    # Memory is measured on Linux only, speech where pocketsphinx is installed.
    optional = ("memory", "speech_quality", "streaming_layout")
    load_file = folder / "zen5_load.json"
    read = {n: json.loads(file.read_text()) for n, file in files.items() if n not in optional or file.exists()}
    zen5 = {
        name: json.loads((folder / f"zen5_{name}.json").read_text())
        for name in ("generation", "generation_avx2", "steps", "options", "fine_codes", "voices")
    }
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
    records = [*read["generation"], *zen5["generation"], *zen5["generation_avx2"]]
    different = [_case(r) for r in records if r["token_differences"].get("float32")]
    if different:
        raise SystemExit(f"expected float32 runs with stock's tokens, got other ones in: {'; '.join(different)}")
    ties = [tie for record in read["generation"] for tie in record.get("ties", [])]
    parts = {
        "load": load(json.loads(load_file.read_text())) if load_file.exists() else _NOT_MEASURED,
        "options_machine": _measured_on(zen5["options"]),
        "options": options(zen5["options"]),
        "fine_codes_machine": _measured_on(zen5["fine_codes"]),
        "fine_codes": fine_codes(zen5["fine_codes"]),
        "coarse_windows_machine": _measured_on(windows),
        "coarse_windows_size": "{utterances} texts, {tokens} tokens".format(**windows["ways"]["stock"]),
        "coarse_windows": coarse_windows(windows),
        "zen5_speech": speech(spoken),
        "planned_streams": planned_streams(planned) if planned else _NOT_MEASURED,
        "voices": voices(zen5["voices"]),
        "backends_machine": _measured_on(compiled) if compiled else "",
        "backends": backends(compiled) if compiled else _NOT_MEASURED,
        "anchor_version": anchored["versions"]["ctranslate2"] if anchored else "",
        "anchor_machine": _measured_on(anchored) if anchored else "",
        "anchor": anchor(anchored) if anchored else _NOT_MEASURED,
        "inside_machine": _measured_on(inside) if inside else "",
        "inside": generation_steps(inside) if inside else _NOT_MEASURED,
        "attention_machine": _measured_on(attention) if attention else "",
        "attention": table(attention) if attention else _NOT_MEASURED,
        "isas_machine": _measured_on(sets) if sets else "",
        "isas": isas(sets) if sets else _NOT_MEASURED,
        "zen5_machine": _measured_on(zen5["generation"][0]),
        "zen5_generations": generations(zen5["generation"]),
        "avx2_machine": _measured_on(zen5["generation_avx2"][0]),
        "avx2_generations": generations(zen5["generation_avx2"]),
        "zen5_steps_machine": _measured_on(zen5["steps"]),
        "zen5_steps": table(zen5["steps"]),
        "steps_machine": _measured_on(read["steps"]),
        "steps": table(read["steps"]),
        "generation_machine": _measured_on(read["generation"][0]),
        "generations": generations(read["generation"]),
        "ties": f"; but for {len(ties)} that rounding decides" if ties else "",
        "streams": streams(read["generation"]),
        "memory_machine": _measured_on(read["memory"]) if "memory" in read else "",
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
