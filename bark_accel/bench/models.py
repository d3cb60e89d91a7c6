"""Loads a Bark model to speak with, or builds one of random weights to measure."""

from __future__ import annotations

import copy
import math
import pickle
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, BarkConfig, BarkModel, GenerationConfig
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)
from transformers.utils import logging as transformers_logging

from bark_accel.decoding.rng import seeded
from bark_accel.hf.compat import no_init_weights
from bark_accel.hf.configs import GenerationConfigs
from bark_accel.small_bark import small_bark_path

SHAPES = {
    "bark-small": {"num_layers": 12, "num_heads": 12, "hidden_size": 768},
    "bark": {"num_layers": 24, "num_heads": 16, "hidden_size": 1024},
}
SMALL_CHUNK_S = 3.0
"""Seconds that the small Bark has learnt to say at once."""
# suno's semantic head has 10 000 tokens, the end of speech, and 47 rows that mean nothing.
_UNUSED_OUTPUTS = 48
_WEIGHT_STD = 0.02
_HEAD_STD = 0.1


@dataclass(frozen=True)
class LoadedBark:
    """A loaded model (eval mode), its processor or why there is none, and its vocabulary if that is limited."""

    model: BarkModel
    processor: Any
    name: str
    processor_problem: str | None = None
    vocabulary: tuple[str, ...] | None = None

    @property
    def any_processor(self) -> Any:
        """The processor, or one that knows no language."""
        return self.processor or WordProcessor(self.model)

    def inputs(self, text: str) -> dict[str, Any]:
        """The keyword arguments of `generate` that stand for `text`."""
        return fake_inputs(self.model, text) if self.processor is None else dict(self.processor(text))


def load_bark(name_or_path: str | None = None) -> LoadedBark:
    """Load a checkpoint.

    Parameters
    ----------
    name_or_path : str, optional
        A folder, or a model id of the Hub (downloaded if it must be). Not given: the small Bark that comes with the
        package; the network is not used.

    Raises
    ------
    OSError
        No such folder or model, one of another kind, or files missing in it or cut short.
    """
    if name_or_path is not None:
        _check_name(name_or_path)
        return _from_pretrained(name_or_path, local_files_only=Path(name_or_path).is_dir())
    loaded = _from_pretrained(small_bark_path(), local_files_only=True)
    tokenizer = loaded.processor.tokenizer
    words = sorted(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens), key=tokenizer.get_vocab().get)
    return replace(loaded, name="the small Bark that comes with bark_accel", vocabulary=tuple(words))


def _check_name(name: str) -> None:
    """Raise `OSError` for what is neither a folder nor could be an id of the Hub, which would be asked for it."""
    if name and Path(name).is_dir():
        return
    if Path(name).is_file():
        raise FileNotFoundError(f"model: expected the folder of a checkpoint, got the file {name}")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(
            f"model: expected a folder or a model id of the Hub, got {name!r}: no such folder"
        ) from None


def unknown_words(loaded: LoadedBark, text: str) -> list[str]:
    """Words for which the tokenizer has no token, or one that is no word, each once."""
    tokenizer = loaded.processor.tokenizer
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids)
    places = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    return list(dict.fromkeys(text[start:end] for token, (start, end) in places if token in special))


def random_bark(shape: str = "bark-small", seed: int = 0, device: str | torch.device = "cpu") -> BarkModel:
    """A model of random weights, of suno's shapes and generation settings. Leaves the global generators alone.

    The transformers' weights are drawn on `device`, so they are others on a GPU than on a CPU.

    The heads are drawn wide, so that the scores spread over several units as a trained model's do: with a
    flat distribution, rounding errors would decide between near ties. The end-of-speech row of the semantic
    head is zero, far below the most likely tokens: the model never ends early, and lengths are what the
    caller asks for.

    Raises
    ------
    ValueError
        Unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape: expected one of {', '.join(map(repr, SHAPES))}, got {shape!r}")
    config = _config(shape)
    with no_init_weights(), torch.device(device):
        model = BarkModel(config)
    model.tie_weights()
    # The codec is small, and drawn on the CPU by Transformers' own code.
    places = {torch.device("cpu"), torch.device(device)}
    with ExitStack() as held, torch.no_grad():
        for place in places:
            if place.type != "meta":
                held.enter_context(seeded(seed, place))
        model.codec_model = AutoModel.from_config(config.codec_config)
        for quantizer in model.codec_model.quantizer.layers:
            quantizer.codebook.embed.normal_()
        model.codec_model.to(device)
        for submodel in (model.semantic, model.coarse_acoustics, model.fine_acoustics):
            _draw_weights(submodel)
        model.semantic.lm_head.weight[model.semantic.config.output_vocab_size - _UNUSED_OUTPUTS].zero_()
    model.generation_config = generation_settings()
    return model.eval()


def _config(shape: str) -> BarkConfig:
    body = {**SHAPES[shape], "bias": False, "dropout": 0.0}
    return BarkConfig(
        semantic_config={**body, "input_vocab_size": 129_600, "output_vocab_size": 10_048},
        coarse_acoustics_config={**body, "input_vocab_size": 12_096, "output_vocab_size": 12_096},
        fine_acoustics_config={**body, "input_vocab_size": 1_056, "output_vocab_size": 1_056},
    )


def _draw_weights(submodel: nn.Module) -> None:
    for module in submodel.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, _WEIGHT_STD)
    for head in getattr(submodel, "lm_heads", None) or [submodel.lm_head]:
        head.weight.mul_(_HEAD_STD / _WEIGHT_STD)


def generation_settings() -> GenerationConfig:
    """suno's generation settings, nested as dicts: what `save_pretrained` takes."""
    semantic = BarkSemanticGenerationConfig(do_sample=True, temperature=0.7)
    coarse = BarkCoarseGenerationConfig(do_sample=True, temperature=0.7)
    return GenerationConfig(
        semantic_config=_as_dict(semantic),
        coarse_acoustics_config=_as_dict(coarse),
        fine_acoustics_config=_as_dict(BarkFineGenerationConfig(temperature=0.5)),
        sample_rate=24_000,
        codebook_size=1_024,
    )


