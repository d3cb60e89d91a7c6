"""The trained parts as one checkpoint: BarkModel in float16, tokenizer, voices, generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BarkConfig, BarkModel, EncodecModel, PreTrainedModel

from bark_accel.hf.points import SUBMODELS

from . import layout
from .data import Corpus
from .tokens import Tokens
from .vocabulary import DIGITS

# Semantic tokens of a voice preset, at least: more than any window looks back.
_PRESET = 60


def model(transformers: dict[str, PreTrainedModel], codec: EncodecModel) -> BarkModel:
    """One BarkModel of the stages semantic, coarse and fine, and the codec."""
    parts = {stage: point.attribute for stage, point in SUBMODELS.items()}
    configs: dict[str, Any] = {
        f"{attribute}_config": transformers[stage].config.to_dict() for stage, attribute in parts.items()
    }
    bark = BarkModel(BarkConfig(**configs, codec_config=codec.config.to_dict()))
    for stage, attribute in parts.items():
        getattr(bark, attribute).load_state_dict(transformers[stage].state_dict())
    bark.codec_model.load_state_dict(codec.state_dict())
    bark.tie_weights()
    return bark.eval()


def save(bark: BarkModel, corpus: Corpus, tokens: Tokens, temperatures: dict[str, float], folder: Path) -> None:
    """Write what AutoProcessor and BarkModel load from `folder` without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    # save_pretrained does not take a generation config with nested ones, so it writes a plain one, replaced here.
    bark.half().save_pretrained(folder, safe_serialization=True)
    _write(folder / "generation_config.json", layout.generation_config(temperatures))
    config = json.loads((folder / "config.json").read_text())
    # Transformers 5 takes the type from here: half as large as a file, in float32 as a model, as Transformers 4 has it.
    _set_type(config, "float32")
    _write(folder / "config.json", config)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(folder)
    save_voices(corpus, tokens, folder)


def save_tokenizer(folder: Path) -> None:
    """Whole words in lower case, digits read out, punctuation left out; any other word is [UNK]."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(layout.TEXT_TOKENS)}, layout.TEXT_UNKNOWN)
    )
    spoken = [normalizers.Replace(str(digit), f" {word} ") for digit, word in enumerate(DIGITS)]
    punctuation = normalizers.Replace(Regex(r"[.,;:!?\"()…–—-]"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), punctuation, *spoken])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": layout.TEXT_PAD, "unk_token": layout.TEXT_UNKNOWN}
    # Transformers 5 would write the name of a class that Transformers 4 does not have.
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "BarkProcessor"}
    _write(folder / "tokenizer_config.json", {**kind, **special, "model_max_length": layout.TEXT_LENGTH})
    _write(folder / "special_tokens_map.json", special)


def save_voices(corpus: Corpus, tokens: Tokens, folder: Path) -> None:
    """A preset of each voice, from the corpus: NAME.npz, and the arrays that speaker_embeddings_path.json names."""
    place = folder / "speaker_embeddings"
    place.mkdir(exist_ok=True)
    index: dict[str, object] = {"repo_or_path": "."}
    for voice in dict.fromkeys(corpus.voices):
        of_voice = [i for i, it in enumerate(corpus.voices) if it == voice and corpus.splits[i] == "train"]
        chosen = next(i for i in of_voice if len(tokens.semantic[i]) >= _PRESET)
        codes = tokens.codes[chosen].astype(np.int64)
        preset = {
            "semantic_prompt": tokens.semantic[chosen].astype(np.int64),
            "coarse_prompt": codes[:2],
            "fine_prompt": codes,
        }
        np.savez(place / f"{voice}.npz", allow_pickle=False, **preset)
        for name, array in preset.items():
            np.save(place / f"{voice}_{name}.npy", array)
        index[voice] = {name: f"speaker_embeddings/{voice}_{name}.npy" for name in preset}
    _write(folder / "speaker_embeddings_path.json", index)


def _set_type(config: dict, name: str) -> None:
    config.pop("torch_dtype", None)
    config["dtype"] = name
    for value in config.values():
        if isinstance(value, dict) and "dtype" in value:
            value["dtype"] = name


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
