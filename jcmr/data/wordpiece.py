"""Captions to the ids that BERT reads, by the tokenizers library (extra `bert`) or whole words."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcmr.data.text import encode_all, is_wordpiece, tokenize


@functools.lru_cache(maxsize=1)
def make_tokenizer(pieces: tuple[str, ...], max_words: int) -> Any:
    """BERT's tokenizer of `pieces` in the order of their ids, padding to `max_words`.

    Captions are lower-cased and lose their accents where no piece has an upper-case letter.

    Raises:
      ImportError: the library is not installed.
    """
    try:
        from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    except ImportError as error:
        raise ImportError(
            "A WordPiece vocabulary needs the tokenizers library: `pip install 'jcmr[bert]'`."
        ) from error
    words = [piece for piece in pieces if not piece.startswith("[")]
    lowercase = all(word == word.lower() for word in words)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=lowercase)
    tokenizer.enable_truncation(max_words)
    tokenizer.enable_padding(length=max_words)
    return tokenizer


def encode_captions(
    captions: Sequence[str],
    tokens: Sequence[Sequence[str]] | None,
    vocabulary: Mapping[str, int],
    max_words: int,
    stem: bool = False,
) -> np.ndarray:
    """Ids of captions, cut or padded with 0 to int32 [n, max_words].

    Args:
      captions: as they were written.
      tokens: their words, where known already; what `text.tokenize` gives, when None.
      vocabulary: of words, or of pieces (`text.is_wordpiece`); start and end are its own.
      max_words: start and end included.
      stem: of `text.tokenize`.
    """
    if not is_wordpiece(vocabulary):
        words = [tokenize(c, stem) for c in captions] if tokens is None else tokens
        return encode_all(words, vocabulary, max_words)
    if not captions:
        return np.zeros((0, max_words), np.int32)
    pieces = tuple(sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    encoded = make_tokenizer(pieces, max_words).encode_batch(list(captions))
    return np.asarray([line.ids for line in encoded], np.int32)
