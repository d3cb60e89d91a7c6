"""Names on a command line, separated by semicolons, since some have commas."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Make an argparse type: one or more of the known names, or a message that lists them."""

    def names(text: str) -> list[str]:
        asked = [name.strip() for name in text.split(";") if name.strip()]
        unknown = [name for name in asked if name not in known]
        if unknown or not asked:
            what = " and ".join(map(repr, unknown)) or "none"
            raise argparse.ArgumentTypeError(f"expected some of {'; '.join(known)} (separated by ;), got {what}")
        return asked

    return names
