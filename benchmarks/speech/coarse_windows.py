"""Likelihood of coarse tokens by stock's windows and by long ones: small Bark, the same semantic tokens each way.

python -m benchmarks coarse-windows --json NEW.json

What each way draws is measured by its mean surprise in nats a token, teacher-forced, by stock's windows and by long
ones. Then how far the scores of each way are from stock's, before the same tokens, which stock has drawn. All ways have
histories of 56 coarse tokens (the small Bark's own are 96): then a long window has room for two of stock's, as with
suno's numbers. "Histories of 8 tokens" is a control that a measure of windows has to tell from stock.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BarkModel

from bark_accel import accelerate_bark
from bark_accel.bench.coarse_windows import Scorer, Spoken, score_by, scores
from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import load_bark, quiet_transformers, shared_copy
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.hf.stage_trace import trace_stages
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.stages.coarse import row_lengths
from bark_accel.stages.spec import CoarseSpec
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCachePool
from bark_accel.transformer.precision import convert
from benchmarks.speech.quality import SHORT_HISTORY_TOKENS, with_coarse_history
from recipes.small_bark.evaluate import KINDS, texts

SEED = 2_027
CONTROL_HISTORY_TOKENS = 8


@dataclass(frozen=True)
class Way:
    """A way to generate coarse tokens: options of `accelerate_bark` (None: stock), changes of stock's numbers."""

    options: Mapping[str, Any] | None = None
    windows: Mapping[str, Any] = field(default_factory=dict)
    seed: int = SEED

    @property
    def weights(self) -> str:
        return (self.options or {}).get("weights", "same")


LONG = {"long_coarse_windows": True}
WAYS = {
    "stock": Way(),
    "stock, another seed": Way(seed=SEED + 1),
    "int8": Way({"weights": "int8"}),
    "w8a8": Way({"weights": "w8a8"}),
    "long coarse windows": Way(LONG),
    "long coarse windows, int8": Way({"weights": "int8", **LONG}),
    f"histories of {CONTROL_HISTORY_TOKENS} tokens": Way(None, {"max_coarse_history": CONTROL_HISTORY_TOKENS}),
}


def log_probabilities(spec: CoarseSpec, score: Scorer, semantic: Tensor, coarse: Tensor) -> Tensor:
    """[T, codes] of the codes of each token's own codebook; coarse tokens [1, T], without a voice preset."""
    return scores(spec, score, Spoken(semantic, coarse)).log_softmax(-1)


class Reference:
    """Stock, and the specs of both layouts."""

    def __init__(self, stock: BarkModel):
        self.stock, self.configs = stock, GenerationConfigs.of(stock)
        # With stock's tokens.
        self.exact = accelerate_bark(shared_copy(stock), strict=True)
        self.spec = self.configs.coarse_spec
        shape = transformer_spec(stock.coarse_acoustics)
        self.layouts = {"stock": self.spec, "long": replace(self.spec, fill_positions=shape.block_size)}
        self._shape = shape
        self.by_stock = score_by(stock.coarse_acoustics)

    def semantic(self, inputs: Mapping[str, Any]) -> Tensor:
        """Semantic tokens [1, T], as the coarse stage has them."""
        torch.manual_seed(SEED)
        with trace_stages(self.exact) as trace:
            self.exact.generate(**inputs)
        tokens = trace.outputs["semantic"]
        return tokens.masked_fill(tokens == self.configs.semantic.semantic_pad_token, self.spec.semantic_pad_token)

    def coarse(self, model: BarkModel, way: Way, semantic: Tensor) -> Tensor:
        """Coarse tokens [1, T] by the coarse stage of `model`."""
        c = self.configs
        config = type(c.coarse)(**{**c.coarse.to_dict(), **way.windows})
        torch.manual_seed(way.seed)
        return model.coarse_acoustics.generate(semantic.clone(), c.semantic, config, codebook_size=c.codebook_size)

    def model(self, way: Way) -> BarkModel:
        if way.options is None:
            return self.exact
        return accelerate_bark(shared_copy(self.stock), strict=True, **way.options)

    def scorer(self, weights: str) -> Scorer:
        """Scores by our steps with weights of a precision, as a generation has them."""
        if weights == "same":
            return self.by_stock
        module, rows = self.stock.coarse_acoustics, slice(0, self._shape.output_vocab_size)
        read = convert(transformer_weights("coarse", module), weights)
        model, pool = CausalModel(read, self._shape, get_ops("auto", module.device)), KVCachePool()

        def score(prompt: Tensor, tokens: Tensor) -> Tensor:
            with pool.borrow(self._shape, 1, read.cache_dtype, module.device) as cache:
                feeds = [prompt, *tokens[:, :-1].split(1, 1)]
                return torch.cat([model.next_logits(feed.contiguous(), cache, rows) for feed in feeds])

        return score

    def surprise(self, layout: str, semantic: Tensor, coarse: Tensor) -> float:
        """Mean nats of a coarse token by stock's scores."""
        given = log_probabilities(self.layouts[layout], self.by_stock, semantic, coarse)
        return -given.gather(1, self._codes(coarse)[:, None]).mean().item()

    def distance(self, way: Way, semantic: Tensor, coarse: Tensor, expected: Tensor) -> tuple[float, float]:
        """KL divergence in nats from scores `expected` of stock, share of equal best codes, for stock's tokens."""
        fill = self._shape.block_size if "long_coarse_windows" in (way.options or {}) else None
        history = way.windows.get("max_coarse_history", self.spec.max_history_tokens)
        layout = replace(self.spec, fill_positions=fill, max_history_tokens=history)
        given = log_probabilities(layout, self.scorer(way.weights), semantic, coarse)
        kl = F.kl_div(given, expected, log_target=True, reduction="batchmean").item()
        return kl, (given.argmax(-1) == expected.argmax(-1)).float().mean().item()

    def _codes(self, coarse: Tensor) -> Tensor:
        books = torch.arange(coarse.shape[1]) % self.spec.num_codebooks
        return coarse[0] - self.spec.semantic_vocab_size - books * self.spec.codebook_size


