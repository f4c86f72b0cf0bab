"""Probabilistic cross-modal embeddings: PCME, PCME++ and their deterministic twins.

Chun et al., CVPR 2021 (https://arxiv.org/abs/2101.05068) and Chun, ICLR 2024
(https://arxiv.org/abs/2305.18171). An image or a text is a Gaussian with diagonal covariance on
the unit sphere's surroundings; a pair matches with a probability that falls with the distance of
samples (PCME) or with the expected squared distance in closed form (PCME++).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jcmr.core import dtypes, parallel
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Term, Terms, Variables
from jcmr.losses import probabilistic as losses
from jcmr.losses.targets import Side, Targets, batch_sides, flat_captions, pair_targets
from jcmr.models.encoders import gaussian_towers as towers
from jcmr.models.encoders.gaussian_towers import Outputs
from jcmr.ops.chunks import map_over_chunks, sum_over_chunks
from jcmr.ops.gaussian import csd, expected_likelihood, spherical_likelihood
from jcmr.ops.mixing import mix_images


@dataclasses.dataclass(frozen=True)
class Config(towers.TowerConfig):
    """Options of `config.model`; what the official code does differently is in `PARITY`."""

    method: str = "pcme"
    """What the loss compares: "pcme" samples, "pcmepp" the closed-form expected distance; and, as a
    softmax at temperature 1 / negative_scale over the batch, "infonce" the cosine of the means,
    "likelihood" the log expected likelihood per dimension (`ops.gaussian`). In the last alone an
    item that is spread wide is near to more: its variance then tells how much it could mean."""
    num_samples: int = 7
    score: str = "matching_prob"
    """"matching_prob" or "matmul" over all pairs of samples, "csd" (minus the expected squared
    distance), "likelihood", or "cosine" of the means."""
    vagueness_penalty: float = 0.0
    """What the score "likelihood" takes off a text for each unit of its log variance. Images are
    ranked for a text as without it; among texts for an image, of two that are as true the one wins
    that says more."""
    init_shift: float = 15.0
    init_negative_scale: float = 15.0
    vib_weight: float = 1e-5
    uniform_weight: float = 0.0
    uniform_duplicates: bool = False
    """Draws the samples of the uniformity loss with replacement, as the official code does."""
    pseudo_positive_weight: float = 0.0
    """Of PCME++'s second loss, in which a row's columns that score above its own are positives."""
    chunk: int = 0
    """Images whose losses with all captions are computed at a time, to save memory; 0 = all."""
    tower_chunk: int = 0
    """Images, with their captions, that go through the towers of a device at a time, to save
    memory: the loss still compares the whole batch (`ops.chunks.map_over_chunks`), BatchNorm sees
    that many. 0 = all."""
    mix_rate: float = 0.0
    """Share of images that are mixed with another one of the batch (PCME++)."""
    label_smoothing: float = 0.0
    reduction: str = "captions"
    """What the matching loss over all pairs is divided by: the number of "captions" or of "pairs",
    or nothing ("sum")."""
    both_directions: bool = False
    """Counts the symmetric matching loss twice, as image to text and as text to image."""
    duplicates: str = "positive"
    """Pairs whose images have the same id in one batch: "positive", "masked" or "negative"."""
    mask_true_positives: bool = False
    """Masks pairs that match although the caption was written for another image; needs the
    batch's "scene_code" and "caption_code"."""
    scale: str = "log_var"
    """What the uncertainty heads give: "log_var", or "log_std" as in the official sampling."""
    spherical: bool = False
    """One variance an item, the geometric mean of what its head gives for each dimension."""
    official_vib: bool = False
    """Divergence of the samples' mean, reading the heads' output as log variance whatever `scale`
    is; the author calls it a mistake."""
    parity: bool = False
    """Sets the conventions of the official code, `PARITY`."""


