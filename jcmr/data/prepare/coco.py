"""MS-COCO 2014 captions in the split of VSE++ and PCME, for config.data.source = "coco"."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from jcmr.data.prepare.captions import Written, make_index
from jcmr.data.prepare.files import check_images, read_json, require
from jcmr.data.prepare.images import add_image_arguments, shrinking
from jcmr.data.prepare.karpathy import Entry, read_karpathy
from jcmr.data.prepared import check_free, write_prepared

ORIGIN = (
    "COCO comes from https://cocodataset.org/#download: unpack train2014.zip and val2014.zip into "
    "the folder of --images, annotations_trainval2014.zip and Karpathy's dataset_coco.json into "
    "that of --annotations."
)
PARTS = ("train2014", "val2014")
CAPTIONS_PER_IMAGE = 5
"""The first five, as in the official id files: 566,435 to train on, 25,000 to test."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    parser.add_argument(
        "--images", type=Path, required=True, help="the folder that holds train2014/ and val2014/"
    )
    parser.add_argument(
        "--annotations", type=Path, required=True,
        help="the folder that holds captions_{train,val}2014.json, instances_{train,val}2014.json "
        "and dataset_coco.json",
    )  # fmt: skip
    parser.add_argument("--split", type=Path, help="dataset_coco.json, if it is elsewhere")
    add_image_arguments(parser)


def read_captions(folder: Path) -> dict[int, tuple[int, str]]:
    """Caption id -> (image id, words)."""
    captions = {}
    for part in PARTS:
        path = require(folder / f"captions_{part}.json", ORIGIN)
        for entry in read_json(path)["annotations"]:
            captions[int(entry["id"])] = int(entry["image_id"]), str(entry["caption"])
    return captions


def without_outlines(entry: dict) -> dict:
    """An annotation without its polygons, which are nearly all of it."""
    entry.pop("segmentation", None)
    return entry


def read_categories(folder: Path) -> dict[int, set[int]]:
    """Image id -> ids (1 to 90) of the categories of its annotated instances; others have none."""
    categories: dict[int, set[int]] = {}
    for part in PARTS:
        path = require(folder / f"instances_{part}.json", ORIGIN)
        for entry in read_json(path, without_outlines)["annotations"]:
            categories.setdefault(int(entry["image_id"]), set()).add(int(entry["category_id"]))
    return categories


def own_captions(entry: Entry, captions: Mapping[int, tuple[int, str]], folder: Path) -> Written:
    """The captions of an image as COCO has them.

    Raises:
      ValueError: COCO has no such caption, or it belongs to another image.
    """
    own = []
    for number, _ in entry.captions[:CAPTIONS_PER_IMAGE]:
        image, words = captions.get(number, (None, ""))
        if image != entry.image_id:
            found = "is not there" if image is None else f"belongs to image {image}"
            raise ValueError(
                f"Caption {number} of image {entry.image_id} in dataset_coco.json {found} in "
                f"{folder}/captions_*2014.json; the files are not of one data set. {ORIGIN}"
            )
        own.append((number, words))
    return own


def run(args: argparse.Namespace) -> None:
    """Writes the folder that the command line names.

    Raises:
      FileNotFoundError: names the file that is missing.
      ValueError: files are damaged or do not belong together.
    """
    check_free(args.out)
    split_file = args.split or args.annotations / "dataset_coco.json"
    splits = read_karpathy(split_file)
    print("reading the annotations", flush=True)
    captions = read_captions(args.annotations)
    categories = read_categories(args.annotations)
    files = {
        split: check_images(args.images, (f"{e.folder}/{e.name}" for e in entries), ORIGIN)
        for split, entries in splits.items()
    }
    indices = {
        split: make_index(
            split,
            [entry.name for entry in entries],
            [own_captions(entry, captions, args.annotations) for entry in entries],
            lambda name, number: f"{args.annotations}, caption {number} of {name}",
            image_ids=[entry.image_id for entry in entries],
            categories=[sorted(categories.get(entry.image_id, ())) for entry in entries],
        )
        for split, entries in splits.items()
    }
    total = sum(map(len, files.values()))
    with shrinking(args.size, args.workers, args.strict, total) as encode:
        write_prepared(args.out, "coco", files, indices, encode)
