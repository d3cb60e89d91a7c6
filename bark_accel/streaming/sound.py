"""Chunks of sound in their order: decoded at once or, on a GPU, on a stream of its own beside the next tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bark_accel.ops.cuda_streams import shared_stream
from bark_accel.stages.codec import CodecStage


class Done(Protocol):
    """A point that a device has to reach, as `torch.cuda.Event` has it."""

    def query(self) -> bool:
        """Tell whether it was reached."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


class Arriving(NamedTuple):
    """A waveform [B, S] float32 on the CPU, which is there when `done` is; None: already."""

    waveform: Tensor
    done: Done | None = None


class SideStream:
    """Work on a device's CUDA stream for sound, whose results come to the host without a wait.

    It goes before the tokens, which would else keep the device from it: a chunk's sound is some ms of hundreds.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = shared_stream(device, "sound", first=True)

    def run(self, work: Callable[[], Tensor], *given: Tensor | None) -> Arriving:
        """Have `work` done behind all that the current stream was given; `given`: tensors of that stream that it reads.

        Tensors that `work` leaves behind for later work belong to this stream.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            waveform = work()
            # Pinned, for a copy to other memory would wait.
            on_host = torch.empty(waveform.shape, dtype=torch.float32, device="cpu", pin_memory=True)
            on_host.copy_(waveform, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        for tensor in given:
            if tensor is not None:
                # Its memory may be given to others when this stream is done, not when nobody refers to it.
                tensor.record_stream(self._stream)
        return Arriving(on_host, done)


def make_side_stream(device: torch.device) -> SideStream | None:
    """Return a stream for a device's sound; None where it has no streams."""
    return SideStream(device) if device.type == "cuda" else None


class Sound:
    """One batch's waveform, chunk by chunk."""

    def __init__(self, codec: CodecStage):
        self._codec = codec
        self._state = codec.start()
        self._side = make_side_stream(codec.device)
        self._chunks: deque[Arriving] = deque()

    @property
    def frames(self) -> int:
        """Frames taken in so far."""
        return self._state.frames

    def push(self, codes: Tensor, *, final: bool, row_frames: Tensor | None) -> None:
        """Decode the next frames, or begin to; arguments as `CodecStage.push` takes them."""

        def decode() -> Tensor:
            return self._codec.push(self._state, codes, final=final, row_frames=row_frames).float()

        if self._side is None:
            self._chunks.append(Arriving(decode().cpu()))
        else:
            self._chunks.append(self._side.run(decode, codes, row_frames))

    @property
    def ready(self) -> bool:
        """Tell whether the next chunk is there."""
        return bool(self._chunks) and (self._chunks[0].done is None or self._chunks[0].done.query())

    def take(self, *, wait: bool) -> Iterator[Tensor]:
        """Give out chunks [B, S] float32 on the CPU that are there, or, with `wait`, all that were begun."""
        while self.ready or (wait and self._chunks):
            waveform, done = self._chunks.popleft()
            if done is None:
                yield waveform
                continue
            done.synchronize()
            yield waveform.clone()  # pinned memory goes back
