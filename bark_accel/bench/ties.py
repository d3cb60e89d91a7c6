"""Judges tokens that differ from stock's: they may at a tie, where rounding decides, and nowhere else.

A difference is explained when stock itself, with a few ties decided the other way, says exactly the same: so all that
follows a tie is compared as well. Ties are looked for among all that stock chooses, the padding of a fine window
included, by a copy of it in float64 that is made to choose what stock chose in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import BarkModel

from bark_accel import restore_bark
from bark_accel._caller import warn_caller
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.ops.device import has_float64

from .models import shared_copy

TIE = 1e-6
"""Scores less than this apart in float64 tie: logits, or log(probability / noise) where tokens are drawn.

So do those less apart than stock's own float32 scores are wrong in the same generation, up to `MOST`.
"""
MOST = 1e-4
_MOST_TIES = 3
_MOST_RUNS = 12


@dataclass(frozen=True)
class Tie:
    """A choice that rounding decides: `token` may stand for `stocks`; the worse of them is `margin` below the best.

    `choice` counts from the start of the generation: a semantic or coarse token of every row, or a codebook of all
    frames of a fine window. `place` is the row of the batch, or counts the frames of all rows of the window.
    """

    stage: str
    choice: int
    place: int
    token: int
    stocks: int
    margin: float

    def __str__(self) -> str:
        where = f"{self.stage}, choice {self.choice} of the generation, place {self.place}"
        return f"{where}: {self.token} for stock's {self.stocks}, {self.margin:.1e} apart"


def explaining_ties(
    model: BarkModel, generate: Callable[[BarkModel], Any], agrees: Callable[[Any], bool]
) -> list[Tie] | None:
    """Find the ties that stock has to decide the other way for `agrees`.

    Parameters
    ----------
    model : BarkModel
        In float32. An accelerated one is not run: a stock model on the same weights is.
    generate : callable
        Seeds the generators, calls `generate` of the model it is given, and returns what is to be compared.
    agrees : callable
        Whether a result of stock's is the one to be explained.

    Returns
    -------
    list of Tie, or None
        In stock's order, empty where stock agrees as it is; None where a few ties do not explain the difference.
    """
    if not has_float64(model.device):
        warn_caller(f"bark_accel: {model.device} has no float64, in which ties are judged: any difference counts")
        return None
    stock = restore_bark(shared_copy(model))
    double = copy.deepcopy(stock).double()
    runs = iter(range(_MOST_RUNS))

    def search(decided: list[Tie]) -> list[Tie] | None:
        if next(runs, None) is None:
            return None
        with _Deciding(decided).watch(stock) as deciding:
            result = generate(stock)
        if agrees(result):
            return decided
        if len(decided) == _MOST_TIES:
            return None
        last = (decided[-1].choice, decided[-1].place) if decided else (-1, -1)
        later = [tie for tie in _ties(double, generate, deciding.made) if (tie.choice, tie.place) > last]
        found = (search([*decided, tie]) for tie in sorted(later, key=lambda tie: tie.margin))
        return next((ties for ties in found if ties is not None), None)

    return search([])


class _Made(NamedTuple):
    """Ids [N] of one choice in float32, the two best [N, 2] of each place and how far their scores were apart [N]."""

    ids: Tensor
    best: Tensor
    apart: Tensor


def _ties(double: BarkModel, generate: Callable[[BarkModel], Any], made: Sequence[_Made]) -> list[Tie]:
    """Find the ties among the choices `made`, with a model in float64 that is made to choose the same."""
    with _Judging(made).watch(double) as judging:
        try:
            generate(double)
        except _AllJudged:
            return [tie for tie in judging.near if tie.margin < max(TIE, judging.error)]
    raise RuntimeError(f"expected {len(made)} choices of stock in float64 as in float32, got {judging.count}")


class _Choices(TorchFunctionMode):
    """Sees every choice of a token that Transformers' loops make."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.stage = ""

    @contextmanager
    def watch(self, model: BarkModel) -> Iterator[Any]:
        with trace_stages(model, lambda stage: setattr(self, "stage", stage)), self:
            yield self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.argmax, torch.multinomial) or _draws_beams(func, args, kwargs or {}):
            return self.call(func, args, kwargs or {})
        self.count += 1
        return self.choose(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def choose(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        raise NotImplementedError


class _Deciding(_Choices):
    """Decides ties the other way, and keeps what was chosen."""

    def __init__(self, ties: Sequence[Tie]) -> None:
        super().__init__()
        self._ties = ties
        self.made: list[_Made] = []

    def choose(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        ids = func(*args, **kwargs)
        for tie in self._ties:
            if tie.choice == self.count:
                ids.view(-1)[tie.place] = tie.token
        best = args[0].flatten(0, -2).topk(2).indices
        self.made.append(_Made(ids.flatten().clone(), best, _apart(_logits(func, args[0]), best)))
        return ids


class _AllJudged(Exception):
    """The last choice was judged; what stock computes after it does not matter."""


class _Judging(_Choices):
    """Makes the choices that were made in float32, and finds those that are near a tie in float64."""

    def __init__(self, made: Sequence[_Made]) -> None:
        super().__init__()
        self._made = made
        self.near: list[Tie] = []
        self.error = 0.0
        """Largest error of float32 in how far the two best are apart."""

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Stock converts scores to float32 before it chooses."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        result = func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()})
        # Logits processors make tensors of torch's default dtype, which can not be written to others.
        return result.double() if isinstance(result, Tensor) and result.dtype == torch.float32 else result

    def choose(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        made = self._made[self.count - 1]
        scores = _logits(func, args[0])
        errors = (_apart(scores, made.best) - made.apart).abs()
        self.error = max([self.error, *errors[errors.isfinite()].tolist()])
        drawn = func is torch.multinomial
        if drawn:
            # The noise that torch.multinomial draws for float32 probabilities.
            scores = scores - torch.empty_like(args[0], dtype=torch.float32).exponential_(1).double().log()
        self.near += _near(self.stage, self.count, scores, made.ids)
        if self.count == len(self._made):
            raise _AllJudged
        return made.ids.view(*args[0].shape[:-1], *([1] if drawn else []))


def _draws_beams(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether several ids are drawn at once: ties of beams are not looked for."""
    return func is torch.multinomial and kwargs.get("num_samples", *args[1:2] or (1,)) != 1


def _logits(func: Any, scores: Tensor) -> Tensor:
    """Float64 [N, ids] of what `torch.argmax` or `torch.multinomial` is given."""
    flat = scores.flatten(0, -2).double()
    return flat.log() if func is torch.multinomial else flat


def _apart(scores: Tensor, best: Tensor) -> Tensor:
    first, second = scores.gather(1, best).unbind(1)
    return first - second


def _near(stage: str, choice: int, scores: Tensor, ids: Tensor) -> Iterator[Tie]:
    """Other ids that could stand for `ids` [N] by scores [N, ids]: both are near the best."""
    margins = scores.amax(1, keepdim=True) - torch.minimum(scores, scores.gather(1, ids[:, None]))
    for place, token in (margins < MOST).nonzero().tolist():
        if token != ids[place]:
            yield Tie(stage, choice, place, token, int(ids[place]), float(margins[place, token]))
