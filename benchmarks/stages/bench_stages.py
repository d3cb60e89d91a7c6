"""Each stage against its stock counterpart, bark-small's shapes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BarkModel

from bark_accel import accelerate_bark
from bark_accel.bench.models import shared_copy
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.stages.spec import TOKEN_STAGES
from benchmarks.ops.interleaved import GemmProbe, compare
from benchmarks.ops.transformers_steps import OurForward, stock_forward

SHAPE = "bark-small"
PRECISIONS = pytest.mark.parametrize("precision", ["same", "float16", "int8"])


@pytest.fixture
def pair(bark: Callable[[str], BarkModel], precision: str) -> tuple[BarkModel, BarkModel]:
    """(stock, accelerated) on the same weights."""
    stock = bark(SHAPE)
    return stock, accelerate_bark(shared_copy(stock), strict=True, weights=precision)


def configs(model: BarkModel) -> dict[str, Any]:
    parsed = GenerationConfigs.of(model)
    return {f"{stage}_generation_config": getattr(parsed, stage) for stage in TOKEN_STAGES}


def label(precision: str) -> str:
    return "float32" if precision == "same" else precision


@PRECISIONS
def test_coarse_prefill(benchmark: Any, bark: Callable[[str], BarkModel], precision: str) -> None:
    """The longest prompt of a window: 256 semantic tokens, the infer token, 630 coarse tokens."""
    coarse, prompt = bark(SHAPE).coarse_acoustics, torch.randint(0, 10_000, (1, 887))
    ours = OurForward("coarse", coarse, prompt, 0, precision, slice(10_000, 11_024))
    baselines = {"stock": stock_forward(coarse, prompt, 0), "GEMM probe": GemmProbe()}
    compare(benchmark, f"coarse prefill, 887 tokens, {label(precision)}", ours, baselines, rounds=5)


@PRECISIONS
def test_coarse_window(benchmark: Any, pair: tuple[BarkModel, BarkModel], precision: str) -> None:
    """The first window of 60 tokens: 20 semantic tokens ask for just one. With self-speculation, except int8."""
    semantic = torch.randint(0, 10_000, (1, 20))

    def run(model: BarkModel) -> torch.Tensor:
        settings = {k: v for k, v in configs(model).items() if not k.startswith("fine")}
        tokens = model.coarse_acoustics.generate(semantic.clone(), **settings)
        assert tokens.shape == (1, 60)
        return tokens

    stock, accelerated = pair
    group = f"coarse window, 60 tokens, {label(precision)}"
    compare(benchmark, group, lambda: run(accelerated), {"stock": lambda: run(stock)}, rounds=5, back_to_back=False)


@PRECISIONS
def test_fine_window(benchmark: Any, pair: tuple[BarkModel, BarkModel], precision: str) -> None:
    """Six passes over one window; 300 frames are padded to its 1024."""
    codes = (torch.randint(0, 1024, (1, 300, 2)) + torch.tensor([10_000, 11_024])).view(1, -1)
    stock, accelerated = pair

    def run(model: BarkModel) -> torch.Tensor:
        return model.fine_acoustics.generate(codes, **configs(model))

    baselines = {"stock": lambda: run(stock), "GEMM probe": GemmProbe()}
    group = f"fine window, 1024 frames, {label(precision)}"
    compare(benchmark, group, lambda: run(accelerated), baselines, rounds=3, back_to_back=False)


@pytest.mark.parametrize("precision", ["same"])
def test_codec_decode(benchmark: Any, pair: tuple[BarkModel, BarkModel], precision: str) -> None:
    """5 s of audio."""
    (stock, accelerated), codes = pair, torch.randint(0, 1024, (1, 8, 375))
    baselines = {"stock": lambda: stock.codec_decode(codes)}
    compare(benchmark, "codec decode, 375 frames", lambda: accelerated.codec_decode(codes), baselines, rounds=9)
