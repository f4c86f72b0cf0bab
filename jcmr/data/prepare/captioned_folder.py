"""captions.txt and split.json beside images, for config.data.source = "captioned_folder"."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from jcmr.data.prepare.files import check_images, read_names, require
from jcmr.data.prepare.karpathy import read_karpathy
from jcmr.data.sources.captioned_folder import read_captions

ORIGIN = (
    "Flickr8k and Flickr30k come from their authors "
    "(https://shannon.cs.illinois.edu/DenotationGraph); with your own pictures, write "
    "captions.txt (lines `name#k<TAB>caption`) and split.json yourself."
)
SPLITS = ("train", "dev", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    parser.add_argument("--images", type=Path, required=True, help="the folder of the image files")
    parser.add_argument(
        "--split", type=Path, help="Karpathy's dataset_flickr8k.json or dataset_flickr30k.json"
    )
    parser.add_argument(
        "--captions", type=Path,
        help="in place of --split: lines `name#k<TAB>caption`, such as Flickr8k.token.txt",
    )  # fmt: skip
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", type=Path, help=f"with --captions: one name of a {split} image a line"
        )


def read_karpathy_folder(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(split -> image names, image name -> captions) of a split file of Karpathy's."""
    splits = read_karpathy(path)
    names = {split: [entry.name for entry in entries] for split, entries in splits.items()}
    captions = {
        entry.name: [words for _, words in entry.captions]
        for entries in splits.values()
        for entry in entries
    }
    return names, captions


def read_lists(args: argparse.Namespace) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The same of a file of captions and three lists of names."""
    lists = {split: getattr(args, split) for split in SPLITS}
    if not args.captions or not all(lists.values()):
        raise ValueError(
            "Give --split=dataset_flickr8k.json, or --captions with --train, --dev and --test."
        )
    names = {split: read_names(require(path, ORIGIN)) for split, path in lists.items()}
    written = read_captions(require(args.captions, ORIGIN))
    return names, {name: [c.words for c in captions] for name, captions in written.items()}


def write(path: Path, content: str) -> None:
    """Writes a text file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, "utf-8")
    os.replace(partial, path)


def write_folder(
    out: Path, names: Mapping[str, list[str]], captions: Mapping[str, list[str]], images: Path
) -> None:
    """Writes captions.txt and split.json, and links the images; split.json comes last."""
    out.mkdir(parents=True, exist_ok=True)
    link = out / "images"
    if not link.exists():
        link.symlink_to(images.absolute(), target_is_directory=True)
    elif not link.samefile(images):
        raise FileExistsError(f"{link} is there already and is not {images}; give another --out.")
    lines = [
        f"{name}#{k}\t{' '.join(words.split())}\n"
        for chosen in names.values()
        for name in chosen
        for k, words in enumerate(captions[name])
    ]
    write(out / "captions.txt", "".join(lines))
    write(out / "split.json", json.dumps(names, indent=0))


def run(args: argparse.Namespace) -> None:
    """Writes the files that the command line asks for.

    Raises:
      FileNotFoundError: an image or another file is missing.
      ValueError: files are damaged or do not belong together.
    """
    names, captions = read_karpathy_folder(args.split) if args.split else read_lists(args)
    for split, chosen in names.items():
        check_images(args.images, chosen, ORIGIN)
        for name in chosen:
            if not captions.get(name):
                raise ValueError(f"The image {name} (split {split}) has no caption.")
        print(f"{split}: {len(chosen):,} images")
    write_folder(args.out, names, captions, args.images)
