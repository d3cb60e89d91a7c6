"""A decode step beside CTranslate2's on the same weights: milliseconds a token, in turns.

The semantic transformer of bark-small's shapes with random weights (12 layers, width 768, 12 heads, 10,048 scores: a
GPT-2), one row, greedy. CTranslate2 (`pip install ctranslate2`) is given the same matrices, so float32 has to choose
the same tokens. `python -m benchmarks anchor [--json PATH]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BarkModel, DynamicCache

from bark_accel.bench.measure import commit, machine_facts, versions
from bark_accel.bench.models import quiet_transformers, random_bark
from bark_accel.hf.compat import cache_argument
from bark_accel.hf.transformer import transformer_spec, transformer_weights
from bark_accel.ops.backend import get_ops
from bark_accel.transformer.causal import CausalModel
from bark_accel.transformer.kv_cache import KVCache
from bark_accel.transformer.precision import convert
from bark_accel.transformer.weights import Linear, Norm

CPU = torch.device("cpu")
CONTEXTS = (300, 600)
OURS = {"ours, float32": "same", "ours, float16": "float16", "ours, int8": "int8"}
THEIRS = {"CTranslate2, float32": "float32", "CTranslate2, int8": "int8"}
STOCK = "stock, float32"
# Its threads, and those of torch, wait for their next product in a loop before they sleep.
_SLEEP_S = 0.3
# Steps that warm the caches up and are not counted.
_UNTIMED = 4

# Tokens that follow a prompt, and the seconds at which each was there.
Decoded = tuple[list[int], list[float]]
Way = Callable[[list[int], int], Decoded]


def stock_way(model: BarkModel) -> Way:
    """Transformers' own forward over a `DynamicCache`."""
    semantic = model.semantic

    def decode(prompt: list[int], tokens: int) -> Decoded:
        cache = DynamicCache(config=semantic.config)

        def scores(ids: Tensor) -> Tensor:
            return semantic(ids, **{cache_argument(): cache}, use_cache=True).logits[:, -1]

        return _greedy(scores, prompt, tokens)

    return decode


def our_way(model: BarkModel, precision: str) -> Way:
    """`decode_step` over our static cache."""
    weights, spec = convert(transformer_weights("semantic", model.semantic), precision), _spec(model)
    causal = CausalModel(weights, spec, get_ops("auto", CPU))
    cache = KVCache.empty(spec, 1, weights.cache_dtype, CPU)

    def decode(prompt: list[int], tokens: int) -> Decoded:
        cache.truncate(0)
        return _greedy(lambda ids: causal.next_logits(ids, cache, slice(0, spec.output_vocab_size)), prompt, tokens)

    return decode


def _greedy(scores: Callable[[Tensor], Tensor], prompt: list[int], tokens: int) -> Decoded:
    ids, chosen, times = torch.tensor([prompt]), [], []
    for _ in range(tokens):
        chosen.append(int(scores(ids).argmax()))
        times.append(time.perf_counter())
        ids = torch.tensor([[chosen[-1]]])
    return chosen, times


def their_way(library: Any, folder: str, precision: str, threads: int) -> Way:
    """CTranslate2's generator, which tells of each token by a callback."""
    generator = library.Generator(folder, device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads)

    def decode(prompt: list[int], tokens: int) -> Decoded:
        chosen: list[int] = []
        times: list[float] = []

        def token(step: Any) -> bool:
            times.append(time.perf_counter())
            chosen.append(step.token_id)
            return False

        generator.generate_batch(
            [[str(id) for id in prompt]],
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
            callback=token,
        )
        return chosen, times

    return decode


