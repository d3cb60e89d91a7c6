"""Comparisons of an engine under load with `generate` and stock, from the points of `python -m benchmarks load`."""

from __future__ import annotations

from typing import Any


def speech_alone(way: dict[str, Any]) -> float:
    """Seconds of speech a second of `generate` one after the other, over what a way's points have of it."""
    return sum(point["spoken_s"] for point in way["alone"]) / sum(point["took_s"] for point in way["alone"])


def comparisons(record: dict[str, Any]) -> list[str]:
    """One line for each engine that had all requests at once: its speech a second, and times that of the others."""
    stock = {f"stock {point['how']}": point["speech_a_second"] for point in record["stock"]}
    lines = []
    for way in record["ways"]:
        for point in way["closed"]:
            rate, others = point["speech_a_second"], {"generate one after the other": speech_alone(way), **stock}
            times = ", ".join(f"{rate / other:.2f} x {name} ({other:.2f})" for name, other in others.items())
            equal = f"{point['equal']} of {record['requests']} as alone"
            lines.append(f"{way['way']}, {point['rows']} rows: {rate:.2f} s of speech a second, {equal}; {times}")
    return lines
