"""One vector per image and caption: VSE++ and VSE-infinity, the cheap baselines of cross-attention.

Faghri et al., BMVC 2018 (https://arxiv.org/abs/1707.05612): the hardest mismatch of the batch.
Chen et al., CVPR 2021 (https://arxiv.org/abs/2011.04305): learned pooling of regions and words, and
sets of random size in training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core import dtypes, parallel
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Variables
from jcmr.losses.ranking import hinge_terms
from jcmr.losses.targets import flat_captions
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gpo import GPO
from jcmr.models.encoders.norm import BatchNorm
from jcmr.models.encoders.pie import XAVIER, dropout, torch_dense
from jcmr.models.encoders.regions import Regions
from jcmr.models.encoders.words import WordStates
from jcmr.ops.attention import masked_mean
from jcmr.ops.cross_attention import l2_normalise
from jcmr.ops.size_augmentation import drop_words, keep_regions


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`."""

    method: str = "vse_infty"
    """"vsepp": mean of the regions, last state of a GRU; "vse_infty": learned pooling of both."""
    image: str = "regions"
    """"regions" for precomputed features, or "compact", whose grid are the regions."""
    vocab_size: int = 0
    """Of the data; `word_drop_rate` adds the mask word to it."""
    word_dim: int = 300
    embed_dim: int = 1024
    measure: str = "cosine"
    """"cosine", or "order": -|max(0, caption - image)| of absolute values
    (Vendrov et al., ICLR 2016)."""
    normalise_regions: bool = False
    dropout_rate: float = 0.0
    """Of words and regions, before the towers."""
    region_drop_rate: float = 0.0
    """Share of regions left out in training."""
    word_drop_rate: float = 0.0
    """Share of words masked, replaced or deleted in training."""
    margin: float = 0.2
    hardest: bool = True
    """The hardest mismatch of the batch; False is the sum over all."""
    warmup_steps: int = 0
    """Steps at the start in which all mismatches count, whatever `hardest` says."""
    reduction: str = "sum"
    """The loss is the "sum" over captions as in the official code, or their "mean"."""
    duplicates: str = "masked"
    """Captions of the same image in one batch: "masked", or "negative" as in the official code."""
    mask_true_positives: bool = False
    """Masks pairs that match although the caption was written for another image; needs the
    batch's "scene_code" and "caption_code"."""
    dtype: str = "float32"
    """Of the towers."""


CHOICES = {
    "method": ("vsepp", "vse_infty"),
    "image": ("regions", "compact"),
    "measure": ("cosine", "order"),
    "reduction": ("sum", "mean"),
    "duplicates": ("masked", "negative"),
}


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value.
    """
    return make_options(Config, cfg, CHOICES, "vse")


def finish(x: Array, cfg: Config) -> Array:
    """Embeddings of unit length, and absolute where they are ordered."""
    x = l2_normalise(dtypes.at_least_float32(x))
    return jnp.abs(x) if cfg.measure == "order" else x


class RegionMLP(nn.Module):
    """Linear, BatchNorm, ReLU, linear."""

    hidden: int
    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, r, d] -> [b, r, features]; statistics are over all rows, those left out included."""
        y = torch_dense(self.hidden, x.shape[-1], self.dtype, "first")(x)
        y = nn.relu(BatchNorm(name="norm")(y, train, axis))
        return torch_dense(self.features, self.hidden, self.dtype, "second")(y)


