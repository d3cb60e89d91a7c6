"""Streams and whole generations from one seed."""

from __future__ import annotations

import torch

from bark_accel import AudioStreamer, stream
from bark_accel.hf.stage_trace import trace_stages

from .bark_models import SMALL, build, texts

ONE = texts(SMALL, [6])
TWO = texts(SMALL, [4, 9])
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 80, "fine_temperature": 0.6}
# 90 tokens are 135 frames, more than a fine window of 96.
LONG = {"do_sample": True, "semantic_max_new_tokens": 90, "fine_temperature": 0.6}
POLICIES = ["exact", "low_latency", "preview"]


def build_ending(score):
    """A model that gives the end of speech this score at every step (the others are around 0)."""
    model = build(SMALL, seed=4, bias=True)
    head, norm = model.semantic.lm_head.weight, model.semantic.layernorm_final
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, 1
        head[:, 0] = 0
        head[SMALL.semantic_vocab] = 0
        head[SMALL.semantic_vocab, 0] = score
    return model


def streamed(model, seed=3, streamer=None, **kwargs):
    """All chunks of a stream from a freshly seeded generator."""
    torch.manual_seed(seed)
    return list(stream(model, streamer=streamer or AudioStreamer(model), **kwargs))


def generated(model, seed=3, **kwargs):
    torch.manual_seed(seed)
    with trace_stages(model) as trace:
        audio = model.generate(**kwargs)
    return audio, trace.outputs
