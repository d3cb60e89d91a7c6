"""Long text -> chunks that Bark can say in one generation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
# After a comma, semicolon, colon or dash; those of Latin scripts need a space, so that 1,000 and 10:30 stay whole.
_CLAUSE_END = re.compile(r"[,;:][\"'”’)\]]*\s+|\s[-–—]+\s+|[—、，；：]+\s*")
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True)
class TextChunk:
    """What is said in one generation, and whether a paragraph ends with it."""

    text: str
    ends_paragraph: bool


def plan_chunks(
    text: str, count_tokens: Callable[[str], int], *, max_tokens: int, max_characters: float, language: str
) -> list[TextChunk]:
    """Pack the sentences of each paragraph into as few chunks as they fit in, in order.

    Paragraphs are separated by blank lines and never share a chunk; any other whitespace is a space. A sentence that
    does not fit is cut after a comma or another mark inside it, failing that between words, failing that anywhere.
    Leaving spaces aside, the chunks joined are the text, but for chunks without a token (of invisible characters).

    Parameters
    ----------
    count_tokens : callable
        Tokens of a text as the model reads it.
    max_tokens : int
        That the model reads at once.
    max_characters : float
        Of a chunk, spaces counted: the estimate of how long it takes to say. At least 1.
    language : str
        ISO 639-1 code, for the rules of its sentences.

    Raises
    ------
    ValueError
        No words, or one character that has more tokens than the model reads.
    ImportError
        The package sentencex is missing.
    """

    def fits(part: str) -> bool:
        return len(part.strip()) <= max_characters and count_tokens(part) <= max_tokens

    chunks = []
    for paragraph in _paragraphs(text):
        parts = _fitting(paragraph, fits, [lambda part: split_sentences(part, language), _clauses, _words, list])
        said = [part.strip() for part in parts if count_tokens(part) > 0]
        chunks += [TextChunk(part, ends_paragraph=i + 1 == len(said)) for i, part in enumerate(said)]
    if not chunks:
        raise ValueError("text: expected at least one word, got none")
    for chunk in chunks:
        if count_tokens(chunk.text) > max_tokens:
            raise ValueError(f"text: expected characters of at most {max_tokens} tokens each, got {chunk.text!r}")
    return chunks


def split_sentences(text: str, language: str) -> list[str]:
    """Sentences with the whitespace around them: joined, they are `text`."""
    try:
        from sentencex import segment
    except ImportError:
        raise ImportError(
            "long text needs the package sentencex to find sentences: pip install 'bark_accel[long]' or sentencex"
        ) from None
    return list(segment(language, text))


def _paragraphs(text: str) -> list[str]:
    paragraphs = (" ".join(p.split()) for p in _BLANK_LINE.split(text.replace("\r\n", "\n").replace("\r", "\n")))
    return [p for p in paragraphs if p]


def _fitting(text: str, fits: Callable[[str], bool], splitters: list[Callable[[str], list[str]]]) -> list[str]:
    """Consecutive parts of `text` that fit; a finer splitter for what the one before it leaves too long."""
    if fits(text) or not splitters:
        return [text]
    split, *finer = splitters
    return _packed((piece for part in split(text) for piece in _fitting(part, fits, finer)), fits)


def _packed(parts: Iterable[str], fits: Callable[[str], bool]) -> list[str]:
    """Join neighbours as long as they fit together."""
    packed: list[str] = []
    for part in parts:
        if packed and fits(packed[-1] + part):
            packed[-1] += part
        else:
            packed.append(part)
    return packed


def _clauses(text: str) -> list[str]:
    return _cut_after(_CLAUSE_END, text)


def _words(text: str) -> list[str]:
    return _cut_after(_WORD_END, text)


def _cut_after(mark: re.Pattern[str], text: str) -> list[str]:
    ends = [0, *(match.end() for match in mark.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(ends) if a < b]
