"""Shape of a transformer, read once from its config and frozen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformerSpec:
    """Shape of one of the three transformers (GPT-2 blocks, exact GELU, learned positions)."""

    num_layers: int
    num_heads: int
    width: int
    block_size: int
    output_vocab_size: int

    @property
    def head_size(self) -> int:
        return self.width // self.num_heads
