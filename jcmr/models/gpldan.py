"""GPLDAN: several representations an item, compared in one graph, without labels; and PVSE.

Chen, Zhang and Zhan (arXiv 2106.13552). No code was published and only the abstract could be read:
a diversified attention projector, a graph pattern loss over "all possible distances between
different representations", a modality classifier before fusion. Their form here is this project's
specification, and no number of the paper is claimed. PVSE (Song and Soleymani, CVPR 2019), whose
official code exists, shares the towers (`method="pvse"`) and is what GPLDAN is measured against.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jcmr.core import parallel
from jcmr.core.dtypes import HIGHEST
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Term, Terms, Variables
from jcmr.losses import pvse
from jcmr.losses.graph_pattern import WEIGHTS, Margins, graph_pattern
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gru import BiGRU, read_out
from jcmr.models.encoders.pie import dropout
from jcmr.models.encoders.projector import Projected, Projector, Tokens


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`."""

    image: str = "features"
    """"features", a flat vector made into tokens; "regions", frozen tokens; "compact", pixels."""
    text: str = "features"
    """"features", a flat vector made into tokens, or "words" through a recurrent net."""
    vocab_size: int = 0
    word_dim: int = 300
    num_tokens: int = 8
    token_dim: int = 256
    embed_dim: int = 1024
    num_reps: int = 4
    method: str = "gpldan"
    """"gpldan" scores by the fused representation, "pvse" by the best pair of representations."""
    interaction: bool = True
    """Representations of an item attend to each other; PVSE's do not."""
    pattern_weight: float = 1.0
    """Of the graph pattern loss, whose parts are `pattern`."""
    pattern: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(WEIGHTS))
    margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """See `losses.graph_pattern.Margins`."""
    hard: bool = False
    """The worst mismatch alone counts, in the graph pattern loss and in PVSE's ranking loss."""
    classifier_weight: float = 0.1
    classifier_sign: float = 1.0
    """+1 declares the modality, -1 hides it by reversed gradients, as adversarial methods do."""
    fuse_weight: float = 1.0
    """Of the contrast of fused representations (InfoNCE)."""
    temperature: float = 0.1
    margin: float = 0.1
    """PVSE's ranking margin."""
    diversity_weight: float = 0.1
    mmd_weight: float = 0.01
    mmd_gamma: float = 0.5
    dropout_rate: float = 0.0
    input_dropout_rate: float = 0.0


CHOICES = {
    "image": ("features", "regions", "compact"),
    "text": ("features", "words"),
    "method": ("gpldan", "pvse"),
    "classifier_sign": (1.0, -1.0),
}

COMPARES_WITHIN = True
"""Items of one modality can be scored with each other, too."""


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option, value, margin or part of the graph pattern loss.
    """
    config = make_options(Config, cfg, CHOICES, "gpldan")
    for option, known in (("pattern", tuple(WEIGHTS)), ("margins", Margins._fields)):
        for name in getattr(config, option):
            if name not in known:
                raise ValueError(
                    f"config.model.{option} has no {name!r}; it can hold {', '.join(known)}."
                )
    return config


class ImageTower(nn.Module):
    """Tokens of an image, and its representations."""

    cfg: Config

    @nn.compact
    def __call__(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Projected:
        """The batch's "features" [b, p], "regions" [b, r, p] or "image" [b, h, w, 3]."""
        cfg = self.cfg
        if cfg.image == "compact":
            x = CompactNet(name="backbone")(inputs["image"], train, axis)
            x = x.reshape(x.shape[0], -1, x.shape[-1])
            g = x.mean(axis=1)
        elif cfg.image == "regions":
            x = dropout(inputs["regions"], cfg.input_dropout_rate, keys, site=1)
            g = x.mean(axis=1)
        else:
            g = dropout(inputs["features"], cfg.input_dropout_rate, keys, site=1)
            x = Tokens(cfg.num_tokens, cfg.token_dim, name="tokens")(g)
        return projector(cfg)(g, x, None, keys)


