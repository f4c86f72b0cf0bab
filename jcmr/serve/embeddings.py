"""Encoded items: what a scorer compares, and which model made it."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jcmr.core.types import Embedding
from jcmr.eval.tiles import tiled


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """n items of one modality, encoded by one model."""

    modality: str
    fingerprint: str
    """Of the model; see `load.fingerprint_of`."""
    values: Embedding
    """Numpy arrays that share the leading axis n."""
    placed: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Copies on devices, kept for the next call."""

    def __len__(self) -> int:
        """Number of items."""
        return len(jax.tree.leaves(self.values)[0])

    def __getitem__(self, index: slice | np.ndarray) -> "Embeddings":
        """Some of the items: a slice, indices, or a mask."""
        values = jax.tree.map(lambda x: x[index], self.values)
        return Embeddings(self.modality, self.fingerprint, values)

    def point(self) -> np.ndarray:
        """One vector for each item, [n, d]; see `point_of`."""
        if "point" not in self.placed:
            self.placed["point"] = point_of(self.values)
        return self.placed["point"]

    def tiles(self, what: str, tile: int, mesh: Mesh) -> Embedding:
        """The items on every device of `mesh`, [t, tile, ...]; t has three binary digits and zeros,
        so that a growing gallery seldom needs another program.

        Args:
          what: "values" or "point".
          tile: items a tile.
          mesh: the devices.
        """
        name = what, tile, mesh
        if name not in self.placed:
            values = self.point() if what == "point" else self.values

            def cut(x: np.ndarray) -> np.ndarray:
                x = tiled(np.asarray(x), tile)
                more = -len(x) % (1 << max(len(x).bit_length() - 3, 0))
                return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) if more else x

            everywhere = NamedSharding(mesh, PartitionSpec())
            self.placed[name] = jax.device_put(jax.tree.map(cut, values), everywhere)
        return self.placed[name]

    def save(self, path: str | Path) -> None:
        """Writes them to one .npz file, all of it or nothing."""
        path = Path(path)
        leaves = {f"leaf{i}": x for i, x in enumerate(jax.tree.leaves(self.values))}
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, modality=self.modality, fingerprint=self.fingerprint, **leaves)
        os.replace(part, path)


def point_of(values: Any) -> np.ndarray:
    """One vector for each item, [n, d] of at most unit length, whatever else was embedded.

    The mean of a Gaussian, a feature, the mean of an item's words, regions or representations.
    """
    if isinstance(values, np.ndarray):
        if values.ndim == 2:
            return values
        total = values.sum(axis=1)
    elif hasattr(values, "mask"):
        total = (values.tokens * values.mask[..., None]).sum(axis=1)
    else:
        return values.mean if hasattr(values, "mean") else values.feature
    return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-8)


def read_embeddings(path: Path) -> Embeddings:
    """What `Embeddings.save` wrote; its values are a list of leaves.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no embeddings {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            leaves = [file[f"leaf{i}"] for i in range(len(file.files) - 2)]
            return Embeddings(str(file["modality"]), str(file["fingerprint"]), leaves)
    except Exception as error:  # damaged archives raise nearly anything
        raise ValueError(f"{path} holds no embeddings ({error}); save them again.") from error
