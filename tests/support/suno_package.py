"""suno's own package, if it is installed: its code and classes with random weights, as test data."""

from __future__ import annotations

import functools
import importlib
import io
import sys
import types
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EncodecConfig, EncodecModel

WIDTH, LAYERS, HEADS = 32, 2, 2


def installed() -> bool:
    return find_spec("bark") is not None and find_spec("scipy") is not None


def import_suno() -> Any:
    """`bark.generation`; what it imports and never needs here (funcy, encodec) is replaced where it is missing."""
    replaced = {"funcy": {"partial": functools.partial}, "encodec": {"EncodecModel": None}}
    for name, content in replaced.items():
        if find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)
    try:
        return importlib.import_module("bark.generation")
    finally:
        for name in replaced:
            if sys.modules[name].__spec__ is None:
                del sys.modules[name]


class Letters:
    """A tokenizer with an id for each character."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [1 + ord(character) % 1000 for character in text]


def random_models(bias: bool = False) -> dict[str, Any]:
    """suno's classes in suno's token layout, as `bark.generation.models` holds them."""
    from bark.model import GPT, GPTConfig
    from bark.model_fine import FineGPT, FineGPTConfig

    torch.manual_seed(0)
    body = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "bias": bias}
    text = GPT(GPTConfig(**body, input_vocab_size=129_600, output_vocab_size=10_048))
    coarse = GPT(GPTConfig(**body, input_vocab_size=12_096, output_vocab_size=12_096))
    fine = FineGPT(FineGPTConfig(**body, input_vocab_size=1056, output_vocab_size=1056))
    with torch.no_grad():
        for parameter in (p for model in (text, coarse, fine) for p in model.parameters()):
            # Far apart, so that the rounding of sums decides nothing.
            torch.nn.init.normal_(parameter, 0, 0.15) if parameter.ndim == 2 else parameter.add_(0.05)
        text.lm_head.weight[10_000] *= 1.3
    codec = EncodecModel(EncodecConfig(num_filters=4))
    for layer in codec.quantizer.layers:
        layer.codebook.embed.normal_()
    loaded = {"text": text, "coarse": coarse, "fine": fine, "codec": codec}
    loaded = {name: model.eval() for name, model in loaded.items()}
    return {**loaded, "text": {"model": text.eval(), "tokenizer": Letters()}}


def save(path: Path, module: Any, **changes: Any) -> None:
    """Write a checkpoint as suno's are: with the options, a prefix of torch.compile, and numbers of an old numpy."""
    checkpoint = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in module.state_dict().items()},
        "model_args": dict(vars(module.config)),
        "best_val_loss": torch.tensor(2.5),
        "iter_num": np.int64(7),
        "lr": np.float64(1e-4),
    }
    content = io.BytesIO()
    torch.save({**checkpoint, **changes}, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(content) as new, zipfile.ZipFile(path, "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, data)