PARITY = {
    "readout": "last_word",
    "scale": "log_std",
    "official_vib": True,
    "uniform_duplicates": True,
    "reduction": "sum",
    "both_directions": True,
    "duplicates": "negative",
}
SCORE_OPTIONS = ("score", "vagueness_penalty")
"""What a trained run can be evaluated with another value of."""
CHOICES = {
    **towers.CHOICES,
    "method": ("pcme", "pcmepp", "infonce", "likelihood"),
    "score": ("matching_prob", "matmul", "csd", "likelihood", "cosine"),
    "reduction": ("captions", "pairs", "sum"),
    "duplicates": ("positive", "masked", "negative"),
    "scale": ("log_var", "log_std"),
}

COMPARES_WITHIN = True
"""Items of one modality can be scored with each other, too."""


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value.
    """
    config = make_options(Config, cfg, CHOICES, "pcme", PARITY)
    if config.deterministic and "likelihood" in (config.method, config.score):
        raise ValueError(
            "A point has no likelihood: with config.model.deterministic set config.model.method to "
            "'infonce' and config.model.score to 'cosine'."
        )
    return config


POINT_LOG_VAR = -30.0
"""Log variance of deterministic embeddings: no variance in float32, and still a number."""
NOISE = 7
"""Sets the keys of samples apart from those of dropout."""


class Criterion(nn.Module):
    """The two scalars that turn a distance into a logit, learned with the towers."""

    cfg: Config

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """(shift, negative scale)."""
        constant = nn.initializers.constant
        return (
            self.param("shift", constant(self.cfg.init_shift), ()),
            self.param("negative_scale", constant(self.cfg.init_negative_scale), ()),
        )


class PCME(nn.Module):
    """Both towers and the criterion's parameters in one tree."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts: params/{image,text,criterion}."""
        self.image = towers.ImageTower(self.cfg)
        self.text = (towers.BagTower if self.cfg.text == "bag" else towers.TextTower)(self.cfg)
        self.criterion = Criterion(self.cfg)

    def __call__(self, inputs: Batch, text: Array) -> None:
        """Touches every parameter."""
        self.image(inputs)
        self.text(text)
        self.criterion()

    def embed_image(self, inputs: Batch, train: bool = False, axis: str | None = None, keys=None):
        """Outputs of the image tower."""
        return self.image(inputs, train, axis, keys)

    def embed_text(self, text: Array, keys: Array | None = None):
        """Outputs of the text tower, text [b, t]."""
        return self.text(text, keys)


class Gaussian(NamedTuple):
    """An embedded item; variances are diagonal."""

    mean: Array
    """[n, d], unit length."""
    log_var: Array
    """[n, d]; `POINT_LOG_VAR` where the system is deterministic."""
    samples: Array
    """[n, k, d]; their noise depends on nothing but the item's "id" and modality, so that an item
    embeds the same in every batch. The official code draws anew at each call."""


def uncertainty(embedding: Gaussian) -> Array:
    """One number per item, [n], larger = less certain: the mean of its log variances."""
    return jnp.mean(embedding.log_var, axis=-1)


def log_variance(outputs: Outputs, cfg: Config) -> Array:
    """The log variance that the head means, [b, d]."""
    if outputs.log_scale is None:
        return jnp.full_like(outputs.mean, POINT_LOG_VAR)
    log_scale = outputs.log_scale.astype(outputs.mean.dtype)
    if cfg.spherical:
        log_scale = jnp.broadcast_to(log_scale.mean(-1, keepdims=True), log_scale.shape)
    return 2 * log_scale if cfg.scale == "log_std" else log_scale


def reparametrise(mean: Array, log_var: Array, noise: Array) -> Array:
    """Samples [b, k, d] of Gaussians [b, d] from standard normal noise [b, k, d]."""
    return mean[:, None] + jnp.exp(log_var / 2)[:, None] * noise


def draw(outputs: Outputs, keys: Array, cfg: Config) -> Gaussian:
    """The Gaussian and its samples, one key per item; the mean alone when deterministic."""
    mean, log_var = outputs.mean, log_variance(outputs, cfg)
    if cfg.deterministic:
        return Gaussian(mean, log_var, mean[:, None])
    shape = (cfg.num_samples, mean.shape[-1])
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, mean.dtype))(keys)
    return Gaussian(mean, log_var, reparametrise(mean, log_var, noise))


