"""Speaks with suno's own API: `python examples/suno_script.py out.wav [TEXT] [VOICE]`.

A script for suno's package changes its import and nothing else. Without --suno this one takes the small Bark that comes
with the package, so that nothing is downloaded.
"""

from __future__ import annotations

import sys

import soundfile
from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, small_bark_path
from bark_accel.suno import SAMPLE_RATE, generate_audio, preload_models, save_as_prompt, use_model

arguments = [argument for argument in sys.argv[1:] if argument != "--suno"]
target, text, voice = (*arguments, *["one two three", None][len(arguments) - 1 :])
if "--suno" in sys.argv:
    preload_models()
    rate = SAMPLE_RATE
else:
    name = small_bark_path()
    model = accelerate_bark(BarkModel.from_pretrained(name))
    rate = use_model(model, AutoProcessor.from_pretrained(name))

full_generation, audio = generate_audio(text, history_prompt=voice, output_full=True)
soundfile.write(target, audio, rate)
save_as_prompt(f"{target}.npz", full_generation)
