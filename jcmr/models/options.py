"""Reads `config.model` into a dataclass, whose every key must be known."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")


def read_model_config(
    kind: type[Config],
    cfg: Mapping[str, Any],
    system: str,
    choices: Mapping[str, Sequence[Any]],
    parity: Mapping[str, Any],
) -> Config:
    """`config.model` as a `kind`; with `parity` set, the official conventions replace its values.

    Raises:
      ValueError: an unknown option or value.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in cfg:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"config.model has no option {name!r} for {system}; {hint}")
    config = kind(**{**cfg, **(parity if cfg.get("parity") else {})})
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"config.model.{name} is {getattr(config, name)!r}; it can be "
                f"{', '.join(map(str, allowed))}."
            )
    return config
