"""Images with captions as a source: pairs to train on, galleries to retrieve in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from jcmr.core.types import RandomAccess, RetrievalSplit, same_id
from jcmr.data.records import Arrays, stack, take
from jcmr.data.wordpiece import encode_captions


def group_captions(owner: np.ndarray, captions_per_item: int) -> np.ndarray:
    """Which captions make a training example, int [g, c], every caption at least once.

    An image of n captions gives ceil(n / c) examples of c consecutive ones; the last is filled up
    from its first captions. With c = 1 each caption is an example, with its image.

    Args:
      owner: image of each caption, int [m].
      captions_per_item: c.
    """
    order = np.argsort(owner, kind="stable")
    _, starts, counts = np.unique(owner[order], return_index=True, return_counts=True)
    groups = []
    for start, count in zip(starts, counts):
        size = -(-count // captions_per_item) * captions_per_item
        groups.append(order[start + np.arange(size) % count].reshape(-1, captions_per_item))
    return np.concatenate(groups)


class CaptionPairs:
    """Training examples: an image joined with one caption, text [t], or with c, text [c, t].

    An image that cannot be read is skipped: the next example that can be read takes its place, the
    same one in every run. Each such file is named once in a warning; `unreadable` holds their ids.

    Args:
      images: examples of one image each, with "id".
      text: ids of all captions, int32 [m, t].
      owner: image of each caption, int [m].
      captions_per_item: c.
      strict: an image that cannot be read is an error.
    """

    def __init__(
        self,
        images: RandomAccess,
        text: np.ndarray,
        owner: np.ndarray,
        captions_per_item: int = 1,
        strict: bool = False,
    ):
        self.images, self.text, self.owner, self.strict = images, text, owner, strict
        groups = group_captions(owner, captions_per_item)
        self.groups = groups[:, 0] if captions_per_item == 1 else groups
        self.image_of = owner[groups[:, 0]]
        self.unreadable: set[int] = set()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Example `index`, or the next one whose image can be read."""
        for candidate in np.arange(index, index + len(self)) % len(self):
            image = int(self.image_of[candidate])
            if image in self.unreadable:
                continue
            try:
                return dict(self.images[image]) | {"text": self.text[self.groups[candidate]]}
            except ValueError as error:
                if self.strict:
                    raise
                self.unreadable.add(image)
                logging.warning(
                    "%s It is skipped, with its captions (%d so far in this process).",
                    error,
                    len(self.unreadable),
                )
        raise ValueError(f"None of the {len(self.images)} training images can be read.")

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples `indices` as a batch."""
        if hasattr(self.images, "take"):
            images = take(self.images, self.image_of[indices])
            return images | {"text": self.text[self.groups[indices]]}
        return stack([self[int(index)] for index in indices])


def caption_split(
    name: str,
    images: RandomAccess,
    text: np.ndarray,
    owner: np.ndarray,
    extras: Mapping[str, Any],
) -> RetrievalSplit:
    """The galleries of a split; a caption is relevant for the image it was written for ("own")."""
    indices = np.arange(len(text), dtype=np.int32)
    items = {"image": images, "text": Arrays({"text": text, "id": indices, "owner": owner})}
    relevance = {"own": same_id(np.arange(len(images)), owner)}
    return RetrievalSplit(name, items, relevance, extras)


@dataclass(frozen=True)
class CaptionSource:
    """A data set of images with captions."""

    info: Mapping[str, int]
    train: RandomAccess
    vocabulary: Mapping[str, int]
    max_words: int
    make_split: Callable[[str], RetrievalSplit]
    stem: bool = False
    """Whether words were stemmed."""
    order: Callable[[int, int], np.ndarray] | None = None
    """(seed, epoch) -> training examples, where an epoch has an order of its own."""

    def retrieval(self, split: str) -> RetrievalSplit:
        """The galleries of `split`, usually "dev" or "test"."""
        return self.make_split(split)

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids as the model was trained on, int32 [n, max_words]; for free text queries."""
        return encode_captions(captions, None, self.vocabulary, self.max_words, self.stem)
