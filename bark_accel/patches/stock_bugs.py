"""Stock's bugs: kept by default, warned about once where they hurt, fixed by name with `fix_stock_bugs=`.

Two are always fixed: stock fails for an utterance that ends at once, and counts a row's frames in torch's default
dtype, in 16 bits wrongly (133 semantic tokens are 200 frames in bfloat16, 199 in float32, which is taken here).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers.models.bark.generation_configuration_bark import (
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel._caller import warn_caller
from bark_accel.hf.inputs import tokens_of_cut_text

STOCK_BUGS = {
    "cut_text": "a text of more tokens than Bark reads is cut; fixed: ValueError",
    "ignored_min_eos_p": "min_eos_p of the generation config is ignored; fixed: it holds where no argument is given",
    "ignored_generation_config": "generation_config= is ignored; fixed: it replaces the model's own in that call",
    "fine_not_greedy": "do_sample=False still samples in the fine stage; fixed: it takes the most likely code",
    "fine_temperature_one": "temperature=1.0 takes the fine stage's most likely code; fixed: it draws one",
    "fine_temperature_zero": "temperature=0.0 fails in the fine stage; fixed: it takes the most likely code",
    "codes_beyond_codebook": "the second codebook draws ids beyond its codes, wrapped later; fixed: they are masked",
    "batch_tails": "rows that have ended go on, and the fine stage hears it; fixed: each row is as if alone",
}


class StockBugs:
    """Which of `STOCK_BUGS` are fixed on one model, and what was said about the others.

    Parameters
    ----------
    fix : bool or iterable of str
        All, none, or the names of those to fix.

    Raises
    ------
    ValueError
        A name that is not in `STOCK_BUGS`.
    """

    def __init__(self, fix: bool | Iterable[str] = False):
        self.fixed = _names(fix)
        self._warned: set[str] = set()

    def fixes(self, name: str) -> bool:
        """Tell whether the bug of that name, one of `STOCK_BUGS`, is fixed."""
        assert name in STOCK_BUGS
        return name in self.fixed

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn_caller(message)

    def check_text(self, input_ids: Tensor, attention_mask: Tensor | None, max_tokens: int) -> None:
        """Say aloud that Bark will not read all of a text, each time; raise `ValueError` where `cut_text` is fixed."""
        tokens = tokens_of_cut_text(input_ids, attention_mask, max_tokens)
        if tokens is None:
            return
        if self.fixes("cut_text"):
            raise ValueError(f"input_ids: expected at most {max_tokens} text tokens, got {tokens}; split the text")
        warn_caller(f"Bark reads {max_tokens} text tokens; a text of {tokens} is cut. Split it into sentences.")

    def check_ended(self, config: BarkSemanticGenerationConfig, tokens: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Say once that speech [B, T] stops at the limit of the semantic config; not of one that the caller set."""
        limit = config.max_new_tokens
        if kwargs.get("max_new_tokens") is not None or tokens is None or limit is None or tokens.shape[1] < limit:
            return
        if bool((tokens[:, -1] != config.semantic_pad_token).any()):
            seconds = limit / config.semantic_rate_hz
            self.warn_once(
                f"Bark speaks {seconds:.1f} s at once, and this text has reached that without the end of speech: the "
                "rest of it is missing. bark_accel.long_form says texts of any length; a limit of your own, "
                "semantic_max_new_tokens=, is not warned about"
            )

    def with_min_eos_p(self, semantic_config: BarkSemanticGenerationConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `BarkModel.generate`, with the config's `min_eos_p` where that is fixed."""
        configured = semantic_config.min_eos_p
        if configured is None or kwargs.get("min_eos_p") is not None or "semantic_min_eos_p" in kwargs:
            return kwargs
        if self.fixes("ignored_min_eos_p"):
            return {**kwargs, "min_eos_p": configured}
        self.warn_once("BarkModel.generate ignores generation_config.semantic_config['min_eos_p']; pass min_eos_p=")
        return kwargs

    def fine_temperature(self, config: BarkFineGenerationConfig, kwargs: dict[str, Any]) -> float | None:
        """The temperature of the fine stage; None and 1.0 take the most likely code, one below 0 favours unlikely ones.

        Raises `ValueError` for one that cannot be divided by or drawn with. `kwargs` are the stage's arguments.
        """
        temperature = kwargs.get("temperature", config.temperature)
        if isinstance(temperature, str):
            raise TypeError(f"fine temperature: expected None or a number other than 0, got {temperature!r}")
        if temperature == 0 and self.fixes("fine_temperature_zero"):
            return None
        if temperature is not None and (temperature == 0 or math.isnan(temperature)):
            hint = "; fix_stock_bugs=['fine_temperature_zero'] takes 0.0" if temperature == 0 else ""
            raise ValueError(f"fine temperature: expected None or a number other than 0, got {temperature}{hint}")
        # None and not given are no wish; 0 and numpy's False, as other stages take them, are.
        greedy = kwargs.get("do_sample") is not None and not kwargs["do_sample"]
        if greedy and temperature not in (None, 1.0):
            if self.fixes("fine_not_greedy"):
                return None
            self.warn_once(
                f"do_sample=False: Bark's fine stage still samples at temperature {temperature}; pass "
                "fine_temperature=None, or accelerate_bark(..., fix_stock_bugs=['fine_not_greedy'])"
            )
        if not greedy and kwargs.get("temperature") == 1.0:
            if self.fixes("fine_temperature_one"):
                # Any other number is drawn with, and this one divides as 1.0 does in float32.
                return math.nextafter(1.0, 2.0)
            self.warn_once(
                "temperature=1.0: Bark's fine stage takes the most likely code instead of drawing one; pass another "
                "fine_temperature, or accelerate_bark(..., fix_stock_bugs=['fine_temperature_one'])"
            )
        return temperature


def _names(fix: bool | Iterable[str]) -> frozenset[str]:
    if isinstance(fix, bool):
        return frozenset(STOCK_BUGS if fix else ())
    names = [fix] if isinstance(fix, str) or not isinstance(fix, Iterable) else list(fix)
    unknown = [name for name in names if name not in STOCK_BUGS]
    if unknown:
        known = ", ".join(map(repr, STOCK_BUGS))
        raise ValueError(f"fix_stock_bugs: expected True, False or names among {known}, got {unknown[0]!r}")
    return frozenset(names)
