"""More matches between COCO's test images and captions than those that were written together.

ECCV Caption (Chun et al., ECCV 2022) and CxC (Parekh et al., EACL 2021), from the json files of
https://github.com/naver-ai/eccv-caption: `{eccv,cxc}_image_to_caption.json` maps the id of an image
to the ids of the captions that describe it, `{eccv,cxc}_caption_to_image.json` the other way round.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

ORIGIN = (
    "The files are in eccv_caption/data of https://github.com/naver-ai/eccv-caption; leave "
    "config.data.eccv_dir empty to do without."
)
NAMES = ("eccv", "cxc")


class Matches(NamedTuple):
    """A relation of images and captions, and who was judged completely."""

    matrix: np.ndarray
    """bool [n, m]."""
    images: np.ndarray
    """bool [n], images whose matches are all known: the queries image to text."""
    captions: np.ndarray
    """bool [m]."""


def read_file(path: Path) -> dict[int, list[int]]:
    """Query id -> ids of its matches.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. {ORIGIN}")
    try:
        content = json.loads(path.read_bytes())
        return {int(key): [int(value) for value in values] for key, values in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no lists of matches by id ({error}). {ORIGIN}") from None


def place(found: Mapping[int, int], query: int, path: Path) -> int:
    """Place of a query in the split.

    Raises:
      ValueError: the split does not have it.
    """
    if query not in found:
        raise ValueError(
            f"{path} asks for {query}, which is not in the test split of this data. Expected the "
            f"5,000 images and 25,000 captions of Karpathy's test split."
        )
    return found[query]


def load_matches(folder: Path, name: str, image_ids: list[int], caption_ids: list[int]) -> Matches:
    """The relation `name` ("eccv" or "cxc") of a split.

    The two files of ECCV Caption do not list the same pairs, as each is complete for its own
    queries only: 1,261 images and 1,332 captions. Where both are queries, they agree. Two of the
    captions that it lists as matches are not among the 25,000 (sixth captions of their images);
    the official code counts them as matches that nobody finds, here they are left out.

    Args:
      folder: where the json files are.
      name: of the relation.
      image_ids: of the images of the split, [n].
      caption_ids: of its captions, [m].

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or of other images.
    """
    rows = {number: place for place, number in enumerate(image_ids)}
    columns = {number: place for place, number in enumerate(caption_ids)}
    matrix = np.zeros((len(rows), len(columns)), bool)
    images, captions = np.zeros(len(rows), bool), np.zeros(len(columns), bool)
    path = folder / f"{name}_image_to_caption.json"
    for image, matches in read_file(path).items():
        row = place(rows, image, path)
        images[row] = True
        matrix[row, [columns[caption] for caption in matches if caption in columns]] = True
    path = folder / f"{name}_caption_to_image.json"
    for caption, matches in read_file(path).items():
        column = place(columns, caption, path)
        captions[column] = True
        matrix[[rows[image] for image in matches if image in rows], column] = True
    return Matches(matrix, images, captions)
