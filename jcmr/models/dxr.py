"""DXR: images and texts aligned by one transformer that both pass through.

Gur et al., Findings of EMNLP 2021 (https://arxiv.org/abs/2104.08108); the code is in
https://github.com/facebookresearch/mmf (models/alignment.py). Tokens of an image's grid and of a
text are projected to one width, go through the same layers, and are pooled by attention.

What this project does otherwise, each by an option of its own: both embeddings have unit length;
the loss is a mean and goes from all mismatches to the hardest; captions of the same image and true
matches of others are no mismatches; pooling has several heads; negatives come from all devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jcmr.core import dtypes, parallel
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Term, Terms, Variables
from jcmr.losses.probabilistic import cross_entropy
from jcmr.losses.ranking import hinge_terms
from jcmr.losses.targets import Targets, batch_sides, flat_captions, pair_targets
from jcmr.models.encoders import bert, resnet
from jcmr.models.encoders.attention_pool import AttentionPool, MultiHeadPool
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gpo import rank_encoding
from jcmr.models.encoders.norm import unit_length
from jcmr.models.encoders.pie import dropout
from jcmr.models.encoders.regions import Regions
from jcmr.models.encoders.transformer import SITES, Layer
from jcmr.ops.position import sine_positions


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`; what the official code does differently is in `PARITY`."""

    image: str = "resnet152"
    """"resnet18" ... "resnet152", "compact", or "regions" for precomputed grid features."""
    text: str = "bert"
    """"bert" on WordPiece, or "words": vectors of whole words, for small data."""
    bert: str = "base"
    """See `bert.SIZES`."""
    vocab_size: int = 0
    word_dim: int = 300
    """Of whole words."""
    embed_dim: int = 512
    num_layers: int = 2
    num_heads: int = 4
    hidden: int = 2048
    """Between the linear layers of the shared transformer."""
    grid: bool = True
    """Adds to every image token where in a square grid it is; False for detected regions."""
    normalise_regions: bool = False
    input_dropout_rate: float = 0.0
    """Of words and regions."""
    dropout_rate: float = 0.1
    """Inside BERT, the shared transformer and the pooling."""
    pool: str = "multi_head"
    """"multi_head", one attention for each share of the channels, beside the mean; or "attention",
    one for all."""
    normalise_images: bool = True
    """Gives image embeddings unit length; texts always have it. Without, images of large norm come
    first for every text."""
    loss: str = "hinge"
    """"hinge", or "infonce" at a learned temperature."""
    margin: float = 0.2
    hardest: bool = True
    """The hinge of the hardest mismatch; False is the sum over all."""
    warmup_steps: int = 0
    """Steps over which the hinge goes from all mismatches to the hardest."""
    init_scale: float = 15.0
    """Of similarities in InfoNCE; learned."""
    reduction: str = "mean"
    """The hinge is the "mean" over captions, or their "sum"."""
    duplicates: str = "positive"
    """Captions of the same image in one batch: "positive", "masked" or "negative"."""
    mask_true_positives: bool = False
    """Masks pairs that match although the caption was written for another image; needs the
    batch's "scene_code" and "caption_code"."""
    negative_groups: int = 1
    """Parts of the batch whose members alone are negatives of each other; official training on n
    devices has n."""
    dtype: str = "float32"
    """Of the towers."""
    parity: bool = False
    """Sets the conventions of the official code, `PARITY`."""


PARITY = {
    "pool": "attention",
    "normalise_images": False,
    "loss": "hinge",
    "hardest": True,
    "warmup_steps": 0,
    "reduction": "sum",
    "duplicates": "negative",
    "mask_true_positives": False,
}
CHOICES = {
    "image": (*(f"resnet{depth}" for depth in resnet.STAGES), "compact", "regions"),
    "text": ("bert", "words"),
    "bert": tuple(bert.SIZES),
    "pool": ("multi_head", "attention"),
    "loss": ("hinge", "infonce"),
    "reduction": ("mean", "sum"),
    "duplicates": ("positive", "masked", "negative"),
}

