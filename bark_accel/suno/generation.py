"""`bark.generation` of suno's package: its functions, arguments and defaults, on accelerated stages."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bark_accel.decoding.suno_sampling import SunoSampling, draw_frames
from bark_accel.patches.semantic import SemanticPrompt
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.loops import TokenListener, run_coarse, run_semantic
from bark_accel.voices.preset import CodeLimits, VoicePreset
from bark_accel.voices.voices import Voices

from . import arguments
from .arguments import COARSE_HISTORY, COARSE_WINDOW
from .models import LOADED, clean_models, load_codec_model, load_model, preload_models, stage_of, use_model
from .prompts import LANGUAGES, SUNO_VOICES, load_history_prompt

__all__ = [
    "ALLOWED_PROMPTS",
    "COARSE_INFER_TOKEN",
    "COARSE_RATE_HZ",
    "COARSE_SEMANTIC_PAD_TOKEN",
    "CODEBOOK_SIZE",
    "CONTEXT_WINDOW_SIZE",
    "N_COARSE_CODEBOOKS",
    "N_FINE_CODEBOOKS",
    "SAMPLE_RATE",
    "SEMANTIC_INFER_TOKEN",
    "SEMANTIC_PAD_TOKEN",
    "SEMANTIC_RATE_HZ",
    "SEMANTIC_VOCAB_SIZE",
    "SUPPORTED_LANGS",
    "TEXT_ENCODING_OFFSET",
    "TEXT_PAD_TOKEN",
    "clean_models",
    "codec_decode",
    "generate_coarse",
    "generate_fine",
    "generate_text_semantic",
    "load_codec_model",
    "load_model",
    "preload_models",
    "use_model",
]

# What scripts read; the functions below go by the checkpoint's own numbers.
CONTEXT_WINDOW_SIZE = 1024
SEMANTIC_RATE_HZ = 49.9
SEMANTIC_VOCAB_SIZE = 10_000
CODEBOOK_SIZE = 1024
N_COARSE_CODEBOOKS = 2
N_FINE_CODEBOOKS = 8
COARSE_RATE_HZ = 75
SAMPLE_RATE = 24_000
TEXT_ENCODING_OFFSET = 10_048
SEMANTIC_PAD_TOKEN = 10_000
TEXT_PAD_TOKEN = 129_595
SEMANTIC_INFER_TOKEN = 129_599
COARSE_SEMANTIC_PAD_TOKEN = 12_048
COARSE_INFER_TOKEN = 12_050
SUPPORTED_LANGS = [(name, code) for code, name in LANGUAGES.items()]
ALLOWED_PROMPTS = SUNO_VOICES


def generate_text_semantic(
    text: str,
    history_prompt: Any = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    min_eos_p: float | None = 0.2,
    max_gen_duration_s: float | None = None,
    allow_early_stop: bool = True,
    use_kv_caching: bool = False,
) -> np.ndarray:
    """Generate the semantic tokens of a text.

    Parameters
    ----------
    text : str
        With more tokens than the model reads (256) it is cut, with a warning.
    history_prompt : str, path or mapping, optional
        The name of a voice, an .npz file, or its arrays.
    temp : float
        Temperature, above 0.
    top_k, top_p : int, float, optional
        Keep the most likely tokens, and those that have this probability together.
    silent : bool
        Show no progress.
    min_eos_p : float, optional
        End where the end of speech is at least this probable; None: where it is drawn.
    max_gen_duration_s : float, optional
        End with the token that makes the speech longer than that.
    allow_early_stop : bool
        Without it, the model speaks until `max_gen_duration_s`, or as long as it can (15.4 s).
    use_kv_caching : bool
        Taken and not needed: keys and values are kept in any case.

    Returns
    -------
    array [T] int64

    Raises
    ------
    TypeError, ValueError
        Name the argument, what was expected and what came.
    FileNotFoundError
        See `preload_models`.
    """
    text = arguments.words(text)
    options = arguments.options(temp, top_k, top_p)
    if min_eos_p is not None and not 0 < min_eos_p <= 1:
        raise ValueError(f"min_eos_p: expected None or a probability above 0, got {min_eos_p!r}")
    stage = stage_of("text")
    spec = stage.specs.text
    voices = arguments.semantic_voices(_history(history_prompt), spec.vocab_size)
    ids, mask = arguments.text_ids(stage.tokenizer, text, spec.max_input_tokens)
    most = arguments.tokens_within(max_gen_duration_s, spec.rate_hz, stage.specs.max_tokens)
    ends = {"stop_tokens": (spec.pad_token,), "pad_token": spec.pad_token, "min_eos_p": min_eos_p or 0.0}
    sampling = SunoSampling(True, most, **options, **(ends if allow_early_stop else {"min_new_tokens": most}))
    with (
        stage.on_duty() as patch,
        patch.started(patch.weights(), spec, sampling, SemanticPrompt(ids, mask, voices)) as (loop, state),
        tqdm(total=most, unit="token", disable=silent) as bar,
    ):
        tokens = run_semantic(loop, state, TokenListener(on_token=lambda _: bar.update()))[0].cpu().numpy()
    return tokens[:-1] if tokens[-1] == spec.pad_token else tokens


def generate_coarse(
    x_semantic: np.ndarray,
    history_prompt: Any = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    max_coarse_history: int = COARSE_HISTORY,
    sliding_window_len: int = COARSE_WINDOW,
    use_kv_caching: bool = False,
) -> np.ndarray:
    """Generate the first two codebooks of semantic tokens.

    Parameters
    ----------
    x_semantic : array [T] int
        Not empty.
    history_prompt, temp, top_k, top_p, silent, use_kv_caching
        As in `generate_text_semantic`.
    max_coarse_history : int
        Coarse tokens that the model looks back at, 60 (faster) to 630.
    sliding_window_len : int
        Tokens between two looks at the semantic tokens, an even number. These two defaults stand for a checkpoint's
        own numbers, where they differ from suno's.

    Returns
    -------
    array [2, F] int64
        75 frames a second.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As in `generate_text_semantic`.
    """
    options = arguments.options(temp, top_k, top_p)
    stage = stage_of("coarse")
    positions = stage.patch.module.config.block_size
    spec = arguments.windows(stage.specs.coarse, positions, max_coarse_history, sliding_window_len)
    tokens = arguments.codes("x_semantic", x_semantic, spec.semantic_vocab_size, dimensions=1)
    voices = arguments.coarse_voices(_history(history_prompt), spec)
    sampling = SunoSampling(True, spec.window_tokens, **options)
    windows = math.ceil(arguments.coarse_tokens(spec, len(tokens)) / spec.window_tokens)
    with (
        stage.on_duty() as patch,
        patch.started(patch.weights(), spec, sampling, 1, voices) as run,
        tqdm(total=windows, unit="window", disable=silent) as bar,
    ):
        run.push(tokens[None], final=True)
        run_coarse(run, TokenListener(on_token=lambda _: bar.update(run.window_ended)))
        coarse = run.result()[0].cpu()
    frames = coarse.view(-1, spec.num_codebooks).T - spec.semantic_vocab_size
    offsets = spec.codebook_size * torch.arange(spec.num_codebooks, dtype=torch.int64, device="cpu")
    return (frames - offsets[:, None]).numpy()


def generate_fine(
    x_coarse_gen: np.ndarray, history_prompt: Any = None, temp: float | None = 0.5, silent: bool = True
) -> np.ndarray:
    """Generate all codebooks from the first ones.

    Parameters
    ----------
    x_coarse_gen : array [K, F] int
        1 to 7 codebooks, at least one frame.
    history_prompt, silent
        As in `generate_text_semantic`.
    temp : float, optional
        Temperature, above 0; None takes the most likely codes.

    Returns
    -------
    array [8, F] int32

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As in `generate_text_semantic`.
    """
    if temp is not None:
        arguments.check_temperature(temp)
    stage = stage_of("fine")
    spec = stage.specs.fine
    codes = arguments.codes("x_coarse_gen", x_coarse_gen, spec.codebook_size, dimensions=2)
    if not 1 <= len(codes) < spec.num_codebooks:
        raise ValueError(f"x_coarse_gen: expected 1 to {spec.num_codebooks - 1} codebooks, got {len(codes)}")
    limits = {"fine_prompt": CodeLimits(spec.codebook_size, spec.num_codebooks)}
    histories = Voices.read(_history(history_prompt), 1, limits).fine
    sampling = FineSampling(temp, draw=partial(draw_frames, temperature=temp))
    with stage.on_duty() as patch:
        weights = patch.weights()
        loop = patch.ready_stage(weights, replace(spec, num_coarse_codebooks=len(codes)))
        state = loop.start([codes.shape[1]], histories, sampling)
        loop.push(state, codes.T[None].to(weights.device))
        with tqdm(total=len(state.groups[0].windows), unit="window", disable=silent) as bar:
            while loop.ready(state):
                loop.step(state)
                bar.update()
        return state.result()[0].cpu().numpy().astype(np.int32)


def codec_decode(fine_tokens: np.ndarray) -> np.ndarray:
    """Turn codes into sound.

    Parameters
    ----------
    fine_tokens : array [K, F] int
        At most as many codebooks as the codec has, at least one frame.

    Returns
    -------
    array [S] float32
        24 kHz with suno's checkpoints.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As in `generate_text_semantic`.
    """
    stage = stage_of("codec")
    codes = arguments.codes("fine_tokens", fine_tokens, stage.specs.fine.codebook_size, dimensions=2)
    most = len(stage.patch.module.quantizer.layers)
    if len(codes) > most:
        raise ValueError(f"fine_tokens: expected at most {most} codebooks, got {len(codes)}")
    with stage.on_duty() as patch:
        return patch.ready_stage().run(codes[None].to(patch.module.device))[0].float().cpu().numpy()


def _history(history_prompt: Any) -> VoicePreset | None:
    if history_prompt is None:
        return None
    text = LOADED.get("text")
    return load_history_prompt(history_prompt, None if text is None else text.processor)
