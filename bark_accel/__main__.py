"""`python -m bark_accel` and `bark-accel`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from io import TextIOWrapper

# The extra `cli` of pyproject.toml; the library itself needs none of them.
_NEEDED = ("typer", "rich", "matplotlib", "soundfile")


def main() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"error: the command line needs {', '.join(missing)}: run pip install 'bark_accel[cli]'", file=sys.stderr)
        raise SystemExit(2)
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal's encoding lacks is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from bark_accel.cli.app import app

    app()


if __name__ == "__main__":
    main()
