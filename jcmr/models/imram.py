"""Iterative matching with recurrent attention memory: IMRAM, and SCAN as its first step.

Chen et al., CVPR 2020 (https://arxiv.org/abs/2003.03772); Lee et al., ECCV 2018
(https://arxiv.org/abs/1803.08024). An image is a set of regions, a caption a set of words, and each
pair is scored by how well the fragments of one side find themselves in the other, again and again
while a gated memory refines what they look for. The formulas are in `ops.cross_attention`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core import dtypes, parallel
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Variables
from jcmr.losses.ranking import hinge_terms
from jcmr.losses.targets import flat_captions
from jcmr.models.encoders.bag import BagOfWords, is_word
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gru import uniform_init
from jcmr.models.encoders.pie import XAVIER, dropout
from jcmr.models.encoders.regions import Regions, WeightNormDense
from jcmr.models.encoders.words import WordStates
from jcmr.ops.cross_attention import (
    AGGREGATES,
    NORMS,
    Fragments,
    Gate,
    Gates,
    Matching,
    l2_normalise,
    make_fragments,
    match_directions,
    score_tile,
)

KEPT = 5.0
"""Logit of what a gate keeps of the memory where it starts by keeping nearly all."""
DIRECTIONS = {"full": ("t2i", "i2t"), "text": ("t2i",), "image": ("i2t",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`; the defaults are those of the official IMRAM."""

    image: str = "regions"
    """"regions" for precomputed features, or "compact", whose grid of an eighth of the resolution
    are the regions."""
    text: str = "gru"
    """"gru", words in their sentence, or "words" by themselves for small data, see `WordTower`."""
    vocab_size: int = 0
    word_dim: int = 300
    embed_dim: int = 1024
    variant: str = "full"
    """"text": words attend to regions (t2i); "image": regions attend to words (i2t); "full": the
    sum of both."""
    steps: int = 3
    """K; 1 is SCAN, which has no memory."""
    smooth: float = 9.0
    """Inverse temperature of the attention, lambda."""
    attention_norm: str = "clipped_l2norm"
    """Of attention logits over the query's fragments; see `ops.cross_attention.NORMS`."""
    aggregate: str = "mean"
    """Over the query's fragments: "mean", "sum", "max", or "lse" (SCAN)."""
    lse_scale: float = 6.0
    renormalise: bool = False
    """Scales the memory to unit length after each step; the official scripts do not."""
    cosine: bool = False
    """Attends by cosines as the paper writes it; the official code takes raw products, which differ
    from the second step on unless `renormalise` is set."""
    weight_norm: bool = False
    """Of the projection of regions."""
    normalise_regions: bool = False
    """Scales stored features to unit length before they are projected."""
    unit_images: bool = True
    unit_words: bool = True
    dropout_rate: float = 0.0
    """Of words and regions, before the towers."""
    margin: float = 0.2
    hardest: bool = True
    """The hardest mismatch of the batch; False is the sum over all."""
    reduction: str = "sum"
    """The loss is the "sum" over captions as in the official code, or their "mean"."""
    duplicates: str = "masked"
    """Captions of the same image in one batch: "masked", or "negative" as in the official code."""
    mask_true_positives: bool = False
    """Masks pairs that match although the caption was written for another image; needs the
    batch's "scene_code" and "caption_code"."""
    chunk: int = 4
    """Captions scored at a time against all images of a tile or batch; sets the memory."""
    dtype: str = "float32"
    """Of the towers."""
    score_dtype: str = "float32"
    """Of the inputs of the scoring's products, which accumulate in float32."""


