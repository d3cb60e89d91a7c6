"""Plan of a request's stream, from the speed of its model on this machine, which a short trial measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bark_accel.decoding.rng import fork
from bark_accel.decoding.sampling import SamplingConfig
from bark_accel.decoding.speculation import Speculation
from bark_accel.hf.offload import device_of
from bark_accel.report import DraftCounts
from bark_accel.stages.coarse import CoarseStage, history_lengths
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FIT_PADDING, CoarseSpec, FineSpec
from bark_accel.streaming.plan import StreamPlan, StreamSpeed, Utterance, plan_stream
from bark_accel.streaming.policies import Chunking

from .points import StagePatches
from .request import Request
from .stage_progress import longest

# Semantic tokens of a voice preset in the trial: its prompt is of middle length.
_HISTORY_TOKENS = 85


def stream_plan(
    chunking: Chunking, patches: StagePatches, request: Request, spec: CoarseSpec, *, interleaved: bool
) -> StreamPlan | None:
    """Plan a low-latency stream whose windows fit, on a CPU; None for others. A plan that was given stays."""
    fine = patches.fine.spec(request.configs.fine_spec, request.voices)
    if chunking.policy != "low_latency" or chunking.plan is not None:
        return chunking.plan
    if not fine.fit_windows or device_of(patches.fine.module).type != "cpu":
        return None
    return plan_stream(
        chunking.speed or kept_speed(patches, request.rows, spec, fine),
        _longest(request, spec, fine, interleaved=interleaved),
        start=chunking.start,
        first=chunking.first_chunk_frames,
        longest=chunking.max_chunk_frames,
        lookahead=chunking.lookahead_frames,
    )


def kept_speed(patches: StagePatches, rows: int, spec: CoarseSpec, fine: FineSpec) -> StreamSpeed:
    """The speed for so many rows, measured once for a model and number of threads."""
    kept, key = patches.fine.settings.stream_speeds, (rows, torch.get_num_threads())
    if key not in kept:
        kept[key] = measure_speed(patches, rows, spec, fine)
    return kept[key]


def _longest(request: Request, spec: CoarseSpec, fine: FineSpec, *, interleaved: bool) -> Utterance:
    """The longest utterance that the request may become, behind the longest of its histories."""
    voices, limit = request.voices, longest(request.configs.semantic, request.arguments("semantic"))
    frames = max(1, int(limit * spec.tokens_per_semantic) // spec.num_codebooks)
    coarse = [history_lengths(spec, voice) for voice in voices.coarse]
    codes = max(0 if voice is None else voice.shape[1] for voice in voices.fine)
    return Utterance(spec, fine, frames, *max(coarse), codes, interleaved)


@torch.no_grad()
def measure_speed(patches: StagePatches, rows: int, spec: CoarseSpec, fine: FineSpec) -> StreamSpeed:
    """Measure by a coarse window, two fine ones and some sound of random tokens, each twice; no generator moves.

    The sooner time counts: what disturbs a trial would be in the plans of all streams after it.
    """
    random = torch.Generator("cpu").manual_seed(0)
    token_s, prompt_token_s = _causal_s(patches, rows, spec, random)
    frames = max(1, fine.window_multiple * 3 - FIT_PADDING)
    codes = _ids((rows, fine.num_coarse_codebooks * frames), fine.codebook_size, random)
    stage = patches.fine.ready_stage(patches.fine.prepare(), replace(fine, fit_windows=True))
    sampling = FineSampling(0.5, generator=fork(torch.device("cpu"), "trial"))
    tokens = codes + fine.semantic_vocab_size
    short = tokens[:, : 2 * fine.num_coarse_codebooks]
    short_s, _ = _sooner(lambda: stage.run(short, [None], sampling))
    fine_s, filled = _sooner(lambda: stage.run(tokens, [None], sampling))
    fewer, more = stage.spec.window_frames(2), stage.spec.window_frames(frames)
    # Not less than half of the longer one's: a short one that was disturbed would make frames cost nothing.
    frame_s = max((fine_s - short_s) / max(1, more - fewer), fine_s / (2 * more))
    window_s = max(0.0, fine_s - more * frame_s)
    codec = patches.codec.ready_stage()
    codec_s, _ = _sooner(lambda: codec.run(filled))
    return StreamSpeed(token_s, prompt_token_s, frame_s, codec_s / frames, window_s)


def _causal_s(patches: StagePatches, rows: int, spec: CoarseSpec, random: torch.Generator) -> tuple[float, float]:
    """Seconds a token, and a token of a prompt, of the coarse stage."""
    patch, settings = patches.coarse, patches.coarse.settings
    weights = patch.ready_weights()
    model, draft = patch.model(weights), patch.draft(weights, rows)
    history_tokens = min(_HISTORY_TOKENS, spec.max_semantic_history_tokens)
    frames = int(history_tokens * spec.tokens_per_semantic / spec.num_codebooks)
    codes = _ids((spec.num_codebooks, frames), spec.codebook_size, random)
    history = _ids((history_tokens,), spec.semantic_vocab_size, random), codes
    semantic = _ids((rows, spec.max_input_tokens), spec.semantic_vocab_size, random)
    sampling = SamplingConfig(True, spec.window_tokens, 0.7)
    stage = CoarseStage(model, replace(spec, rows_end=False, fill_positions=None))
    with settings.pool.borrow(model.spec, rows, model.cache_dtype, weights.device) as cache:

        def window() -> tuple[float, float]:
            cache.truncate(0)
            source = None if draft is None else Speculation(model, replace(draft, counts=DraftCounts()))
            state = stage.start(rows, [history], sampling, cache, source)
            state.sampler.generator = fork(weights.device, "trial")
            stage.push(state, semantic, final=True)
            prompt_s, _ = _timed(lambda: stage.step(state))
            fed, tokens = cache.position, state.window_tokens - 1
            tokens_s, _ = _timed(lambda: [stage.step(state) for _ in range(tokens)])
            return tokens_s / max(1, tokens), prompt_s / fed

        tokens_s, prompts_s = zip(window(), window(), strict=True)
    return min(tokens_s), min(prompts_s)


def _ids(shape: tuple[int, ...], end: int, random: torch.Generator) -> Tensor:
    return torch.randint(0, end, shape, generator=random, dtype=torch.int64, device="cpu")


def _sooner(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of the sooner one of two calls (the first of a kernel is slower), and the second's result."""
    first_s, _ = _timed(work)
    second_s, result = _timed(work)
    return min(first_s, second_s), result


def _timed(work: Callable[[], Tensor | list[Tensor]]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result  # type: ignore[return-value]
