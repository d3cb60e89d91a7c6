"""The languages that Bark speaks, and how fast.

Characters a second, spaces counted: estimates, to be lowered where chunks are cut. English: 150 words a minute. Read
aloud, languages of alphabets lie within 6 % of one another in characters a minute (IReST, Trauzettel-Klosinski and
Dietz 2012, 14 languages). Chinese and Japanese: their share of English in that study (255 and 357 of 987 characters a
minute), rounded down. Korean and Hindi, which it does not have: from the lengths of translations.
"""

from __future__ import annotations

import re

CHARACTERS_PER_SECOND = {
    "de": 13.0,
    "en": 14.0,
    "es": 14.0,
    "fr": 14.0,
    "hi": 11.0,
    "it": 13.0,
    "ja": 4.5,
    "ko": 5.5,
    "pl": 13.0,
    "pt": 13.0,
    "ru": 14.0,
    "tr": 14.0,
    "zh": 3.5,
}
_OTHERS = 14.0


def check_language(language: object) -> str:
    """An ISO 639 code in lower case, of a tag such as "pt-BR" its first part; raises `TypeError` or `ValueError`."""
    if not isinstance(language, str):
        raise TypeError(f"language: expected an ISO 639-1 code such as 'en', got {type(language).__name__}")
    code = re.split("[-_]", language.strip().lower())[0]
    if not re.fullmatch("[a-z]{2,3}", code):
        raise ValueError(f"language: expected an ISO 639-1 code such as 'en', got {language!r}")
    return code


def characters_per_second(code: str) -> float:
    """Return the rate of speech of a language, or a typical rate if it is unknown."""
    return CHARACTERS_PER_SECOND.get(code, _OTHERS)
