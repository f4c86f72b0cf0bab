"""Which pairs of a batch count as matches, as mismatches, or not at all."""

from typing import NamedTuple

import jax.numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Array, Batch
from jcmr.ops.assignment import injective_match

NOBODY = -1
"""Row and id of the image of a caption that belongs to none."""


class Side(NamedTuple):
    """Who is who along one side of a matrix of pairs; parts that a batch lacks are None."""

    row: Array
    """[n], row of the global batch: an image's own, a caption's that of its image."""
    id: Array | None = None
    """[n], id of the image in its data set."""
    code: Array | None = None
    """[n, ...], what a scene shows or a caption says; see `ops.assignment`."""


def flat_captions(batch: Batch) -> tuple[Array, Array | None, int]:
    """Texts [b * c, t], their codes, and c, of a batch with texts [b, c, t] or [b, t].

    >>> text, codes, num = flat_captions({'text': jnp.ones((2, 3, 5), int)})
    >>> text.shape, codes, num
    ((6, 5), None, 3)
    """
    text, code = batch["text"], batch.get("caption_code")
    if text.ndim == 2:
        return text, code, 1
    flat = text.shape[0] * text.shape[1]
    code = None if code is None else code.reshape(flat, *code.shape[2:])
    return text.reshape(flat, text.shape[2]), code, text.shape[1]


def batch_sides(batch: Batch, axis: str | None) -> tuple[Side, Side]:
    """Images [b] and captions [b * c] of this device's batch.

    Captions that the batch's "foreign" [b, c] marks belong to no image: mismatches for all.

    >>> images, captions = batch_sides({'text': jnp.ones((2, 3, 5), int)}, None)
    >>> captions.row.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    _, code, num_captions = flat_captions(batch)
    rows = len(batch["text"])
    row = parallel.first_row(rows, axis) + jnp.arange(rows)
    ids = batch.get("id")
    of_captions = None if ids is None else jnp.repeat(ids, num_captions)
    owner = jnp.repeat(row, num_captions)
    if "foreign" in batch:
        foreign = batch["foreign"].reshape(-1)
        owner = jnp.where(foreign, NOBODY, owner)
        of_captions = None if of_captions is None else jnp.where(foreign, NOBODY, of_captions)
    return Side(row, ids, batch.get("scene_code")), Side(owner, of_captions, code)


class Targets(NamedTuple):
    """Of a matrix of pairs [n, m]."""

    positive: Array
    """Share of the pair that matches: 0 or 1 unless images are mixed or labels smoothed."""
    valid: Array
    """False where a pair is left out."""


def pair_targets(
    images: Side,
    captions: Side,
    duplicates: str = "positive",
    mask_true_positives: bool = False,
    own_share: Array | None = None,
    num_rows: int = 0,
    label_smoothing: float = 0.0,
    groups: int = 1,
) -> Targets:
    """Targets of images [n] against captions [m].

    Args:
      images: rows.
      captions: columns.
      duplicates: what a pair is whose image is in the batch twice: "positive", "masked", or
        "negative" as in most official code.
      mask_true_positives: leaves out pairs that match by their codes without being own pairs.
      own_share: [n], what mixed images kept of themselves (`ops.mixing`), None without mixing; the
        rest belongs to the mirrored row.
      num_rows: of the global batch; needed with `own_share` and `groups`.
      label_smoothing: s turns targets 0 and 1 into s and 1 - s (PCME++).
      groups: parts of the batch whose members alone are compared with each other; official code
        that gathers nothing has as many as devices.

    Raises:
      ValueError: true positives cannot be masked, as the batch has no codes.

    >>> pair_targets(Side(jnp.arange(2)), Side(jnp.array([0, 0, 1]))).positive.tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    row, caption_row = images.row[:, None], captions.row[None, :]
    own = row == caption_row
    unmixed = True if own_share is None else (own_share == 1)[:, None]
    positive = own.astype(jnp.float32)
    if own_share is not None:
        positive = own * own_share[:, None]
        positive += (caption_row == num_rows - 1 - row) * (1 - own_share)[:, None]
    valid = jnp.ones_like(own)
    if duplicates != "negative" and images.id is not None and captions.id is not None:
        again = (images.id[:, None] == captions.id[None, :]) & ~own
        if duplicates == "masked":
            valid &= ~again
        else:
            positive = jnp.where(again & unmixed, 1.0, positive)
    if mask_true_positives:
        if images.code is None or captions.code is None:
            raise ValueError(
                "True positives can only be masked where the data says what an image shows: the "
                "batch has no 'scene_code' and 'caption_code'. Set "
                "config.model.mask_true_positives to False."
            )
        match = injective_match(captions.code[None, :], images.code[:, None])
        valid &= ~match | (positive > 0)
    if groups > 1:
        valid &= row * groups // num_rows == caption_row * groups // num_rows
    if label_smoothing:
        positive = label_smoothing + (1 - 2 * label_smoothing) * positive
    return Targets(positive, valid)
