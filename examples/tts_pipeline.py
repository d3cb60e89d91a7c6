"""Gives an accelerated model to Transformers' text-to-speech pipeline: `python examples/tts_pipeline.py out.wav`."""

from __future__ import annotations

import sys

import soundfile
from transformers import AutoProcessor, BarkModel, pipeline

from bark_accel import accelerate_bark, small_bark_path

name = small_bark_path()
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))
speak = pipeline("text-to-speech", model=model, tokenizer=processor.tokenizer, processor=processor)
spoken = speak("one two three", forward_params={"do_sample": True})
soundfile.write(sys.argv[1] if len(sys.argv) > 1 else "out.wav", spoken["audio"].T, spoken["sampling_rate"])
