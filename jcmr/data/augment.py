"""From stored batches to inputs, for every kind of input a batch may hold; all inside jit."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jcmr.core import parallel
from jcmr.core.types import Array, Batch
from jcmr.data import image
from jcmr.data.mesh import augment_faces
from jcmr.data.options import ShapeOptions, pick
from jcmr.data.points import augment_points


def flat_views(batch: Batch) -> tuple[Batch, tuple[int, ...]]:
    """A batch whose "image" is [b * v, h, w, 3], and the leading sizes it had."""
    if "image" not in batch:
        return batch, ()
    leading = batch["image"].shape[:-3]
    return {**batch, "image": batch["image"].reshape(-1, *batch["image"].shape[-3:])}, leading


def with_views(batch: Batch, leading: tuple[int, ...]) -> Batch:
    """Undoes `flat_views`."""
    if "image" not in batch:
        return batch
    return {**batch, "image": batch["image"].reshape(*leading, *batch["image"].shape[-3:])}


def make_augment(cfg: Mapping[str, Any]) -> Callable[[Batch, Array, str | None], Batch]:
    """Builds `augment(batch, key, axis)` for training.

    "image" [b, h, w, 3] or several views [b, v, h, w, 3]: see `image.make_augment`. "points"
    [b, p, 3]: see `points.augment_points`. "faces" [b, f, 15]: see `mesh.augment_faces`. An example
    gets the same noise whatever the number of devices.
    """
    options = pick(ShapeOptions, cfg)
    augment_image = image.make_augment(cfg)

    def augment(batch: Batch, key: Array, axis: str | None) -> Batch:
        flat, leading = flat_views(batch)
        batch = with_views(augment_image(flat, key, axis), leading)
        points_key, mesh_key = jax.random.split(jax.random.fold_in(key, 1))
        if options.augment_points and "points" in batch:
            keys = parallel.example_keys(points_key, len(batch["points"]), axis)
            turned = jax.vmap(lambda x, k: augment_points(x, k, options.turn_points))
            batch = {**batch, "points": turned(batch["points"], keys)}
        if options.augment_mesh and "faces" in batch:
            keys = parallel.example_keys(mesh_key, len(batch["faces"]), axis)
            batch = {**batch, "faces": jax.vmap(augment_faces)(batch["faces"], keys)}
        return batch

    return augment


def make_prepare(cfg: Mapping[str, Any]) -> Callable[[Batch], Batch]:
    """Builds `prepare(batch)` for evaluation: only pictures change; see `image.make_prepare`."""
    return of_views(image.make_prepare(cfg))


@functools.cache
def of_views(prepare_image: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
    """What prepares pictures, for several views too."""

    def prepare(batch: Batch) -> Batch:
        flat, leading = flat_views(batch)
        return with_views(prepare_image(flat), leading)

    return prepare
