"""Each stage against its stock counterpart, bark-small's shapes, random weights, float32.

pytest benchmarks/bench_stages.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from transformers import BarkModel, DynamicCache
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel import accelerate_bark
from bark_accel.backend import get_ops
from bark_accel.gpt import causal_forward, embed, head_logits, positions
from bark_accel.kv_cache import KVCachePool
from bark_accel.patches import extract
from bark_accel.patches.checkpoints import random_bark, twin

SIDES = pytest.mark.parametrize("side", ["stock", "accelerated"])
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """Two models on the same weights."""

    stock: BarkModel
    accelerated: BarkModel

    def __getitem__(self, side: str) -> BarkModel:
        return getattr(self, side)


@pytest.fixture(scope="session")
def pair() -> Pair:
    transformers.logging.set_verbosity_error()
    stock = random_bark("bark-small")
    return Pair(stock, accelerate_bark(twin(stock), strict=True))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def configs(model: BarkModel) -> dict[str, Any]:
    settings: Any = model.generation_config
    return {
        "semantic_generation_config": BarkSemanticGenerationConfig(**settings.semantic_config),
        "coarse_generation_config": BarkCoarseGenerationConfig(**settings.coarse_acoustics_config),
        "fine_generation_config": BarkFineGenerationConfig(**settings.fine_acoustics_config),
    }


def measure(benchmark: Any, group: str, run: Callable[[], object], rounds: int) -> None:
    benchmark.group = group
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=1, iterations=1)


def stock_forward(submodel: Any, context: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Ids [1, T] -> scores of the next token, after `context` cached tokens, again and again."""
    cache = DynamicCache(config=submodel.config)
    if context:
        submodel(torch.zeros(1, context, dtype=torch.int64), past_key_values=cache, use_cache=True)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        past = cache if context else DynamicCache(config=submodel.config)
        logits = submodel(ids, past_key_values=past, use_cache=True).logits[:, -1]
        past.crop(-ids.shape[1])
        return logits

    return forward


def our_forward(stage: str, submodel: Any, context: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same over the static cache, which stays borrowed."""
    weights, spec = extract.transformer_weights(stage, submodel), extract.transformer_spec(submodel)
    ops = get_ops("auto", CPU)
    loan = KVCachePool().borrow(spec, 1, weights.dtype, CPU)
    cache = loan.__enter__()

    def append(ids: torch.Tensor) -> torch.Tensor:
        hidden = embed(weights.token_tables[0], ids) + positions(weights, cache.position, ids.shape[1])
        return causal_forward(weights, spec, hidden, cache, ops)

    if context:
        append(torch.zeros(1, context, dtype=torch.int64))

    def forward(ids: torch.Tensor) -> torch.Tensor:
        cache.truncate(context)
        return head_logits(append(ids), weights.heads[0])

    # Keeps the loan open for as long as the function lives.
    forward.loan = loan  # type: ignore[attr-defined]
    return forward


def forward_of(side: str, stage: str, submodel: Any, context: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return stock_forward(submodel, context) if side == "stock" else our_forward(stage, submodel, context)


@SIDES
def test_semantic_step(benchmark: Any, pair: Pair, side: str) -> None:
    """One token after 600 cached ones, without sampling."""
    forward = forward_of(side, "semantic", pair.stock.semantic, 600)
    token = torch.tensor([[17]])
    measure(benchmark, "semantic step, context 600", lambda: forward(token), rounds=20)


@SIDES
def test_coarse_prefill(benchmark: Any, pair: Pair, side: str) -> None:
    """The longest prompt of a window: 256 semantic tokens, the infer token, 630 coarse tokens."""
    forward = forward_of(side, "coarse", pair.stock.coarse_acoustics, 0)
    prompt = torch.randint(0, 10_000, (1, 887))
    measure(benchmark, "coarse prefill, 887 tokens", lambda: forward(prompt), rounds=3)


@SIDES
def test_coarse_window(benchmark: Any, pair: Pair, side: str) -> None:
    """The first window of 60 tokens: 20 semantic tokens ask for just one."""
    model, semantic = pair[side], torch.randint(0, 10_000, (1, 20))
    settings = {k: v for k, v in configs(model).items() if not k.startswith("fine")}

    def run() -> torch.Tensor:
        tokens = model.coarse_acoustics.generate(semantic.clone(), **settings)
        assert tokens.shape == (1, 60)
        return tokens

    measure(benchmark, "coarse window, 60 tokens", run, rounds=3)


@SIDES
def test_fine_window(benchmark: Any, pair: Pair, side: str) -> None:
    """Six passes over one window; 300 frames are padded to its 1024."""
    model = pair[side]
    codes = torch.randint(0, 1024, (1, 300, 2)) + torch.tensor([10_000, 11_024])
    settings = configs(model)
    run = lambda: model.fine_acoustics.generate(codes.view(1, -1), **settings)  # noqa: E731
    measure(benchmark, "fine window, 1024 frames", run, rounds=2)


@SIDES
def test_codec_decode(benchmark: Any, pair: Pair, side: str) -> None:
    """5 s of audio."""
    model, codes = pair[side], torch.randint(0, 1024, (1, 8, 375))
    measure(benchmark, "codec decode, 375 frames", lambda: model.codec_decode(codes), rounds=3)
