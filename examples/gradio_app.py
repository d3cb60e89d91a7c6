"""A page that speaks while it generates: `pip install gradio`, `python examples/gradio_app.py [MODEL]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import gradio
import numpy as np
import torch
from transformers import AutoProcessor, BarkModel

from bark_accel import accelerate_bark, small_bark_path, stream

name = sys.argv[1] if len(sys.argv) > 1 else small_bark_path()
processor = AutoProcessor.from_pretrained(name)
model = accelerate_bark(BarkModel.from_pretrained(name))
rate = model.generation_config.sample_rate
voices = ["slt", "rms"] if name == small_bark_path() else ["v2/en_speaker_6", "v2/en_speaker_9"]


def speak(text: str, voice: str, seed: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (samples per second, int16 samples [S]) while the rest is generated."""
    torch.manual_seed(int(seed))
    for chunk in stream(model, **processor(text, voice_preset=voice)):  # float32 CPU tensors [1, samples]
        yield rate, (chunk[0].clamp(-1, 1) * 32767).to(torch.int16).numpy()


with gradio.Blocks(title="Bark, streamed") as page:
    text = gradio.Textbox("one two three four five", label="Text")
    voice = gradio.Dropdown(voices, label="Voice")
    seed = gradio.Number(0, label="Seed", precision=0)
    start = gradio.Button("Speak", elem_id="speak")
    stop = gradio.Button("Stop")
    sound = gradio.Audio(label="Speech", streaming=True, autoplay=True)
    # One generation at a time: they draw from torch's one generator.
    speaking = start.click(speak, [text, voice, seed], sound, concurrency_limit=1)
    stop.click(None, cancels=speaking)

if __name__ == "__main__":
    page.launch()
