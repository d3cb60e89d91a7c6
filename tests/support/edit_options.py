"""Options of generate that edit the logits before Bark's rules, each of which decides tokens of the small model."""

from __future__ import annotations

from typing import Any

FREQUENT = [58, 27, 41, 75, 56, 33]
OPTIONS: dict[str, dict[str, Any]] = {
    "penalty": {"semantic_repetition_penalty": 1.7, "coarse_repetition_penalty": 1.3},
    "reward": {"semantic_repetition_penalty": 0.5, "coarse_repetition_penalty": 0.6},
    "bans": {"semantic_bad_words_ids": [[i] for i in FREQUENT], "coarse_suppress_tokens": list(range(100, 120))},
    "first": {"semantic_begin_suppress_tokens": FREQUENT, "coarse_begin_suppress_tokens": list(range(100, 140))},
    "bias": {"semantic_sequence_bias": [[[33], 9.0], [[75], -9.0]], "coarse_sequence_bias": [[[111], 9.0]]},
    "all": {
        "semantic_repetition_penalty": 1.5,
        "semantic_sequence_bias": [[[33], 4.0], [[5], -2.0]],
        "semantic_bad_words_ids": [[58], [27]],
        "semantic_begin_suppress_tokens": FREQUENT,
        "semantic_min_new_tokens": 20,
        "coarse_repetition_penalty": 1.2,
        "coarse_suppress_tokens": [111, 150, 200],
        "temperature": 0.9,
        "top_k": 20,
    },
}
