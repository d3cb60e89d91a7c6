"""Teacher-forced scores: what stock's transformers were fed while they spoke, fed to ours with smaller numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BarkModel

from bark_accel.hf.compat import prompt_argument
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.bidirectional import bidirectional_forward
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool
from bark_accel.transformer.layers import linear
from bark_accel.transformer.precision import convert
from bark_accel.transformer.weights import TransformerWeights

# Scores to compare in each stage: steps of the causal stages, passes of the fine stage.
_MOST = {"semantic": 200, "coarse": 200, "fine": 6}


@dataclass
class Fed:
    """Ids (or embeddings, for a prompt) that a stage's transformer was fed, and stock's scores after each."""

    feeds: list[Any] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Distance:
    """Distance of scores to stock's: norm of the difference over the norm, KL divergence in nats, equal best ids."""

    relative_error: float
    kl_nats: float
    top_1_agreement: float


def recorded(stock: BarkModel, generate: Callable[[BarkModel], Any]) -> dict[str, Fed]:
    """Record what each stage is fed, and its scores, while stock generates once.

    Parameters
    ----------
    stock : BarkModel
        Not accelerated, in float32.
    generate : callable
        Generates once with the model it is given, without voices or with.

    Returns
    -------
    dict
        By stage: for `distances`.
    """
    fed = {stage: Fed() for stage in _MOST}
    with torch.no_grad(), ExitStack() as hooks:
        for stage, module in _modules(stock).items():
            hooks.enter_context(_recorded(stage, module, fed[stage]))
        generate(stock)
    return fed


@torch.no_grad()
def distances(
    stock: BarkModel, fed: dict[str, Fed], precision: str, *, int8_cache: bool = False
) -> dict[str, Distance]:
    """Compare scores with stock's, of the same tokens, by stage.

    Parameters
    ----------
    stock : BarkModel
        The one that was recorded.
    fed : dict
        What `recorded` found.
    precision : str
        Of the weights, one of `transformer.precision.WEIGHTS`; `"same"` is what rounding in another order does.
    int8_cache : bool
        Keep keys and values in 8 bits; the fine stage, which keeps none, is left out.
    """
    found = {}
    for stage, module in _modules(stock).items():
        if stage == "fine" and int8_cache:
            continue
        weights, feeds = convert(transformer_weights(stage, module), precision), fed[stage].feeds
        if stage == "fine":
            scores = _fine_scores(weights, module, feeds)
        else:
            scores = _causal_scores(weights, module, feeds, torch.int8 if int8_cache else None)
        found[stage] = distance(torch.cat(fed[stage].scores), torch.cat(scores))
    return found


def distance(expected: Tensor, got: Tensor) -> Distance:
    """Compare scores [n, V] with those expected."""
    expected, got = expected.cpu().double(), got.cpu().double()  # not every device has float64
    kl = F.kl_div(got.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean")
    same = got.argmax(-1) == expected.argmax(-1)
    error = (got - expected).norm() / expected.norm()
    return Distance(error.item(), max(kl.item(), 0.0), same.double().mean().item())


def _modules(model: BarkModel) -> dict[str, Any]:
    return {"semantic": model.semantic, "coarse": model.coarse_acoustics, "fine": model.fine_acoustics}


@contextmanager
def _recorded(stage: str, module: Any, fed: Fed) -> Iterator[None]:
    """Wrap the instance's `forward`: the fine stage calls it past any hook."""
    stock_forward = module.forward

    @wraps(stock_forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        feed = _fed(stage, module, args, kwargs)
        outputs = stock_forward(*args, **kwargs)
        if len(fed.feeds) < _MOST[stage]:
            fed.feeds.append(feed)
            fed.scores.append(outputs.logits[0] if stage == "fine" else outputs.logits[:, -1])
        return outputs

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _fed(stage: str, module: Any, args: Any, kwargs: Any) -> Any:
    if stage == "fine":
        codebook, codes = args
        return int(codebook), codes.clone()
    embeds = kwargs.get(prompt_argument(module))
    return (kwargs["input_ids"] if embeds is None else embeds).clone()


def _causal_scores(
    weights: TransformerWeights, module: Any, feeds: list[Tensor], cache_dtype: torch.dtype | None
) -> list[Tensor]:
    """Scores [1, V] after each feed; whatever is longer than a token begins anew."""
    spec, device = transformer_spec(module), module.device
    model = CausalModel(weights, spec, get_ops("auto", device), None, cache_dtype)
    rows, scores = slice(0, spec.output_vocab_size), []
    with KVCachePool().borrow(spec, 1, model.cache_dtype, device) as cache:
        for feed in feeds:
            if feed.shape[1] > 1:
                cache.truncate(0)
            if feed.is_floating_point():
                hidden = feed.float() + model.positions(0, feed.shape[1])
                scores.append(model.prefill_logits(hidden, cache, rows))
            else:
                scores.append(model.next_logits(feed.contiguous(), cache, rows))
    return scores


def _fine_scores(weights: TransformerWeights, module: Any, feeds: list[tuple[int, Tensor]]) -> list[Tensor]:
    """Scores [T, V] of each pass."""
    ops, spec, scores = get_ops("auto", module.device), transformer_spec(module), []
    for codebook, codes in feeds:
        hidden = ops.codebook_embedding_sum(codes, weights.token_tables[: codebook + 1], weights.positions)
        hidden = bidirectional_forward(weights, spec, hidden, ops)
        head = weights.heads[codebook - module.config.n_codes_given]
        scores.append(linear(hidden, head, ops)[0])
    return scores
