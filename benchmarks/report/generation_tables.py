"""Tables of the page that tell how fast generations and streams are, and how large."""

from __future__ import annotations

from typing import Any

from benchmarks.generation.engine_parts import PARTS
from benchmarks.generation.load_figures import speech_alone

from .cells import case, measured_on, seconds

STAGES = ("semantic", "coarse", "fine", "codec", "total")


def generations(records: list[dict[str, Any]]) -> str:
    """Seconds by stage of every case and mode."""
    lines = [
        "| speech | mode | semantic | coarse | fine | codec | all | times faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        for mode, its in record["modes"].items():
            cells = [seconds(its[stage]) for stage in STAGES]
            faster = "" if mode == "stock" else f"{its['times_faster']:.2f}x"
            lines.append(f"| {case(record)} | {mode} | {' | '.join(cells)} | {faster} |")
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
            lines.append(f"| {case(record)} | {name} | {first} | {total} | {gaps} | {silences} |")
    return "\n".join(lines)


def planned_streams(record: dict[str, Any]) -> str:
    """Write first sound and silence of streams with a plan, and stock's whole generation beside them."""
    stock, stock_s = record["stock"], record["stock"]["total_s"]["median"]
    lines = [
        f"Stock took {seconds(stock['total_s'])} s for {stock['seconds']:g} s of speech, in turns with all of it. "
        f"{record['rounds']} rounds. {measured_on(record)}",
        "",
        "| speech | weights | | first sound, s | of stock's 2 s | silence after it, s | planned | chunks, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for said in record["cases"]:
        speech = f"{said['seconds']:g} s{', full preset' * said['preset']}"
        for its in said["ways"]:
            planned = "" if its["plan"] is None else f"{its['plan']['silence_s']:.2f}"
            chunks = ", ".join(f"{length:.1f}" for length in its["chunks_s"])
            first, silence = seconds(its["first_sound_s"]), seconds(its["silence_s"])
            of_stock = f"{its['first_sound_s']['median'] / stock_s:.0%}"
            lines.append(
                f"| {speech} | {its['mode']} | {its['way']} | {first} | {of_stock} | {silence} | {planned} | {chunks} |"
            )
    for its in record["long_text"]:
        first, of_stock = seconds(its["first_sound_s"]), f"{its['first_sound_s']['median'] / stock_s:.0%}"
        speech = f"long text, first chunk of {its['seconds']:g} s"
        lines.append(f"| {speech} | {its['mode']} | plain | {first} | {of_stock} | | | |")
    return "\n".join(lines).replace("of stock's 2 s", f"of stock's {stock['seconds']:g} s")


def load(record: dict[str, Any], picture: str) -> str:
    """Write the tables of `python -m benchmarks load`, and show its picture."""
    stock, (low, high) = {point["how"]: point for point in record["stock"]}, record["seconds"]
    lines = [f"{record['requests']} requests of {low:g} to {high:g} s. {measured_on(record)}"]
    if "batch" in stock:
        alone, batch = (stock[how]["speech_a_second"] for how in ("alone", "batch"))
        lines[0] += (
            f" Stock says {alone:.2f} s a second one after the other and {batch:.2f} s in one batch "
            f"({stock['batch']['requests']} of the requests)."
        )
    alone = "`generate`, one after the other | | of stock, one after the other | of stock's batch"
    # Earlier files have no such seconds.
    tells_parts = any(PARTS.keys() <= row.keys() for its in record["ways"] for row in its["closed"])
    parts = " seconds: prompts, steps, sound |" * tells_parts
    lines += ["", f"| all at once | rows | s of speech a second | as alone | {alone} |{parts}"]
    lines += ["|---" * (8 + tells_parts) + "|"]
    for its in record["ways"]:
        for row in sorted(its["closed"], key=lambda row: row["rows"]):
            both = row["speech_a_second"], speech_alone(its)
            of_stock = " | ".join(
                f"{both[0] / stock[how]['speech_a_second']:.1f}x" if how in stock else "" for how in ("alone", "batch")
            )
            equal = f"{row['equal']} of {record['requests']}"
            cells = f"{both[0]:.2f} | {equal} | {both[1]:.2f} | {both[0] / both[1]:.2f}x | {of_stock}"
            spent = f" {', '.join(f'{row[part]:.0f}' for part in PARTS)} |" if tells_parts else ""
            lines.append(f"| {its['way']} | {row['rows']} | {cells} |{spent}")
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
        lines += ["", f"![throughput by rows, first sound by load]({picture})"]
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
