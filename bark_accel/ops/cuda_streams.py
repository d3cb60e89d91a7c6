"""CUDA streams beside the caller's. torch gives out 32 of a device in turn, again and again, and keeps memory for each:
blocks that were freed on it, and a workspace of cuBLAS (32 MiB on an H100)."""

from __future__ import annotations

import threading
import weakref

import torch

_TORCHS_STREAMS = 32
_shared: dict[tuple[str, torch.device], torch.cuda.Stream] = {}
_owned: weakref.WeakSet[OwnStream] = weakref.WeakSet()
_lock = threading.Lock()


def shared_stream(device: torch.device, what: str, *, first: bool = False) -> torch.cuda.Stream:
    """Return the one stream of a device for a kind of work; `first`: it goes before that of other streams."""
    with _lock:
        if (what, device) not in _shared:
            _shared[what, device] = torch.cuda.Stream(device, priority=-1 if first else 0)
        return _shared[what, device]


def finish_stream(device: torch.device) -> None:
    """Wait for the current stream of a CUDA device: what it was given is there for all streams from then on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class OwnStream:
    """A stream that no other owner has while this one lives, and none shared so far, as long as there are as many."""

    def __init__(self, device: torch.device):
        with _lock:
            taken = {stream.cuda_stream for stream in (*_shared.values(), *(own.stream for own in _owned))}
            streams = (torch.cuda.Stream(device) for _ in range(_TORCHS_STREAMS))
            free = (stream for stream in streams if stream.cuda_stream not in taken)
            self.stream: torch.cuda.Stream = next(free, None) or torch.cuda.Stream(device)
            _owned.add(self)
