"""COCO and CUB-200-2011 in the official file formats, a few pictures large; meshes as OFF files."""

import json
from pathlib import Path

import numpy as np
from jax import numpy as jnp
from PIL import Image

from jcmr.core.types import Task

COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
COCO_SPLITS = {"train": 6, "restval": 3, "val": 4, "test": 10}


def write_picture(path: Path, colour: str, width: int = 48, height: int = 36) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), COLOURS[colour], np.uint8)
    pixels[: height // 3] //= 2
    Image.fromarray(pixels).save(path, quality=90)


def write_coco(root: Path) -> Path:
    """Images, annotations and Karpathy's split; the last test image has no instances.

    Image i has the caption ids 100 i to 100 i + 5 (one more than is used) and the categories 1 and
    i % 3 + 89 - 2 of COCO's 90.
    """
    notes = root / "annotations"
    notes.mkdir(parents=True)
    karpathy: list[dict] = []
    captions: dict = {"train2014": [], "val2014": []}
    instances: dict = {"train2014": [], "val2014": []}
    number = 0
    for split, count in COCO_SPLITS.items():
        part = "train2014" if split == "train" else "val2014"
        for k in range(count):
            number += 1
            colour = list(COLOURS)[number % 3]
            name = f"COCO_{part}_{number:012d}.jpg"
            write_picture(root / part / name, colour, 40 + number)
            sentences = []
            for c in range(6):
                raw = f"A {colour} picture, caption {c} of image {number}."
                captions[part].append({"image_id": number, "id": 100 * number + c, "caption": raw})
                sentences.append({"raw": raw, "sentid": 100 * number + c, "imgid": number})
            if not (split == "test" and k == count - 1):
                for category in (1, number % 3 + 88, 1):
                    instances[part].append(
                        {
                            "image_id": number,
                            "category_id": category,
                            "segmentation": [[0.0, 1.0, 2.0, 3.0]],
                            "id": len(instances[part]),
                        }
                    )
            karpathy.append(
                {
                    "filepath": part,
                    "filename": name,
                    "cocoid": number,
                    "imgid": number - 1,
                    "split": split,
                    "sentids": [s["sentid"] for s in sentences],
                    "sentences": sentences,
                }
            )
    for part in captions:
        whole = {"info": {}, "images": [], "annotations": captions[part]}
        (notes / f"captions_{part}.json").write_text(json.dumps(whole))
        whole = {"info": {}, "categories": [], "annotations": instances[part]}
        (notes / f"instances_{part}.json").write_text(json.dumps(whole))
    (notes / "dataset_coco.json").write_text(json.dumps({"images": karpathy, "dataset": "coco"}))
    return root


def coco_command(root: Path, out: Path, *options: str) -> list[str]:
    return [
        "coco",
        f"--images={root}",
        f"--annotations={root / 'annotations'}",
        f"--out={out}",
        "--workers=1",
        *options,
    ]


BIRDS = (
    "001.Black_footed_Albatross",
    "002.Laysan_Albatross",
    "003.Sooty_Albatross",
    "004.Groove_billed_Ani",
    "005.Crested_Auklet",
    "006.Least_Auklet",
)
"""The first four are trained on."""
BIRD_IMAGES = (4, 3, 1, 5, 3, 2)
"""The third has one image alone."""


def write_cub(root: Path) -> Path:
    """CUB_200_2011/, text_c10/ and splits/; the last image of classes 1 and 4 is held out."""
    base, splits = root / "CUB_200_2011", root / "splits"
    splits.mkdir(parents=True)
    images, labels, halves, held_out = [], [], [], []
    for label, (kind, count) in enumerate(zip(BIRDS, BIRD_IMAGES), 1):
        for k in range(count):
            name = f"{kind}/{kind.partition('.')[2].title()}_{k + 1:04d}_{100 * label + k}.jpg"
            colour = list(COLOURS)[label % 3]
            write_picture(base / "images" / name, colour, 44, 50)
            captions = root / "text_c10" / Path(name).with_suffix(".txt")
            captions.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"this bird number {label} is {colour}, line {c}.\n" for c in range(10)]
            captions.write_text("".join(lines) + "\n")
            number = len(images) + 1
            images.append(f"{number} {name}\n")
            labels.append(f"{number} {label}\n")
            halves.append(f"{number} {k % 2}\n")
            if k == count - 1 and label in (1, 4):
                held_out.append(f"{name}\n")
    (base / "images.txt").write_text("".join(images))
    (base / "image_class_labels.txt").write_text("".join(labels))
    (base / "train_test_split.txt").write_text("".join(halves))
    (splits / "trainvalclasses.txt").write_text("".join(f"{name}\n" for name in BIRDS[:4]))
    (splits / "testclasses.txt").write_text("".join(f"{name}\n" for name in BIRDS[4:]))
    (splits / "seen_test_images.txt").write_text("".join(held_out))
    return root


def cub_command(root: Path, out: Path, *options: str) -> list[str]:
    return [
        "cub",
        f"--images={root / 'CUB_200_2011'}",
        f"--captions={root / 'text_c10'}",
        f"--splits={root / 'splits'}",
        f"--out={out}",
        "--workers=1",
        *options,
    ]


def write_glove(path: Path, words: list[str], dim: int) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{word} {' '.join(f'{x:.4f}' for x in rng.normal(size=dim))}\n" for word in words]
    path.write_text("".join(rows))
    return path


def table_task(scores: np.ndarray) -> Task:
    """A system that scores images [n] against captions [m] by a table [n, m]."""
    encode = {name: lambda variables, inputs: {"id": inputs["id"]} for name in ("image", "text")}

    def score(variables, query, gallery):
        return jnp.asarray(scores)[query["id"]][:, gallery["id"]]

    return Task(None, None, encode, score)  # pyright: ignore


def off_text(vertices, triangles, header="OFF\n{} {} 0\n"):
    """A mesh as an OFF file."""
    lines = [header.format(len(vertices), len(triangles))]
    lines += [" ".join(map(repr, map(float, v))) + "\n" for v in vertices]
    lines += [f"3 {a} {b} {c}\n" for a, b, c in triangles]
    return "".join(lines)
