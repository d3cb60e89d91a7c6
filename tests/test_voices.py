"""The voices of a batch: read once, one for all rows or one for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bark_accel.voices.preset import CodeLimits, checked_preset
from bark_accel.voices.voices import Voices

LIMITS = {"semantic_prompt": CodeLimits(100), "coarse_prompt": CodeLimits(64, 2)}


def preset(offset: int = 0) -> dict[str, np.ndarray]:
    fine = np.full((8, 3), offset, np.uint8)
    return {"semantic_prompt": np.arange(5, dtype=np.uint16) + offset, "coarse_prompt": fine[:2], "fine_prompt": fine}


def test_one_voice_is_shared_by_all_rows():
    voices = Voices.read(preset(), 3, LIMITS)
    assert voices.shared and len(voices.presets) == 1
    assert [part for part, _ in voices.alike()] == [slice(None)]
    given = voices.argument()
    assert given.keys() == LIMITS.keys() and all(part.dtype == torch.int64 for part in given.values())
    assert voices.of_row(2).argument() is given


def test_none_is_a_voice_that_is_shared():
    voices = Voices.read(None, 3, LIMITS)
    assert voices.shared and voices.argument() is None and voices.semantic == voices.coarse == [None]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_a_voice_for_each_row_also_of_one(kind):
    voices = Voices.read(kind([preset(1), None]), 2, LIMITS)
    assert not voices.shared and not Voices.read([preset()], 1, LIMITS).shared
    (first, of_first), (second, of_second) = voices.alike()
    assert (first, second) == (slice(0, 1), slice(1, 2)) and of_first.shared and of_second.argument() is None
    semantic, codes = voices.coarse[0]
    assert torch.equal(of_first.semantic[0], semantic) and int(codes.max()) == 1 and voices.coarse[1] is None
    assert isinstance(voices.argument(), list)


def test_the_length_of_a_list_is_checked_before_what_is_in_it():
    with pytest.raises(ValueError, match="for each of 3 rows, got a list of 2"):
        Voices.read(["no", "preset"], 3, LIMITS)


def test_several_rows_of_each_voice_where_they_may_be():
    """As `num_return_sequences` orders its rows."""
    given = [preset(1), None]
    voices = Voices.read(given, 6, LIMITS, several=True)
    assert [p is None for p in voices.presets] == [False] * 3 + [True] * 3 and not voices.shared
    for rows, several in ((6, False), (5, True), (1, True)):
        with pytest.raises(ValueError, match=f"for each of {rows} rows, got a list of 2"):
            Voices.read(given, rows, LIMITS, several=several)
    with pytest.raises(ValueError, match="got a list of 0"):
        Voices.read([], 2, LIMITS, several=True)


def test_errors_name_the_argument_the_row_and_the_part():
    beyond = {**preset(), "coarse_prompt": np.full((2, 3), 64)}
    with pytest.raises(ValueError, match=r"voice\[1\]\['coarse_prompt'\]: expected codes in 0..63, got 64..64"):
        Voices.read([None, beyond], 2, LIMITS, name="voice")


@pytest.mark.parametrize(
    "key, codes, expected",
    [
        ("semantic_prompt", np.zeros((2, 3), int), r"\[T\], got \[2, 3\]"),
        ("fine_prompt", np.zeros(3, int), r", T\], got \[3\]"),
    ],
)
def test_a_file_and_a_model_ask_for_the_same_shapes(key, codes, expected):
    for check in (checked_preset, lambda given: Voices.read(given, 1, {key: CodeLimits(100)})):
        with pytest.raises(ValueError, match=rf"\['{key}'\]: expected shape .*{expected}"):
            check({**preset(), key: codes})