CHOICES = {
    "image": ("regions", "compact"),
    "text": ("gru", "words"),
    "variant": tuple(DIRECTIONS),
    "attention_norm": NORMS,
    "aggregate": AGGREGATES,
    "reduction": ("sum", "mean"),
    "duplicates": ("masked", "negative"),
}


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value.
    """
    config = make_options(Config, cfg, CHOICES, "imram")
    if config.steps < 1:
        raise ValueError(f"config.model.steps is {config.steps}; one step is the least.")
    dtypes.compute_dtype(config.score_dtype)
    return config


def matching(cfg: Config) -> Matching:
    """What of the config the formulas need."""
    return Matching(
        cfg.steps,
        cfg.smooth,
        cfg.attention_norm,
        cfg.aggregate,
        cfg.lse_scale,
        cfg.renormalise,
        cfg.cosine,
        cfg.score_dtype,
    )


class ImageTower(nn.Module):
    """Regions, projected: [b, r, embed_dim], unit length unless the config says otherwise."""

    cfg: Config

    @nn.compact
    def __call__(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Array:
        """Runs on the batch's "regions" [b, r, d] or "image" [b, h, w, 3]; keys [b] of dropout."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.image == "compact":
            grid = CompactNet(dtype=dtype, name="backbone")(inputs["image"], train, axis)
            x = dropout(
                grid.reshape(grid.shape[0], -1, grid.shape[-1]), cfg.dropout_rate, keys, site=1
            )
        else:
            regions = inputs["regions"]
            x = Regions(0, cfg.normalise_regions, cfg.dropout_rate)(regions, keys)
        if cfg.weight_norm:
            x = WeightNormDense(cfg.embed_dim, dtype, name="project")(x)
        else:
            x = nn.Dense(cfg.embed_dim, dtype=dtype, kernel_init=XAVIER, name="project")(x)
        x = dtypes.at_least_float32(x)
        return l2_normalise(x) if cfg.unit_images else x


class TextTower(nn.Module):
    """Words in their sentence: [b, t, embed_dim], unit length unless the config says otherwise."""

    cfg: Config

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Array:
        """Word ids text [b, t], 0 = pad; keys [b] of dropout."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        size = cfg.vocab_size, cfg.word_dim, cfg.embed_dim
        tower = WordStates(*size, dropout_rate=cfg.dropout_rate, dtype=dtype, name="words")
        nn.share_scope(self, tower)
        states, _ = tower(text, jnp.greater(text, 0), keys)
        return l2_normalise(states) if cfg.unit_words else states


class WordTower(nn.Module):
    """Weighted words without their sentence: [b, t, embed_dim].

    Their sum is the vector that `BagOfWords` gives the caption, which attention that is even finds
    up to its length: regions compare themselves with the caption, as in a linear model.
    """

    cfg: Config

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Array:
        """Word ids text [b, t], 0 = pad; keys [b] of dropout."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        bag = BagOfWords(
            cfg.vocab_size, cfg.embed_dim, dropout_rate=cfg.dropout_rate, dtype=dtype, name="bag"
        )
        number = jnp.maximum(jnp.sum(is_word(text), axis=1), 1)[:, None, None]
        words = dtypes.at_least_float32(bag.apart(text, keys) + bag.bias / number)
        return l2_normalise(words) if cfg.unit_words else words


class Affine(nn.Module):
    """The weights of a linear layer that starts as torch's."""

    fan_in: int
    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """(kernel [fan_in, features], bias [features])."""
        init = uniform_init(self.fan_in**-0.5)
        kernel = self.param("kernel", init, (self.fan_in, self.features))
        return kernel, self.param("bias", init, (self.features,))


class GateWeights(nn.Module):
    """Memory distillation of one direction: two linear layers on [query; context]."""

    features: int

    @nn.compact
    def __call__(self) -> Gate:
        """Both layers side by side, cut into what multiplies the query and the context."""
        d = self.features
        new, new_bias = Affine(2 * d, d, name="linear")()
        kept, kept_bias = Affine(2 * d, d, name="gate")()
        kernel = jnp.concatenate([new, kept], axis=1)
        return Gate(kernel[:d], kernel[d:], jnp.concatenate([new_bias, kept_bias]))


