"""Features in which stock Bark itself fails in some Transformers versions; parity tests skip them."""

from __future__ import annotations

import pytest
import transformers

# Feature -> (beginnings of the versions, why stock fails).
_LIMITS = {
    "static cache": (("4.57.", "5.0."), "it builds a cache too small for Bark"),
    "beams": (("4.52.",), "its beam search takes the vocabulary of Bark's inputs for that of the outputs"),
    "another layer": (("4.",), "it looks up a head mask for each layer of the config"),
    "return_dict_in_generate": (("4.",), "it cannot unpack the tokens"),
    "a voice in a pipeline": (("4.",), "its pipeline has a tokenizer alone, and finds no voices of a folder"),
    "criteria of its own kind": (("4.46.", "4.49."), "it refuses a caller's beside its own of the same class"),
    "two masks": (("4.46.", "4.49."), "it refuses a list of its own beside Bark's"),
    "text-to-speech pipeline": (("5.17.",), "it passes arguments that Bark does not take"),
}


def skip_where_stock_fails(feature: str) -> None:
    versions, reason = _LIMITS[feature]
    if transformers.__version__.startswith(versions):
        pytest.skip(f"stock fails at {feature}: {reason}")
