"""Text as a graph: a GCN over the vocabulary beside an image path, compared by a learned metric.

Yu et al., "Modeling Text with Graph Convolutional Network for Cross-Modal Information Retrieval"
(arXiv 1802.00985). Its full text could not be had. Established, from its abstract and the code of
its follow-up SCKR (arXiv 1810.13151): one graph over all words, a document as counts on its
vertices, two paths, a pairwise loss on matches and mismatches; `parity` sets the conventions of
that code. Class posteriors beside the metric are this project's addition.
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
from jcmr.losses.pairwise import pairwise_global
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gcn import GraphText, taps_of
from jcmr.models.encoders.pie import XAVIER, dropout
from jcmr.ops import graph as graphs


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`; what the code of SCKR does differently is in `PARITY`."""

    image: str = "features"
    """"features", a frozen vector, or "compact", a small convolutional net on pixels."""
    image_hidden: tuple[int, ...] = ()
    """Widths of dense layers with ReLU before the image's embedding."""
    text: str = "gcn"
    """"gcn", or "mlp" on the same words without the graph, for comparison."""
    text_hidden: tuple[int, ...] = ()
    """The same for the text, after the graph."""
    vocab_size: int = 0
    graph: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the graph of words is made; read by `data.word_graph`."""
    weighting: str = "counts"
    """What a caption of word ids puts on the vertices: "counts", or unit "tfidf". Vectors of
    weights are taken as they are."""
    convolution: str = "chebyshev"
    """"chebyshev", or "kipf" by jraph's GraphConvolution."""
    filters: tuple[int, ...] = (1, 1)
    num_taps: int = 3
    node_bias: str = "per_node"
    dense: bool = False
    """Propagates by a matrix instead of along edges: for small vocabularies, and on TPU."""
    residual: bool = False
    """Gives the dense layers the words themselves beside what the graph made of them. With one
    filter a layer a text path without it can be dead from the start: signals are not negative, so
    an unlucky kernel is below 0, and its ReLU 0, on every word."""
    embed_dim: int = 1024
    num_classes: int = 0
    score: str = "bilinear"
    """"bilinear", the learned metric, or "posterior", the probability of being of one class."""
    pair_weight: float = 1.0
    """Of the pairwise global loss."""
    gap_weight: float = 0.35
    margin: float = 0.8
    class_weight: float = 0.0
    """Of the cross-entropy of both paths' class posteriors; needs labels."""
    agree_weight: float = 0.0
    """Of the cross-entropy of "same class", by the dot product of posteriors, over all pairs."""
    product_dropout_rate: float = 0.0
    """Of the product of embeddings that the metric weighs."""
    image_dropout_rate: float = 0.0
    text_dropout_rate: float = 0.0
    hidden_dropout_rate: float = 0.0
    parity: bool = False
    """Sets the conventions of the official code, `PARITY`."""


PARITY = {
    "image_hidden": (),
    "text": "gcn",
    "text_hidden": (),
    "convolution": "chebyshev",
    "filters": (1, 1),
    "num_taps": 3,
    "node_bias": "per_node",
    "residual": False,
    "embed_dim": 1024,
    "score": "bilinear",
    "gap_weight": 0.35,
    "margin": 0.8,
    "product_dropout_rate": 0.4,
}
CHOICES = {
    "image": ("features", "compact"),
    "text": ("gcn", "mlp"),
    "weighting": ("counts", "tfidf"),
    "convolution": ("chebyshev", "kipf"),
    "node_bias": ("per_node", "per_filter"),
    "score": ("bilinear", "posterior"),
}
SPECIAL_WORDS = 4
"""Ids below are padding, start, end and unknown: no words."""


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value, or one that needs labels where there are none.
    """
    config = make_options(Config, cfg, CHOICES, "gcn_text", PARITY)
    needs = config.class_weight or config.agree_weight or config.score != "bilinear"
    if needs and not config.num_classes:
        raise ValueError(
            "config.model asks for class posteriors (score, class_weight or agree_weight), but the "
            "training data has no labels: set config.data.supervision = 'supervised', or use the "
            "bilinear score and weights of 0."
        )
    if config.dense and config.convolution == "kipf":
        raise ValueError("config.model.dense needs the chebyshev convolution; jraph's has edges.")
    return config


class Embedded(NamedTuple):
    """An item."""

    feature: Array
    """[n, d]."""
    log_posterior: Array
    """[n, c], of the classes; c = 0 without labels."""


def mlp(x: Array, widths: tuple[int, ...], rate: float, keys: Array | None) -> Array:
    """Dense layers with ReLU and dropout inside a compact module."""
    for index, width in enumerate(widths):
        x = nn.relu(nn.Dense(width, kernel_init=XAVIER, name=f"hidden{index + 1}")(x))
        x = dropout(x, rate, keys, site=10 + index)
    return x


class Head(nn.Module):
    """From a flat signal to an embedding."""

    cfg: Config
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Embedded:
        """X [b, p], dropout keys [b]."""
        cfg = self.cfg
        x = mlp(x, self.hidden, cfg.hidden_dropout_rate, keys)
        feature = nn.Dense(cfg.embed_dim, kernel_init=XAVIER, name="fc")(x)
        posterior = jnp.zeros((x.shape[0], 0))
        if cfg.num_classes:
            logits = nn.Dense(cfg.num_classes, kernel_init=XAVIER, name="classes")(
                x if self.hidden else feature
            )
            posterior = jax.nn.log_softmax(logits.astype(jnp.float32))
        return Embedded(feature, posterior)


class ImagePath(nn.Module):
    """Frozen features or pixels, dense layers, an embedding."""

    cfg: Config

    @nn.compact
    def __call__(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Embedded:
        """The batch's "features" [b, p] or "image" [b, h, w, 3]."""
        cfg = self.cfg
        if cfg.image == "compact":
            x = CompactNet(name="backbone")(inputs["image"], train, axis)
            x = x.reshape(x.shape[0], -1, x.shape[-1]).mean(axis=1)
        else:
            x = inputs["features"]
        x = dropout(x, cfg.image_dropout_rate, keys, site=1)
        return Head(cfg, cfg.image_hidden, name="head")(x, keys)


