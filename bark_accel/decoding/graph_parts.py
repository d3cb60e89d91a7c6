"""Parts of the tokens to come that share a graph, or a launch: by the ids that each of them may take."""

from __future__ import annotations

from collections.abc import Sequence

from .sampling import TokenRange

# Tokens that one graph holds.
GRAPH_TOKENS = 8


def split(ranges: Sequence[TokenRange], tokens: int) -> list[tuple[TokenRange, ...]]:
    """Cut the ranges of tokens to come into those of graphs: of `tokens` where they are alike or take turns, or of one.

    Others would be patterns that never come again, a capture each.
    """
    parts, at = [], 0
    while at < len(ranges):
        part = tuple(ranges[at : at + tokens])
        regular = len(part) == tokens and part[2:] == part[:-2]
        parts.append(part if regular else part[:1])
        at += len(parts[-1])
    return parts


def turns(ranges: Sequence[TokenRange]) -> tuple[tuple[TokenRange, ...], int]:
    """Find how many of the first ranges are alike or take turns, and which one or two those are."""
    tokens = next((i for i in range(2, len(ranges)) if ranges[i] != ranges[i - 2]), len(ranges))
    return tuple(dict.fromkeys(ranges[:tokens])), tokens
