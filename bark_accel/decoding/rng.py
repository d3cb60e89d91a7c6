"""Random number generators for the parts of a generation that draw out of Transformers' order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def default_generator(device: torch.device) -> Generator:
    """The generator that torch draws from on `device` when none is given."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    module = torch.get_device_module(device)
    module.init()  # until then the tuple of generators is empty
    index = module.current_device() if device.index is None else device.index
    return module.default_generators[index]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The default generator of `device` starts at `seed`, and is afterwards what it was; no other one is touched."""
    generator = default_generator(device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def fork(device: torch.device, purpose: str, source: Generator | None = None) -> Generator:
    """A new generator that follows from the state of the source, and from `purpose`; that state stays as it is.

    Its numbers are unrelated to those that the source, by default the device's own generator, draws next.
    """
    state = (source or default_generator(device)).get_state().numpy().tobytes()
    digest = hashlib.blake2b(state, digest_size=8, person=purpose.encode()[:16]).digest()
    generator = Generator(device)
    return generator.manual_seed(int.from_bytes(digest, "little"))


def after_noise(
    device: torch.device, rows: int, columns: int, draws: int, source: Generator | None = None
) -> Generator:
    """A generator in the state that the source will have after `draws` draws of [rows, columns] exponentials.

    The source is by default the device's own generator.
    """
    generator = Generator(device)
    generator.set_state((source or default_generator(device)).get_state())
    noise = torch.empty(rows, columns, dtype=torch.float32, device=device)
    for _ in range(draws):
        noise.exponential_(generator=generator)
    return generator
