"""How long frames wait: hops that grow, lookahead, what is left at the end."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bark_accel.decoding.rng import after_noise, default_generator, fork
from bark_accel.stages.fine_sampling import FineSampling
from bark_accel.stages.spec import FineSpec
from bark_accel.streaming.policies import Hops, LowLatency, Preview, hop_growth

CPU = torch.device("cpu")
SPEC = FineSpec(
    semantic_vocab_size=0,
    codebook_size=10_000,
    num_coarse_codebooks=2,
    num_codebooks=8,
    max_history_frames=512,
    max_input_frames=1024,
)


class FakeState:
    def __init__(self, codes):
        self.codes, self.passes = codes, 3

    def result(self, end):
        return self.codes[:, :, :end]


class FakeFine:
    """Gives the coarse codes back as all codebooks, and keeps (frames seen, history frames, drawn from a fork)."""

    spec = SPEC

    def __init__(self):
        self.calls = []

    def ready(self, state):
        return state.passes > 0

    def advance(self, state):
        state.passes -= 1

    def begin(self, tokens, histories, sampling):
        frames = tokens.shape[1] // 2
        self.calls.append(
            (frames, 0 if histories[0] is None else histories[0].shape[1], sampling.generator is not None)
        )
        return FakeState(tokens.view(1, frames, 2).transpose(1, 2).repeat(1, 4, 1))


def low_latency(first, growth, largest, lookahead):
    fine = FakeFine()
    return LowLatency(
        fine, Hops(first, growth, largest), lookahead, [None], FineSampling(None), fork(CPU, "fine")
    ), fine


def run(policy, total, planned_at):
    """(chunk lengths, frames pushed when each came); checks that every frame comes once and in order."""
    chunks, pushed_at = [], []
    for frame in range(total):
        if frame == planned_at:
            policy.plan([total])
        policy.push([torch.tensor([frame])] * 2)
        if frame == total - 1 and planned_at >= total:
            policy.plan([total])
        while policy.ready():
            if (codes := policy.take()) is not None:
                chunks.append(codes)
                pushed_at.append(frame + 1)
    assert torch.equal(torch.cat(chunks, dim=2)[0, 0], torch.arange(total))
    assert policy.take() is None
    return [c.shape[2] for c in chunks], pushed_at


@given(
    total=st.integers(1, 300),
    first=st.integers(1, 60),
    growth=st.sampled_from([1.0, 1.5, 2.0, math.inf]),
    room=st.integers(0, 100),
    lookahead=st.integers(0, 20),
    planned_at=st.integers(0, 300),
)
def test_low_latency(total, first, growth, room, lookahead, planned_at):
    policy, fine = low_latency(first, growth, first + room, lookahead)
    sizes, pushed_at = run(policy, total, planned_at)
    done = 0
    for size, at, (seen, history, forked) in zip(sizes, pushed_at, fine.calls, strict=True):
        assert history == min(done, SPEC.max_history_frames) and forked == (len(sizes) > 1)
        done += size
        # The lookahead is there, unless the utterance ends.
        assert seen == (size if done == total else size + lookahead)
        assert at >= min(total, done + lookahead)
    # No tail that would be cheaper to give out with the chunk before.
    assert len(sizes) == 1 or sizes[-1] > (lookahead if planned_at <= total - sizes[-1] - lookahead else 0)
    assert all(a <= b for a, b in itertools.pairwise(sizes[:-1])), "hops never shrink"


@given(total=st.integers(1, 300), first=st.integers(1, 60), planned_at=st.integers(0, 300))
def test_preview_gives_out_frames_as_soon_as_a_hop_is_there(total, first, planned_at):
    sizes, pushed_at = run(Preview(SPEC, Hops(first, 1.0, 480)), total, planned_at)
    assert sizes == [first] * (total // first) + ([total % first] if total % first else [])
    assert pushed_at == [min(total, first * (i + 1)) for i in range(len(sizes))]


def test_hops_grow():
    policy, _ = low_latency(30, 2.0, 480, 15)
    assert run(policy, 1125, 0)[0] == [30, 60, 120, 240, 480, 195]
    policy, _ = low_latency(30, hop_growth("low_latency", CPU), 480, 15)
    assert run(policy, 1125, 0)[0] == [30, 480, 480, 135]
    assert hop_growth("low_latency", torch.device("cuda")) == 2.0
    assert hop_growth("preview", CPU) == hop_growth("preview", torch.device("cuda")) == 1.0


def test_a_fork_follows_the_seed_and_leaves_it_alone():
    state = torch.manual_seed(5).get_state()
    numbers = torch.rand(4, generator=fork(CPU, "fine"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(numbers, torch.rand(4, generator=fork(CPU, "fine")))
    assert not torch.equal(numbers, torch.rand(4, generator=fork(CPU, "coarse")))
    assert not torch.equal(numbers, torch.rand(4))
    assert not torch.equal(numbers, torch.rand(4, generator=fork(CPU, "fine")))


@pytest.mark.parametrize("draws", [0, 1, 7])
def test_a_generator_ahead_of_its_time(draws):
    torch.manual_seed(5)
    ahead = after_noise(CPU, 2, 301, draws)
    for _ in range(draws):
        torch.multinomial(torch.ones(2, 301), 1)
    assert torch.equal(ahead.get_state(), default_generator(CPU).get_state())