@torch.no_grad()
def measure(count: int) -> dict[str, dict[str, Any]]:
    loaded = load_bark()
    reference = Reference(with_coarse_history(loaded.model.float(), SHORT_HISTORY_TOKENS))
    said = [text for kind in KINDS for text in texts(kind, "test", count // len(KINDS), SEED)]
    semantic = [reference.semantic(loaded.inputs(text)) for text in said]
    semantic = [tokens for tokens in semantic if int(row_lengths(reference.spec, tokens)) > 0]
    drawn = {name: _drawn(reference, way, semantic) for name, way in WAYS.items()}
    spec = reference.layouts["stock"]
    expected = [
        log_probabilities(spec, reference.by_stock, s, c) for s, c in zip(semantic, drawn["stock"], strict=True)
    ]
    nats = {name: _surprises(reference, semantic, its) for name, its in drawn.items()}
    found = {}
    for name, way in WAYS.items():
        far = [reference.distance(way, s, c, e) for s, c, e in zip(semantic, drawn["stock"], expected, strict=True)]
        kl, same = (float(np.mean(column)) for column in zip(*far, strict=True))
        found[name] = {
            "utterances": len(semantic),
            "tokens": sum(its.shape[1] for its in drawn[name]),
            **{f"nats_{layout}": _above(nats[name][layout], nats["stock"][layout]) for layout in reference.layouts},
            "kl_nats": kl,
            "same_best": same,
        }
        print(name, found[name], flush=True)
    return found


def _drawn(reference: Reference, way: Way, semantic: list[Tensor]) -> list[Tensor]:
    model = reference.model(way)
    return [reference.coarse(model, way, tokens) for tokens in semantic]


def _surprises(reference: Reference, semantic: list[Tensor], drawn: list[Tensor]) -> dict[str, np.ndarray]:
    """Mean nats of a token of each utterance, by layout."""
    return {
        layout: np.array([reference.surprise(layout, s, c) for s, c in zip(semantic, drawn, strict=True)])
        for layout in reference.layouts
    }


def _above(nats: np.ndarray, stock: np.ndarray) -> dict[str, Any]:
    """The mean over utterances; what it is above stock's, with a 95 % interval: bootstrap over utterances."""
    differences = nats - stock
    picks = np.random.default_rng(0).integers(len(differences), size=(2_000, len(differences)))
    low, high = np.quantile(differences[picks].mean(1), [0.025, 0.975])
    return {"mean": nats.mean(), "above_stock": differences.mean(), "interval": [low, high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="texts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet_transformers()
    # Before the result changes the clone.
    facts = {"machine": machine_facts(), "versions": versions(), "commit": commit()}
    found = measure(options.count)
    if options.json:
        options.json.write_text(json.dumps({**facts, "ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