class IMRAM(nn.Module):
    """Both towers, and a gate for each direction: params/{image,text,t2i,i2t}."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts."""
        cfg = self.cfg
        self.image = ImageTower(cfg)
        self.text = WordTower(cfg) if cfg.text == "words" else TextTower(cfg)
        for name in DIRECTIONS[cfg.variant]:
            setattr(self, name, GateWeights(cfg.embed_dim) if cfg.steps > 1 else None)

    def gates(self) -> Gates:
        """The directions that are scored, each with its gate; None where there is one step."""
        parts = {name: getattr(self, name) for name in DIRECTIONS[self.cfg.variant]}
        return {name: part and part() for name, part in parts.items()}

    def __call__(self, inputs: Batch, text: Array) -> None:
        """Touches every parameter."""
        self.image(inputs)
        self.text(text)
        self.gates()

    def embed_image(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Fragments:
        """Regions as fragments."""
        tokens, gates = self.image(inputs, train, axis, keys), self.gates()
        mask = jnp.ones(tokens.shape[:2], bool)
        directions = gates.get("i2t"), gates.get("t2i")
        return make_fragments(tokens, mask, *directions, self.cfg.score_dtype)

    def embed_text(self, text: Array, keys: Array | None = None) -> Fragments:
        """Words [b, t] as fragments."""
        tokens, gates = self.text(text, keys), self.gates()
        mask = is_word(text) if self.cfg.text == "words" else jnp.greater(text, 0)
        directions = gates.get("t2i"), gates.get("i2t")
        return make_fragments(tokens, mask, *directions, self.cfg.score_dtype)


def make_attention(cfg: Mapping[str, Any]) -> Callable[[Variables, Fragments, Fragments], Array]:
    """Builds what pictures need: (variables, images [n], captions [n]) -> attention of the n
    aligned pairs over regions, [n, steps, words, regions].

    Where words are the query it is their own; where only regions are (variant "image"), how much of
    each region's attention goes to a word, as shares of the word.
    """
    config = make_config(cfg)
    model, how = IMRAM(config), matching(config)

    def attention(variables: Variables, images: Fragments, captions: Fragments) -> Array:
        gates: Any = model.apply(variables, method="gates")
        pairs = jax.vmap(lambda image, caption: match_directions(image, caption, gates, how))
        found = pairs(images, captions)
        if "t2i" in found:
            return found["t2i"][1]
        received = found["i2t"][1].mT
        return received / jnp.maximum(received.sum(axis=-1, keepdims=True), 1e-8)

    return attention


def with_linear_start(variables: Variables, start: Any) -> Variables:
    """Variables whose fragments begin as the linear maps of `train.linear_start.LinearStart`.

    Regions go through the map of their mean, words add up to that of their caption, and gates keep
    the query, so that each step begins as the first.

    Raises:
      ValueError: the towers of the config are not linear.
    """
    params = variables["params"]
    image, text = params["image"], params["text"]
    if "bag" not in text or "backbone" in image or "scale" in image["project"]:
        raise ValueError(
            "config.train.init_from = 'cca' needs config.model.image = 'regions', text = 'words' "
            "and weight_norm = False."
        )
    words = {
        "embed": {"embedding": start.word_vectors},
        "weights": start.word_weights,
        "bias": start.text_bias,
    }
    project = {"kernel": start.image_kernel, "bias": start.image_bias}
    new = {**params, "image": {**image, "project": project}, "text": {"bag": words}}
    for name in params.keys() & {"t2i", "i2t"}:
        gate = params[name]["gate"]
        kept = {"kernel": np.zeros(gate["kernel"].shape), "bias": np.full(gate["bias"].shape, KEPT)}
        new[name] = {**params[name], "gate": kept}
    new = jax.tree.map(lambda old, x: jnp.asarray(x, old.dtype).reshape(old.shape), params, new)
    return {**variables, "params": new}


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`."""
    config = make_config(cfg)
    model, how = IMRAM(config), matching(config)

    def init(key: Array, batch: Batch) -> Variables:
        one = {name: x[:1] for name, x in batch.items()}
        text, _, _ = flat_captions(one)
        return jax.jit(model.init)(key, one, text)

    def score(variables: Variables, query: Fragments, gallery: Fragments) -> Array:
        gates: Any = model.apply(variables, method="gates")
        return score_tile(query, gallery, gates, how, config.chunk)

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        text, _, _ = flat_captions(batch)
        image_key, text_key = jax.random.split(key)
        images, mutables = model.apply(
            variables,
            batch,
            train=True,
            axis=axis,
            keys=parallel.example_keys(image_key, len(batch["text"]), axis),
            method="embed_image",
            mutable=["batch_stats"],
        )
        keys = parallel.example_keys(text_key, len(text), axis)
        captions = model.apply(variables, text, keys, method="embed_text")
        scores = score(variables, images, parallel.all_gather(captions, axis))
        return hinge_terms(scores, batch, config, config.hardest, axis), mutables

    def encode_image(variables: Variables, inputs: Batch) -> Any:
        return model.apply(variables, inputs, method="embed_image")

    def encode_text(variables: Variables, inputs: Batch) -> Any:
        return model.apply(variables, inputs["text"], method="embed_text")

    return Task(init, loss, {"image": encode_image, "text": encode_text}, score)
