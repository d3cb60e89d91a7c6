"""Says one text per voice in one batch, each row as if it were alone: `python examples/voices.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile
from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, batch_inputs, small_bark_path

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "voices_out")
name = small_bark_path()
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))

texts = {"slt": "one two three", "rms": "four five six", None: "seven eight nine"}
rows = model.generate(**batch_inputs(processor, list(texts.values()), list(texts)), trim=True)
folder.mkdir(parents=True, exist_ok=True)
for voice, row in zip(texts, rows, strict=True):
    soundfile.write(folder / f"{voice or 'any'}.wav", row.numpy(), model.generation_config.sample_rate)
