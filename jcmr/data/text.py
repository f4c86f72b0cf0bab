"""Captions to token ids: reading, tokenising, vocabularies, token dropping.

A vocabulary is a plain dict word -> id. Ids 0 to 3 are padding, start, end and unknown, as in the
official files of the papers; only those of WordPiece, which `wordpiece` reads, have their own.
"""

import collections
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcmr.data.pickled_vocabulary import load_pickled_vocabulary

PAD, START, END, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
"""The same in a vocabulary of WordPiece, padding at 0 and the others anywhere."""
# Words whose final period ends no sentence; those of nltk's English model that captions may hold.
ABBREVIATIONS = (
    *("a.d", "a.m", "ave", "bros", "co", "col", "corp", "d.c", "dr", "ft", "gen", "inc", "jr"),
    *("l.a", "lt", "ltd", "maj", "messrs", "mr", "mrs", "ms", "n.y", "ok", "p.m", "ph.d", "prof"),
    *("rep", "sen", "sr", "st", "u.k", "u.n", "u.s", "u.s.a", "vs", *"cdefghklmnprstvw"),
)


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends.

    Raises:
      ValueError: a line is not UTF-8; names file and line.
    """
    lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: byte {error.start + 1} is not UTF-8 (0x"
                f"{line[error.start]:02x}). Convert the file, for instance with "
                f"`iconv -f latin1 -t utf-8`."
            ) from None
    return decoded


@functools.cache
def splitter() -> tuple[Any, Any]:
    """Sentence and word splitters of nltk, which need none of its data downloads."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters), NLTKWordTokenizer()


@functools.cache
def stemmer() -> Callable[[str], str]:
    """The Snowball stemmer of English: dogs and dog are one word. For small data."""
    from nltk.stem import SnowballStemmer

    return functools.cache(SnowballStemmer("english").stem)


def tokenize(caption: str, stem: bool = False) -> list[str]:
    """Lower-cased Penn Treebank tokens, punctuation kept, as nltk's word_tokenize gives them.

    With `stem` their endings are cut off.
    """
    sentences, words = splitter()
    tokens = [
        token
        for sentence in sentences.tokenize(caption.lower())
        for token in words.tokenize(sentence)
    ]
    return [stemmer()(token) for token in tokens] if stem else tokens


def tokenize_captions(
    captions: Sequence[str], path: str | Path, first_line: int = 1, stem: bool = False
) -> list[list[str]]:
    """Tokens of each caption of a file, where every line must hold one.

    Raises:
      ValueError: a caption without tokens; names file and line.
    """
    tokens = [tokenize(caption, stem) for caption in captions]
    for number, words in enumerate(tokens, first_line):
        if not words:
            raise empty_caption(path, number)
    return tokens


def empty_caption(path: str | Path, line: int) -> ValueError:
    """The error for a caption of no words."""
    return ValueError(
        f"{path}, line {line}: the caption has no words. Write one or delete the line."
    )


def build_vocabulary(captions: Iterable[Sequence[str]], min_count: int = 1) -> dict[str, int]:
    """All words that occur `min_count` times in the tokenised captions, in alphabetical order."""
    counts = collections.Counter(word for tokens in captions for word in tokens)
    words = sorted(word for word, n in counts.items() if n >= min_count and word not in SPECIAL)
    return {word: index for index, word in enumerate((*SPECIAL, *words))}


