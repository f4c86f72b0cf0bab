"""From what a user has, pictures, sentences, arrays, clouds and meshes, to what a run stores of it.

The same functions as in the sources, so that an item becomes the same input here and there. What an
item must look like follows from the run's own examples.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jcmr.data import text
from jcmr.data.image import decode_image, resize_for_evaluation, to_rgb
from jcmr.data.mesh import mesh_features
from jcmr.data.objects import gallery_cloud, rgb
from jcmr.data.simplify import load_mesh, simplified
from jcmr.data.sources.features import make_transform
from jcmr.data.wordpiece import encode_captions
from jcmr.serve.load import Run

Read = Callable[[Any, int], dict[str, np.ndarray]]
"""(item, id) -> the arrays of one example."""
PICTURE = "a path, a PIL image, or uint8 pixels [h, w, 3]"


def check_finite(x: np.ndarray, what: str) -> np.ndarray:
    """Numbers as float32.

    Raises:
      ValueError: no numbers, or some are not finite.
    """
    if not np.issubdtype(x.dtype, np.number):
        raise ValueError(f"{what} expected numbers, found {x.dtype}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{what} expected finite numbers, found NaN or infinity.")
    return x.astype(np.float32)


def read_pixels(item: Any, size: int) -> np.ndarray:
    """A picture as uint8 [size, size, 3].

    Raises:
      FileNotFoundError: a string that is no file.
      ValueError: no picture.
    """
    if isinstance(item, (str, Path)):
        if not Path(item).is_file():
            raise FileNotFoundError(f"expected a picture, but there is no file {str(item)!r}.")
        pixels = decode_image(item)
    elif isinstance(item, bytes):
        pixels = decode_image(item)
    elif isinstance(item, Image.Image):
        pixels = to_rgb(item)
    else:
        pixels = np.asarray(item)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
            raise ValueError(f"expected {PICTURE}, found {describe(item)}.")
        pixels = rgb(pixels) if pixels.ndim == 2 else pixels
        if pixels.shape[2] != 3:
            raise ValueError(f"expected {PICTURE}, found {describe(item)}.")
    same = pixels.shape[:2] == (size, size)
    return pixels if same else resize_for_evaluation(pixels, size)


def describe(item: Any) -> str:
    """An item in a few words, for error messages."""
    if isinstance(item, np.ndarray):
        return f"{item.dtype} {list(item.shape)}"
    return f"{type(item).__name__} {str(item)[:40]!r}"


def read_picture(size: int, item: Any, number: int) -> dict[str, np.ndarray]:
    """One picture."""
    del number
    return {"image": read_pixels(item, size)}


def read_views(size: int, item: Any, number: int) -> dict[str, np.ndarray]:
    """The views of an object, uint8 [v, size, size, 3]; one picture is one view."""
    del number
    several = isinstance(item, (list, tuple))
    if isinstance(item, np.ndarray):  # [v, h, w, 3], or grey [v, h, w]
        several = item.ndim == 4 or (item.ndim == 3 and item.shape[2] != 3)
    views = list(item) if several else [item]
    if not views:
        raise ValueError("expected the views of an object, found none.")
    return {"image": np.stack([read_pixels(view, size) for view in views])}


def read_array(
    name: str, shape: tuple[int, ...], change: Callable, item: Any, number: int
) -> dict[str, np.ndarray]:
    """Numbers of a fixed shape, or the .npy file that holds them."""
    del number
    if isinstance(item, (str, Path)):
        if Path(item).suffix != ".npy" or not Path(item).is_file():
            raise ValueError(f"expected {name} {list(shape)} or a .npy file, found {item!r}.")
        item = np.load(item, allow_pickle=False)
    array = change(check_finite(np.asarray(item), f"as {name}:"))
    if array.ndim == len(shape) - 1:
        array = array[None]
    if array.shape != shape:
        raise ValueError(
            f"the run reads {name} of shape {list(shape)}, this has {list(array.shape)}."
        )
    return {name: array}


def read_text(
    words: Callable[[str], list[str]],
    vocabulary: Mapping[str, int],
    length: int,
    item: Any,
    number: int,
) -> dict[str, np.ndarray]:
    """A sentence or document as word ids; a Path is a file that holds one."""
    del number
    if isinstance(item, Path):
        item = "\n".join(text.read_lines(item))
    if not isinstance(item, str):
        raise ValueError(f"expected a text, found {describe(item)}.")
    found = words(item)
    if not found:
        raise ValueError(f"expected a text, but {item[:40]!r} has no words.")
    return {"text": encode_captions([item], [found], vocabulary, length)[0]}


def read_points(num: int, item: Any, number: int) -> dict[str, np.ndarray]:
    """A cloud [p, 3] in the unit sphere, or its .npy file; `num` points are drawn, seeded by id."""
    if isinstance(item, (str, Path)):
        item = np.load(item, allow_pickle=False)
    points = check_finite(np.asarray(item), "as points:")
    if points.ndim != 2 or points.shape[1:] != (3,):
        raise ValueError(f"expected points [p, 3], found {describe(points)}.")
    return {"points": gallery_cloud(points, num, number)}


def read_mesh(num: int, item: Any, number: int) -> dict[str, np.ndarray]:
    """A mesh file, or (vertices [v, 3], triangles [f, 3]), as the features of `num` faces."""
    if isinstance(item, (str, Path)):
        vertices, triangles = load_mesh(Path(item))
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        vertices, triangles = np.asarray(item[0]), np.asarray(item[1])
    else:
        raise ValueError(f"expected a mesh file or (vertices, triangles), found {describe(item)}.")
    vertices = check_finite(vertices, "as vertices:").astype(np.float64)
    fits = vertices.ndim == triangles.ndim == 2 and vertices.shape[1] == triangles.shape[1] == 3
    if not fits or (triangles.size and not 0 <= triangles.min() <= triangles.max() < len(vertices)):
        raise ValueError(
            "expected vertices [v, 3] and triangles [f, 3] of their indices, found "
            f"{describe(vertices)} and {describe(triangles)}."
        )
    mesh = simplified((vertices, triangles.astype(np.int32)), num)
    faces, neighbors = mesh_features(*mesh, num, np.random.default_rng([31, number]))
    return {"faces": faces, "neighbors": neighbors}


def read_ready(read: Read, like: Mapping[str, Any], what: str, item: Any, number: int):
    """An item by `read`, or taken as it is where a source gives it: {name of array: array}.

    Args:
      read: see `make_read`.
      like: the arrays that are needed, as the run stores them; only the number of views may differ.
      what: which item it is, for error messages.
      item: the item.
      number: its id.

    Raises:
      ValueError: it is something else.
      FileNotFoundError: it names a file that is not there.
    """
    try:
        example = item if isinstance(item, Mapping) else read(item, number)
        if not set(like) <= set(example):
            raise ValueError(f"expected {', '.join(like)}, found {', '.join(example)}.")
        return {name: as_stored(name, np.asarray(example[name]), x) for name, x in like.items()}
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{what}: {error}") from None


def as_stored(name: str, x: np.ndarray, like: Any) -> np.ndarray:
    """An array in the dtype that the run stores, if it has the shape and the kind of numbers."""
    views = name == "image" and len(like.shape) == 4
    if x.shape[views:] != like.shape[views:] or not np.can_cast(x.dtype, like.dtype, "same_kind"):
        raise ValueError(
            f"the run reads {name} as {like.dtype} {list(like.shape)}, this is {describe(x)}."
        )
    return x.astype(like.dtype, copy=False)


def make_read(run: Run, modality: str) -> tuple[Read, tuple[str, ...]]:
    """Builds `read(item, id)` for a modality of a run, and the names of the arrays it gives.

    "image" is pictures, views, regions or features, whichever the run was trained on.
    """
    shapes = {name: x.shape for name, x in run.example.items()}
    data = run.config.data
    if modality == "points":
        return partial(read_points, shapes["points"][0]), ("points",)
    if modality == "mesh":
        return partial(read_mesh, shapes["faces"][0]), ("faces", "neighbors")
    if modality == "text" and np.issubdtype(run.example["text"].dtype, np.integer):
        source = importlib.import_module(f"jcmr.data.sources.{data.source}")
        words = partial(text.tokenize, stem=data.get("stem", False))
        if hasattr(source, "words_of"):
            words = partial(source.words_of, cfg=data)
        return partial(read_text, words, run.vocabulary, shapes["text"][-1]), ("text",)
    if modality == "image" and "image" in shapes:
        read = read_views if len(shapes["image"]) == 4 else read_picture
        return partial(read, shapes["image"][-2]), ("image",)
    name = "text" if modality == "text" else "regions" if "regions" in shapes else "features"
    return partial(read_array, name, shapes[name], make_change(data, modality)), (name,)


def shapes_of(run: Run, modality: str, size: int, sharding: Any = None) -> dict[str, Any]:
    """Shapes of a batch of `size` inputs of a modality, [size, ...], ids included."""
    shapes = {**stored_of(run, modality), "id": jax.ShapeDtypeStruct((), np.int32)}
    return {
        name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=sharding)
        for name, x in shapes.items()
    }


def stored_of(run: Run, modality: str) -> dict[str, Any]:
    """What the run stores of one item of a modality: name -> shape and dtype."""
    found = {name: run.example[name] for name in make_read(run, modality)[1]}
    if modality == "text" and np.issubdtype(found["text"].dtype, np.integer):
        shape = found["text"].shape[-1:]  # an example may have several captions
        found["text"] = jax.ShapeDtypeStruct(shape, found["text"].dtype)
    return found


def make_change(data: Mapping[str, Any], modality: str) -> Callable[[np.ndarray], np.ndarray]:
    """Builds what a source of features does to one row of them after reading."""
    name = data.get(f"{modality}_transform", "")
    if not name:
        return lambda x: x
    if name == "standard":

        def change(x: np.ndarray) -> np.ndarray:
            raise ValueError(
                "the run standardised features by its training data, which is not here; do that "
                "and give them as {'features': x} or {'text': x}."
            )

        return change
    transform = make_transform(name, np.zeros((1, 1), np.float32))

    def transformed(x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise ValueError("expected a histogram, found negative numbers.")
        return transform(x[None])[0]

    return transformed