class TextPath(nn.Module):
    """Words on the graph, dense layers, an embedding."""

    cfg: Config

    @nn.compact
    def __call__(
        self, operator: Any, words: Array, keys: Array | None = None, taps: Array | None = None
    ) -> Embedded:
        """Weights of words [b, v], or features of them [b, v, f]; where they were computed before,
        `taps` [b, v, f, k] take their place on the graph.
        """
        cfg = self.cfg
        words = dropout(words, cfg.text_dropout_rate, keys, site=2)
        flat = words.reshape(words.shape[0], -1)
        x = flat
        if cfg.text == "gcn":
            gcn = GraphText(cfg.filters, cfg.num_taps, cfg.node_bias, cfg.convolution, name="graph")
            signal = words.reshape(*words.shape[:2], -1) if taps is None else taps
            x = gcn(operator, signal, taps is not None)
            if cfg.residual:
                x = jnp.concatenate([x, flat], axis=1)
        return Head(cfg, cfg.text_hidden, name="head")(x, keys)


class Metric(nn.Module):
    """Logit w . (f_t * f_i) + b of pairs, as one matrix product."""

    @nn.compact
    def __call__(self, image: Array, text: Array, keep: Array | None = None) -> Array:
        """Images [n, d], texts [m, d] -> [n, m]; `keep` [m, d] is dropout of the product."""
        weights = self.param("kernel", XAVIER, (image.shape[-1], 1), jnp.float32)[:, 0]
        text = text * weights if keep is None else text * keep * weights
        bias = self.param("bias", nn.initializers.zeros, (1,))
        return jnp.matmul(image, text.T, precision=HIGHEST) + bias


class GCNText(nn.Module):
    """Both paths and the metric in one tree."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts: params/{image,text,metric}."""
        self.image = ImagePath(self.cfg)
        self.text = TextPath(self.cfg)
        self.metric = Metric()

    def __call__(self, inputs: Batch, operator: Any, words: Array) -> Array:
        """Touches every parameter."""
        return self.metric(self.image(inputs).feature, self.text(operator, words).feature)

    def embed_image(self, inputs: Batch, train: bool = False, axis: str | None = None, keys=None):
        """`Embedded` images."""
        return self.image(inputs, train, axis, keys)

    def embed_text(self, operator: Any, words: Array, keys=None, taps=None):
        """`Embedded` texts."""
        return self.text(operator, words, keys, taps)

    def compare(self, image: Array, text: Array, keep: Array | None = None):
        """Logits of all pairs."""
        return self.metric(image, text, keep)


def word_weights(text: Array, idf: Array, weighting: str) -> Array:
    """What texts put on the vertices, [b, v].

    Args:
      text: word ids [b, t], or weights [b, v] of float type, which are returned.
      idf: [v] inverse document frequencies.
      weighting: "counts", or "tfidf" at unit length; a text without a known word is 0.
    """
    if jnp.issubdtype(text.dtype, jnp.floating):
        return text
    rows = jnp.arange(text.shape[0])[:, None]
    known = (text >= SPECIAL_WORDS).astype(jnp.float32)
    counts = jnp.zeros((text.shape[0], len(idf))).at[rows, text].add(known)
    if weighting == "counts":
        return counts
    weighted = counts * idf
    norm = jnp.linalg.norm(weighted, axis=1, keepdims=True)
    return weighted / jnp.where(norm > 0, norm, 1.0)


def same_class(image: Array, text: Array) -> Array:
    """Probability that two items are of one class, [n, m], of log posteriors [n, c], [m, c]."""
    return jnp.matmul(jnp.exp(image), jnp.exp(text).T, precision=HIGHEST)


def operator_of(stored: Mapping[str, Array], cfg: Config) -> Any:
    """The scaled Laplacian from the collection `graph` of the variables."""
    num_words = len(stored["idf"])
    graph = graphs.from_arrays(stored["senders"], stored["receivers"], stored["weights"], num_words)
    return graphs.to_dense(graph, num_words) if cfg.dense else graph


