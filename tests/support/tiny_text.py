"""A tiny tokenizer and processor for `SMALL`, built offline, and a text."""

from __future__ import annotations

from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BarkProcessor, PreTrainedTokenizerFast

# SMALL reads 16 tokens at once.
TEXT = """Hello there, dog. Who are you? I am a cat; you
are not.

A new paragraph, with an overlongwordthatnothingcanhold. Yes. No."""
CHUNKS = ["Hello there, dog.", "Who are you?", "I am a cat;", "you are not."]
CHUNKS += ["A new paragraph,", "with an", "overlongwordthat", "nothingcanhold.", "Yes. No."]
PARAGRAPH_ENDS = {3, 8}


def tiny_processor() -> BarkProcessor:
    """A token for each letter and mark, none for spaces."""
    pieces = ["[PAD]", "[UNK]", *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return BarkProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"))
