"""Transformers' own token loops, listened to: where they choose the tokens, or their model has to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    AlternatingCodebooksLogitsProcessor,
    BarkEosPrioritizerLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from bark_accel.hf.compat import run_with_loop

# The last of Bark's own processors in a stage's list.
_LAST_RULES = (BarkEosPrioritizerLogitsProcessor, AlternatingCodebooksLogitsProcessor)


class TokenTap(BaseStreamer):
    """Listens to the tokens of a loop, which begins with its prompt, also where it starts once for each window.

    Parameters
    ----------
    before_step : callable
        Called before each token, and after the last one; may raise to stop the loop.
    on_token : callable, optional
        Called with each token, [B] int64.
    streamer : BaseStreamer, optional
        Another listener, who hears everything first.
    """

    def __init__(
        self,
        before_step: Callable[[], None] = lambda: None,
        on_token: Callable[[Tensor], None] | None = None,
        streamer: BaseStreamer | None = None,
    ):
        self._before_step = before_step
        self._on_token = on_token
        self._streamer = streamer
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if self._streamer is not None:
            self._streamer.put(value)
        is_prompt, self._is_prompt = self._is_prompt, False
        if not is_prompt and self._on_token is not None:
            self._on_token(value)
        self._before_step()

    def end(self) -> None:
        self._is_prompt = True
        if self._streamer is not None:
            self._streamer.end()


def run_listened(
    module: Any,
    tap: TokenTap,
    tokens: Tensor,
    *,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    **kwargs: Any,
) -> Any:
    """Call `generate` of the module's class with a tap; a caller's processors, which it cannot take, follow Bark's."""
    generate = type(module).generate
    if not logits_processor:
        return generate(module, tokens, streamer=tap, **kwargs)
    extra = list(logits_processor)

    def loop(model: Any, input_ids: Tensor, logits_processor: Any = None, **prepared: Any) -> Any:
        found = list(logits_processor)
        after = 1 + next(i for i, p in enumerate(found) if type(p) in _LAST_RULES)
        processors = LogitsProcessorList([*found[:after], *extra, *found[after:]])
        # `generate` shows it the prompt, and keeps it from a loop of somebody else's.
        prepared["streamer"] = tap
        return type(model)._sample(model, input_ids, logits_processor=processors, **prepared)

    return run_with_loop(generate, module, loop, tokens, streamer=tap, **kwargs)