def load_vocabulary(path: str | Path) -> dict[str, int]:
    """Reads a vocabulary: json (a list, a dict, or a dict under "word2idx"), an official pickle, or
    the vocab.txt of a BERT, one piece a line.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no vocabulary, a pickle that would run code, or ids that do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no vocabulary file {path}. Leave config.data.vocabulary empty to build one "
            f"from the training captions."
        )
    if path.suffix == ".txt":
        return load_pieces(path)
    if path.suffix in (".pkl", ".pickle"):
        content = load_pickled_vocabulary(path)
    else:
        try:
            content = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"The vocabulary {path} is not JSON: {error}.") from None
    if isinstance(content, dict) and isinstance(content.get("word2idx"), dict):
        content = content["word2idx"]
    if isinstance(content, list):
        content = {word: index for index, word in enumerate(content)}
    return validate_vocabulary(content, path)


def load_pieces(path: Path) -> dict[str, int]:
    """Reads the vocab.txt of a BERT: line number -> piece.

    Raises:
      ValueError: a piece is there twice, a special one is missing, or padding is not the first.
    """
    lines = [line.strip() for line in read_lines(path)]
    pieces = {}
    for number, piece in enumerate(lines):
        if piece in pieces:
            raise ValueError(
                f"{path}, line {number + 1}: {piece!r} is there already, on line "
                f"{pieces[piece] + 1}; every line is one piece."
            )
        pieces[piece] = number
    missing = [piece for piece in PIECES if piece not in pieces]
    if missing or pieces[PIECES[0]] != 0:
        found = f"it has no {', '.join(missing)}" if missing else "[PAD] is not on its first line"
        raise ValueError(
            f"{path} is no vocab.txt of a BERT: {found}. Use the file that came with the weights."
        )
    return pieces


def is_wordpiece(vocabulary: Mapping[str, int]) -> bool:
    """Whether it holds pieces of words, as those of BERT."""
    return all(piece in vocabulary for piece in PIECES)


def get_vocabulary(
    path: str, captions: Iterable[Sequence[str]], min_count: int = 1
) -> dict[str, int]:
    """The vocabulary file `path`; without one, the words of the tokenised captions."""
    return load_vocabulary(path) if path else build_vocabulary(captions, min_count)


def validate_vocabulary(content: Any, path: Path) -> dict[str, int]:
    """Checks that `content` maps words to the ids 0 .. n - 1, the special words first."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"The vocabulary {path} holds no mapping from words to ids.")
    for word, index in content.items():
        if not isinstance(word, str) or type(index) is not int:
            raise ValueError(
                f"The vocabulary {path} maps {word!r} to {index!r}, not a word to an id."
            )
    for index, word in enumerate(SPECIAL):
        if content.get(word) != index:
            raise ValueError(
                f"The vocabulary {path} gives {word} the id {content.get(word)}; expected {index} "
                f"({', '.join(SPECIAL)} are 0 to 3)."
            )
    if sorted(content.values()) != list(range(len(content))):
        raise ValueError(
            f"The ids of the vocabulary {path} are not 0 to {len(content) - 1}, each once."
        )
    return content


def save_vocabulary(path: str | Path, vocabulary: Mapping[str, int]) -> None:
    """Writes the official json form ("word2idx"), all of it or nothing."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"word2idx": dict(vocabulary)}, ensure_ascii=False), "utf-8")
    os.replace(partial, path)


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """A short name of a vocabulary's words and ids, `<size>-<16 hex digits>`."""
    words = "\n".join(sorted(vocabulary, key=lambda word: vocabulary[word]))
    return f"{len(vocabulary)}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def encode(tokens: Sequence[str], vocabulary: Mapping[str, int], max_words: int) -> np.ndarray:
    """Ids of one caption, start and end added, cut or padded with 0 to int32 [max_words].

    Raises:
      ValueError: there are no tokens.
    """
    if not tokens:
        raise ValueError("A caption has no words; write at least one.")
    ids = np.zeros(max_words, np.int32)
    known = [vocabulary.get(token, UNK) for token in tokens[: max_words - 2]]
    ids[: len(known) + 2] = [START, *known, END]
    return ids


def encode_all(
    captions: Sequence[Sequence[str]], vocabulary: Mapping[str, int], max_words: int
) -> np.ndarray:
    """Ids of tokenised captions, int32 [n, max_words]."""
    rows = [encode(tokens, vocabulary, max_words) for tokens in captions]
    return np.stack(rows) if rows else np.zeros((0, max_words), np.int32)


def drop_tokens(ids: np.ndarray, rng: np.random.Generator, rate: float) -> np.ndarray:
    """PCME's caption augmentation on int32 [t]: words become unknown, then some are deleted.

    Each word becomes `<unk>` with probability `rate`; then int(rate * words) random words are
    deleted. Start and end stay.

    Raises:
      ValueError: the caption is one of pieces, whose ids mean something else.
    """
    if ids[0] != START:
        raise ValueError(
            "Tokens of WordPiece cannot be dropped: set config.data.token_drop_rate to 0."
        )
    length = int((ids != PAD).sum())
    words = ids[1 : length - 1]
    words = np.where(rng.random(len(words)) < rate, UNK, words)
    deleted = rng.choice(len(words), int(rate * len(words)), replace=False)
    kept = np.delete(words, deleted)
    dropped = np.zeros_like(ids)
    dropped[: len(kept) + 2] = [START, *kept, END]
    return dropped


def make_token_dropping(
    rate: float,
) -> Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]:
    """Builds the loader transform that drops tokens of "text", [t] or [c, t]."""

    def transform(example: dict[str, np.ndarray], rng: np.random.Generator):
        text = example["text"]
        rows = [drop_tokens(row, rng, rate) for row in text.reshape(-1, text.shape[-1])]
        return example | {"text": np.stack(rows).reshape(text.shape)}

    return transform