class TextTower(nn.Module):
    """Tokens of a text, and its representations."""

    cfg: Config

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Projected:
        """Word ids [b, t], 0 = pad, or weights [b, p]."""
        cfg = self.cfg
        if cfg.text == "features":
            g = dropout(text, cfg.input_dropout_rate, keys, site=2)
            x = Tokens(cfg.num_tokens, cfg.token_dim, name="tokens")(g)
            return projector(cfg)(g, x, None, keys)
        mask = text > 0
        x = nn.Embed(cfg.vocab_size, cfg.word_dim, name="embed")(text)
        x = dropout(x, cfg.input_dropout_rate, keys, site=2)
        states, ends = BiGRU(cfg.embed_dim // 2, name="rnn")(x, mask)
        return projector(cfg)(read_out(states, ends, mask, "mean"), x, mask, keys)


def projector(cfg: Config) -> Projector:
    """The projector of a tower."""
    interaction = cfg.interaction and cfg.method == "gpldan"
    return Projector(
        cfg.embed_dim,
        cfg.num_reps,
        interaction,
        dropout_rate=cfg.dropout_rate,
        name="projector",
    )


class GPLDAN(nn.Module):
    """Both towers and the modality classifier in one tree."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts: params/{image,text,modality}."""
        self.image = ImageTower(self.cfg)
        self.text = TextTower(self.cfg)
        self.modality = nn.Dense(2)

    def __call__(self, inputs: Batch) -> Array:
        """Touches every parameter."""
        return self.classify(self.image(inputs).raw) + self.classify(self.text(inputs["text"]).raw)

    def embed_image(self, inputs: Batch, train: bool = False, axis: str | None = None, keys=None):
        """`Projected` images."""
        return self.image(inputs, train, axis, keys)

    def embed_text(self, text: Array, keys: Array | None = None):
        """`Projected` texts."""
        return self.text(text, keys)

    def classify(self, raw: Array) -> Array:
        """Logits of image and text for each representation, [b, k, d] -> [b, k, 2]."""
        return self.modality(raw)


@jax.custom_vjp
def reverse(x: Array) -> Array:
    """X itself, whose gradient is turned around (Ganin and Lempitsky, 2015)."""
    return x


reverse.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))


class Sides(NamedTuple):
    """A batch as the objective sees it."""

    image: Projected
    text: Projected
    id: Array
    """[b], of the image."""


def contrast(query: Array, items: Array, own: Array, valid: Array, temperature: float) -> Term:
    """Cross-entropy of rows [b, d] against all columns [n, d] (InfoNCE); `own`, `valid` [b, n]."""
    logits = jnp.matmul(query, items.T, precision=HIGHEST) / temperature
    log_share = jax.nn.log_softmax(jnp.where(valid, logits, -jnp.inf))
    return Term(-jnp.sum(jnp.where(own, log_share, 0.0)), len(logits))


def gpldan_terms(model: GPLDAN, variables: Variables, here: Sides, axis: str | None) -> Terms:
    """Graph pattern loss, modality classifier and contrast of the fused representations."""
    cfg, terms = model.cfg, {}
    if cfg.pattern_weight:
        margins = Margins(**cfg.margins)
        reps = here.image.reps, here.text.reps
        parts = graph_pattern(*reps, None, axis, margins, cfg.pattern, cfg.hard)
        terms |= {n: t._replace(weight=t.weight * cfg.pattern_weight) for n, t in parts.items()}
    if cfg.classifier_weight:
        total, count = 0.0, 0
        for label, side in enumerate((here.image, here.text)):
            raw = side.raw if cfg.classifier_sign > 0 else reverse(side.raw)
            logits: Any = model.apply(variables, raw, method="classify")
            total -= jnp.sum(jax.nn.log_softmax(logits.astype(jnp.float32))[..., label])
            count += logits[..., 0].size
        terms["modality"] = Term(total, count, cfg.classifier_weight)
    if cfg.fuse_weight:
        images, texts, ids = parallel.all_gather((here.image.fused, here.text.fused, here.id), axis)
        own, valid = own_pairs(here.id, ids, axis)
        for name, query, items in (
            ("image_to_text", here.image.fused, texts),
            ("text_to_image", here.text.fused, images),
        ):
            term = contrast(query, items, own, valid, cfg.temperature)
            terms[name] = term._replace(weight=cfg.fuse_weight)
    return terms


