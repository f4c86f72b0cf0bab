"""Reads weight files without running what a pickle may carry."""

import os
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

PICKLES = (".pth", ".pt", ".tar", ".bin")


def load_checkpoint(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a `.pth`, `.pt`, `.tar`, `.bin` or `.safetensors` file holds, tensors as numpy arrays.

    Only tensors and plain containers are unpickled (torch's `weights_only`); code is refused.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another kind of file, a damaged one, or one that wants to run code.
      ImportError: a torch file, and no torch.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint {path} does not exist.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}.") from error
    if path.suffix not in PICKLES:
        raise ValueError(
            f"{path} is neither a torch file ({', '.join(PICKLES)}) nor a .safetensors file; "
            f"its format is unknown."
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is a torch file: `pip install 'jcmr[torch]'` to read it, or give the weights "
            f"as .safetensors, which needs nothing."
        ) from error
    try:
        with torch.serialization.safe_globals(harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds more than tensors and plain containers"
            f"{f' ({found[1]})' if found else ''}, and reading that would run code from the file, "
            f"so it is refused. Save its state dict alone, or as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole torch file: {error}.") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dict of tensors.")

    def to_numpy(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: to_numpy(value) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return [to_numpy(value) for value in x]
        return x.detach().float().numpy() if isinstance(x, torch.Tensor) else x

    return to_numpy(loaded)


def harmless() -> list[Any]:
    """Constructors of numbers and parsed command lines, which checkpoints hold with weights."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *numbers, Namespace]


def tensors(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a state dict, without the "module." that data parallelism puts into names."""
    return {
        name.replace("module.", ""): x for name, x in state.items() if isinstance(x, np.ndarray)
    }


def model_tensors(checkpoint: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a model of two towers, named `img_enc.` and `txt_enc.`.

    Args:
      checkpoint: {"model": ..., ...}, or the model alone: one state dict, or as VSE++ and its
        successors save it the two of image and text encoder.

    Raises:
      ValueError: neither.
    """
    model = checkpoint.get("model", checkpoint)
    if isinstance(model, Mapping):
        return tensors(model)
    if isinstance(model, list) and len(model) == 2 and all(isinstance(x, Mapping) for x in model):
        return {
            f"{side}.{name}": x
            for side, state in zip(("img_enc", "txt_enc"), model)
            for name, x in tensors(state).items()
        }
    raise ValueError(
        "The checkpoint's 'model' is neither a state dict nor a list of two (image encoder, text "
        "encoder); expected a file that an official training script wrote."
    )


def options_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The command line that a checkpoint was trained with, as far as it says."""
    said = checkpoint.get("opt")
    return vars(said) if isinstance(said, Namespace) else {}
