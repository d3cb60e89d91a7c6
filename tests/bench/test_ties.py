"""Differences of tokens are judged: a tie explains them with all that follows from it, and nothing else does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
import torch
from support import met_ties, parity
from support.bark_models import SMALL, build, texts
from support.parity import TOKEN_STAGES, accelerated_copy, assert_equal_to_stock, run

from bark_accel.bench import measure
from bark_accel.bench.ties import explaining_ties
from bark_accel.stages.fine import FineStage

INPUTS = {**texts(SMALL, [6]), "semantic_max_new_tokens": 30}
TESTS = Path(__file__).parents[1]


class Tied:
    """A model with two rows of a head that are alike; stock chooses the id of one of them once without the other."""

    def __init__(self, model, head, chosen, never, share=1.0):
        self.model, self._head, self._ids = model, head, (chosen, never)
        with torch.no_grad():
            head(model)[never] = share * head(model)[chosen]

    def preferring(self, index):
        """An accelerated copy that is sure to choose one of the two."""
        changed = copy.deepcopy(self.model)
        with torch.no_grad():
            self._head(changed)[self._ids[index]] *= 1.001
        return accelerated_copy(changed)

    def assert_both_equal_stock(self):
        """Returns the ties that this took: on some CPU stock may itself take the other one."""
        for index in range(2):
            assert_equal_to_stock(self.model, self.preferring(index), **INPUTS)
        ties = list(parity.TIES)
        parity.TIES.clear()
        return ties


def once_and_never(ids, among, size):
    """(an id that `ids` has once, and there among the places `among`, or None; an id that it does not have)."""
    counts = ids.bincount(minlength=size)[:size]
    return next((int(i) for i in ids[among] if counts[i] == 1), None), int(counts.argmin())


def semantic_head(model):
    return model.semantic.lm_head.weight


def tied_semantic(share=1.0):
    model = build(SMALL, seed=4)
    tokens = run(model, 0, **INPUTS)[0]["semantic"][0]
    return Tied(model, semantic_head, *once_and_never(tokens, slice(5, None), SMALL.semantic_vocab), share)


def fine_head(model):
    return model.fine_acoustics.lm_heads[1].weight


def tied_padding(monkeypatch):
    """The third codebook of a padding frame ties, and much comes of it."""
    model, passes = build(SMALL, seed=3), []
    draw = FineStage._draw
    with monkeypatch.context() as patch:
        patch.setattr(FineStage, "_draw", lambda *arguments: passes.append(draw(*arguments)) or passes[-1])
        frames = run(accelerated_copy(model), 0, **INPUTS)[0]["fine"].shape[2]
    assert frames + 10 < len(passes[0]), "expected padding behind the utterance"
    chosen, never = once_and_never(passes[0], slice(frames, None), SMALL.codebook_size)
    part = model.fine_acoustics
    part.lm_heads[1].weight = torch.nn.Parameter(part.lm_heads[1].weight.clone())  # no longer tied to the embedding
    with torch.no_grad():
        part.input_embeds_layers[2].weight[never] *= 50
    return Tied(model, fine_head, chosen, never)


def plant_a_wrong_code(monkeypatch):
    """In the fourth frame of every codebook."""
    draw = FineStage._draw

    def wrong(*arguments):
        ids = draw(*arguments)
        ids[3] = (ids[3] + 1) % SMALL.codebook_size
        return ids

    monkeypatch.setattr(FineStage, "_draw", wrong)


def tokens_of(model):
    return run(model, 0, **INPUTS)[0]


def test_a_tie_explains_all_that_follows_from_it():
    tied = tied_semantic()
    one, other = (tokens_of(tied.preferring(index)) for index in range(2))
    assert not any(torch.equal(one[stage], other[stage]) for stage in TOKEN_STAGES)
    ties = tied.assert_both_equal_stock()
    assert ties and all(tie.startswith("semantic, choice") for tie in ties)


def test_a_tie_in_padding_explains_codes_of_the_utterance(monkeypatch):
    tied = tied_padding(monkeypatch)
    one, other = (tokens_of(tied.preferring(index)) for index in range(2))
    assert torch.equal(one["coarse"], other["coarse"]) and not torch.equal(one["fine"], other["fine"])
    ties = tied.assert_both_equal_stock()
    assert ties and all(tie.startswith("fine, choice") for tie in ties)


@pytest.mark.parametrize("make", [tied_semantic, tied_padding], ids=["semantic", "padding"])
def test_a_wrong_code_beside_a_tie_fails(monkeypatch, make):
    tied = make(monkeypatch) if make is tied_padding else make()
    plant_a_wrong_code(monkeypatch)
    for index in range(2):
        with pytest.raises(AssertionError, match="tokens differ"):
            assert_equal_to_stock(tied.model, tied.preferring(index), **INPUTS)
    assert not parity.TIES


def test_a_wrong_code_fails(small_model, monkeypatch):
    plant_a_wrong_code(monkeypatch)
    with pytest.raises(AssertionError, match=r"fine: .* tokens differ"):
        assert_equal_to_stock(small_model, accelerated_copy(small_model), **INPUTS)


def test_a_wrong_token_fails():
    """The same scores but for 0.02 %: no tie."""
    tied = tied_semantic(share=1 - 2e-4)
    assert_equal_to_stock(tied.model, tied.preferring(0), **INPUTS)
    with pytest.raises(AssertionError, match=r"semantic: .* tokens differ"):
        assert_equal_to_stock(tied.model, tied.preferring(1), **INPUTS)
    assert not parity.TIES


@pytest.mark.parametrize("offset, explained", [(0.0, True), (1e-3, False)])
def test_ties_of_drawn_tokens(small_model, offset, explained):
    """The greatest probability / noise decides: here two are alike, or `offset` apart in the logarithm."""
    rows, first, second = 3, 4, 20
    torch.manual_seed(5)
    noise = torch.empty(rows, 50).exponential_(1).double()
    probabilities = torch.rand(rows, 50, dtype=torch.float64) * noise
    probabilities[1, [first, second]] = noise[1, [first, second]] * torch.tensor([1.0, 1 + offset]).double() * 1.1

    def generate(model):
        torch.manual_seed(5)
        return torch.multinomial(probabilities.to(model.dtype), 1)[:, 0]

    expected = generate(small_model)
    other = {first: second, second: first}[int(expected[1])]
    wanted = expected.clone()
    wanted[1] = other
    ties = explaining_ties(small_model, generate, lambda ids: torch.equal(ids, wanted))
    assert ([(tie.place, tie.token) for tie in ties] == [(1, other)]) if explained else ties is None
    wanted[0] = (wanted[0] + 1) % 50
    assert explaining_ties(small_model, generate, lambda ids: torch.equal(ids, wanted)) is None


@pytest.mark.parametrize("convert", [lambda scores: scores.float(), lambda scores: scores.to(dtype=torch.float32)])
def test_scores_are_judged_before_stock_rounds_them(small_model, convert):
    """Two that lie close on either side of the middle of two float32 numbers."""
    middle = (torch.tensor(100.0).double() + torch.tensor(100.0).nextafter(torch.tensor(200.0)).double()) / 2
    scores = torch.stack([middle - 1e-7, middle + 1e-7])[None]
    assert scores.float().diff().item() > 5e-6

    def generate(model):
        return torch.argmax(convert(scores), dim=-1)

    (tie,) = explaining_ties(small_model, generate, lambda ids: ids.item() == 0)
    assert tie.margin == pytest.approx(2e-7, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"semantic_sequence_bias": [[[33], 2.0], [[33, 4], 2.0]]},
        {"coarse_bad_words_ids": [[111], [112, 113]]},
        {"coarse_num_beams": 2},
    ],
    ids=["bias", "words", "beams"],
)
def test_options_with_tensors_of_their_own_are_judged(small_model, options):
    """In float64 as in float32: nothing explains a difference that is none of stock's."""
    given = {**INPUTS, "do_sample": True, "semantic_max_new_tokens": 8, **options}
    assert explaining_ties(small_model, lambda model: run(model, 0, **given), lambda result: False) is None


