"""Captions on their way into a prepared folder."""

from collections.abc import Callable, Sequence

from jcmr.core.progress import Progress, printer
from jcmr.data.prepared import Index
from jcmr.data.text import tokenize

Written = Sequence[tuple[int, str]]
"""(id, words) of the captions of an image."""


def make_index(
    split: str,
    names: Sequence[str],
    captions: Sequence[Written],
    where: Callable[[str, int], str],
    **columns: list,
) -> Index:
    """Tokenises the captions of a split. Those without words are left out, with a line for each.

    Args:
      split: its name.
      names: of the images.
      captions: of each image.
      where: (image, caption id) -> where the caption is written, for messages.
      **columns: more about each image.

    Raises:
      ValueError: an image is left without a caption.
    """
    index = Index(list(names), [], [], [], [], columns)
    counter = Progress(f"captions of {split}", len(names), printer())
    for position, (name, written) in enumerate(zip(names, captions)):
        for number, words in written:
            tokens = tokenize(words)
            if not tokens:
                print(f"{where(name, number)}: the caption has no words; it is left out.")
                continue
            index.captions.append(" ".join(words.split()))
            index.tokens.append(" ".join(tokens))
            index.owner.append(position)
            index.caption_ids.append(number)
        if not index.owner or index.owner[-1] != position:
            raise ValueError(
                f"The image {name} (split {split}) has no caption with words; give it one, or take "
                f"the image out of the split."
            )
        counter.step()
    return index
