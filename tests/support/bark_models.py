"""Random Bark models of several layouts, inputs and voice presets for the tests.

Weights are sharpened (scaled up) so that logits are far apart and near ties do not decide a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModel, BarkConfig, BarkModel, GenerationConfig
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from bark_accel import small_bark_path
from bark_accel.hf.compat import no_init_weights


@dataclass(frozen=True)
class Layout:
    """Token layout and window lengths of a model family."""

    text_vocab: int
    semantic_vocab: int
    codebook_size: int
    coarse_extra: int
    max_input: int
    max_coarse_history: int
    window: int
    fine_input: int
    fine_history: int
    block_size: int
    max_new_tokens: int
    codebooks: int = 8

    @property
    def semantic_outputs(self) -> int:
        return self.semantic_vocab + 12

    @property
    def coarse_vocab(self) -> int:
        return self.semantic_vocab + 2 * self.codebook_size + self.coarse_extra


SUNO = Layout(119_552, 10_000, 1024, 48, 256, 630, 60, 1024, 512, 1024, 768)
# No constant is suno's: windows of odd length, a semantic pad token inside the coarse vocabulary's tail.
SMALL = Layout(60, 100, 64, 9, 16, 90, 21, 96, 48, 160, 90)


def speaking() -> BarkModel:
    """The trained model that comes with the package, in eval mode."""
    return BarkModel.from_pretrained(small_bark_path()).eval()


def layout_of(model: BarkModel) -> Layout:
    """As its generation config has it."""
    config = model.generation_config
    semantic, coarse, fine = config.semantic_config, config.coarse_acoustics_config, config.fine_acoustics_config
    return Layout(
        # Of `generation_config` below the other way round.
        text_vocab=semantic["text_pad_token"] - semantic["text_encoding_offset"] + 5,
        semantic_vocab=semantic["semantic_vocab_size"],
        codebook_size=config.codebook_size,
        coarse_extra=model.config.coarse_acoustics_config.output_vocab_size
        - semantic["semantic_vocab_size"]
        - 2 * config.codebook_size,
        max_input=semantic["max_input_semantic_length"],
        max_coarse_history=coarse["max_coarse_history"],
        window=coarse["sliding_window_len"],
        fine_input=fine["max_fine_input_length"],
        fine_history=fine["max_fine_history_length"],
        block_size=model.config.semantic_config.block_size,
        max_new_tokens=semantic["max_new_tokens"],
        codebooks=fine["n_fine_codebooks"],
    )


def build(
    layout: Layout,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
    bias: bool = False,
    filters: int = 4,
    seed: int = 0,
    sharpen: float = 4.0,
    dtype: torch.dtype = torch.float32,
    **generation: dict,
) -> BarkModel:
    """A random model in eval mode. `generation` may hold `semantic`, `coarse` and `fine` settings."""
    torch.manual_seed(seed)
    body = {"num_layers": layers, "num_heads": heads, "hidden_size": width, "bias": bias}
    body["block_size"] = layout.block_size
    text_start = layout.semantic_outputs
    fine_vocab = layout.codebook_size + 32
    config = BarkConfig(
        semantic_config={
            **body,
            "input_vocab_size": text_start + layout.text_vocab,
            "output_vocab_size": layout.semantic_outputs,
        },
        coarse_acoustics_config={
            **body,
            "input_vocab_size": layout.coarse_vocab,
            "output_vocab_size": layout.coarse_vocab,
        },
        fine_acoustics_config={**body, "input_vocab_size": fine_vocab, "output_vocab_size": fine_vocab},
        codec_config={"num_filters": filters, "codebook_size": layout.codebook_size},
    )
    model = _random_model(config, seed).eval()
    with torch.no_grad():
        for parameter in (p for s in submodels(model) for p in s.parameters()):
            if parameter.ndim == 2:
                parameter.mul_(sharpen)
            elif bias:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for quantizer in model.codec_model.quantizer.layers:
            quantizer.codebook.embed.normal_()
    model.generation_config = generation_config(layout, **generation)
    return model.to(dtype)


def _random_model(config: BarkConfig, seed: int) -> BarkModel:
    """All but the codec has the same weights in every version, whose own drawing differs (4.57 fails without bias)."""
    with no_init_weights():
        model = BarkModel(config)
    model.tie_weights()
    model.codec_model = AutoModel.from_config(config.codec_config)
    # What was drawn so far depends on the version.
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in (part for stage in submodels(model) for part in stage.modules()):
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                module.weight.normal_(0, 0.02)
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
            elif isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()
    return model


def submodels(model: BarkModel) -> list:
    return [model.semantic, model.coarse_acoustics, model.fine_acoustics]


def generation_config(
    layout: Layout, semantic: dict | None = None, coarse: dict | None = None, fine: dict | None = None
) -> GenerationConfig:
    semantic_config = BarkSemanticGenerationConfig(
        eos_token_id=layout.semantic_vocab,
        max_new_tokens=layout.max_new_tokens,
        text_encoding_offset=layout.semantic_outputs,
        text_pad_token=layout.semantic_outputs + layout.text_vocab - 5,
        semantic_infer_token=layout.semantic_outputs + layout.text_vocab - 1,
        semantic_vocab_size=layout.semantic_vocab,
        max_input_semantic_length=layout.max_input,
        **(semantic or {}),
    )
    coarse_config = BarkCoarseGenerationConfig(
        coarse_semantic_pad_token=layout.semantic_vocab + 2 * layout.codebook_size,
        coarse_infer_token=layout.semantic_vocab + 2 * layout.codebook_size + 2,
        max_coarse_input_length=layout.max_input,
        max_coarse_history=layout.max_coarse_history,
        sliding_window_len=layout.window,
        **(coarse or {}),
    )
    fine_config = BarkFineGenerationConfig(
        max_fine_history_length=layout.fine_history,
        max_fine_input_length=layout.fine_input,
        n_fine_codebooks=layout.codebooks,
        **(fine or {}),
    )
    return GenerationConfig(
        semantic_config=_plain(semantic_config),
        coarse_acoustics_config=_plain(coarse_config),
        fine_acoustics_config=_plain(fine_config),
        sample_rate=24_000,
        codebook_size=layout.codebook_size,
    )


def _plain(config: GenerationConfig) -> dict:
    return {k: v for k, v in config.to_dict().items() if not k.startswith("_")}


def stage_configs(model: BarkModel) -> dict:
    """The three generation configs as BarkModel.generate builds them."""
    config = model.generation_config
    return {
        "semantic_generation_config": BarkSemanticGenerationConfig(**config.semantic_config),
        "coarse_generation_config": BarkCoarseGenerationConfig(**config.coarse_acoustics_config),
        "fine_generation_config": BarkFineGenerationConfig(**config.fine_acoustics_config),
    }


def texts(layout: Layout, lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """A padded batch of random texts of the given token counts, as BarkProcessor returns it."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), layout.max_input, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, layout.text_vocab - 8, (length,), generator=rng)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def preset(layout: Layout, semantic_tokens: int, frames: int, seed: int = 0, dtype=torch.int64) -> dict[str, Tensor]:
    """A random voice preset."""
    rng = torch.Generator().manual_seed(seed)
    fine = torch.randint(0, layout.codebook_size, (layout.codebooks, frames), generator=rng)
    return {
        "semantic_prompt": torch.randint(0, layout.semantic_vocab, (semantic_tokens,), generator=rng).to(dtype),
        "coarse_prompt": fine[:2].clone().to(dtype),
        "fine_prompt": fine.to(dtype),
    }
