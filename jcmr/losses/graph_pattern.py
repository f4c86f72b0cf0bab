"""The graph pattern loss: distances among all representations of all items of a batch.

The paper (arXiv 2106.13552) is known from its abstract alone: "in this graph all possible distances
between different representations are considered". The terms below are this project's own
specification of it, and so is every constant.

Vertices are the k unit vectors of each item in both modalities, edges the distances 1 - x . y of
all pairs. Each term's non-linearity sits on the single edge, before any mean: a plain mean of
cosine distances is the distance of the items' centroids, which leaves the k vectors of an item
free.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import parallel
from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array, Term, Terms


class Margins(NamedTuple):
    """Of distances, which go from 0 to 2."""

    rank: float = 0.2
    """By how much a match must be nearer than a mismatch, along edges of the same two slots."""
    match: float = 0.05
    """Up to which distance a match is near enough."""
    apart: float = 0.9
    """From which distance on items of one modality are apart enough."""
    diverse: float = 0.3
    coherent: float = 0.6
    """Between which distances two representations of one item should be."""


MARGINS = Margins()
WEIGHTS = {"pos": 1.0, "rank": 1.0, "intra": 0.5, "div": 0.5, "pat": 0.3}


def relu(x: Array) -> Array:
    """Max(x, 0), with gradient 0 at 0.

    >>> relu(jnp.array([-1.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    return jax.nn.relu(x)


def distances(x: Array, y: Array) -> Array:
    """1 - x . y of unit rows x [k, d] and all y [b, l, d], [k, b, l].

    >>> x = jnp.eye(2)
    >>> distances(x, x[None]).squeeze().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return 1.0 - jnp.einsum("kd,bld->kbl", x, y, precision=HIGHEST)


class Anchor(NamedTuple):
    """An item whose edges are summed."""

    image: Array
    """[k, d]."""
    text: Array
    """[k, d]."""
    row: Array
    """Its place in the batch of all devices."""
    real: Array
    """False for padding."""


def anchor_sums(
    anchor: Anchor, images: Array, texts: Array, real: Array, margins: Margins, hard: bool
) -> dict[str, Array]:
    """Sums over the edges of one anchor, to be vmapped over anchors: then four matrix products.

    Args:
      anchor: one item.
      images: [b, k, d], unit rows of all items.
      texts: [b, k, d].
      real: bool [b].
      margins: of the hinges.
      hard: rank against the worst other item instead of the mean of all.
    """
    v, t, row, is_real = anchor
    num_reps, columns = len(v), jnp.arange(len(images))
    other = real & (columns != row)
    num_others = jnp.maximum(jnp.sum(other), 1)
    to_texts, to_images = distances(v, texts), distances(t, images)
    among_images, among_texts = distances(v, images), distances(t, texts)
    own = 1.0 - jnp.einsum("kd,ld->kl", v, t, precision=HIGHEST)

    def reduce(values: Array) -> Array:
        if hard:  # losses are not negative, so padding never is the worst
            return jnp.max(jnp.where(other, values, 0.0))
        return jnp.sum(jnp.where(other, values, 0.0)) / num_others

    rank_texts = relu(margins.rank + own[:, None, :] - to_texts).mean((0, 2))
    rank_images = relu(margins.rank + own.T[:, None, :] - to_images).mean((0, 2))
    intra = relu(margins.apart - among_images) + relu(margins.apart - among_texts)
    pattern = (among_images - among_texts) ** 2
    slots = jnp.triu(jnp.ones((num_reps, num_reps), bool), 1)
    band = sum(
        jnp.sum(jnp.where(slots, relu(margins.diverse - d) + relu(d - margins.coherent), 0.0))
        for x in (v, t)
        for d in [1.0 - jnp.matmul(x, x.T, precision=HIGHEST)]
    )
    sums = {
        "pos": jnp.sum(relu(own - margins.match)),
        "rank": reduce(rank_texts) + reduce(rank_images),
        "intra": jnp.sum(jnp.where(other[None, :, None], intra, 0.0)),
        "div": jnp.asarray(band, v.dtype),
        "pat": jnp.sum(jnp.where(real[None, :, None], pattern, 0.0)),
    }
    return {name: jnp.where(is_real, value, 0.0) for name, value in sums.items()}


def graph_pattern(
    images: Array,
    texts: Array,
    real: Array | None = None,
    axis: str | None = None,
    margins: Margins = MARGINS,
    weights: Mapping[str, float] = WEIGHTS,
    hard: bool = False,
    block: int = 64,
) -> Terms:
    """The five terms over this device's anchors against the items of all devices.

    `pos`: matching representations of both modalities are near. `rank`: nearer than those of other
    items. `intra`: items of one modality are apart. `div`: representations of one item differ, but
    not too much. `pat`: the image graph and the text graph have the same edges, slot by slot.

    Args:
      images: [b, k, d], unit rows; b of this device.
      texts: [b, k, d]; row i belongs to row i of `images`.
      real: bool [b], False for padding, which takes no part. All when None.
      axis: name of the device axis.
      margins: see `Margins`.
      weights: of the terms; one that is missing or 0 is left out.
      hard: `rank` against the worst other item instead of the mean of all.
      block: anchors at a time. Memory is block * b * k^2 numbers, a few times: the distances of all
        pairs are computed again in the backward pass instead of kept.

    Returns:
      Terms of float32 or more.

    >>> x = jnp.eye(4).reshape(2, 2, 4)  # two items of two representations
    >>> terms = graph_pattern(x, x)
    >>> sorted(terms)
    ['div', 'intra', 'pat', 'pos', 'rank']
    >>> round(float(terms['pos'].sum), 4)
    3.8
    """
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    images, texts = images.astype(dtype), texts.astype(dtype)
    rows, num_reps, _ = images.shape
    mask = parallel.varying(jnp.ones(rows, bool), axis) if real is None else real
    all_images, all_texts, all_real = parallel.all_gather((images, texts, mask), axis)

    @jax.checkpoint
    def sums_of(anchor: Anchor) -> dict[str, Array]:
        return anchor_sums(anchor, all_images, all_texts, all_real, margins, hard)

    places = parallel.first_row(rows, axis) + jnp.arange(rows)
    anchors = Anchor(images, texts, places, mask)
    if rows > block:
        each = lax.map(sums_of, anchors, batch_size=block)
    else:
        each = jax.vmap(sums_of)(anchors)
    own = jnp.sum(mask, dtype=dtype)
    total = jnp.sum(all_real, dtype=dtype)
    edges = num_reps**2
    counts = {
        "pos": own * edges,
        "rank": own,
        "intra": 2 * own * (total - 1) * edges,
        "div": own * 2 * math.comb(num_reps, 2),
        "pat": own * total * edges,
    }
    return {
        name: Term(jnp.sum(each[name]), counts[name], weights[name])
        for name in WEIGHTS
        if weights.get(name)
    }
