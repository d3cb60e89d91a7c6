"""A value for every field of `GenerationConfig` in the tested versions, and what docs/options.md says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import GenerationConfig, WatermarkingConfig

from .tiny_text import tiny_processor

TABLE = Path(__file__).parents[2] / "docs" / "options.md"
# `| field | semantic | coarse | note |`; older versions may have a claim of their own: `none, called in 4.x and 5.0`.
_ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|")
_CLAIM = re.compile(
    r"^(fused|none|called|loop|stock|nobody)(?:, (fused|none|called|loop|stock|nobody) in (4\.x|4\.x and 5\.0))?$"
)


@dataclass(frozen=True)
class Case:
    """A value that would change tokens if it could, with the arguments that it needs, for so many rows."""

    value: Any
    rows: int = 2
    others: dict[str, Any] = field(default_factory=dict)


_ALONE = {"rows": 1}
CASES: dict[str, Case] = {
    "assistant_confidence_threshold": Case(0.3),
    "assistant_early_exit": Case(2, **_ALONE),
    "assistant_ensemble_weight": Case(0.5),
    "assistant_lookbehind": Case(5),
    "bad_words_ids": Case([[i] for i in range(0, 112, 3)]),
    "begin_suppress_tokens": Case([*range(0, 237, 2)]),
    "bos_token_id": Case(3),
    "cache_config": Case({"batch_size": 2}),
    "cache_implementation": Case("static"),
    "compile_config": Case(getattr(transformers, "CompileConfig", lambda: None)()),
    "constraints": Case([]),
    "continuous_batching_config": Case(None),
    "decoder_start_token_id": Case(3),
    "disable_compile": Case(True),
    "diversity_penalty": Case(0.5),
    "do_sample": Case(False),
    "dola_layers": Case("low"),
    "early_stopping": Case(True),
    "encoder_no_repeat_ngram_size": Case(1),
    "encoder_repetition_penalty": Case(3.0),
    "eos_token_id": Case([*range(0, 100, 9), *range(164, 237, 9)]),
    "epsilon_cutoff": Case(0.1),
    "eta_cutoff": Case(0.9),
    "exponential_decay_length_penalty": Case((0, 3.0)),
    "force_words_ids": Case([[33]]),
    "forced_bos_token_id": Case(33),
    "forced_decoder_ids": Case([[1, 3]]),
    "forced_eos_token_id": Case(41),
    "generation_kwargs": Case({"a": 1}),
    "guidance_scale": Case(1.5),
    "is_assistant": Case(True),
    "length_penalty": Case(0.5),
    "low_memory": Case(True),
    "max_cache_len": Case(100),
    "max_length": Case(300),
    "max_matching_ngram_size": Case(2),
    "max_new_tokens": Case(6),
    "max_time": Case(60.0),
    "min_length": Case(40),
    "min_new_tokens": Case(20),
    "min_p": Case(0.5),
    "no_repeat_ngram_size": Case(1),
    "num_assistant_tokens": Case(3),
    "num_assistant_tokens_schedule": Case("heuristic"),
    "num_beam_groups": Case(2),
    "num_beams": Case(2),
    "num_return_sequences": Case(2),
    "output_attentions": Case(True),
    "output_hidden_states": Case(True),
    "output_logits": Case(True),
    "output_scores": Case(True),
    "pad_token_id": Case(33),
    "penalty_alpha": Case(0.5, others={"top_k": 4, "do_sample": False}),
    "prefill_chunk_size": Case(8),
    "prompt_lookup_num_tokens": Case(3, **_ALONE),
    "remove_invalid_values": Case(True),
    "renormalize_logits": Case(True),
    "repetition_penalty": Case(3.0),
    "return_dict_in_generate": Case(True),
    "return_legacy_cache": Case(True),
    "sequence_bias": Case([[[33], 4.0], [[111], 3.0]]),
    "speculation_type": Case("x"),
    "stop_strings": Case(["a", "e", "k", "pu"], others={"tokenizer": tiny_processor().tokenizer}),
    "suppress_tokens": Case([*range(0, 237, 3)]),
    "target_lookbehind": Case(5),
    "temperature": Case(0.4),
    "token_healing": Case(True),
    "top_h": Case(0.5),
    "top_k": Case(10),
    "top_p": Case(0.8),
    "transformers_version": Case("4.0.0"),
    "typical_p": Case(0.6),
    "use_cache": Case(False),
    "use_mtp": Case(True, **_ALONE),
    "watermarking_config": Case(WatermarkingConfig(bias=3.0, context_width=1)),
}


def installed_fields() -> list[str]:
    """The fields that the installed Transformers has."""
    return sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def claims() -> dict[str, dict[str, str]]:
    """Field -> {stage: who chooses the token}, as the table has it for the installed Transformers."""
    table = {}
    for line in TABLE.read_text().splitlines():
        row = _ROW.match(line)
        if row:
            table[row[1]] = {"semantic": _claim(row[2]), "coarse": _claim(row[3])}
    return table


def _claim(cell: str) -> str:
    claim = _CLAIM.match(cell.strip())
    assert claim, f"expected fused, none, called, loop, stock or nobody, perhaps with another one in 4.x, got {cell!r}"
    old = {None: (), "4.x": ("4.",), "4.x and 5.0": ("4.", "5.0.")}[claim[3]]
    return claim[2] if transformers.__version__.startswith(old) else claim[1]
