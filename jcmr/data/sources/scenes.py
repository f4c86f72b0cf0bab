"""The embedded data set: rendered scenes with captions, and exactly which caption fits which image.

Nothing is downloaded. Images are drawn once and kept in the user's cache folder, named by all that
decides their content.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from jcmr.core.types import RetrievalSplit, by_matrix, same_id
from jcmr.data.cache import cache_folder, load_or_make, make_in_chunks
from jcmr.data.options import unpack
from jcmr.data.records import Arrays
from jcmr.data.scenes.captions import CAPTIONS_PER_SCENE, all_words, sample_caption
from jcmr.data.scenes.render import occlude, render
from jcmr.data.scenes.world import ABSENT, PRESETS, Preset, Scene, generator, sample_scene
from jcmr.data.text import SPECIAL, encode_all
from jcmr.ops.assignment import injective_match

STREAMS = {"train": 0, "dev": 1, "test": 2}
VERSION = 1
"""Part of the cache's name: raise it when the same options give other scenes."""
CHUNK = 1000


class ScenesOptions(NamedTuple):
    """The data section of a config for this source; fields of `Preset` may be overridden too."""

    preset: str = "demo"
    num_train: int = 24_000
    num_test: int = 1_000
    """Scenes in the dev split and in the test split, each."""
    captions_per_item: int = CAPTIONS_PER_SCENE
    """Captions that a training example brings along, [c, t]; c of the five, drawn anew by epoch."""
    max_words: int = 0
    """Tokens of a caption, start and end included; 0 is as many as the longest can have."""
    seed: int = 0
    cache_dir: str = ""
    """Where drawn images are kept; empty is the user's cache folder."""
    render_workers: int = 2


class Options(NamedTuple):
    """All keys that config.data may hold for this source."""

    scenes: ScenesOptions
    look: Preset


def read_options(cfg: Mapping[str, Any]) -> Options:
    """Checks config.data.

    Raises:
      ValueError: an unknown key or preset, or too many captions.
    """
    options = unpack(ScenesOptions, cfg, also=Preset._fields)
    if options.preset not in PRESETS:
        raise ValueError(f"config.data.preset is {options.preset!r}; it can be demo or full.")
    if not 1 <= options.captions_per_item <= CAPTIONS_PER_SCENE:
        raise ValueError(
            f"config.data.captions_per_item is {options.captions_per_item}; a scene has "
            f"{CAPTIONS_PER_SCENE} captions."
        )
    overrides = {name: cfg[name] for name in cfg if name in Preset._fields}
    look = PRESETS[options.preset]._replace(**overrides)
    if not options.max_words:
        # Opener (4), per object article, three adjectives and a noun of two words, "and", ends (2).
        options = options._replace(max_words=4 + 7 * look.max_objects - 1 + 2)
    return Options(options, look)


@functools.cache
def vocabulary() -> dict[str, int]:
    """Word -> id of all words that captions can hold."""
    return {word: index for index, word in enumerate((*SPECIAL, *all_words()))}


def make_scene(seed: int, stream: int, index: int, look: Preset) -> Scene:
    """Scene `index` of a stream."""
    return sample_scene(generator(seed, stream, index), look.max_objects)


def make_items(first: int, last: int, seed: int, stream: int, look: Preset, max_words: int):
    """Items first..last as arrays: image, text, scene_code, caption_code."""
    num, objects = last - first, look.max_objects
    images = np.empty((num, look.image_size, look.image_size, 3), np.uint8)
    scene_code = np.full((num, objects, 4), ABSENT, np.int8)
    caption_code = np.full((num, CAPTIONS_PER_SCENE, objects, 4), ABSENT - 1, np.int8)
    texts = []
    for i in range(num):
        scene = make_scene(seed, stream, first + i, look)
        images[i] = render(scene, look, generator(seed, stream, first + i, part=1))
        scene_code[i, : len(scene.cell)] = scene.attributes
        rng = generator(seed, stream, first + i, part=2)
        for c in range(CAPTIONS_PER_SCENE):
            caption = sample_caption(rng, scene, look)
            caption_code[i, c, : len(caption.form)] = caption.form
            texts.append(caption.text.split())
    text = encode_all(texts, vocabulary(), max_words).reshape(num, CAPTIONS_PER_SCENE, max_words)
    return {
        "image": images,
        "text": text,
        "scene_code": scene_code,
        "caption_code": caption_code,
    }


def load_items(split: str, num: int, options: Options) -> dict[str, np.ndarray]:
    """The items of a split from the cache, drawn first where they are not in it."""
    scenes, look = options
    arguments = scenes.seed, STREAMS[split], look, scenes.max_words
    return load_or_make(
        cache_folder("scenes", scenes.cache_dir),
        f"{scenes.preset}-{split}",
        (VERSION, scenes.seed, split, num, scenes.max_words, look),
        f"{num} {split} scenes",
        lambda: make_in_chunks(make_items, arguments, num, scenes.render_workers, CHUNK),
    )


