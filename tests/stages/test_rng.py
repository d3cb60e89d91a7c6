"""Random numbers of one device, and nobody else's."""

from __future__ import annotations

import pytest
import torch

from bark_accel.decoding import rng


def test_only_the_generator_of_the_device_is_seeded(monkeypatch):
    class Gpu:
        init = staticmethod(lambda: None)
        current_device = staticmethod(lambda: 1)
        default_generators = tuple(torch.Generator().manual_seed(i) for i in range(3))

    monkeypatch.setattr(torch, "get_device_module", lambda device: Gpu)
    every = [torch.default_generator, *Gpu.default_generators]
    states = [generator.get_state() for generator in every]
    for device, used in (("cuda", 2), ("cuda:2", 3), ("cpu", 0)):
        with pytest.raises(KeyError), rng.seeded(5, torch.device(device)):
            expected = [5 if i == used else generator.initial_seed() for i, generator in enumerate(every)]
            torch.rand(3, generator=every[used])
            assert [generator.initial_seed() for generator in every] == expected
            raise KeyError
        assert all(torch.equal(g.get_state(), state) for g, state in zip(every, states, strict=True))
