"""A caller's processors behind Bark's own, for which `BarkModel.generate` has no argument: in stock, in a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from bark_accel import AudioStreamer
from bark_accel.hf.compat import _takes_custom_loop
from bark_accel.patches.token_loop import _LAST_RULES

needs_stocks_loop = pytest.mark.skipif(not _takes_custom_loop(), reason="this Transformers takes no loop of a caller's")


class Seen(LogitsProcessor):
    """Notes what it is called with, and lifts even ids."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append((input_ids.clone(), scores.clone()))
        lifted = scores.clone()
        lifted[:, ::2] += 2
        return lifted


def streamed(model: Any, seed: int, processors: dict[str, Sequence[Callable]], **options: Any) -> torch.Tensor:
    """Audio [B, S] of a stream whose tokens are stock's, with processors by stage."""
    torch.manual_seed(seed)
    given = {f"{stage}_logits_processor": list(its) for stage, its in processors.items()}
    return model.generate(**options, **given, streamer=AudioStreamer(model, policy="exact", interleave=False))


def stock_with(model: Any, seed: int, processors: dict[str, Sequence[Callable]], **options: Any) -> torch.Tensor:
    """The same of stock: audio [B, S]."""
    torch.manual_seed(seed)
    return model.generate(**options, **{f"{stage}_custom_generate": _loop(its) for stage, its in processors.items()})


def _loop(processors: Sequence[Callable]) -> Callable:
    def loop(module: Any, input_ids: torch.Tensor, logits_processor: Any, **prepared: Any) -> Any:
        last = next(i for i, p in enumerate(logits_processor) if type(p) in _LAST_RULES)
        logits_processor[last + 1 : last + 1] = processors
        return type(module)._sample(module, input_ids, logits_processor=logits_processor, **prepared)

    return loop
