"""A model of a decode step on paper, no measurement: bytes over bandwidth and the gaps between kernels.

python -m benchmarks.gpu.paper

A step is estimated as the larger of two bounds for each kernel, its bytes at the card's bandwidth or what can be
in flight at once over the memory's latency; and a gap between dependent kernels. Bytes and kernels follow from the
shapes. Bandwidths are the vendors' figures. A GPU's own figures are to be held against these rows.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCY_S = 0.7e-6  # of a load from memory
GAP_S = 1.3e-6  # between dependent kernels of a graph
EARLY_GAP_S = 0.9e-6  # with programmatic dependent launch (an assumption)
REACHED = 0.9  # of the bandwidth that a vendor names
CONTEXT = 600
# csrc/cuda/gemv.cuh: 8 warps a block, pairs of outputs, loads of 16 bytes that a lane has in flight.
WARPS, LANES, OUTPUTS, LOADS = 8, 32, 2, 4


@dataclass(frozen=True)
class Card:
    """Bandwidth in bytes a second, and multiprocessors."""

    name: str
    bandwidth: float
    processors: int
    early: bool = False


CARDS = (
    Card("T4", 320e9, 40),
    Card("RTX 3060", 360e9, 28),
    Card("L4", 300e9, 58),
    Card("RTX 3090", 936e9, 82),
    Card("RTX 4090", 1008e9, 128),
    Card("A100 80 GB", 2039e9, 108),
    Card("H100 SXM", 3350e9, 132, early=True),
    Card("RTX 5090", 1792e9, 170, early=True),
)


@dataclass(frozen=True)
class Shape:
    """A causal transformer and the bytes of a weight and of a number in the cache."""

    name: str
    layers: int
    width: int
    weight_bytes: float
    cache_bytes: int

    @property
    def kernels(self) -> int:
        """Kernels of a token: five a layer, the head, the sampler (tests/cpp/decode_step.cpp counts them)."""
        return 5 * self.layers + 2

    def products(self) -> list[tuple[int, int]]:
        """Outputs and depth of every product."""
        w = self.width
        return [(3 * w, w), (w, w), (4 * w, w), (w, 4 * w)] * self.layers + [(10001, w)]

    @property
    def attention_bytes(self) -> float:
        return 2 * CONTEXT * self.width * self.cache_bytes


SHAPES = tuple(
    Shape(f"{name} {precision}", layers, width, weight, cache)
    for name, layers, width in (("bark-small", 12, 768), ("bark", 24, 1024))
    for precision, weight, cache in (("float32", 4, 4), ("float16", 2, 2), ("int8", 1 + 4 / 64, 2))
)


def floor_s(shape: Shape, card: Card) -> float:
    """Seconds that the bytes alone take."""
    weights = sum(outputs * depth for outputs, depth in shape.products()) * shape.weight_bytes
    return (weights + shape.layers * shape.attention_bytes) / (card.bandwidth * REACHED)


def product_s(shape: Shape, card: Card, outputs: int, depth: int) -> float:
    """Seconds of a product: its bytes, or the loads that its blocks can have in flight at a time."""
    count = outputs * depth * shape.weight_bytes
    blocks = -(-outputs // (WARPS * OUTPUTS))
    in_flight = min(2 * card.processors, blocks) * WARPS * LANES * OUTPUTS * LOADS * 16
    return max(count / (card.bandwidth * REACHED), LATENCY_S * max(1.0, count / in_flight))


def step_s(shape: Shape, card: Card) -> float:
    """Seconds of a token."""
    products = sum(product_s(shape, card, *product) for product in shape.products())
    attention = shape.layers * max(shape.attention_bytes / (card.bandwidth * REACHED), 3 * LATENCY_S)
    return products + attention + shape.kernels * (EARLY_GAP_S if card.early else GAP_S)


def table() -> str:
    """The model's rows as Markdown."""
    lines = [
        "A model on paper, not a measurement: us a token (floor), batch 1, 600 tokens of context.",
        "",
        "| | " + " | ".join(shape.name for shape in SHAPES) + " |",
        "|---" * (len(SHAPES) + 1) + "|",
    ]
    for card in CARDS:
        cells = (f"{1e6 * step_s(s, card):.0f} ({1e6 * floor_s(s, card):.0f})" for s in SHAPES)
        lines.append(f"| {card.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
