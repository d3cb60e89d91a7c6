"""A model of a decode step on paper, no measurement: bytes over bandwidth, and the waits that nothing can hide.

python -m benchmarks.gpu.paper

Kernels one by one: each takes the larger of two bounds, its bytes at the card's bandwidth or what can be in flight at
once over the memory's latency; and a gap between dependent kernels. One kernel for many tokens: memory fills the rings
of shared memory while blocks wait for each other, and a product takes what its ring did not hold, or the instructions
of its inner loop. Bytes and kernels follow from the shapes; loads in flight, sizes of rings and instructions are those
of the built objects (`tests/cpp/test_sass.py` holds them together). Bandwidths and shared memory are the vendors'
figures, the times below assumptions. A GPU's own figures are to be held against these rows: a row of the `decode_step`
table has `native_graph_ms` and `native_many_tokens_ms`.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCY_S = 0.7e-6  # of a load from memory
GAP_S = 1.3e-6  # between dependent kernels of a graph
EARLY_GAP_S = 0.9e-6  # with programmatic dependent launch (an assumption)
BARRIER_S = 0.9e-6  # all blocks of a kernel wait for each other (0.7 to 1.0 published)
FILL_S = 0.7e-6  # a product's rows from the level-two cache into shared memory, normalised, and its sums put away
DRAW_S = 5e-6  # a semantic token from 10,001 scores
LAUNCH_S = 4e-6  # of a kernel that the host asks for one by one
REACHED = 0.9  # of the bandwidth that a vendor names
CLOCK_HZ = 1.6e9
ISSUED = 2.0  # instructions a cycle of a multiprocessor with 8 warps, of 4 at most
CONTEXT = 600
# csrc/cuda/gemv_params.cuh: 8 warps a block, pairs of outputs, loads of 16 bytes that a lane has in flight.
WARPS, LANES, OUTPUTS, LOADS = 8, 32, 2, 4
# csrc/cuda/weight_ring.cuh: batches in a ring, and what else a block has of shared memory (44 KiB of scores).
RINGS = (22, 14, 10, 6, 4, 2)
OTHER_SHARED = 46 * 1024
# Instructions of the inner loop, for one row, by bytes of a weight (of a batch of 16 bytes a lane and output).
LOOP = {4: 48, 2: 75, 1: 162}


@dataclass(frozen=True)
class Card:
    """Bandwidth in bytes a second, multiprocessors, and KiB of shared memory that a block may have."""

    name: str
    bandwidth: float
    processors: int
    shared: int
    early: bool = False

    def ring_bytes(self, scales: bool) -> int:
        """Bytes of weights, with their scales, that rings have on their way; 0: the card has no such copies."""
        batch = OUTPUTS * WARPS * LANES * (20 if scales else 16)
        room = self.shared * 1024 - OTHER_SHARED if self.shared > 64 else 0
        return self.processors * batch * next((size for size in RINGS if size * batch <= room), 0)


CARDS = (
    Card("T4", 320e9, 40, 64),
    Card("RTX 3060", 360e9, 28, 99),
    Card("L4", 300e9, 58, 99),
    Card("RTX 3090", 936e9, 82, 99),
    Card("RTX 4090", 1008e9, 128, 99),
    Card("A100 80 GB", 2039e9, 108, 163),
    Card("H100 SXM", 3350e9, 132, 227, early=True),
    Card("H200", 4800e9, 132, 227, early=True),
    Card("RTX 5090", 1792e9, 170, 99, early=True),
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
    def rate(self) -> float:
        """Bytes a second that a multiprocessor has the instructions for."""
        return LANES * OUTPUTS * 16 * ISSUED * CLOCK_HZ / LOOP[int(self.weight_bytes)]

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
    """Seconds of a product: its bytes, the loads that its blocks can have in flight at a time, or instructions."""
    count = outputs * depth * shape.weight_bytes
    blocks = -(-outputs // (WARPS * OUTPUTS))
    loads = LOADS if shape.weight_bytes >= 2 else 2
    in_flight = min(2 * card.processors, blocks) * WARPS * LANES * OUTPUTS * loads * 16
    return max(
        count / (card.bandwidth * REACHED),
        LATENCY_S * max(1.0, count / in_flight),
        count / (shape.rate * min(card.processors, blocks)),
    )


def step_s(shape: Shape, card: Card) -> float:
    """Seconds of a token, kernels one by one in a graph."""
    products = sum(product_s(shape, card, *product) for product in shape.products())
    attention = shape.layers * max(shape.attention_bytes / (card.bandwidth * REACHED), 3 * LATENCY_S)
    return products + attention + DRAW_S + shape.kernels * (EARLY_GAP_S if card.early else GAP_S)


def persistent_s(shape: Shape, card: Card) -> float:
    """Seconds of a token of a launch that draws many."""
    speed = card.bandwidth * REACHED
    room, held, total = card.ring_bytes(shape.weight_bytes % 1 > 0), 0.0, 0.0
    if not room:  # without copies: what a block has in registers
        room = card.processors * WARPS * LANES * OUTPUTS * LOADS * 16

    def pass_by(seconds: float, taken: float = 0.0) -> None:
        nonlocal held, total
        held = min(room, held + speed * seconds) - taken
        total += seconds

    for outputs, depth in shape.products():
        pass_by(BARRIER_S + FILL_S)
        count = outputs * depth * shape.weight_bytes
        seconds = max(count / (shape.rate * card.processors), (count - held) / speed)
        held, total = min(room, max(0.0, held + speed * seconds - count)), total + seconds
        if outputs == 3 * shape.width:  # attention, whose own bytes compete
            seconds = max(shape.attention_bytes / speed, 3 * LATENCY_S)
            pass_by(BARRIER_S)
            held, total = min(room, held + speed * seconds - shape.attention_bytes), total + seconds
    pass_by(BARRIER_S + DRAW_S)
    return total


# Of the codec beside its LSTM's (tests/stages/test_codec.py counts them).
CODEC_KERNELS = 120
LSTM_LAYERS = 2


def codec_graph() -> tuple[float, float]:
    """Seconds that a CUDA graph would save of a call of the codec, and frames of padding that cost as much.

    A frame is a step of each layer of the LSTM that waits for the one before.
    """
    saved = CODEC_KERNELS * (LAUNCH_S - GAP_S)
    return saved, saved / (LSTM_LAYERS * (GAP_S + LATENCY_S))


def table() -> str:
    """The model's rows as Markdown."""
    lines = [
        "A model on paper, not a measurement: us a token (floor), batch 1, 600 tokens of context.",
        "Kernels one by one in a graph / one kernel for many tokens (the bytes alone).",
        "",
        "| | " + " | ".join(shape.name for shape in SHAPES) + " |",
        "|---" * (len(SHAPES) + 1) + "|",
    ]
    for card in CARDS:
        cells = (
            f"{1e6 * step_s(s, card):.0f} / {1e6 * persistent_s(s, card):.0f} ({1e6 * floor_s(s, card):.0f})"
            for s in SHAPES
        )
        lines.append(f"| {card.name} | " + " | ".join(cells) + " |")
    saved, frames = codec_graph()
    lines += [
        "",
        f"A graph of the codec would save {1e3 * saved:.2f} ms a call; {frames:.0f} frames of padding cost as much.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
