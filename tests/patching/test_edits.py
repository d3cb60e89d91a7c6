"""Options that edit the logits before Bark's rules: part of our own loop, with drafts."""

from __future__ import annotations

import math

import pytest
import torch
from support.bark_models import SMALL, preset, texts
from support.edit_options import OPTIONS
from support.parity import accelerated_copy, assert_equal_to_stock, assert_same_run, run

from bark_accel import AudioStreamer, acceleration_report, stream
from bark_accel.decoding.edits import LogitsEditor, LogitsEdits

INPUTS = texts(SMALL, [4, 9])
ALONE = texts(SMALL, [7])
SAMPLED = {"do_sample": True, "semantic_max_new_tokens": 30, "fine_temperature": 0.7}


@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_stock(small_model, options, greedy):
    """And the option decides tokens."""
    given = {**INPUTS, **SAMPLED, "do_sample": not greedy}
    fast = accelerated_copy(small_model)
    tokens = assert_equal_to_stock(small_model, fast, **given, **options)
    report = acceleration_report(fast)
    assert report.token_choices == report.fallbacks == ()
    plain = run(small_model, 0, **given)[0]
    for stage in ("semantic", "coarse"):
        assert tokens[stage].shape != plain[stage].shape or not torch.equal(tokens[stage], plain[stage])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_drafts_stay_on(small_model, options):
    fast = accelerated_copy(small_model, speculate=True)
    for seed in (0, 1):
        assert_equal_to_stock(small_model, fast, seed, **ALONE, **SAMPLED, **options)
    counts = [acceleration_report(fast).stages[index].drafts for index in (0, 1)]
    assert all(count.accepted_tokens > count.drafted_tokens / 2 for count in counts)


def test_a_voices_tokens_are_seen(small_model):
    """Transformers counts the coarse prompt's tokens, voice included, anew in each window."""
    voice = preset(SMALL, 40, 60, seed=2)
    fast = accelerated_copy(small_model)
    assert_equal_to_stock(small_model, fast, **INPUTS, **SAMPLED, **OPTIONS["penalty"], history_prompt=voice)


def test_a_stream_has_the_same_tokens(small_model):
    fast, options = accelerated_copy(small_model), {**ALONE, **SAMPLED, **OPTIONS["all"]}
    torch.manual_seed(0)
    chunks = list(stream(fast, **options, streamer=AudioStreamer(fast, policy="exact")))
    audio = run(small_model, 0, **options)[1]
    torch.testing.assert_close(torch.cat(chunks, 1), audio, rtol=0, atol=1e-6)
    assert acceleration_report(fast).token_choices == ()


@pytest.mark.parametrize(
    "options",
    [
        {"semantic_sequence_bias": [[[33, 4], 2.0]]},
        {"semantic_sequence_bias": [[[33], math.inf]]},
        {"semantic_bad_words_ids": [[33], [75, 52]]},
        {"coarse_suppress_tokens": [-1, 10_000]},
        {"semantic_bad_words_ids": [[10_000]]},
    ],
    ids=["sequences", "infinite", "long words", "unknown ids", "unknown words"],
)
def test_unusual_values(small_model, options):
    fast = accelerated_copy(small_model)
    given = {**INPUTS, **SAMPLED, **options}
    try:
        run(small_model, 0, **given)
    except (RuntimeError, ValueError) as error:
        with pytest.raises(type(error)):
            run(fast, 0, **given)
        return
    assert_equal_to_stock(small_model, fast, **given)


INFINITE = {"semantic_sequence_bias": [[[33], math.inf], [[40], math.inf]]}


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "options",
    [
        {**INFINITE, "semantic_renormalize_logits": True},
        {**INFINITE, "min_eos_p": 0.001},
        {**INFINITE, "semantic_bad_words_ids": [[33]]},
        {"semantic_sequence_bias": [[[SMALL.semantic_vocab], math.inf]], "semantic_min_new_tokens": 5},
        {"coarse_sequence_bias": [[[170], math.inf]], "coarse_renormalize_logits": True},
    ],
    ids=["renormalized", "min_eos_p", "banned", "too early", "of one codebook"],
)
def test_an_infinite_bias_beside_other_options(small_model, options, do_sample):
    """As stock, greedy (where nothing can be told from NaN, the first id), or stock's error and random state."""
    given = {**INPUTS, "do_sample": do_sample, "semantic_max_new_tokens": 8, "fine_temperature": 0.7, **options}
    fast, states = accelerated_copy(small_model), []
    try:
        expected = run(small_model, 0, **given)
    except RuntimeError as error:
        states.append(torch.get_rng_state())
        with pytest.raises(RuntimeError) as caught:
            run(fast, 0, **given)
        assert str(caught.value) == str(error) and torch.equal(torch.get_rng_state(), states[0])
    else:
        assert_same_run(expected, run(fast, 0, **given))
    assert do_sample == bool(states)


def test_edits_of_a_slice():
    """By hand: ids 2 to 5 of 8; 3 is banned, 4 was seen, 5 may not come first."""
    editor = LogitsEditor(LogitsEdits(((3, -math.inf), (2, 0.5)), 2.0, (5,)), 8)
    editor.begin(torch.tensor([[4, 9, -1]]))
    logits = torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    first = editor.edit(logits, slice(2, 6), editor.factors)
    assert first.tolist() == [[1.5, -math.inf, -2.0, -math.inf]]
    editor.note(torch.tensor([[2]]), editor.factors)
    assert editor.edit(logits, slice(2, 6), editor.factors).tolist() == [[0.75, -math.inf, -2.0, 1.0]]
    assert logits.tolist() == [[1.0, 1.0, -1.0, 1.0]]
