"""Folders of raw documents with pictures: a list of pairs, text files, image files.

`{train,dev,test}.list`, lines `text<TAB>image<TAB>class` as published with the Wikipedia data set:
names below `texts/` and `images/`, with or without an ending, and a class id. Texts are plain or
XML, whose tags are dropped.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jcmr.core.types import RandomAccess, RetrievalSplit, same_id
from jcmr.data import text
from jcmr.data.captions import CaptionPairs, CaptionSource, caption_split
from jcmr.data.options import unpack
from jcmr.data.records import Images, image_files


class DocumentOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str = ""
    image_size: int = 256
    max_words: int = 512
    min_count: int = 2
    vocabulary: str = ""
    """A vocabulary file; empty builds one from the training documents."""
    stem: bool = True
    supervision: str = "unsupervised"
    """"supervised" adds the class to the training examples."""
    strict: bool = False


class Line(NamedTuple):
    """One pair of a list."""

    document: Path
    image: str
    label: int


def find(folder: Path, name: str, where: str) -> Path:
    """The file `name` below `folder`, its ending given or not.

    Raises:
      FileNotFoundError: there is none; says which line names it.
    """
    path = folder / name
    if path.is_file():
        return path
    found = sorted(path.parent.glob(f"{path.name}.*")) if path.parent.is_dir() else []
    if not found:
        raise FileNotFoundError(f"There is no {path}, which {where} names.")
    return found[0]


def read_list(root: Path, split: str) -> list[Line]:
    """The pairs of a split.

    Raises:
      FileNotFoundError: the list or a file in it is missing.
      ValueError: a malformed line.
    """
    path = root / f"{split}.list"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}. This source reads a folder of texts/, images/ and "
            f"{{train,dev,test}}.list with lines `text<TAB>image<TAB>class`; set config.data.dir."
        )
    pairs = []
    for number, line in enumerate(text.read_lines(path), 1):
        if not line.strip():
            continue
        parts, where = line.split("\t"), f"{path}, line {number},"
        if len(parts) != 3 or not parts[2].strip().isdecimal():
            raise ValueError(f"{path}, line {number}: expected `text<TAB>image<TAB>class`.")
        document = find(root / "texts", parts[0].strip(), where)
        image = find(root / "images", parts[1].strip(), where)
        pairs.append(Line(document, str(image.relative_to(root / "images")), int(parts[2])))
    if not pairs:
        raise ValueError(f"{path} names no pair.")
    return pairs


def words_of(document: str, cfg: Mapping[str, Any]) -> list[str]:
    """The words of a document, as `config.data` has them; tags are dropped."""
    stem = unpack(DocumentOptions, cfg).stem
    plain = re.sub(r"<[^>]*>", " ", document)
    return [token for token in text.tokenize(plain, stem) if token[0].isalnum()]


def read_document(path: Path, cfg: Mapping[str, Any]) -> list[str]:
    """The words of the file of a document."""
    return words_of("\n".join(text.read_lines(path)), cfg)


class Labelled:
    """Examples with their class as "label"."""

    def __init__(self, pairs: CaptionPairs, labels: np.ndarray):
        self.pairs, self.labels, self.text = pairs, labels, pairs.text

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`."""
        example = self.pairs[index]
        return example | {"label": self.labels[example["id"]]}


def make(cfg: Mapping[str, Any]) -> CaptionSource:
    """Reads the lists and documents of `cfg.dir`; images are decoded when they are used.

    Raises:
      FileNotFoundError: a list, document or image is missing.
      ValueError: a malformed list.
    """
    config = unpack(DocumentOptions, cfg)
    if config.supervision not in ("supervised", "unsupervised"):
        raise ValueError(
            f"config.data.supervision is {config.supervision!r}; it can be supervised or "
            f"unsupervised."
        )
    root = Path(config.dir)

    def images_of(pairs: list[Line], **options: Any) -> Images:
        names = [pair.image for pair in pairs]
        return image_files(root / "images", names, config.image_size, **options)

    train = read_list(root, "train")
    tokens = [read_document(pair.document, cfg) for pair in train]
    if config.vocabulary:
        vocabulary = text.load_vocabulary(config.vocabulary)
    else:
        vocabulary = text.build_vocabulary(tokens, config.min_count)
    numbers = {label: i for i, label in enumerate(sorted({pair.label for pair in train}))}

    def encode(pairs: list[Line], tokens: list[list[str]]) -> np.ndarray:
        mute = [p for p, words in zip(pairs, tokens) if not vocabulary.keys() & set(words)]
        if mute:
            logging.warning(
                "%d documents hold no word of the vocabulary (the first is %s); they are kept and "
                "say nothing.",
                len(mute),
                mute[0].document,
            )
        filled = [words or ["<unk>"] for words in tokens]
        return text.encode_all(filled, vocabulary, config.max_words)

    def make_split(name: str) -> RetrievalSplit:
        pairs = read_list(root, name)
        tokens = [read_document(pair.document, cfg) for pair in pairs]
        ids = encode(pairs, tokens)
        images = images_of(pairs, blank=not config.strict)
        extras = {"captions": [" ".join(words[:30]) for words in tokens]}
        split = caption_split(name, images, ids, np.arange(len(pairs), dtype=np.int32), extras)
        labels = [pair.label for pair in pairs]
        return split._replace(relevance={**split.relevance, "class": same_id(labels, labels)})

    owner = np.arange(len(train), dtype=np.int32)
    examples: RandomAccess = CaptionPairs(
        images_of(train, whole=True), encode(train, tokens), owner, 1, config.strict
    )
    info = {"vocab_size": len(vocabulary)}
    if config.supervision == "supervised":
        labels = np.asarray([numbers[pair.label] for pair in train], np.int32)
        examples = Labelled(examples, labels)  # pyright: ignore[reportArgumentType]
        info["num_classes"] = len(numbers)
    return CaptionSource(info, examples, vocabulary, config.max_words, make_split, config.stem)
