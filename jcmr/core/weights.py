"""Variables in one safetensors file: no code inside, readable by any framework."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FILE = "variables.safetensors"


def weights_file(path: str | os.PathLike[str]) -> Path:
    """`path` itself, or the weights inside when it is a folder."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def save_weights(path: str | os.PathLike[str], tree: Mapping[str, Any]) -> None:
    """Writes a tree of arrays; names are the keys joined by "/". The file appears whole or not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    arrays = {name: np.asarray(jax.device_get(x), order="C") for name, x in flat.items()}
    part = path.with_name(path.name + ".part")
    save_file(arrays, part)
    os.replace(part, path)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree of numpy arrays that `save_weights` wrote; `path` is the file or its folder.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no safetensors file, or is cut off.
    """
    file = weights_file(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist. It is written by `python -m jcmr.convert`; give that "
            f"command's --out folder."
        )
    try:
        flat = load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no whole safetensors file ({error}); convert the checkpoint again."
        ) from error
    return traverse_util.unflatten_dict(flat, sep="/")
