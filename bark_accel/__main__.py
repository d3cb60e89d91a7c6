"""`python -m bark_accel` and `bark-accel`."""

from __future__ import annotations

from bark_accel.cli.app import app


def main() -> None:
    app()


if __name__ == "__main__":
    main()
