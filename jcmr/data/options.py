"""The keys of config.data: those of pictures and of the loader here, the others in each source."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Options = TypeVar("Options", bound=tuple)


class ImageOptions(NamedTuple):
    """How stored pictures become inputs."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_size: int = 224
    random_resized_crop: bool | tuple[float, float] = True
    """True is the scale (0.08, 1); False is a centre crop."""
    flip: bool = True
    erasing_rate: float = 0.0


class ShapeOptions(NamedTuple):
    """How stored point clouds and meshes become inputs in training."""

    augment_points: bool = False
    turn_points: bool = True
    """Whether that turns clouds about the vertical axis, each by an angle of its own."""
    augment_mesh: bool = False


class LoaderOptions(NamedTuple):
    """How examples are found and read."""

    source: str = ""
    """Names the file jcmr/data/sources/<source>.py."""
    workers: int = 0
    token_drop_rate: float = 0.0
    group: int = 0
    """Questions about a picture that make an example, so that it is encoded once for all of them;
    0 gives each question its own. config.train.batch_size then counts pictures."""
    resident: bool = False
    """Keeps the whole training set on every device (`data.resident`); then words are not dropped
    and there is one process."""


SHARED = (*ImageOptions._fields, *ShapeOptions._fields, *LoaderOptions._fields)


def pick(kind: type[Options], cfg: Mapping[str, Any]) -> Options:
    """The options `kind` (a NamedTuple) out of a data section, which holds others as well."""
    fields: tuple[str, ...] = getattr(kind, "_fields")  # noqa: B009
    return kind(**{name: cfg[name] for name in cfg if name in fields})


def unpack(
    kind: type[Options],
    cfg: Mapping[str, Any],
    also: Sequence[str] = (),
    section: str = "config.data",
) -> Options:
    """The options `kind` of a source out of a data section, whose every key must have a reader.

    `also` names keys that the source reads itself; in another `section` there are no shared ones.

    Raises:
      ValueError: a key is neither an option of the source nor a shared one.
    """
    shared = SHARED if section == "config.data" else ()
    known = (*getattr(kind, "_fields"), *also, *shared)  # noqa: B009
    for name in cfg:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"{section} has no option {name!r}; {hint}")
    return pick(kind, cfg)