def save_for_ctranslate2(library: Any, model: BarkModel, folder: str) -> None:
    """Write the semantic transformer as CTranslate2 reads it; of the token table, the ids that have scores."""
    specs = library.specs
    weights, spec = transformer_weights("semantic", model.semantic), _spec(model)
    whole = specs.TransformerDecoderModelSpec.from_config(
        len(weights.layers), spec.num_heads, pre_norm=True, activation=specs.Activation.GELU
    )
    decoder = whole.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights.token_tables[0][: spec.output_vocab_size].numpy()
    decoder.position_encodings.encodings = weights.positions.numpy()
    _set_norm(decoder.layer_norm, weights.norm_final)
    decoder.projection.weight = weights.heads[0].weight.numpy()
    for to, layer in zip(decoder.layer, weights.layers, strict=True):
        _set_norm(to.self_attention.layer_norm, layer.norm_1)
        _set_linear(to.self_attention.linear[0], layer.qkv)
        _set_linear(to.self_attention.linear[1], layer.attention_out)
        _set_norm(to.ffn.layer_norm, layer.norm_2)
        _set_linear(to.ffn.linear_0, layer.mlp_in)
        _set_linear(to.ffn.linear_1, layer.mlp_out)
    whole.register_vocabulary([str(id) for id in range(spec.output_vocab_size)])
    # The end of speech is the first id without a meaning.
    last = str(spec.output_vocab_size - 1)
    whole.config.bos_token = whole.config.eos_token = whole.config.unk_token = last
    whole.validate()
    whole.save(folder)


def _set_norm(to: Any, norm: Norm) -> None:
    to.gamma = norm.weight.numpy()
    to.beta = (torch.zeros_like(norm.weight) if norm.bias is None else norm.bias).numpy()


def _set_linear(to: Any, linear: Linear) -> None:
    to.weight = linear.weight.numpy()
    if linear.bias is not None:
        to.bias = linear.bias.numpy()


def _spec(model: BarkModel) -> Any:
    return transformer_spec(model.semantic)


def ctranslate2() -> Any:
    """The package; exits with what to do where it is not installed."""
    try:
        return importlib.import_module("ctranslate2")
    except ImportError as error:
        raise SystemExit(
            "benchmarks anchor: expected the package ctranslate2 (`pip install ctranslate2`), which is not among the "
            f"project's own; got: {error}"
        ) from error


@torch.no_grad()
def measure(
    library: Any, model: BarkModel, contexts: tuple[int, ...], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """One row for each context and way: milliseconds a token, and how many tokens are stock's until one is not."""
    with tempfile.TemporaryDirectory() as folder:
        save_for_ctranslate2(library, model, folder)
        threads = torch.get_num_threads()
        ways = {
            STOCK: stock_way(model),
            **{name: our_way(model, precision) for name, precision in OURS.items()},
            **{name: their_way(library, folder, precision, threads) for name, precision in THEIRS.items()},
        }
    rows = []
    for context in contexts:
        generator = torch.Generator().manual_seed(context)
        # The tokens that are counted lie around the context.
        length = context - _UNTIMED - tokens // 2
        prompt = torch.randint(0, _spec(model).output_vocab_size, (length,), generator=generator).tolist()
        found: dict[str, list[Decoded]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, decode in ways.items():
                time.sleep(_SLEEP_S)
                found[name].append(decode(prompt, tokens + _UNTIMED))
        rows += [_row(context, name, decoded, found[STOCK][0][0]) for name, decoded in found.items()]
    return rows


def _row(context: int, name: str, decoded: list[Decoded], expected: list[int]) -> dict[str, Any]:
    steps = [
        [1e3 * (after - before) for before, after in zip(times[_UNTIMED - 1 :], times[_UNTIMED:], strict=False)]
        for _, times in decoded
    ]
    chosen = decoded[0][0]
    same = next((i for i, (a, b) in enumerate(zip(chosen, expected, strict=True)) if a != b), len(expected))
    return {
        "context": context,
        "way": name,
        "median_ms": statistics.median(step for its in steps for step in its),
        "medians_of_rounds_ms": [statistics.median(its) for its in steps],
        "all_tokens": len(expected),
        "tokens_of_stock": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS)
    parser.add_argument("--tokens", type=int, default=32, help="steps that are counted, in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    library = ctranslate2()
    quiet_transformers()
    rows = measure(library, random_bark("bark-small"), tuple(given.contexts), given.tokens, given.rounds)
    for row in rows:
        print(f"context {row['context']}, {row['way']}: {row['median_ms']:.2f} ms, {row['tokens_of_stock']} of stock's")
    if given.json:
        packages = {"ctranslate2": metadata.version("ctranslate2")}
        content = {"machine": machine_facts(), "versions": versions() | packages, "commit": commit()}
        given.json.write_text(json.dumps({**content, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
