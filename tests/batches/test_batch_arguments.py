"""Lists of voices: in sub-models, of any dtype, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.bark_models import SMALL, stage_configs
from support.batches import INPUTS, SAMPLED, VOICES, assert_row_alone

from bark_accel.hf.stage_trace import trace_stages


def test_sub_models_take_lists(stock, fast):
    configs = stage_configs(fast)
    semantic_config = configs["semantic_generation_config"]
    mask = INPUTS["attention_mask"]
    semantic = fast.semantic.generate(INPUTS["input_ids"], semantic_config, VOICES, mask)
    spoken = semantic.clone()
    two = {k: v for k, v in configs.items() if not k.startswith("fine")}
    rest = {"codebook_size": SMALL.codebook_size, "history_prompt": VOICES}
    coarse, lengths = fast.coarse_acoustics.generate(semantic, **two, **rest, return_output_lengths=True)
    fine = fast.fine_acoustics.generate(coarse, **configs, **rest)
    for row, voice in enumerate(VOICES):
        assert_row_alone(stock, row, voice, {"semantic": spoken, "coarse": coarse, "fine": fine})
        assert lengths[row] == (coarse[row] != 0).sum()
    for call in (
        lambda: fast.semantic.generate(INPUTS["input_ids"], semantic_config, VOICES[:3], mask),
        lambda: fast.coarse_acoustics.generate(semantic, **two, **{**rest, "history_prompt": VOICES[:3]}),
        lambda: fast.fine_acoustics.generate(coarse, **configs, **{**rest, "history_prompt": VOICES[:3]}),
    ):
        with pytest.raises(ValueError, match="for each of 4 rows, got a list of 3"):
            call()


def test_bad_input(fast):
    state = torch.get_rng_state()
    for options, error, message in (
        ({"trim": 1}, TypeError, "trim: expected True or False, got 1"),
        ({"coarse_streamer": object()}, ValueError, "coarse streamer: expected none with a list of voice presets"),
        ({"input_ids": INPUTS["input_ids"][:2], "attention_mask": None}, ValueError, "each of 2 rows, got a list of 4"),
    ):
        with pytest.raises(error, match=message):
            fast.generate(**{**INPUTS, "history_prompt": VOICES, **SAMPLED, **options})
    assert torch.equal(torch.get_rng_state(), state)


def test_presets_of_numpy_and_any_dtype(fast):
    options = {**INPUTS, "semantic_max_new_tokens": 20}
    with trace_stages(fast) as trace:
        fast.generate(**options, history_prompt=VOICES)
        expected = trace.outputs["fine"]
        narrow = [v and {k: part.numpy().astype(np.uint16) for k, part in v.items()} for v in VOICES]
        fast.generate(**options, history_prompt=narrow)
    assert torch.equal(trace.outputs["fine"], expected)