class Scenes:
    """Training examples: image, c of its captions, and the codes from which matches can be told.

    Example `f * n + i` is scene i of n with its captions f, f + 1, ..., f + c - 1, counted round.
    """

    def __init__(self, items: Mapping[str, np.ndarray], captions_per_item: int):
        self.items, self.captions = items, captions_per_item

    @property
    def text(self) -> np.ndarray:
        """Ids of all captions, int32 [n, CAPTIONS_PER_SCENE, t]."""
        return self.items["text"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.items["image"]) * CAPTIONS_PER_SCENE

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Example `index`."""
        return {name: column[0] for name, column in self.take(np.asarray([index])).items()}

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples `indices` as a batch."""
        first, scene = np.divmod(indices, len(self.items["image"]))
        caption = (first[:, None] + np.arange(self.captions)) % CAPTIONS_PER_SCENE
        picked = slice(None) if self.captions > 1 else 0
        return {
            "id": scene.astype(np.int32),
            "image": self.items["image"][scene],
            "text": self.items["text"][scene[:, None], caption][:, picked],
            "scene_code": self.items["scene_code"][scene],
            "caption_code": self.items["caption_code"][scene[:, None], caption][:, picked],
        }


def exact_relevance(scene_code: np.ndarray, caption_code: np.ndarray) -> np.ndarray:
    """Which of n scenes [n, o, a] match which of m captions [m, p, a], bool [n, m]."""
    captions = jnp.asarray(caption_code)
    match = jax.jit(lambda scenes: injective_match(captions[None], scenes[:, None]))
    starts = range(0, len(scene_code), 100)
    return np.concatenate([np.asarray(match(scene_code[i : i + 100])) for i in starts])


def sentences(text: np.ndarray) -> list[str]:
    """Token ids [m, t] as they read."""
    words = list(vocabulary())
    return [" ".join(words[i] for i in row if i >= len(SPECIAL)) for row in text]


@dataclasses.dataclass(frozen=True)
class ScenesSource:
    """Scenes in three independent streams."""

    options: Options

    @functools.cached_property
    def train(self) -> Scenes:
        """The training scenes."""
        scenes = self.options.scenes
        return Scenes(load_items("train", scenes.num_train, self.options), scenes.captions_per_item)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """One epoch of examples: every scene once, with captions drawn anew, int64 [n]."""
        rng = np.random.default_rng([seed, epoch])
        num = self.options.scenes.num_train
        return rng.permutation(num) + num * rng.integers(CAPTIONS_PER_SCENE, size=num)

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"vocab_size": len(vocabulary())}

    @property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id."""
        return vocabulary()

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids of free text, int32 [n, max_words]."""
        tokens = [caption.lower().split() for caption in captions]
        return encode_all(tokens, vocabulary(), self.options.scenes.max_words)

    def scenes(self, split: str) -> Iterator[Scene]:
        """The scenes behind the images of a split."""
        scenes, look = self.options
        num = scenes.num_train if split == "train" else scenes.num_test
        return (make_scene(scenes.seed, STREAMS[split], i, look) for i in range(num))

    def occluded(self, split: str, share: float, num: int = 200) -> Arrays:
        """The first images of a split with at least a share (0 to 1) of their objects hidden."""
        look = self.options.look
        images = load_items(split, self.options.scenes.num_test, self.options)["image"][:num]
        hidden = [
            occlude(image, scene, look, share, np.random.default_rng(i))
            for i, (image, scene) in enumerate(zip(images, self.scenes(split)))
        ]
        return Arrays({"image": np.stack(hidden), "id": np.arange(len(hidden), dtype=np.int32)})

    def retrieval(self, split: str) -> RetrievalSplit:
        """Images and all their captions; `own` pairs, and every `exact` match."""
        items = load_items(split, self.options.scenes.num_test, self.options)
        num = len(items["image"])
        owner = np.repeat(np.arange(num, dtype=np.int32), CAPTIONS_PER_SCENE)
        text = items["text"].reshape(len(owner), -1)
        caption_code = items["caption_code"].reshape(len(owner), -1, 4)
        images = {"image": items["image"], "id": np.arange(num, dtype=np.int32)}
        captions = {"text": text, "id": np.arange(len(owner), dtype=np.int32), "owner": owner}
        return RetrievalSplit(
            split,
            {"image": Arrays(images), "text": Arrays(captions)},
            {
                "own": same_id(np.arange(num), owner),
                "exact": by_matrix(exact_relevance(items["scene_code"], caption_code)),
            },
            {
                "captions": sentences(text),
                "occluded": functools.partial(self.occluded, split),
            },
        )


def make(cfg: Mapping[str, Any]) -> ScenesSource:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key or value.
    """
    return ScenesSource(read_options(cfg))
