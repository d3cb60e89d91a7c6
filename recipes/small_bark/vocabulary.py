"""Vocabulary of the small Bark: words, the phrases made of them, and the split into training and held-out texts."""

from __future__ import annotations

import itertools
import random
import zlib
from typing import Literal

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_COLORS = ["red", "green", "blue", "yellow", "black", "white", "orange", "brown"]
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_ANIMALS = ["dog", "cat", "horse", "bird"]
_QUALITIES = ["cute", "big", "small", "happy", "tired"]
_GREETINGS = ["hello", "goodbye", "good morning", "good evening", "good night", "welcome", "yes", "no", "please"]
_GREETINGS += ["thank you", "yes please", "no thank you"]

# Slots are alternatives; a phrase is one alternative of each slot in turn.
_PHRASES = [
    [["my", "the"], _ANIMALS, ["is"], _QUALITIES + _COLORS],
    [["today is", "see you on"], _DAYS],
    [["i like"], _MONTHS + _COLORS],
    [["my favorite color is"], _COLORS],
    [["turn"], ["on", "off"], ["the"], ["light", "radio", "music", "heating"]],
    [["open", "close"], ["the"], ["door", "window", "box"]],
]

# Words of the longest phrase, and of the longest row of digits or words.
LONGEST = 8

Split = Literal["train", "dev", "test"]
# "words": any words in any order, to learn from alone.
Kind = Literal["digits", "phrases", "words"]
# What is spoken and measured.
KINDS: tuple[Kind, ...] = ("digits", "phrases")


def words() -> list[str]:
    """Every word, each once, in a fixed order."""
    texts = [*DIGITS, *_GREETINGS, *(option for phrase in _PHRASES for slot in phrase for option in slot)]
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def phrases() -> list[str]:
    """Every phrase, each once."""
    statements = [" ".join(choice) for phrase in _PHRASES for choice in itertools.product(*phrase)]
    return [*_GREETINGS, *statements, *(f"{greeting} {text}" for greeting in _GREETINGS for text in statements)]


def split_of(text: str) -> Split:
    """A text belongs to one split for ever, by its hash: 10 % dev, 10 % test."""
    share = zlib.crc32(f"small bark: {text}".encode()) % 10
    if share > 1:
        return "train"
    return "test" if share else "dev"


def draw(rng: random.Random, kind: Kind, split: Split) -> str:
    """One text of that kind and split: 1 to 8 digits or words, or a phrase with or without a greeting before it."""
    while True:
        text = _phrase(rng) if kind == "phrases" else _row(rng, DIGITS if kind == "digits" else words())
        if split_of(text) == split:
            return text


def grammar(kind: Kind) -> str:
    """JSGF grammar of all texts of a kind, for the recogniser."""
    if kind != "phrases":
        return f"#JSGF V1.0; grammar {kind}; public <text> = ({' | '.join(DIGITS if kind == 'digits' else words())})+;"
    phrases = [" ".join(f"({' | '.join(slot)})" for slot in phrase) for phrase in _PHRASES]
    statement, greeting = (" | ".join(f"({option})" for option in options) for options in (phrases, _GREETINGS))
    return (
        f"#JSGF V1.0; grammar phrases; <greeting> = {greeting}; <statement> = {statement}; "
        "public <text> = <greeting> | <statement> | <greeting> <statement>;"
    )


def _row(rng: random.Random, choices: list[str]) -> str:
    return " ".join(rng.choice(choices) for _ in range(rng.randint(1, LONGEST)))


def _phrase(rng: random.Random) -> str:
    statement = " ".join(rng.choice(slot) for slot in rng.choice(_PHRASES))
    form = rng.random()
    if form < 0.2:
        return rng.choice(_GREETINGS)
    return statement if form < 0.6 else f"{rng.choice(_GREETINGS)} {statement}"