def fold(keys: Array, number: int) -> Array:
    """Other keys of the same examples, [b]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def item_keys(inputs: Batch, rows: int, modality: int) -> Array:
    """Keys that only the items' ids decide; an item without one, such as a query, has id 0."""
    ids = inputs["id"] if "id" in inputs else jnp.zeros(rows, jnp.int32)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(modality), i))(ids)


class Embedded(NamedTuple):
    """A batch as the objective sees it."""

    image: Gaussian
    caption: Gaussian
    image_scale: Array | None
    """What the heads gave, [b, d]."""
    caption_scale: Array | None
    images: Side
    captions: Side
    own_share: Array
    """[b], what an image kept of itself when images were mixed."""


def embed_batch(
    model: PCME, variables: Variables, batch: Batch, key: Array, axis: str | None
) -> tuple[Embedded, Mapping[str, Any]]:
    """Both towers in training; also the new values of the mutable collections."""
    cfg = model.cfg
    text, _, _ = flat_captions(batch)
    images, captions = batch_sides(batch, axis)
    rows = len(batch["text"])
    image_key, text_key, mix_key = jax.random.split(key, 3)
    image_keys = parallel.example_keys(image_key, rows, axis)
    text_keys = parallel.example_keys(text_key, len(text), axis)
    own_share = jnp.ones(rows)
    if cfg.mix_rate:
        mixed, own_share = mix_images(batch["image"], mix_key, axis, cfg.mix_rate)
        batch = {**batch, "image": mixed}

    def embed(part: tuple[Batch, Array, Array, Array]) -> tuple[tuple[Outputs, Outputs], Any]:
        batch, keys, text, text_keys = part
        image, mutables = model.apply(
            variables,
            batch,
            train=True,
            axis=axis,
            keys=keys,
            method="embed_image",
            mutable=["batch_stats"],
        )
        text, text_keys = text.reshape(-1, text.shape[-1]), text_keys.reshape(-1)
        caption: Any = model.apply(variables, text, text_keys, method="embed_text")
        return (image, caption), mutables

    own_texts, own_keys = text.reshape(rows, -1, text.shape[-1]), text_keys.reshape(rows, -1)
    parts = batch, image_keys, own_texts, own_keys
    (image, caption), mutables = map_over_chunks(embed, parts, cfg.tower_chunk)
    return Embedded(
        draw(image, fold(image_keys, NOISE), cfg),
        draw(caption, fold(text_keys, NOISE), cfg),
        image.log_scale,
        caption.log_scale,
        images,
        captions,
        own_share,
    ), mutables


def cosine(x: Gaussian, y: Gaussian) -> Array:
    """Of the means, [n, m]."""
    return jnp.matmul(x.mean, y.mean.T, precision=dtypes.HIGHEST)


def log_likelihood(x: Gaussian, y: Gaussian, cfg: Config) -> Array:
    """Log expected likelihood per dimension, [n, m]."""
    if cfg.spherical:
        total = spherical_likelihood(x.mean, x.log_var[:, 0], y.mean, y.log_var[:, 0])
    else:
        total = expected_likelihood(x.mean, x.log_var, y.mean, y.log_var)
    return total / x.mean.shape[-1]


