"""Image files with captions: Flickr8k, Flickr30k, or one's own pictures.

`images/`, `captions.txt` with lines `name#k<TAB>caption` (any number of captions an image, at least
one), and `split.json` {"train": [names], "dev": [names], "test": [names]}; other lists in it are
left alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcmr.core.types import RetrievalSplit
from jcmr.data import text
from jcmr.data.captions import CaptionPairs, CaptionSource, caption_split
from jcmr.data.options import unpack
from jcmr.data.records import image_files
from jcmr.data.wordpiece import encode_captions


class FolderOptions(NamedTuple):
    """The data section of a config for this source."""

    dir: str
    image_size: int = 256
    """Side of the stored square images; the device crops `crop_size` out of them."""
    whole_image: bool = True
    """Training images keep the whole picture, for a random crop; else the centre, as evaluation."""
    max_words: int = 32
    captions_per_item: int = 1
    vocabulary: str = ""
    """A vocabulary file or the vocab.txt of a BERT; empty builds one from the training captions."""
    min_count: int = 1
    strict: bool = False
    """An image that cannot be read ends the run, instead of being skipped."""


class Caption(NamedTuple):
    """A caption's words and where it was written."""

    words: str
    line: int


def require(path: Path) -> Path:
    """The path, if it exists.

    Raises:
      FileNotFoundError: names the path, where such data comes from and what to do.
    """
    if path.exists():
        return path
    raise FileNotFoundError(
        f"There is no {path}. This source reads a folder of images/, captions.txt (lines "
        f"`name#k<TAB>caption`) and split.json. Flickr8k and Flickr30k come from their authors "
        f"(https://shannon.cs.illinois.edu/DenotationGraph), with the Karpathy split; then run "
        f"`python -m jcmr.prepare captioned_folder --help`, or set config.data.dir."
    )


def read_captions(path: Path) -> dict[str, list[Caption]]:
    """Image name -> its captions, in the order of their numbers.

    Raises:
      ValueError: a line is malformed, empty, twice there or not UTF-8; names file and line.
    """
    table: dict[str, dict[int, Caption]] = {}
    for number, line in enumerate(text.read_lines(path), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        name, hash_sign, k = key.strip().rpartition("#")
        if not (tab and hash_sign and name and k.isdecimal()):
            raise ValueError(
                f"{path}, line {number}: expected `name#k<TAB>caption`, found {line!r}."
            )
        if not caption.strip():
            raise text.empty_caption(path, number)
        if int(k) in table.setdefault(name, {}):
            raise ValueError(f"{path}, line {number}: caption {k} of {name} is there twice.")
        table[name][int(k)] = Caption(caption.strip(), number)
    return {name: [captions[k] for k in sorted(captions)] for name, captions in table.items()}


def read_split(path: Path) -> dict[str, list[str]]:
    """Split name -> image names, for train, dev and test.

    Raises:
      ValueError: a list is missing or an image is in two of them.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    seen: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        if not isinstance(content, dict) or not content.get(split):
            raise ValueError(f'{path} holds no list "{split}"; it needs train, dev and test.')
        for name in content[split]:
            if name in seen:
                raise ValueError(f"{path}: {name} is in {seen[name]} and again in {split}.")
            seen[name] = split
    return content


def make(cfg: Mapping[str, Any]) -> CaptionSource:
    """Reads captions and split of `cfg.dir`; images are decoded when they are used.

    Examples are "image" uint8 [image_size, image_size, 3], "id", "text" and, for whole training
    images, "aspect".
    """
    config = unpack(FolderOptions, cfg)
    root = Path(config.dir)
    split_path, captions_path = require(root / "split.json"), require(root / "captions.txt")
    folder = require(root / "images")
    splits, captions = read_split(split_path), read_captions(captions_path)
    present = {path.name for path in folder.iterdir()}

    def tokens_of(split: str) -> tuple[list[list[str]], np.ndarray, list[str]]:
        tokens, owner, raw = [], [], []
        for index, name in enumerate(splits[split]):
            if name not in captions:
                raise ValueError(f"{captions_path} has no caption of {name} (split {split}).")
            if name not in present and not (folder / name).is_file():
                require(folder / name)
            for caption in captions[name]:
                tokens += text.tokenize_captions([caption.words], captions_path, caption.line)
                owner.append(index)
                raw.append(caption.words)
        return tokens, np.asarray(owner, np.int32), raw

    tokens, owner, raw = tokens_of("train")
    vocabulary = text.get_vocabulary(config.vocabulary, tokens, config.min_count)

    def make_split(split: str) -> RetrievalSplit:
        if split not in splits:
            raise ValueError(f"{split_path} has no split {split!r}; it has {', '.join(splits)}.")
        tokens, owner, raw = tokens_of(split)
        ids = encode_captions(raw, tokens, vocabulary, config.max_words)
        images = image_files(folder, splits[split], config.image_size, blank=not config.strict)
        extras = {"captions": raw, "images": images.stored, "names": splits[split]}
        return caption_split(split, images, ids, owner, extras)

    images = image_files(folder, splits["train"], config.image_size, whole=config.whole_image)
    ids = encode_captions(raw, tokens, vocabulary, config.max_words)
    train = CaptionPairs(images, ids, owner, config.captions_per_item, config.strict)
    return CaptionSource(
        {"vocab_size": len(vocabulary)}, train, vocabulary, config.max_words, make_split
    )
