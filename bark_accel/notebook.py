"""Sound in a notebook: chunks are heard while the rest is generated.

from bark_accel.notebook import play

play(stream(model, **inputs, progress=True), model.generation_config.sample_rate)
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

# Run by the browser for each chunk. Chunks are scheduled on the clock of one AudioContext, so that none waits for an
# event of the one before; sound that comes too late starts at once.
_SCRIPT = """
(() => {
  const players = (globalThis.barkAccelPlayers ??= {});
  const player = (players[%(player)s] ??= {context: new AudioContext(), end: 0});
  const bytes = Uint8Array.from(atob(%(samples)s), (character) => character.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
  const buffer = player.context.createBuffer(1, samples.length, %(rate)d);
  buffer.getChannelData(0).set(samples);
  const source = player.context.createBufferSource();
  source.buffer = buffer;
  source.connect(player.context.destination);
  const start = Math.max(player.end, player.context.currentTime);
  source.start(start);
  player.end = start + buffer.duration;
})();
"""
# A browser has few contexts to give. Half a second is more than the sound takes from the clock to a loudspeaker.
_END = """
(() => {
  const player = globalThis.barkAccelPlayers?.[%(player)s];
  if (!player) return;
  delete globalThis.barkAccelPlayers[%(player)s];
  const left = Math.max(player.end - player.context.currentTime, 0);
  setTimeout(() => player.context.close(), 1000 * left + 500);
})();
"""
_STOP = """
(() => {
  globalThis.barkAccelPlayers?.[%(player)s]?.context.close();
  delete globalThis.barkAccelPlayers?.[%(player)s];
})();
"""


def play(chunks: Iterable[Any], rate: int = 24_000) -> Tensor:
    """Play chunks in the notebook's browser as they come, then show a player of all of them.

    Stopping the cell stops the generation and the sound. Browsers play only in pages that were clicked in.

    Parameters
    ----------
    chunks : iterable of Tensor [1, S] or [S], or of SpokenChunk
        Those of `stream`, or of `long_form`.
    rate : int
        Samples per second: `model.generation_config.sample_rate`.

    Returns
    -------
    Tensor [S] float32
        Everything that was played.

    Raises
    ------
    ValueError
        A chunk of several rows.
    ImportError
        There is no IPython.
    RuntimeError
        This is no notebook, but a script.
    """
    from IPython.display import HTML, Audio, display

    player = json.dumps(uuid.uuid4().hex)
    played: list[Tensor] = []
    # One place, written anew for each chunk: the notebook keeps the player of the whole and no chunks.
    place = display(HTML(""), display_id=True)
    try:
        if place is None:
            raise RuntimeError("play: expected the cell of a notebook, got a process without IPython's shell")
        for chunk in chunks:
            played.append(_waveform(chunk))
            if len(played[-1]):
                place.update(HTML(f"<script>{_script(player, played[-1], rate)}</script>"))
    except BaseException:
        if place is not None:
            place.update(HTML(f"<script>{_STOP % {'player': player}}</script>"))
        raise
    finally:
        with suppress(AttributeError):
            chunks.close()  # type: ignore[attr-defined]
    place.update(HTML(f"<script>{_END % {'player': player}}</script>"))
    audio = torch.cat(played) if played else torch.zeros(0, dtype=torch.float32, device="cpu")
    # As loud as it has just been.
    place.update(
        Audio(audio.clamp(-1, 1).numpy(), rate=rate, normalize=False) if len(audio) else HTML("nothing was said")
    )
    return audio


def _waveform(chunk: Any) -> Tensor:
    samples = torch.as_tensor(getattr(chunk, "audio_and_pause", chunk)).detach().float().cpu()
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 1:
        raise ValueError(f"chunks: expected one waveform, [S] or [1, S], got {list(samples.shape)}")
    return samples


def _script(player: str, samples: Tensor, rate: int) -> str:
    pcm = (samples.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes()
    return _SCRIPT % {"player": player, "samples": json.dumps(base64.b64encode(pcm).decode()), "rate": rate}
