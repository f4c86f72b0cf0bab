"""Ranking losses on a matrix of scores."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.types import Array, Batch, Term, Terms
from jcmr.losses.targets import batch_sides, pair_targets


def triplet_hinge(
    scores: Array,
    rows: Array,
    columns: Array,
    negative: Array,
    margin: float,
    hardest: Array | bool = True,
) -> Array:
    """Bidirectional hinge of matched pairs (VSE++, Faghri et al., BMVC 2018, eq. 5 and 6).

    For a pair with score s: [margin + s' - s]+ over all other columns of its row, plus the same
    over all other rows of its column; of each the largest, or the sum of all, or a mean of both.

    Args:
      scores: [n, m].
      rows: int [k], row of each of k matched pairs.
      columns: int [k], its column.
      negative: bool [n, m], which pairs count as mismatches.
      margin: of the scores.
      hardest: the share in [0, 1] of the largest violation, that of the sum being the rest; may be
        traced.

    Returns:
      [k], at least 0.

    >>> scores = jnp.array([[0.5, 0.4], [0.0, 0.9]])
    >>> own = jnp.arange(2)
    >>> found = triplet_hinge(scores, own, own, ~jnp.eye(2, dtype=bool), margin=0.2)
    >>> round(float(found.sum()), 4)
    0.1
    """
    own = scores[rows, columns]

    def cost(others: Array, mismatch: Array) -> Array:
        violation = jnp.where(mismatch, jax.nn.relu(margin + others - own[:, None]), 0.0)
        share = jnp.asarray(hardest, violation.dtype)
        return share * violation.max(axis=1) + (1 - share) * violation.sum(axis=1)

    in_row = cost(scores[rows], negative[rows])
    return in_row + cost(scores[:, columns].T, negative[:, columns].T)


class HingeConfig(Protocol):
    """What `hinge_terms` reads of a model's options."""

    @property
    def margin(self) -> float:
        """Of the scores."""
        ...

    @property
    def reduction(self) -> str:
        """The loss is the "sum" over captions, or their "mean"."""
        ...

    @property
    def duplicates(self) -> str:
        """Captions of the same image in one batch, see `targets.pair_targets`."""
        ...

    @property
    def mask_true_positives(self) -> bool:
        """Leaves out pairs that match by their codes."""
        ...


def hinge_terms(
    scores: Array,
    batch: Batch,
    cfg: HingeConfig,
    hardest: Array | bool,
    axis: str | None,
    groups: int = 1,
) -> Terms:
    """The objective of this device's captions, against the images and captions of all devices.

    Args:
      scores: [b, m], this device's images with the captions of all devices.
      batch: of this device.
      cfg: the options.
      hardest: see `triplet_hinge`.
      axis: device axis.
      groups: see `targets.pair_targets`.

    Raises:
      ValueError: the batch has texts of no image, which a hinge over matched pairs cannot use.

    >>> from types import SimpleNamespace
    >>> cfg = SimpleNamespace(margin=0.2, reduction='mean', duplicates='masked')
    >>> cfg.mask_true_positives = False
    >>> batch = {'text': jnp.ones((2, 3), int), 'id': jnp.arange(2)}
    >>> terms = hinge_terms(jnp.array([[0.5, 0.4], [0.0, 0.9]]), batch, cfg, True, None)
    >>> {name: round(float(t.sum / t.count), 4) for name, t in terms.items() if t.weight}
    {'hinge': 0.05}
    """
    if "foreign" in batch:
        raise ValueError(
            "The data has texts that belong to no image. They are negatives of a softmax over the "
            "batch; train on them with InfoNCE, not with a hinge."
        )
    sides = batch_sides(batch, axis)
    images, captions = parallel.all_gather(sides, axis)
    targets = pair_targets(
        images,
        captions,
        cfg.duplicates,
        cfg.mask_true_positives,
        num_rows=len(images.row),
        groups=groups,
    )
    # A column needs the rows of all devices, and scores are few beside what made them.
    scores = parallel.all_gather(scores, axis)
    rows = sides[1].row
    columns = parallel.first_row(len(rows), axis) + jnp.arange(len(rows))
    negative = targets.valid & (targets.positive == 0)
    losses = triplet_hinge(scores, rows, columns, negative, cfg.margin, hardest)
    one = 1.0 / (1 if axis is None else lax.axis_size(axis))  # adds up to 1 over devices
    return {
        "hinge": Term(losses.sum(), one if cfg.reduction == "sum" else len(rows)),
        "own_score": Term(scores[rows, columns].sum(), len(rows), 0.0),
    }
