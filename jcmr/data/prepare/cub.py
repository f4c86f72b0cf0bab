"""CUB-200-2011 with ten captions an image, in the split of PCME, for config.data.source = "cub"."""

import argparse
from pathlib import Path

from jcmr.data.prepare.captions import Written, make_index
from jcmr.data.prepare.files import check_images, read_names, require
from jcmr.data.prepare.images import add_image_arguments, shrinking
from jcmr.data.prepared import check_free, write_prepared
from jcmr.data.text import read_lines

BIRDS = (
    "CUB-200-2011 comes from https://www.vision.caltech.edu/datasets/cub_200_2011; give the folder "
    "with images/, images.txt, image_class_labels.txt and train_test_split.txt as --images."
)
CAPTIONS = (
    "The captions (text_c10/<class>/<image>.txt, ten lines each) come with Reed et al., CVPR 2016 "
    "(https://github.com/reedscot/cvpr2016); they are of CUB-200-2011, whose file names are not "
    "those of CUB-200 (2010)."
)
CLASSES = (
    'trainvalclasses.txt and testclasses.txt are the "Proposed Splits" of Xian et al.; with '
    "seen_test_images.txt they are in https://github.com/naver-ai/pcme (datasets/annotations/cub)."
)
ORIGIN = f"{BIRDS} {CAPTIONS} {CLASSES}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    parser.add_argument("--images", type=Path, required=True, help="the folder CUB_200_2011")
    parser.add_argument("--captions", type=Path, required=True, help="the folder text_c10")
    parser.add_argument(
        "--splits", type=Path, required=True,
        help="the folder that holds trainvalclasses.txt and testclasses.txt (150 and 50 lines like "
        "001.Black_footed_Albatross) and seen_test_images.txt, the images of training classes "
        "that are held out (lines class/image.jpg); without that file they are the test images of "
        "train_test_split.txt",
    )  # fmt: skip
    add_image_arguments(parser)


def read_table(path: Path) -> dict[int, str]:
    """First column -> second column of an index file of CUB.

    Raises:
      ValueError: a line is malformed.
    """
    table = {}
    for line in read_names(require(path, BIRDS)):
        number, _, value = line.partition(" ")
        if not number.isdecimal() or not value:
            raise ValueError(f"{path}: expected `number value` in each line, found {line!r}.")
        table[int(number)] = value
    return table


def read_images(root: Path) -> tuple[list[str], dict[str, int], set[str]]:
    """(names class/image.jpg, class of each, those that train_test_split.txt holds out).

    Raises:
      FileNotFoundError: the folder is not laid out as CUB-200-2011.
      ValueError: its files do not belong together.
    """
    if not (root / "images.txt").is_file() and (root / "lists").is_dir():
        raise FileNotFoundError(
            f"There is no {root / 'images.txt'}, but {root / 'lists'}: this is CUB-200 of 2010, "
            f"whose images are others. {BIRDS}"
        )
    names = read_table(root / "images.txt")
    labels = read_table(root / "image_class_labels.txt")
    held_in = read_table(root / "train_test_split.txt")
    if not names.keys() == labels.keys() == held_in.keys():
        raise ValueError(
            f"images.txt, image_class_labels.txt and train_test_split.txt in {root} list other "
            f"images; they are not of one data set. {BIRDS}"
        )
    label_of = {name: int(labels[number]) for number, name in names.items()}
    out = {name for number, name in names.items() if held_in[number] == "0"}
    return list(names.values()), label_of, out


def read_classes(path: Path, known: set[str]) -> set[str]:
    """The classes that a split file lists.

    Raises:
      ValueError: a class is no folder of images.
    """
    classes = read_names(require(path, CLASSES))
    for name in classes:
        if name not in known:
            raise ValueError(
                f"{path} lists {name!r}, which is no class of CUB-200-2011 (they are like "
                f"001.Black_footed_Albatross). {CLASSES}"
            )
    return set(classes)


def split_images(
    names: list[str], seen: set[str], unseen: set[str], held_out: set[str]
) -> dict[str, list[str]]:
    """Names of each split: train, dev (held-out images of seen classes), test (unseen classes)."""
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for name in names:
        kind = name.partition("/")[0]
        if kind in unseen:
            splits["test"].append(name)
        elif kind in seen:
            splits["dev" if name in held_out else "train"].append(name)
    return splits


def read_captions(folder: Path, name: str) -> Written:
    """(line, words) of each line of an image's file that is not blank."""
    path = require(folder / Path(name).with_suffix(".txt"), CAPTIONS)
    return [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def run(args: argparse.Namespace) -> None:
    """Writes the folder that the command line names.

    Raises:
      FileNotFoundError: names the file that is missing.
      ValueError: files are damaged or do not belong together.
    """
    check_free(args.out)
    names, label_of, held_out = read_images(args.images)
    known = {name.partition("/")[0] for name in names}
    seen = read_classes(args.splits / "trainvalclasses.txt", known)
    unseen = read_classes(args.splits / "testclasses.txt", known)
    if seen & unseen:
        raise ValueError(
            f"{min(seen & unseen)} is in trainvalclasses.txt and in testclasses.txt of "
            f"{args.splits}; unseen classes must not be trained on."
        )
    listed = args.splits / "seen_test_images.txt"
    if listed.is_file():
        held_out = set(read_names(listed))
        if unknown := held_out - set(names):
            raise ValueError(f"{listed} lists {min(unknown)}, which images.txt does not have.")
    else:
        print(f"There is no {listed}: the test images of train_test_split.txt are held out.")
    splits = split_images(names, seen, unseen, held_out)
    for split, chosen in splits.items():
        print(f"{split}: {len(chosen):,} images of {len({label_of[n] for n in chosen})} classes")
        if not chosen:
            raise ValueError(f"The split {split} has no images. {CLASSES}")
    files = {s: check_images(args.images / "images", splits[s], BIRDS) for s in splits}
    indices = {
        split: make_index(
            split,
            chosen,
            [read_captions(args.captions, name) for name in chosen],
            lambda name, line: f"{args.captions / name}, line {line}",
            labels=[label_of[name] for name in chosen],
        )
        for split, chosen in splits.items()
    }
    total = sum(map(len, files.values()))
    with shrinking(args.size, args.workers, args.strict, total) as encode:
        write_prepared(args.out, "cub", files, indices, encode)