COMPARES_WITHIN = True
"""Items of one modality can be scored with each other, too."""


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value.
    """
    config = make_options(Config, cfg, CHOICES, "dxr", PARITY)
    if config.embed_dim % 4 or config.embed_dim % config.num_heads:
        raise ValueError(
            f"config.model.embed_dim is {config.embed_dim}; it must be a multiple of 4 and of "
            f"num_heads ({config.num_heads})."
        )
    if config.word_dim % 2:
        raise ValueError(f"config.model.word_dim is {config.word_dim}; it must be even.")
    return config


class Aligned(NamedTuple):
    """What becomes of a batch of images or texts."""

    embedding: Array
    """[b, d]."""
    tokens: Array
    """[b, t, d], what the shared transformer says of each."""
    attention: Array
    """[b, t, k], weights of the pooling."""


class ImageTower(nn.Module):
    """An image as the tokens of its grid, row by row."""

    cfg: Config

    @nn.compact
    def __call__(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Array:
        """The batch's "image" [b, h, w, 3] or "regions" [b, r, p] -> [b, r, p]."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.image == "regions":
            tower = Regions(0, cfg.normalise_regions, cfg.input_dropout_rate)
            return tower(inputs["regions"], keys)
        if cfg.image == "compact":
            x = CompactNet(dtype=dtype, name="backbone")(inputs["image"], train, axis)
        else:
            depth = int(cfg.image.removeprefix("resnet"))
            x, _ = resnet.ResNet(depth, dtype, name="backbone")(inputs["image"], train, axis)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class TextTower(nn.Module):
    """A text as its tokens."""

    cfg: Config

    @nn.compact
    def __call__(self, text: Array, mask: Array, keys: Array | None = None) -> Array:
        """Ids text [b, t], mask [b, t], dropout keys [b] -> [b, t, p]."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.text == "bert":
            size = bert.SIZES[cfg.bert]
            tower = bert.Bert(cfg.vocab_size, size, cfg.dropout_rate, dtype, name="bert")
            return tower(text, mask, keys)
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(cfg.vocab_size, cfg.word_dim, embedding_init=normal, name="embed")(text)
        x = dropout(x, cfg.input_dropout_rate, keys, site=0)
        return x + rank_encoding(text.shape[1], cfg.word_dim)


class DXR(nn.Module):
    """Both towers, what they share, and the temperature of InfoNCE."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        self.image, self.text = ImageTower(cfg), TextTower(cfg)
        self.image_project = nn.Dense(cfg.embed_dim, dtype=dtype)
        self.text_project = nn.Dense(cfg.embed_dim, dtype=dtype)
        self.shared = [
            Layer(
                cfg.num_heads,
                cfg.hidden,
                dropout_rate=cfg.dropout_rate,
                inner_dropout_rate=cfg.dropout_rate,
                site=SITES * index,
                dtype=dtype,
            )
            for index in range(cfg.num_layers)
        ]
        multi = cfg.pool == "multi_head"
        pool, heads = (MultiHeadPool, cfg.num_heads) if multi else (AttentionPool, 1)
        self.image_pool = pool(heads, cfg.dropout_rate, dtype)
        self.text_pool = pool(heads, cfg.dropout_rate, dtype)
        if cfg.loss == "infonce":
            self.scale = self.param("scale", nn.initializers.constant(cfg.init_scale), ())

    def __call__(self, inputs: Batch, text: Array) -> None:
        """Touches every parameter."""
        self.embed_image(inputs)
        self.embed_text(text)

    def align(
        self, x: Array, mask: Array | None, keys: Array | None, pool: Any, unit: bool
    ) -> Aligned:
        """Projected tokens x [b, t, d] through the shared transformer and into one vector."""
        for layer in self.shared:
            x = layer(x, mask, keys)
        pooled, attention = pool(x, mask, keys)
        embedding = dtypes.at_least_float32(pooled[:, 0])
        return Aligned(unit_length(embedding) if unit else embedding, x, attention)

    def align_image(self, grid: Array, keys: Array | None = None) -> Aligned:
        """Grid features [b, r, p] -> Aligned.

        Raises:
          ValueError: the grid is not square.
        """
        x, side = self.image_project(grid), round(grid.shape[1] ** 0.5)
        if self.cfg.grid:
            if side * side != grid.shape[1]:
                raise ValueError(
                    f"An image has {grid.shape[1]} tokens, which is no square grid; set "
                    f"config.model.grid to False for detected regions."
                )
            places = sine_positions(side, side, self.cfg.embed_dim)
            x = x + jnp.asarray(places.reshape(1, side * side, -1), x.dtype)
        return self.align(x, None, keys, self.image_pool, self.cfg.normalise_images)

    def align_text(self, states: Array, mask: Array, keys: Array | None = None) -> Aligned:
        """States [b, t, p] of a text's tokens, mask [b, t] -> Aligned."""
        return self.align(self.text_project(states), mask, keys, self.text_pool, True)

    def embed_image(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Aligned:
        """The batch's images; dropout keys [b, 2], of the tower and of what follows."""
        tower_keys, keys = (None, None) if keys is None else (keys[:, 0], keys[:, 1])
        return self.align_image(self.image(inputs, train, axis, tower_keys), keys)

    def embed_text(self, text: Array, keys: Array | None = None) -> Aligned:
        """Texts [b, t] of ids, 0 = pad; dropout keys [b, 2]."""
        tower_keys, keys = (None, None) if keys is None else (keys[:, 0], keys[:, 1])
        mask = jnp.greater(text, 0)
        return self.align_text(self.text(text, mask, tower_keys), mask, keys)


def similarity(query: Array, gallery: Array) -> Array:
    """Dot products of embeddings [n, d] and [m, d]."""
    return jnp.matmul(query, gallery.T, precision=dtypes.HIGHEST)


def dropout_keys(key: Array, rows: int, axis: str | None) -> Array:
    """Two keys for each example, [rows, 2]."""
    return jax.vmap(jax.random.split)(parallel.example_keys(key, rows, axis))


def contrastive_terms(
    images: Array, captions: Array, scale: Array, batch: Batch, cfg: Config, axis: str | None
) -> Terms:
    """InfoNCE of this device's images and captions against those of all devices."""
    sides = batch_sides(batch, axis)
    (all_images, all_captions), all_sides = parallel.all_gather(((images, captions), sides), axis)

    def targets(image_side: Any, caption_side: Any) -> Targets:
        return pair_targets(
            image_side,
            caption_side,
            cfg.duplicates,
            cfg.mask_true_positives,
            num_rows=len(all_images),
            groups=cfg.negative_groups,
        )

    to_text = targets(sides[0], all_sides[1])
    to_image = Targets(*(x.T for x in targets(all_sides[0], sides[1])))
    of_images = cross_entropy(scale * similarity(images, all_captions), to_text)
    of_captions = cross_entropy(scale * similarity(captions, all_images), to_image)
    return {
        "image_to_text": Term(of_images, len(images), 0.5),
        "text_to_image": Term(of_captions, len(captions), 0.5),
        "scale": Term(scale, 1.0, 0.0),
    }


TOKEN, STEADY, LEAST = 30.0, 300.0, 0.2
"""Sizes of the channels of a linear start: of the tokens (above positions, which stay below 1), and
of the constant beside them; and the least size that tokens are taken to have before.
"""


def with_linear_start(variables: Variables, start: Any) -> Variables:
    """Variables whose embeddings begin near the linear maps of `train.linear_start.LinearStart`.

    Regions and words go through these maps, layers begin as nothing but their norms, and pooling as
    the mean. A norm is nearly linear around a large constant: both projections add one, alternately
    signed, and the last norm takes it off again. Two directions of the d are lost to norms: the
    constant's, and that of all channels alike.

    Raises:
      ValueError: the towers of the config are not linear, or there is no layer.
    """
    params = variables["params"]
    last = f"shared_{sum(name.startswith('shared_') for name in params) - 1}"
    dim = start.image_kernel.shape[1]
    words = params["text"].get("embed", {}).get("embedding", np.zeros((0, 0)))
    if "image" in params or words.shape[1] != dim or last not in params:
        raise ValueError(
            "config.train.init_from = 'cca' needs config.model.image = 'regions', text = 'words', "
            "num_layers of at least 1 and word_dim = embed_dim."
        )
    vectors = start.word_weights[:, None] * start.word_vectors
    # The bias is about as large as what the kernel makes of an image, but next to nothing where
    # features are centred already: hence the least size.
    sizes = (np.sqrt(np.mean(np.square(x))) for x in (start.image_bias, vectors))
    image, text = (TOKEN / max(size, LEAST) for size in sizes)
    signs = np.where(np.arange(dim) % 2, 1.0, -1.0)
    image_bias, text_bias = image * start.image_bias, text * start.text_bias
    scale = STEADY / TOKEN
    linear = {
        ("text", "embed", "embedding"): text * vectors,
        ("image_project", "kernel"): image * start.image_kernel,
        ("image_project", "bias"): image_bias + STEADY * signs,
        ("text_project", "kernel"): np.eye(dim),
        ("text_project", "bias"): text_bias + STEADY * signs,
        (last, "norm", "scale"): np.full(dim, scale),
        (last, "norm", "bias"): -scale * signs,
    }
    flat: dict[Any, Any] = traverse_util.flatten_dict(dict(params))
    new: dict[Any, Array] = {}
    for path, old in flat.items():
        silent = {"out", "second"} & {*path}  # of attention, of layers, of pooling
        value = linear.get(path, jnp.zeros_like(old) if silent else old)
        new[path] = jnp.asarray(value, old.dtype).reshape(old.shape)
    return {**variables, "params": traverse_util.unflatten_dict(new)}


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`."""
    config = make_config(cfg)
    model = DXR(config)

    def init(key: Array, batch: Batch) -> Variables:
        one = {name: x[:1] for name, x in batch.items()}
        text, _, _ = flat_captions(one)
        variables = jax.jit(model.init)(key, one, text)
        if config.warmup_steps:
            return {**variables, "schedule": {"step": jnp.zeros(())}}
        return variables

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        text, _, _ = flat_captions(batch)
        image_key, text_key = jax.random.split(key)
        image, mutables = model.apply(
            variables,
            batch,
            True,
            axis,
            dropout_keys(image_key, len(batch["text"]), axis),
            method="embed_image",
            mutable=["batch_stats"],
        )
        keys = dropout_keys(text_key, len(text), axis)
        caption: Any = model.apply(variables, text, keys, method="embed_text")
        pair = image.embedding, caption.embedding
        if config.loss == "infonce":
            scale = variables["params"]["scale"]
            return contrastive_terms(*pair, scale, batch, config, axis), mutables
        hardest: Any = config.hardest
        if config.warmup_steps:
            step = variables["schedule"]["step"]
            hardest = config.hardest * jnp.minimum(step / config.warmup_steps, 1.0)
            mutables = {**mutables, "schedule": {"step": step + 1}}
        scores = similarity(pair[0], parallel.all_gather(pair[1], axis))
        return hinge_terms(scores, batch, config, hardest, axis, config.negative_groups), mutables

    def encode_image(variables: Variables, inputs: Batch) -> Any:
        aligned: Any = model.apply(variables, inputs, method="embed_image")
        return aligned.embedding

    def encode_text(variables: Variables, inputs: Batch) -> Any:
        aligned: Any = model.apply(variables, inputs["text"], method="embed_text")
        return aligned.embedding

    def score(variables: Variables, query: Array, gallery: Array) -> Array:
        del variables
        return similarity(query, gallery)

    return Task(init, loss, {"image": encode_image, "text": encode_text}, score)
