"""Plays a text while it is generated: `python examples/speaker.py "one two three" [MODEL]`, through `aplay`."""

from __future__ import annotations

import subprocess
import sys

from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, small_bark_path, stream

text = sys.argv[1] if len(sys.argv) > 1 else "one two three four five"
name = sys.argv[2] if len(sys.argv) > 2 else small_bark_path()
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))
rate = model.generation_config.sample_rate

player = ["aplay", "-q", "-t", "raw", "-f", "FLOAT_LE", "-c", "1", "-r", str(rate)]
with subprocess.Popen(player, stdin=subprocess.PIPE) as speaker:
    for chunk in stream(model, **processor(text)):  # float32 CPU tensors [1, samples]
        speaker.stdin.write(chunk[0].numpy().tobytes())