def own_pairs(ids: Array, all_ids: Array, axis: str | None) -> tuple[Array, Array]:
    """Which pairs [b, n] belong together, and which count: not those of one image seen twice."""
    rows = parallel.first_row(len(ids), axis) + jnp.arange(len(ids))
    own = rows[:, None] == jnp.arange(len(all_ids))
    return own, own | (ids[:, None] != all_ids)


def pvse_terms(here: Sides, cfg: Config, axis: str | None) -> Terms:
    """Ranking by the best pair of representations, diversity and MMD."""
    x, y = here.image.reps, here.text.reps
    all_x, all_y, ids = parallel.all_gather((x, y, here.id), axis)
    own, valid = own_pairs(here.id, ids, axis)
    flat = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    to_text, to_image = pvse.mil_scores(x, all_y), pvse.mil_scores(all_x, y).T
    terms = {
        "image_to_text": Term(*pvse.triplet(to_text, own, cfg.margin, cfg.hard, valid)),
        "text_to_image": Term(*pvse.triplet(to_image, own, cfg.margin, cfg.hard, valid)),
        "mmd": Term(*pvse.mmd(*flat, cfg.mmd_gamma, axis), cfg.mmd_weight),
    }
    if cfg.num_reps > 1:
        for name, side in (("diversity_image", here.image), ("diversity_text", here.text)):
            terms[name] = Term(*pvse.diversity(side.residual), cfg.diversity_weight)
    return terms


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`.

    An embedding is what the score needs: the fused vector [n, d], or PVSE's vectors [n, k, d].
    """
    config = make_config(cfg)
    model = GPLDAN(config)

    def init(key: Array, batch: Batch) -> Variables:
        return jax.jit(model.init)(key, {name: x[:1] for name, x in batch.items()})

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        image_key, text_key = jax.random.split(key)
        rows = len(batch["text"])
        image, mutables = model.apply(
            variables,
            batch,
            train=True,
            axis=axis,
            keys=parallel.example_keys(image_key, rows, axis),
            method="embed_image",
            mutable=["batch_stats"],
        )
        text_keys = parallel.example_keys(text_key, rows, axis)
        text: Any = model.apply(variables, batch["text"], text_keys, method="embed_text")
        here = Sides(image, text, batch["id"])
        if config.method == "pvse":
            return pvse_terms(here, config, axis), mutables
        return gpldan_terms(model, variables, here, axis), mutables

    def embed(method: str, variables: Variables, inputs: Any) -> Array:
        projected: Any = model.apply(variables, inputs, method=method)
        return projected.reps if config.method == "pvse" else projected.fused

    def score(variables: Variables, query: Array, gallery: Array) -> Array:
        del variables
        if config.method == "pvse":
            return pvse.mil_scores(query, gallery)
        return jnp.matmul(query, gallery.T, precision=HIGHEST)

    encode = {
        "image": lambda variables, inputs: embed("embed_image", variables, inputs),
        "text": lambda variables, inputs: embed("embed_text", variables, inputs["text"]),
    }
    return Task(init, loss, encode, score)


def explain(
    cfg: Mapping[str, Any], variables: Variables, modality: str, inputs: Batch
) -> Projected:
    """Everything that an item's representations are made of; for pictures."""
    model = GPLDAN(make_config(cfg))
    projected: Any = (
        model.apply(variables, inputs, method="embed_image")
        if modality == "image"
        else model.apply(variables, inputs["text"], method="embed_text")
    )
    return projected
