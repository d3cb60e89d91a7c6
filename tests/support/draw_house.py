"""Draws docs/house.svg: the way of a text through the stages, and the rooms of the package with their imports.

Run by `make picture`; a test compares the file with what this draws, so it cannot go stale.
"""

from __future__ import annotations

import ast
import textwrap
from html import escape

from support.house import FACE, MODULES, PACKAGE, ROOMS, ROOT, room_arrows

PICTURE = ROOT / "docs" / "house.svg"
STAGES = [
    ("text ids", ""),
    ("SemanticStage", "tokens [B, T], 49.9 Hz"),
    ("CoarseStage", "codes [B, 2, T], 75 Hz"),
    ("FineStage", "codes [B, 8, T], 75 Hz"),
    ("CodecStage", "waveform [B, S], 24 kHz"),
]
KERNELS = "Kernels free of torch, once for each instruction set; their bindings for CPUs and CUDA"
NOT_DRAWN = {
    "_arguments",
    "approximations",
    "_caller",
    "_cpus",
    "_forked",
    "_version",
    "__main__",
    "small_bark",
    "report",
}
WIDTH, ROOM_WIDTH, ROOM_HEIGHT, GAP, TOP, LEFT = 1100, 380, 58, 30, 150, 120
STYLE = """
text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1c2733 }
.name { font-size: 15px; font-weight: 600 }
.note { font-size: 11.5px; fill: #516070 }
rect { fill: #f4f7fa; stroke: #8aa0b4; rx: 6px }
.stage { fill: #fdf3e3; stroke: #d9a441 }
path { fill: none; stroke: #9db2c5; stroke-width: 1.4; marker-end: url(#tip) }
"""


def purpose(room: str) -> str:
    """First sentence of a room's docstring."""
    module = "bark_accel" if room == FACE else f"bark_accel.{room}"
    return (ast.get_docstring(ast.parse(MODULES[module].read_text())) or "").split("\n")[0].replace("`", "").rstrip(".")


def shortest(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Arrows that no longer way replaces."""

    def reach(room: str) -> set[str]:
        return arrows[room] | {far for near in arrows[room] for far in reach(near)}

    return {room: {t for t in to if not any(t in reach(o) for o in to - {t})} for room, to in arrows.items()}


def rows_from_the_top(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by the longest way from the top; in a row, those with the longest way to the ground first."""
    depth: dict[str, int] = dict.fromkeys(arrows, 0)
    height: dict[str, int] = {}
    for room in (r for r in ROOMS if r in arrows):
        height[room] = 1 + max((height[below] for below in arrows[room]), default=0)
    for room in reversed(list(height)):
        for below in arrows[room]:
            depth[below] = max(depth[below], depth[room] + 1)
    rows = [[r for r in height if depth[r] == row] for row in range(max(depth.values()) + 1)]
    return [sorted(row, key=lambda r: -height[r]) for row in rows]


def box(x: float, y: float, width: float, name: str, note: str, kind: str = "") -> str:
    """A labelled rectangle with a note of at most two lines."""
    lines = textwrap.wrap(note, int(width / 6.7))
    assert len(lines) <= 2, f"{name}: expected a purpose of two lines, got {note!r}"
    rows = [
        f'<text class="note" x="{x + 10}" y="{y + 37 + 14 * i}">{escape(text)}</text>' for i, text in enumerate(lines)
    ]
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{ROOM_HEIGHT}"/>'
        f'<text class="name" x="{x + 10}" y="{y + 20}">{escape(name)}</text>' + "".join(rows)
    )


def way_of_a_text() -> list[str]:
    width, gap = 180, 40
    parts = []
    for i, (name, note) in enumerate(STAGES):
        x = 20 + i * (width + gap)
        parts.append(box(x, 40, width, name, note, "stage"))
        if i:
            parts.append(f'<path d="M {x - gap} 69 L {x - 3} 69"/>')
    return ['<text class="name" x="20" y="26">A text on its way</text>', *parts]


def rooms() -> tuple[list[str], int]:
    """Boxes and arrows of the rooms, and the height of the picture."""
    arrows = {r: to - NOT_DRAWN for r, to in room_arrows().items() if r not in NOT_DRAWN}
    rows = rows_from_the_top(arrows)
    place = {
        room: (LEFT + column * (ROOM_WIDTH + 2 * GAP), TOP + row * (ROOM_HEIGHT + GAP))
        for row, names in enumerate(rows)
        for column, room in enumerate(names)
    }
    parts = ['<text class="name" x="20" y="136">The rooms: an arrow leads to a room that is imported</text>']
    parts += [arrow(place[room], place[target]) for room, to in shortest(arrows).items() for target in sorted(to)]
    parts += [box(x, y, ROOM_WIDTH, f"{r}/" if r != FACE else FACE, purpose(r)) for r, (x, y) in place.items()]
    kernels = (LEFT, TOP + len(rows) * (ROOM_HEIGHT + GAP))
    parts += [arrow(place["ops"], kernels), box(*kernels, ROOM_WIDTH, "csrc/", KERNELS)]
    return parts, TOP + (len(rows) + 1) * (ROOM_HEIGHT + GAP)


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A curve from the bottom of one room to the top of another."""
    x, y, to_x, to_y = start[0] + ROOM_WIDTH / 2, start[1] + ROOM_HEIGHT, end[0] + ROOM_WIDTH / 2, end[1] - 3
    return f'<path d="M {x} {y} C {x} {y + GAP}, {to_x} {to_y - GAP}, {to_x} {to_y}"/>'


def draw() -> str:
    """Return the picture as SVG."""
    drawn, height = rooms()
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip += '<polygon points="0,0 8,4 0,8" fill="#9db2c5"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    background = f'<rect x="0" y="0" width="{WIDTH}" height="{height}" style="fill: #ffffff; stroke: none"/>'
    return "\n".join(
        [head, f"<style>{STYLE}</style><defs>{tip}</defs>", background, *way_of_a_text(), *drawn, "</svg>\n"]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(f"wrote {PICTURE.relative_to(PACKAGE.parent)}")
