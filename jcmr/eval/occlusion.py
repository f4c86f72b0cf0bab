"""Is a system less certain of what it sees less of?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jcmr.core import parallel
from jcmr.core.types import RandomAccess, Task, Variables
from jcmr.eval.embed import Prepare, embed
from jcmr.eval.uncertainty import spearman, uncertainty_of

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)


class Occlusion(NamedTuple):
    """Uncertainty of images as more and more of each is hidden."""

    shares: np.ndarray
    """[s], hidden share of each image, rising."""
    uncertainty: np.ndarray
    """[s, n]."""
    correlation: float
    """Spearman's of share and uncertainty, mean over images."""


def occlusion_curve(
    uncertainty_at: Callable[[float], np.ndarray], shares: Sequence[float] = SHARES
) -> Occlusion:
    """Measures images at several degrees of occlusion.

    Args:
      uncertainty_at: hidden share of each image, 0 to 1 -> uncertainty of n images [n].
      shares: s shares, rising.
    """
    curve = np.stack([uncertainty_at(share) for share in shares])
    each = [spearman(np.asarray(shares), image) for image in curve.T]
    return Occlusion(np.asarray(shares), curve, float(np.mean(each)))


def measure_occlusion(
    task: Task,
    variables: Variables,
    occluded: Callable[[float], RandomAccess],
    batch_size: int,
    prepare: Prepare,
    mesh: Mesh,
) -> Occlusion:
    """`occlusion_curve` of a system with uncertainty.

    Args:
      task: encodes "image".
      variables: its variables.
      occluded: share -> the same images with that share of what they show hidden.
      batch_size: images encoded at a time.
      prepare: from stored images to inputs.
      mesh: devices.
    """
    variables = parallel.replicate(variables, mesh)

    def uncertainty_at(share: float) -> np.ndarray:
        images = occluded(share)
        found = uncertainty_of(embed(task, variables, images, "image", batch_size, prepare, mesh))
        return np.zeros(len(images)) if found is None else found

    return occlusion_curve(uncertainty_at)
