"""The options of a model: a dataclass out of a config section, every key and value checked."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")


def make_options(
    kind: type[Options],
    cfg: Mapping[str, Any],
    choices: Mapping[str, Sequence[Any]],
    system: str,
    parity: Mapping[str, Any] | None = None,
) -> Options:
    """`kind`, a dataclass, out of config.model.

    Args:
      kind: whose fields are the options.
      cfg: the section.
      choices: option -> the values that it can have.
      system: what error messages call the model.
      parity: the conventions of the official code, set where the section has `parity`.

    Raises:
      ValueError: an unknown option or value.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore
    for name in cfg:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"config.model has no option {name!r} for {system}; {hint}")
    options = kind(**{**cfg, **((parity or {}) if cfg.get("parity") else {})})
    for name, values in choices.items():
        if getattr(options, name) not in values:
            raise ValueError(
                f"config.model.{name} is {getattr(options, name)!r}; it can be "
                f"{', '.join(map(str, values))}."
            )
    return options