class ImageTower(nn.Module):
    """An image as one vector [b, embed_dim]."""

    cfg: Config

    @nn.compact
    def __call__(
        self,
        inputs: Batch,
        kept: Array | None = None,
        train: bool = False,
        axis: str | None = None,
        keys: Array | None = None,
    ) -> Array:
        """Runs on the batch's "regions" [b, r, d] or "image" [b, h, w, 3].

        Args:
          inputs: the batch.
          kept: bool [b, r], regions that take part; None is all.
          train: use and record batch statistics.
          axis: device axis.
          keys: [b], of dropout.
        """
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.image == "compact":
            grid = CompactNet(dtype=dtype, name="backbone")(inputs["image"], train, axis)
            x = dropout(
                grid.reshape(grid.shape[0], -1, grid.shape[-1]), cfg.dropout_rate, keys, site=1
            )
        else:
            regions = inputs["regions"]
            x = Regions(0, cfg.normalise_regions, cfg.dropout_rate)(regions, keys)
        mask = jnp.ones(x.shape[:2], bool) if kept is None else kept
        x = jnp.where(mask[..., None], x, 0)
        project = nn.Dense(cfg.embed_dim, dtype=dtype, kernel_init=XAVIER, name="project")
        if cfg.method == "vsepp":
            return finish(project(masked_mean(x, mask)), cfg)
        mlp = RegionMLP(cfg.embed_dim // 2, cfg.embed_dim, dtype, name="mlp")
        pooled, _ = GPO(name="pool")(mlp(x, train, axis) + project(x), mask)
        return finish(pooled, cfg)


class TextTower(nn.Module):
    """A caption as one vector [b, embed_dim]."""

    cfg: Config

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Array:
        """Word ids text [b, t], 0 = pad; keys [b] of dropout."""
        cfg = self.cfg
        infty = cfg.method == "vse_infty"
        tower = WordStates(
            cfg.vocab_size + bool(cfg.word_drop_rate),
            cfg.word_dim,
            cfg.embed_dim,
            ("forward", "backward") if infty else ("forward",),
            cfg.dropout_rate,
            dtypes.tower_dtype(cfg.dtype),
            name="words",
        )
        nn.share_scope(self, tower)
        mask = jnp.greater(text, 0)
        states, ends = tower(text, mask, keys)
        return finish(GPO(name="pool")(states, mask)[0] if infty else ends, cfg)


class VSE(nn.Module):
    """Both towers: params/{image,text}."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts."""
        self.image, self.text = ImageTower(self.cfg), TextTower(self.cfg)

    def __call__(self, inputs: Batch, text: Array) -> None:
        """Touches every parameter."""
        self.image(inputs)
        self.text(text)

    def embed_image(self, *args: Any) -> Array:
        """The image tower."""
        return self.image(*args)

    def embed_text(self, *args: Any) -> Array:
        """The text tower."""
        return self.text(*args)


def order_scores(images: Array, captions: Array) -> Array:
    """-|max(0, caption - image)| of images [n, d] and captions [m, d], [n, m]; row by row."""

    @jax.checkpoint
    def row(image: Array) -> Array:
        squared = jnp.sum(jax.nn.relu(captions - image) ** 2, axis=-1)
        positive = squared > 0
        return -jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)

    return lax.map(row, images)


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`."""
    config = make_config(cfg)
    model = VSE(config)

    def init(key: Array, batch: Batch) -> Variables:
        one = {name: x[:1] for name, x in batch.items()}
        text, _, _ = flat_captions(one)
        variables = jax.jit(model.init)(key, one, text)
        if config.warmup_steps:
            return {**variables, "schedule": {"step": jnp.zeros(())}}
        return variables

    def score(variables: Variables, query: Array, gallery: Array) -> Array:
        del variables
        if config.measure == "order":
            return order_scores(query, gallery)
        return jnp.matmul(query, gallery.T, precision=dtypes.HIGHEST)

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        text, _, _ = flat_captions(batch)
        image_key, text_key, region_key, word_key = jax.random.split(key, 4)
        rows = len(batch["text"])
        kept = None
        if config.region_drop_rate:
            keys = parallel.example_keys(region_key, rows, axis)
            kept = keep_regions(keys, batch["regions"].shape[1], config.region_drop_rate)
        if config.word_drop_rate:
            keys = parallel.example_keys(word_key, len(text), axis)
            size = config.vocab_size
            text = drop_words(keys, text, config.word_drop_rate, size, mask_id=size)
        images, mutables = model.apply(
            variables,
            batch,
            kept,
            True,
            axis,
            parallel.example_keys(image_key, rows, axis),
            method="embed_image",
            mutable=["batch_stats"],
        )
        keys = parallel.example_keys(text_key, len(text), axis)
        captions = model.apply(variables, text, keys, method="embed_text")
        hardest: Any = config.hardest
        if config.warmup_steps:
            step = variables["schedule"]["step"]
            hardest = jnp.asarray(config.hardest) & (step >= config.warmup_steps)
            mutables = {**mutables, "schedule": {"step": step + 1}}
        scores = score(variables, images, parallel.all_gather(captions, axis))
        return hinge_terms(scores, batch, config, hardest, axis), mutables

    def encode_image(variables: Variables, inputs: Batch) -> Any:
        return model.apply(variables, inputs, method="embed_image")

    def encode_text(variables: Variables, inputs: Batch) -> Any:
        return model.apply(variables, inputs["text"], method="embed_text")

    return Task(init, loss, {"image": encode_image, "text": encode_text}, score)