def shared_copy(model: BarkModel) -> BarkModel:
    """A second model object on the same weight tensors."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def fake_inputs(model: BarkModel, text: str) -> dict[str, Tensor]:
    """Made-up text ids, one a word and always the same for it, for a model without a tokenizer.

    Raises
    ------
    ValueError
        The text has no words.
    """
    settings = GenerationConfigs.of(model).semantic
    words = text.split()[: settings.max_input_semantic_length]
    if not words:
        raise ValueError("text: expected at least one word, got none")
    ids_end = min(settings.text_pad_token, settings.semantic_infer_token) - settings.text_encoding_offset
    ids = torch.zeros(1, settings.max_input_semantic_length, dtype=torch.int64, device="cpu")
    made_up = [1 + zlib.crc32(word.encode()) % (ids_end - 1) for word in words]
    ids[0, : len(words)] = torch.tensor(made_up, dtype=torch.int64, device="cpu")
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class WordProcessor:
    """The part of a `BarkProcessor` that `long_form` uses, for a model without a tokenizer: see `fake_inputs`."""

    def __init__(self, model: BarkModel):
        self._model = model

    def tokenizer(self, text: str, add_special_tokens: bool = False) -> dict[str, Any]:
        return {"input_ids": text.split()}

    def __call__(self, texts: list[str], max_length: int) -> dict[str, Tensor]:
        rows = [fake_inputs(self._model, text) for text in texts]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def text_tokens(loaded: LoadedBark, text: str) -> tuple[int, int]:
    """(tokens in the text, tokens that the model reads)."""
    limit = GenerationConfigs.of(loaded.model).semantic.max_input_semantic_length
    if loaded.processor is None:
        return len(text.split()), limit
    return len(loaded.processor.tokenizer(text, add_special_tokens=False)["input_ids"]), limit


def semantic_tokens(model: BarkModel, seconds: float) -> int:
    """Count the semantic tokens that last `seconds`, at least one.

    Raises
    ------
    ValueError
        More than the model can generate for one utterance.
    """
    settings = GenerationConfigs.of(model).semantic
    tokens = seconds * settings.semantic_rate_hz
    if not tokens <= settings.max_new_tokens:
        limit = settings.max_new_tokens / settings.semantic_rate_hz
        raise ValueError(f"seconds: expected at most {limit:.2f} for one utterance of this model, got {seconds:g}")
    return max(1, math.ceil(tokens))


def max_semantic_tokens(model: BarkModel) -> int:
    """The model's own limit for one utterance."""
    return GenerationConfigs.of(model).semantic.max_new_tokens


def coarse_per_semantic(model: BarkModel) -> float:
    """Coarse tokens that a semantic token becomes, on average."""
    configs = GenerationConfigs.of(model)
    return configs.coarse.coarse_rate_hz / configs.semantic.semantic_rate_hz * configs.coarse.n_coarse_codebooks


def _from_pretrained(name: str, *, local_files_only: bool) -> LoadedBark:
    # Transformers itself would fill a Bark with random numbers.
    config, _ = BarkConfig.get_config_dict(name, local_files_only=local_files_only)
    kind = config.get("model_type", BarkConfig.model_type)
    if kind != BarkConfig.model_type:
        raise OSError(f"model: expected a checkpoint of Bark, got {name}, of the kind {kind!r}")
    try:
        model = BarkModel.from_pretrained(name, local_files_only=local_files_only).eval()
    except (SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"model: expected whole files of weights in {name}, got one that cannot be read: {reason}"
        raise OSError(message) from error
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=local_files_only)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return LoadedBark(model, None, name, f"{name} has no usable tokenizer ({reason})")
    tokenizer = processor.tokenizer
    # Without its files, Transformers builds a tokenizer that knows special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        return LoadedBark(model, None, name, f"{name} has no usable tokenizer (it knows no words)")
    voices = getattr(processor, "speaker_embeddings", None)
    if voices and Path(name).is_dir():
        # As Transformers 4.57 does; before, it is the folder that they were saved from.
        voices["repo_or_path"] = name
    return LoadedBark(model, processor, name)


def _as_dict(config: GenerationConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if not key.startswith("_")}


def quiet_transformers() -> None:
    """Only errors from Transformers, and no bars of its own: for commands that speak for themselves."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
