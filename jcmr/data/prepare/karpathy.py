"""Karpathy's split files, dataset_{coco,flickr8k,flickr30k}.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jcmr.data.prepare.files import read_json, require

ORIGIN = (
    "The split files dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json are in "
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip."
)
SPLITS: Mapping[str, str] = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
"""Their names to ours. With `restval` in the training images it is the split of VSE++."""


class Entry(NamedTuple):
    """An image of the file."""

    folder: str
    """"train2014" or "val2014" for COCO, else empty."""
    name: str
    """Of its file."""
    image_id: int
    """That of COCO, else its place in the file."""
    captions: list[tuple[int, str]]
    """(id, words); the ids are those of COCO's caption annotations."""


def read_karpathy(path: Path) -> dict[str, list[Entry]]:
    """Split (train, dev, test) -> its images, in the order of the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    content = read_json(require(path, ORIGIN))
    splits: dict[str, list[Entry]] = {"train": [], "dev": [], "test": []}
    try:
        for number, image in enumerate(content["images"]):
            captions = [(int(s["sentid"]), str(s["raw"])) for s in image["sentences"]]
            image_id = int(image.get("cocoid", number))
            entry = Entry(image.get("filepath", ""), image["filename"], image_id, captions)
            splits[SPLITS[image["split"]]].append(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no split file of Karpathy's ({error!r}). {ORIGIN}") from None
    for split, entries in splits.items():
        if not entries:
            raise ValueError(f"{path} has no image of the split {split}. {ORIGIN}")
    return splits
