"""The folder that a converted checkpoint becomes."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jcmr.core.weights import FILE, load_weights, save_weights
from jcmr.data.text import save_vocabulary

CONFIG, VOCABULARY = "config.json", "vocabulary.json"


def save_converted(
    out: str | os.PathLike[str],
    variables: Mapping[str, Any],
    config: Mapping[str, Any],
    vocabulary: Mapping[str, int] | None = None,
) -> None:
    """Writes `variables.safetensors`, `config.json` and, if given, `vocabulary.json`.

    The folder appears whole or not at all.

    Raises:
      FileExistsError: `out` is there already and not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; give --out another folder.")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_weights(part / FILE, variables)
    (part / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
    if vocabulary is not None:
        save_vocabulary(part / VOCABULARY, vocabulary)
    os.replace(part, out)


def load_converted(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config) of a folder that `save_converted` wrote."""
    config = Path(folder) / CONFIG
    if not config.is_file():
        raise FileNotFoundError(
            f"{config} does not exist; {folder} is no folder of `python -m jcmr.convert`."
        )
    return load_weights(folder), json.loads(config.read_text())
