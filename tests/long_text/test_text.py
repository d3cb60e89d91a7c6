"""Packing a text into chunks."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_text import CHUNKS, PARAGRAPH_ENDS, TEXT, tiny_processor

from bark_accel.longform.text import plan_chunks

WORDS = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(".,;:!?—…。、\"'()"), min_size=1, max_size=30
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n\r\n", "\n \n", " - "])), min_size=1)


def count_tokens(text: str) -> int:
    """One for each character that can be seen."""
    return len("".join(text.split()))


def plan(text: str, max_tokens: int = 256, max_characters: float = 182.0, count=count_tokens):
    return plan_chunks(text, count, max_tokens=max_tokens, max_characters=max_characters, language="en")


def unspaced(text: str) -> str:
    return "".join(text.split())


@given(TEXTS, st.integers(1, 60), st.integers(1, 60))
def test_nothing_is_lost_and_everything_fits(words, max_tokens, max_characters):
    text = "".join(word + space for word, space in words)
    chunks = plan(text, max_tokens, max_characters)
    assert unspaced("".join(chunk.text for chunk in chunks)) == unspaced(text)
    assert all(0 < count_tokens(c.text) <= max_tokens and len(c.text) <= max_characters for c in chunks)
    assert chunks[-1].ends_paragraph


@given(TEXTS)
def test_words_that_fit_stay_whole(words):
    text = "".join(word + space for word, space in words)
    chunks = plan(text, max_tokens=60, max_characters=60)
    assert " ".join(chunk.text for chunk in chunks).split() == text.split()


@given(TEXTS)
def test_neighbours_that_fit_together_are_together(words):
    chunks = plan("".join(word + space for word, space in words), max_tokens=40, max_characters=40)
    for one, other in pairwise(chunks):
        assert one.ends_paragraph or len(f"{one.text} {other.text}") > 40


def test_sentences_clauses_words_and_letters_are_the_order_of_cuts():
    tokenizer = tiny_processor().tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    chunks = plan(TEXT, max_tokens=16, count=count)
    assert [chunk.text for chunk in chunks] == CHUNKS
    assert {i for i, chunk in enumerate(chunks) if chunk.ends_paragraph} == PARAGRAPH_ENDS


def test_sentences_are_packed_up_to_the_limit():
    sentences = [f"This is sentence number {n}." for n in range(10, 30)]
    texts = [chunk.text for chunk in plan(" ".join(sentences), max_characters=85)]
    assert texts == [" ".join(sentences[i : i + 3]) for i in range(0, 20, 3)]


@pytest.mark.parametrize(
    "text, limit, expected",
    [
        ("It cost 1,000 and 10:30 came, then Mr. Li left", 34, ["It cost 1,000 and 10:30 came,", "then Mr. Li left"]),
        ("One thing — another thing", 15, ["One thing —", "another thing"]),
        ("一二三四，五六七八、九十", 7, ["一二三四，", "五六七八、九十"]),
        ("well-known things (really)", 12, ["well-known", "things", "(really)"]),
        (
            "Dr. Smith paid $3.50. He left at 5 p.m. for home.",
            30,
            ["Dr. Smith paid $3.50.", "He left at 5 p.m. for home."],
        ),
    ],
)
def test_cuts(text, limit, expected):
    assert [chunk.text for chunk in plan(text, max_characters=limit)] == expected


def test_paragraphs_never_share_a_chunk():
    chunks = plan("One.\n\nTwo\nlines.\n \t\nThree. Four.\n\n\n")
    assert [(c.text, c.ends_paragraph) for c in chunks] == [
        ("One.", True),
        ("Two lines.", True),
        ("Three. Four.", True),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_of_every_system(newline):
    chunks = plan(f"One.{newline}Still one.{newline}{newline}Two.{newline}")
    assert [chunk.text for chunk in chunks] == ["One. Still one.", "Two."]


def test_what_the_model_cannot_read_is_no_chunk():
    def count(text: str) -> int:
        return len(text.replace("\u200b", "").split())

    assert [chunk.text for chunk in plan("One.\n\n\u200b\n\nTwo.", count=count)] == ["One.", "Two."]


@pytest.mark.parametrize("text", ["", "  \n\n \t"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(ValueError, match="text: expected at least one word"):
        plan(text)


def test_a_character_of_too_many_tokens_is_refused():
    with pytest.raises(ValueError, match="characters of at most 2 tokens each, got 'b'"):
        plan("ab", max_tokens=2, count=lambda text: 3 * text.count("b") + 1)


def test_a_missing_splitter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(ImportError, match=r"sentencex.*pip install 'bark_accel\[long\]'"):
        plan("Two sentences. " * 40)
