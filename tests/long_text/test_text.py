"""Packing a text into chunks."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tiny_text import CHUNKS, PARAGRAPH_ENDS, TEXT, tiny_processor

from bark_accel.longform.languages import CHARACTERS_PER_SECOND, characters_per_second, check_language
from bark_accel.longform.text import cleaned, plan_chunks, split_sentences

WORDS = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(".,;:!?—…。、\"'()"), min_size=1, max_size=30
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n\r\n", "\n \n", " - "])), min_size=1)


def count_tokens(text: str) -> int:
    """One for each character that can be seen."""
    return len("".join(text.split()))


def plan(text: str, max_tokens: int = 256, max_characters: float = 182.0, count=count_tokens, **options):
    return plan_chunks(text, count, max_tokens=max_tokens, max_characters=max_characters, language="en", **options)


def unspaced(text: str) -> str:
    return "".join(text.split())


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@given(TEXTS, st.integers(1, 60), st.integers(1, 60))
def test_nothing_is_lost_and_everything_fits(words, max_tokens, max_characters):
    text = "".join(word + space for word, space in words)
    assume(letters(text))
    chunks = plan(text, max_tokens, max_characters)
    assert letters("".join(chunk.text for chunk in chunks)) == letters(text)
    if len(text) <= min(max_tokens, max_characters) and "\n" not in text and "\r" not in text:
        assert unspaced(chunks[0].text) == unspaced(text)
    assert all(0 < count_tokens(c.text) <= max_tokens and len(c.text) <= max_characters for c in chunks)
    assert chunks[-1].ends_paragraph


@given(TEXTS, st.integers(1, 60), st.integers(1, 60))
def test_a_first_chunk_may_be_shorter(words, longest, first):
    text = "".join(word + space for word, space in words)
    assume(letters(text))
    chunks = plan(text, 60, longest, first_characters=first)
    assert letters("".join(chunk.text for chunk in chunks)) == letters(text)
    assert len(chunks[0].text) <= min(first, longest)
    assert all(0 < len(chunk.text) <= longest for chunk in chunks)


def test_only_the_first_chunk_is_shorter():
    text = "One. Two, two. Three. Four.\n\nFive. Six. Seven."
    assert [c.text for c in plan(text, first_characters=12)] == ["One.", "Two, two. Three. Four.", "Five. Six. Seven."]
    assert [c.ends_paragraph for c in plan(text, first_characters=12)] == [False, True, True]
    assert plan(text, first_characters=1000) == plan(text)


@given(TEXTS)
def test_words_that_fit_stay_whole(words):
    text = "".join(word + space for word, space in words)
    assume(letters(text))
    chunks = plan(text, max_tokens=60, max_characters=60)
    said = set(" ".join(chunk.text for chunk in chunks).split())
    assert said >= {word for word in cleaned(text).split() if letters(word)}


@given(TEXTS)
def test_neighbours_that_fit_together_are_together(words):
    text = "".join(word + space for word, space in words)
    assume(letters(text))
    chunks = plan(text, max_tokens=40, max_characters=40)
    for one, other in pairwise(chunks):
        # A wordless part between them may have been left out.
        assert one.ends_paragraph or len(f"{one.text} {other.text}") > 40 or f"{one.text}{other.text}" not in text


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


@pytest.mark.parametrize(
    "between", ["* * *", "***", "---", "⁂", "…", "—", "• • •", "§", "★ ★ ★", '"!?"', "***\n\n---\n\n***"]
)
def test_a_paragraph_without_words_is_a_pause(between):
    chunks = plan(f"{between}\n\nOne.\n\n{between}\n\nTwo.\n\nThree.")
    assert [(c.text, c.ends_paragraph, c.break_follows) for c in chunks] == [
        ("One.", True, True),
        ("Two.", True, False),
        ("Three.", True, False),
    ]


@pytest.mark.parametrize("said", ["♪ ♪", "♪ In the jungle ♪", "[laughs]", "7", "½", "हाँ", "是", "네", "А"])
def test_what_bark_says_or_sings_is_no_pause(said):
    assert [c.text for c in plan(f"One.\n\n{said}\n\nTwo.")] == ["One.", said, "Two."]


@pytest.mark.parametrize("line", ["* * *", "-----", "  =====  ", "_ _ _", "~~~", "– – –"])
def test_a_line_of_one_sign_is_a_break(line):
    chunks = plan(f"One\nline.\n{line}\nTwo.")
    assert [(c.text, c.break_follows) for c in chunks] == [("One line.", True), ("Two.", False)]


def test_signs_beside_words_stay():
    assert [c.text for c in plan("A line\n- with a dash\n-- and\n... dots")] == ["A line - with a dash -- and ... dots"]


def test_a_part_without_words_is_never_said_alone():
    """Where it does not fit beside its neighbours."""
    assert [c.text for c in plan("abcdefgh ***** ijklmnop", max_characters=8)] == ["abcdefgh", "ijklmnop"]


def test_a_text_of_signs_is_refused():
    with pytest.raises(ValueError, match="text: expected at least one word, got none"):
        plan("* * *\n\n...")


@pytest.mark.parametrize("separator", ["\f", "\u2029", "\n\f\n", " \u2029 "])
def test_other_ends_of_a_paragraph(separator):
    assert [(c.text, c.ends_paragraph) for c in plan(f"One.{separator}Two.")] == [("One.", True), ("Two.", True)]


@pytest.mark.parametrize("space", ["\u2028", "\x85", "\v", "\u00a0", "\t"])
def test_other_spaces(space):
    assert [c.text for c in plan(f"One{space}two.")] == ["One two."]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\ufeffThe morn\x00ing\x1b is\x07 here.\x7f", "The morning is here."),
        ("Don\u00adau\u00addampf\u00ad\n schiff", "Donaudampfschiff"),
        ("the mor-\nning and the eve-\r\n  ning", "the morning and the evening"),
        ("the mor\u2010 \nning", "the morning"),
        ("the mid-\nAtlantic and pre- \nand post-war", "the mid-Atlantic and pre- and post-war"),
        ("Vor-\nund Nachmittag, Über-\ngröße", "Vor- und Nachmittag, Übergröße"),
        ("from 1990-\n1995 -\nand then", "from 1990- 1995 - and then"),
        ("Die Straße und die Stra-\nße; при-\nвет", "Die Straße und die Straße; привет"),
        ("क्\u200dष stays", "क्\u200dष stays"),
    ],
)
def test_text_is_cleaned(text, expected):
    assert [c.text for c in plan(text)] == [expected]


# Four sentences each, with an abbreviation, a number or an initial where the language has them.
SENTENCES = {
    "de": "Der Zug fährt um 8.30 Uhr ab.|Dr. Meier wohnt z. B. in der Nähe.|Am 3. Mai war es kalt.|Wer weiß das schon?",
    "en": "Dr. Smith paid $3.50 for tea.|J. K. Rowling left at 5 p.m. for home.|Was it far?|No!",
    "es": "¿Dónde está el Sr. García?|Llegó a las 3.30 de la tarde.|¡Qué sorpresa!|Nadie lo esperaba.",
    "fr": "M. Dupont est arrivé à 8 h.|Il a payé 3,50 euros.|« Où est-il ? »|Personne ne le sait !",
    "hi": "नमस्ते।|आज मौसम बहुत अच्छा है।|क्या आप मेरे साथ चलेंगे?|हाँ, ज़रूर!",
    "it": "Il sig. Rossi abita a Roma.|È arrivato alle 8.30.|Chi lo sa?|Che bella giornata!",
    "ja": "こんにちは。|今日はいい天気ですね。|一緒に行きませんか？|はい、行きましょう！",
    "ko": "안녕하세요.|오늘은 날씨가 참 좋습니다.|함께 가시겠어요?|네, 좋아요!",
    "pl": "Dr Nowak mieszka np. w Krakowie.|Zapłacił 3,50 zł za herbatę.|Kto to wie?|Jaka piękna pogoda!",
    "pt": "O Sr. Silva mora em Lisboa.|Chegou às 8.30 da manhã.|Quem sabe?|Que belo dia!",
    "ru": "Сегодня хорошая погода.|Он живёт на ул. Ленина, т. е. рядом.|Кто это знает?|Какой прекрасный день!",
    "tr": "Dr. Yılmaz Ankara'da oturuyor.|Saat 8.30'da geldi.|Kim bilir?|Ne güzel bir gün!",
    "zh": "你好。|今天天气很好。|你想和我一起去吗？|好的，我们走吧！",
}
# Suno's list of the languages of Bark's voices.
BARK_SPEAKS = {"de", "en", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "ru", "tr", "zh"}


@pytest.mark.parametrize("language", sorted(BARK_SPEAKS))
def test_each_language_is_cut_between_sentences(language):
    sentences = SENTENCES[language].split("|")
    text = ("" if language in ("ja", "zh") else " ").join(sentences)
    assert [sentence.strip() for sentence in split_sentences(text, language)] == sentences
    longest = max(map(len, sentences))
    chunks = plan_chunks(text, count_tokens, max_tokens=256, max_characters=longest, language=language)
    assert len(chunks) > 1 and all(c.text.endswith(tuple(sentences)) for c in chunks)


@pytest.mark.parametrize("language", sorted(BARK_SPEAKS))
def test_each_language_has_a_rate(language):
    """Translations of a text take about as long as the English one, so that chunks have the same length in time."""
    text = SENTENCES[language].replace("|", " ")
    assert 3 < len(text) / characters_per_second(language) < 12
    assert CHARACTERS_PER_SECOND.keys() == BARK_SPEAKS == SENTENCES.keys()


@pytest.mark.parametrize("language, code", [("EN", "en"), ("pt-BR", "pt"), ("zh_Hans", "zh"), (" yue ", "yue")])
def test_codes_of_languages(language, code):
    assert check_language(language) == code


@pytest.mark.parametrize("language, error", [("english", ValueError), ("", ValueError), (3, TypeError)])
def test_what_is_no_code_of_a_language(language, error):
    with pytest.raises(error, match="language: expected an ISO 639-1 code such as 'en', got"):
        check_language(language)


def test_what_the_model_cannot_read_is_no_chunk():
    def count(text: str) -> int:
        return len(text.replace("\u200b", "").split())

    chunks = plan("One.\n\n\u200b\n\nTwo.", count=count)
    assert [(chunk.text, chunk.break_follows) for chunk in chunks] == [("One.", False), ("Two.", False)]


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
