"""Stock's Bark as fast as a user makes it without bark_accel: bfloat16, and torch's dynamic int8 quantisation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from transformers import BarkModel


def bfloat16(stock: BarkModel) -> BarkModel:
    """A copy in bfloat16."""
    return copy.deepcopy(stock).bfloat16()


def dynamic_int8(stock: BarkModel) -> BarkModel:
    """A copy whose linear layers have int8 weights, and activations quantised at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own quantisation is deprecated: torchao, another package, follows it
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(stock), {torch.nn.Linear}, dtype=torch.qint8)


BASELINES: dict[str, Callable[[BarkModel], BarkModel]] = {
    "stock bfloat16": bfloat16,
    "stock dynamic int8": dynamic_int8,
}
