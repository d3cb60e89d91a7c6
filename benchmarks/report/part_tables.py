"""Tables of the page that tell how fast parts are: options, steps, instruction sets, other compilers."""

from __future__ import annotations

from typing import Any

from bark_accel.bench.measure import spread_of


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
