"""Tables of the page that tell what approximations change: scores, codes, words, voices."""

from __future__ import annotations

from typing import Any

from benchmarks.speech import figures

from .cells import measured_on


def quality(record: dict[str, Any]) -> str:
    lines = ["| scores | weights | relative error | KL, nats | same most likely token |", "|---|---|---|---|---|"]
    for name, precisions in record["against_float32"].items():
        for precision, its in precisions.items():
            numbers = f"{its['relative_error']:.1e} | {its['kl_nats']:.1e} | {its['top_1_agreement']:.1%}"
            lines.append(f"| {name} | {precision} | {numbers} |")
    return "\n".join(lines)


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


def speech(record: dict[str, Any]) -> str:
    texts = " and ".join(f"{count} of {kind}" for kind, count in record["texts"].items())
    facts = f"{texts}, split {record['split']}, seed {record['seed']}, in batches of {record['batch']}."
    return f"{facts} {measured_on(record)}\n\n{figures.table(record['ways'])}"


def layouts(record: dict[str, Any]) -> str:
    """Write the table of `python -m benchmarks layouts`."""
    rate, (low, high) = record["whole"]["word_error_rate"], record["whole"]["interval"]
    count = record["texts_of_each_kind"]
    lines = [
        f"{count} digits, {count} phrases, split {record['split']}, seed {record['seed']}; said as a whole, {rate:.1%} "
        f"({low:.1%} to {high:.1%}) of {record['whole']['words']} words are wrong. {measured_on(record)}",
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
        f"of the two presets {record['speakers']['presets']:.2f}. {measured_on(record)}",
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
