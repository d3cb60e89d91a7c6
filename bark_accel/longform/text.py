"""Long text -> chunks that Bark can say in one generation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n|[\f\u2029]")
# Three or more of a sign, alone in a line.
_BREAK_LINE = re.compile(r"^[^\S\n]*([*_=~#•·⁂—–-])(?:[^\S\n]*\1){2,}[^\S\n]*$", re.MULTILINE)
# Control characters that are no space, byte order marks, and soft hyphens with the line end that they allow.
_UNSEEN = re.compile(r"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]|\u00ad(?:[^\S\n]*\n[^\S\n]*(?=\w))?")
_CUT_WORD = re.compile(r"(?<=[^\W\d_])[-‐][^\S\n]*\n[^\S\n]*([^\W\d_]+)")
# After these a hyphen stands for a word to come: pre- and post-war.
_LINKS = {"and", "or", "to", "und", "oder", "bis", "et", "ou", "y", "e", "o", "i", "lub", "oraz", "и", "или", "ve"}
# Letters, numbers, and music, which Bark sings.
_WORD = re.compile(r"[^\W_]|[♩♪♫♬♭♮♯]")
# No end of a sentence, though sentencex takes "M. Dupont" and "т. е. рядом" for two.
_INITIALS = re.compile(r"(?<![\w.])([^\W\d_]\.\s)?([^\W\d_])\.\s*$")
# After a comma, semicolon, colon or dash; those of Latin scripts need a space, so that 1,000 and 10:30 stay whole.
_CLAUSE_END = re.compile(r"[,;:][\"'”’)\]]*\s+|\s[-–—]+\s+|[—、，；：]+\s*")
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True)
class TextChunk:
    """Text of one generation, and how the text goes on after it.

    Parameters
    ----------
    text : str
    ends_paragraph : bool
        A paragraph ends with it.
    break_follows : bool
        One without words comes next ("* * *"), or several: a second pause.
    """

    text: str
    ends_paragraph: bool
    break_follows: bool = False


def plan_chunks(
    text: str,
    count_tokens: Callable[[str], int],
    *,
    max_tokens: int,
    max_characters: float,
    language: str,
    first_characters: float | None = None,
) -> list[TextChunk]:
    """Pack the sentences of each paragraph into as few chunks as they fit in, in order.

    Paragraphs are separated by blank lines, form feeds, paragraph separators or lines of three and more stars, dashes
    and the like, and never share a chunk; any other whitespace is a space. A sentence that does not fit is cut after a
    comma or another mark inside it, failing that between words, failing that anywhere. Words that the end of a line has
    cut are joined, control characters and soft hyphens left out. Leaving spaces aside, the chunks joined are the text,
    but for chunks without a word, a number or a note (♪).

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
    first_characters : float, optional
        Of the first chunk, if it is to have fewer than `max_characters`. At least 1.

    Raises
    ------
    ValueError
        No words, or one character that has more tokens than the model reads.
    ImportError
        The package sentencex is missing.
    """

    def fits(part: str) -> bool:
        return len(part.strip()) <= max_characters and count_tokens(part) <= max_tokens

    def fits_first(part: str) -> bool:
        return fits(part) and len(part.strip()) <= (first_characters or max_characters)

    def is_said(part: str) -> bool:
        return _WORD.search(part) is not None and count_tokens(part) > 0

    chunks: list[TextChunk] = []
    for paragraph in _paragraphs(text):
        splitters = [lambda part: split_sentences(part, language), _clauses, _words, list]
        parts = []
        if not chunks and first_characters is not None:
            shorter = _fitting(paragraph, fits_first, splitters)
            first = next((i for i, part in enumerate(shorter) if is_said(part)), len(shorter))
            parts = shorter[: first + 1]
        parts += _fitting(paragraph[sum(map(len, parts)) :], fits, splitters)
        said = [part.strip() for part in parts if is_said(part)]
        chunks += [TextChunk(part, ends_paragraph=i + 1 == len(said)) for i, part in enumerate(said)]
        if chunks and not said and paragraph.isprintable():
            chunks[-1] = replace(chunks[-1], break_follows=True)
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
    sentences: list[str] = []
    for part in segment(language, text):
        if sentences and _ends_in_initials(sentences[-1]):
            sentences[-1] += part
        else:
            sentences.append(part)
    return sentences


def _ends_in_initials(text: str) -> bool:
    """One capital letter, or two letters, with full stops."""
    found = _INITIALS.search(text)
    return found is not None and (found[1] is not None or found[2].isupper())


def _paragraphs(text: str) -> list[str]:
    text = _BREAK_LINE.sub(r"\n\n\g<0>\n\n", cleaned(text))
    paragraphs = (" ".join(p.split()) for p in _PARAGRAPH_END.split(text))
    return [p for p in paragraphs if p]


def cleaned(text: str) -> str:
    """The text with "\\n" as its only line end, without unseen characters, and with words whole that lines have cut."""
    text = _UNSEEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _CUT_WORD.sub(_joined, text)


def _joined(cut: re.Match[str]) -> str:
    rest = cut[1]
    if rest in _LINKS:
        return cut[0]
    return rest if rest[0].islower() else f"-{rest}"


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