def first_taps(variables: Variables, text: Array, cfg: Config) -> Array:
    """What the first convolution mixes, [n, v, f, k]: it depends on data alone, so a corpus that is
    read many times may compute it once and bring it along as "taps".
    """
    stored = variables["graph"]
    words = word_weights(text, stored["idf"], cfg.weighting)
    signal = jnp.swapaxes(words.reshape(*words.shape[:2], -1), 0, 1)
    taps = taps_of(operator_of(stored, cfg), signal, cfg.num_taps, cfg.convolution)
    return jnp.transpose(taps, (2, 1, 3, 0))


class Batched(NamedTuple):
    """A batch as the objective sees it."""

    image: Embedded
    text: Embedded
    label: Array
    """[b], class where the data gives one, else the item's id: equal ones match."""
    keep: Array | None
    """[b, d], dropout of the product of embeddings, drawn once a text."""


def objective_terms(
    here: Batched, logits: Array, everywhere: Batched, cfg: Config, axis: str | None
) -> Terms:
    """The parts of the objective: this device's images against the texts of all devices.

    Args:
      here: this device's items.
      logits: [b, B] of the metric.
      everywhere: the items of all devices.
      cfg: weights.
      axis: name of the device axis.
    """
    terms: dict[str, Term] = {}
    match = here.label[:, None] == everywhere.label[None, :]
    if cfg.pair_weight:
        pairs = pairwise_global(logits, match, None, cfg.gap_weight, cfg.margin, axis)
        terms |= {n: t._replace(weight=t.weight * cfg.pair_weight) for n, t in pairs.items()}
    if cfg.class_weight:
        for name, item in (("image_class", here.image), ("text_class", here.text)):
            own = jnp.take_along_axis(item.log_posterior, here.label[:, None], axis=1)
            terms[name] = Term(-jnp.sum(own), len(own), cfg.class_weight)
    if cfg.agree_weight:
        same = same_class(here.image.log_posterior, everywhere.text.log_posterior)
        right = jnp.clip(jnp.where(match, same, 1.0 - same), 1e-6)
        terms["agree"] = Term(-jnp.sum(jnp.log(right)), right.size, cfg.agree_weight)
    return terms


def make(cfg: Mapping[str, Any], word_graph: Any) -> Task:
    """The system that `config.model` describes; see `Config`.

    Args:
      cfg: config.model.
      word_graph: from `data.word_graph`: `graph`, the scaled Laplacian, and `idf` [v]. Both become
        part of the variables, so that a checkpoint is whole.
    """
    config = make_config(cfg)
    model = GCNText(config)

    def words_of(variables: Variables, text: Array) -> Array:
        return word_weights(text, variables["graph"]["idf"], config.weighting)

    def init(key: Array, batch: Batch) -> Variables:
        graph = word_graph.graph
        stored = {
            "senders": jnp.asarray(graph.senders),
            "receivers": jnp.asarray(graph.receivers),
            "weights": jnp.asarray(graph.edges),
            "idf": jnp.asarray(word_graph.idf, jnp.float32),
        }
        one = {name: x[:1] for name, x in batch.items()}
        words = word_weights(one["text"], stored["idf"], config.weighting)
        return {
            **jax.jit(model.init)(key, one, operator_of(stored, config), words),
            "graph": stored,
        }

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        stored, rows = variables["graph"], len(batch["text"])
        image_key, text_key, product_key = jax.random.split(key, 3)
        image, mutables = model.apply(
            variables,
            batch,
            train=True,
            axis=axis,
            keys=parallel.example_keys(image_key, rows, axis),
            method="embed_image",
            mutable=["batch_stats"],
        )
        text: Any = model.apply(
            variables,
            operator_of(stored, config),
            words_of(variables, batch["text"]),
            parallel.example_keys(text_key, rows, axis),
            batch.get("taps"),
            method="embed_text",
        )
        keep = None
        if config.product_dropout_rate:
            keys = parallel.example_keys(product_key, rows, axis)
            keep = dropout(jnp.ones_like(text.feature), config.product_dropout_rate, keys, site=3)
        here = Batched(image, text, batch.get("label", batch["id"]), keep)
        everywhere = parallel.all_gather(here, axis)
        logits: Any = model.apply(
            variables, image.feature, everywhere.text.feature, everywhere.keep, method="compare"
        )
        return objective_terms(here, logits, everywhere, config, axis), mutables

    def encode_image(variables: Variables, inputs: Batch) -> Embedded:
        return model.apply(variables, inputs, method="embed_image")  # pyright: ignore

    def encode_text(variables: Variables, inputs: Batch) -> Embedded:
        operator = operator_of(variables["graph"], config)
        words = words_of(variables, inputs["text"])
        return model.apply(variables, operator, words, method="embed_text")  # pyright: ignore

    def score(variables: Variables, query: Embedded, gallery: Embedded) -> Array:
        if config.score == "posterior":
            return same_class(query.log_posterior, gallery.log_posterior)
        logits = model.apply(variables, query.feature, gallery.feature, method="compare")
        return jnp.asarray(logits)

    return Task(init, loss, {"image": encode_image, "text": encode_text}, score)