def objective_terms(
    here: Embedded, criterion: Mapping[str, Array], cfg: Config, key: Array, axis: str | None
) -> Terms:
    """The parts of the objective: this device's items against those of all devices."""
    everywhere = parallel.all_gather(here, axis)
    one = 1.0 / (1 if axis is None else lax.axis_size(axis))  # adds up to 1 over devices
    shift, scale = criterion["shift"], criterion["negative_scale"]

    def targets(images: Side, captions: Side, own_share: Array) -> Targets:
        return pair_targets(
            images,
            captions,
            cfg.duplicates,
            cfg.mask_true_positives,
            own_share if cfg.mix_rate else None,
            len(everywhere.own_share),
            cfg.label_smoothing,
        )

    def to_text(images: Side, own_share: Array) -> Targets:
        return targets(images, everywhere.captions, own_share)

    def to_image(captions: Side) -> Targets:
        transposed = targets(everywhere.images, captions, everywhere.own_share)
        return Targets(*(x.T for x in transposed))

    def logits(x: Gaussian, y: Gaussian) -> Array:
        return shift - scale * csd(x.mean, x.log_var, y.mean, y.log_var)

    def match(rows: tuple[Gaussian, Side, Array, Array]) -> tuple[Array, Array]:
        image, images, own_share, own = rows
        pairs = to_text(images, own_share)
        if cfg.method == "pcme":
            samples = image.samples, everywhere.caption.samples
            loss = losses.soft_contrastive(*samples, shift, scale, pairs, own)
        else:
            loss = losses.binary_cross_entropy(logits(image, everywhere.caption), pairs)
        return loss, jnp.sum(pairs.valid)

    def pseudo_positive(x: Gaussian, y: Gaussian, pairs: Targets) -> Array:
        scores = logits(x, y)
        return losses.binary_cross_entropy(scores, losses.pseudo_positives(scores, pairs))

    num_images, num_captions = len(here.image.mean), len(here.caption.mean)
    terms = {}

    if cfg.method in ("pcme", "pcmepp"):
        first = parallel.first_row(num_captions, axis)
        own = (first + jnp.arange(num_captions)).reshape(num_images, -1)
        rows = here.image, here.images, here.own_share, own
        total, num_pairs = sum_over_chunks(match, rows, cfg.chunk)
        count = {"captions": num_captions, "pairs": num_pairs, "sum": one}[cfg.reduction]
        terms["match"] = Term(total, count, 2.0 if cfg.both_directions else 1.0)
        if cfg.method == "pcmepp" and cfg.pseudo_positive_weight:
            total = sum_over_chunks(
                lambda rows: pseudo_positive(rows[0], everywhere.caption, to_text(*rows[1:])),
                (here.image, here.images, here.own_share),
                cfg.chunk,
            ) + sum_over_chunks(
                lambda rows: pseudo_positive(rows[0], everywhere.image, to_image(rows[1])),
                (here.caption, here.captions),
                cfg.chunk,
            )
            terms["pseudo_positive"] = Term(total, count, cfg.pseudo_positive_weight)
    else:

        def rank(x: Gaussian, y: Gaussian, pairs: Targets) -> Array:
            scores = log_likelihood(x, y, cfg) if cfg.method == "likelihood" else cosine(x, y)
            return losses.cross_entropy(scale * scores, pairs)

        total = sum_over_chunks(
            lambda rows: rank(rows[0], everywhere.caption, to_text(*rows[1:])),
            (here.image, here.images, here.own_share),
            cfg.chunk,
        )
        terms["image_to_text"] = Term(total, num_images, 0.5)
        total = sum_over_chunks(
            lambda rows: rank(rows[0], everywhere.image, to_image(rows[1])),
            (here.caption, here.captions),
            cfg.chunk,
        )
        terms["text_to_image"] = Term(total, num_captions, 0.5)

    if here.image_scale is not None and here.caption_scale is not None:
        for name, gaussian, log_scale, rows in (
            ("vib_image", here.image, here.image_scale, num_images),
            ("vib_text", here.caption, here.caption_scale, num_captions),
        ):
            counts = {"captions": rows, "pairs": gaussian.mean.size, "sum": one}
            if cfg.official_vib:
                kl = losses.divergence(gaussian.samples.mean(1), log_scale)
            else:
                kl = losses.divergence(gaussian.mean, gaussian.log_var)
            terms[name] = Term(kl, counts[cfg.reduction], cfg.vib_weight)
            spread = jnp.sum(uncertainty(gaussian))
            terms[name.replace("vib", "log_var")] = Term(spread, rows, 0.0)
    if cfg.uniform_weight:
        samples = (everywhere.image.samples, everywhere.caption.samples)
        flat = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in samples])
        drawn = losses.uniform_rows(key, len(flat), cfg.uniform_duplicates)
        uniformity = losses.uniformity(flat if drawn is None else flat[drawn])
        terms["uniformity"] = Term(uniformity * one, one, cfg.uniform_weight)
    terms["shift"], terms["negative_scale"] = Term(shift, 1.0, 0.0), Term(scale, 1.0, 0.0)
    return terms