def test_runs_of_the_benchmarks_are_judged_alike(monkeypatch):
    tied = tied_semantic()
    stock = measure.run_once(tied.model, INPUTS, 0)
    runs = [measure.run_once(tied.preferring(index), INPUTS, 0) for index in range(2)]
    verdicts = [measure.judge_tokens(tied.model, INPUTS, 0, stock, run) for run in runs]
    assert not any(verdict.wrong for verdict in verdicts)
    ties = [tie for verdict in verdicts for tie in verdict.ties]
    assert ties and all((f"but for {len(v.ties)} that rounding" in v.summary) == bool(v.ties) for v in verdicts)
    plant_a_wrong_code(monkeypatch)
    wrong = measure.run_once(tied.preferring(1), INPUTS, 0)
    verdict = measure.judge_tokens(tied.preferring(1), INPUTS, 0, stock, wrong)
    assert not verdict.ties and any(line.startswith("fine: ") for line in verdict.wrong)


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two"])
def test_ties_are_counted_and_reported(request, tmp_path, workers):
    ours = request.config.pluginmanager.get_plugin(str(TESTS / "conftest.py"))
    assert "report_ties" in request.fixturenames and ours.pytest_terminal_summary is met_ties.pytest_terminal_summary
    file, report = tmp_path / "test_two.py", tmp_path / "report.xml"
    file.write_text(
        "from support.met_ties import TIES\n"
        "def test_one():\n    TIES.extend(['a tie', 'another'])\ndef test_no(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "support.met_ties", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    done = subprocess.run(
        [*command, *workers, str(file)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 in all" in done.stdout and "test_one: another" in done.stdout and "than by stock: a tie" in done.stdout
    counted = matrix.counted(report)
    assert counted["ties"] == ["test_one: a tie", "test_one: another"] and counted["passed"] == 2
