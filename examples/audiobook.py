"""Reads a text file into a .wav: `python examples/audiobook.py book.txt book.wav [MODEL] [VOICE]`.

Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile
from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, long_form, small_bark_path

source, target = Path(sys.argv[1]), Path(sys.argv[2])
name = sys.argv[3] if len(sys.argv) > 3 else small_bark_path()
voice = sys.argv[4] if len(sys.argv) > 4 else "slt"
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))

book = long_form(model, processor, source.read_text(), voice=voice, work_dir=target.with_suffix(".parts"))
with soundfile.SoundFile(target, "w", samplerate=model.generation_config.sample_rate, channels=1) as file:
    for chunk in book:
        print(chunk.text)
        file.write(chunk.audio_and_pause.numpy())