def with_word_vectors(variables: Variables, vectors: np.ndarray, found: np.ndarray) -> Variables:
    """Variables whose word embeddings start from `vectors` [v, d] where `found` [v].

    Raises:
      ValueError: the vectors do not have the size of the embeddings.
    """
    params = variables["params"]
    table = params["text"]["embed"]["embedding"]
    if table.shape != vectors.shape:
        raise ValueError(
            f"The word vectors have the shape {vectors.shape}, the model's embeddings "
            f"{table.shape}. Set config.model.word_dim to {vectors.shape[1]}."
        )
    table = jnp.where(found[:, None], vectors, table)
    text = {**params["text"], "embed": {"embedding": table}}
    return {**variables, "params": {**params, "text": text}}


def with_linear_start(variables: Variables, start: Any) -> Variables:
    """Variables whose towers begin as the linear maps of `train.linear_start.LinearStart`.

    Raises:
      ValueError: the towers of the config are not linear.
    """
    params = variables["params"]
    image = params["image"]
    if "mean" not in params["text"] or "pie_net" in image["head"] or "backbone" in image:
        raise ValueError(
            "config.train.init_from = 'cca' needs config.model.image = 'regions', region_dim = 0, "
            "text = 'bag' and attention = False."
        )
    fc = {"kernel": start.image_kernel, "bias": start.image_bias}
    words = {
        "embed": {"embedding": start.word_vectors},
        "weights": start.word_weights,
        "bias": start.text_bias,
    }
    new = {
        **params,
        "image": {**image, "head": {**image["head"], "fc": fc}},
        "text": {**params["text"], "mean": words},
    }
    if "log_scale" in params["text"]:
        new["text"]["log_scale"] = {**params["text"]["log_scale"], "weights": start.word_weights}
    new = jax.tree.map(lambda old, x: jnp.asarray(x, old.dtype).reshape(old.shape), params, new)
    return {**variables, "params": new}


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`."""
    config = make_config(cfg)
    model = PCME(config)

    def init(key: Array, batch: Batch) -> Variables:
        one = {name: x[:1] for name, x in batch.items()}
        text, _, _ = flat_captions(one)
        return jax.jit(model.init)(key, one, text)

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        embed_key, uniform_key = jax.random.split(key)
        embedded, mutables = embed_batch(model, variables, batch, embed_key, axis)
        criterion = variables["params"]["criterion"]
        return objective_terms(embedded, criterion, config, uniform_key, axis), mutables

    def encode_image(variables: Variables, inputs: Batch) -> Gaussian:
        outputs: Any = model.apply(variables, inputs, method="embed_image")
        return draw(outputs, item_keys(inputs, outputs.mean.shape[0], 0), config)

    def encode_text(variables: Variables, inputs: Batch) -> Gaussian:
        outputs: Any = model.apply(variables, inputs["text"], method="embed_text")
        return draw(outputs, item_keys(inputs, outputs.mean.shape[0], 1), config)

    def score(variables: Variables, query: Gaussian, gallery: Gaussian) -> Array:
        criterion = variables["params"]["criterion"]
        if config.score == "matching_prob":
            return losses.log_match_probability(
                query.samples, gallery.samples, criterion["shift"], criterion["negative_scale"]
            )[0]
        if config.score == "matmul":
            return query.samples.sum(1) @ gallery.samples.sum(1).T
        if config.score == "csd":
            return -csd(query.mean, query.log_var, gallery.mean, gallery.log_var)
        if config.score == "likelihood":
            # Images are always the query, see `Task.score`.
            vagueness = config.vagueness_penalty * uncertainty(gallery)
            return log_likelihood(query, gallery, config) - vagueness
        return cosine(query, gallery)

    return Task(init, loss, {"image": encode_image, "text": encode_text}, score)
