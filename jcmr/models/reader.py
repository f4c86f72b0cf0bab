"""XTRA: answers to visual questions by a transformer that also reads retrieved captions.

Gur et al., Findings of EMNLP 2021 (https://arxiv.org/abs/2104.08108), of which the abstract and
introduction were the source; what they leave open is this project's choice. Tokens are the grid or
regions of a picture, the words of a question, and the words of K retrieved captions, which know
their rank and their score. Answers are scored by their own words' vectors, so that a word of a
caption can be given as an answer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core import dtypes, parallel
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Term, Variables
from jcmr.losses.answers import answer_loss
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.pie import dropout
from jcmr.models.encoders.regions import Regions
from jcmr.models.encoders.transformer import SITES, Attention
from jcmr.ops.pack import pack
from jcmr.ops.position import sine_positions


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`; those that are 0 come from the data."""

    image: str = "compact"
    """"compact" for pixels, "regions" for precomputed features."""
    vocab_size: int = 0
    num_answers: int = 0
    width: int = 256
    num_layers: int = 4
    num_heads: int = 4
    hidden: int = 1024
    """Between the linear layers of the transformer."""
    fusion: str = "concat"
    """"concat", every token attends to every other; "fid", each caption is read with the question
    alone and a last token attends to all, which costs no more than linear in K."""
    max_caption_words: int = 0
    """Most words of a question's captions that "concat" reads, the best captions first; 0 is all.
    Attention costs the square of what is read, pads included: most captions are far shorter than
    the longest one. A caption's picture, where readers get it, counts as a word."""
    grid: bool = True
    """Tells image tokens where in a square grid they are; False for detected regions."""
    tower_widths: tuple[int, int, int] = (48, 128, 256)
    """Channels of the two stages of the compact tower, and of what it gives."""
    pool: int = 1
    """Side of the squares of the compact tower's grid that become a token, by their maximum."""
    normalise_regions: bool = False
    dropout_rate: float = 0.0
    no_caption_rate: float = 0.1
    """Share of training questions that are asked without captions."""
    other_caption_rate: float = 0.1
    """Share that get those of another question."""
    dtype: str = "float32"


SEEN = ("image", "regions")
"""What a batch may hold of pictures; all else belongs to questions."""
CHOICES = {"image": ("compact", "regions"), "fusion": ("concat", "fid")}
PICTURE, QUESTION, CAPTION, FOUND = range(4)
"""Segments."""


class Layer(nn.Module):
    """x + attention(norm(x)), then x + linear(gelu(linear(norm(x)))).

    With a context the tokens attend to it and not to each other.
    """

    cfg: Config
    site: int
    first: bool = False
    """Computes the first token alone, as nobody reads the others of a last layer."""

    @nn.compact
    def __call__(
        self, x: Array, context: Array | None, mask: Array, keys: Array | None = None
    ) -> Array:
        """X [b, t, d], context [b, s, d] with its mask [b, s], dropout keys [b] -> [b, t, d]."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)

        def norm(name: str, y: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)(y)

        def drop(y: Array, site: int) -> Array:
            return dropout(y, cfg.dropout_rate, keys, self.site + site)

        y = norm("attention_norm", x)
        context = y if context is None else norm("context_norm", context)
        x, y = (x[:, :1], y[:, :1]) if self.first else (x, y)
        attention = Attention(
            cfg.num_heads, cfg.dropout_rate, site=self.site, dtype=dtype, name="attention"
        )
        x = x + drop(attention(y, context, mask, keys), 1)
        y = nn.gelu(nn.Dense(cfg.hidden, dtype=dtype, name="first")(norm("norm", x)))
        return x + drop(nn.Dense(cfg.width, dtype=dtype, name="second")(drop(y, 2)), 3)


class Places(nn.Module):
    """Learned vectors of positions or ranks."""

    width: int

    @nn.compact
    def __call__(self, size: int) -> Array:
        """[size, width]."""
        return self.param("table", nn.initializers.normal(0.02), (size, self.width))


def ungrouped(batch: Batch) -> Batch:
    """Questions in groups about p pictures, [p, q, ...], as [p q, ...]; pictures stay [p, ...]."""
    if batch["question"].ndim == 2:
        return batch
    return {n: x if n in SEEN else x.reshape(-1, *x.shape[2:]) for n, x in batch.items()}


def times_asked(batch: Batch) -> int:
    """How many questions in a row are about each picture of an ungrouped batch."""
    return len(batch["question"]) // len(next(batch[name] for name in SEEN if name in batch))


def largest(x: Array, side: int) -> Array:
    """The maxima of squares of a grid [b, h, w, c], [b, h / side, w / side, c].

    Raises:
      ValueError: the squares do not cover the grid.
    """
    b, h, w, c = x.shape
    if h % side or w % side:
        raise ValueError(
            f"config.model.pool is {side}, which does not divide the {h}x{w} grid of the tower."
        )
    return x.reshape(b, h // side, side, w // side, side, c).max(axis=(2, 4))


def repeat(x: Array, times: int) -> Array:
    """Each row `times` times, [b, ...] -> [b * times, ...]."""
    return jnp.repeat(x, times, axis=0)


class Reader(nn.Module):
    """From a picture, a question and captions to a vector that answers are compared with."""

    cfg: Config
    answer_text: tuple[tuple[int, ...], ...]
    """[v][a], 0 = pad: word ids of each answer."""

    def setup(self) -> None:
        """The parts."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.image == "compact":
            *widths, features = cfg.tower_widths
            self.backbone: Any = CompactNet((widths[0], widths[1]), features, dtype=dtype)
        else:
            self.backbone = Regions(0, cfg.normalise_regions, cfg.dropout_rate)
        small = nn.initializers.normal(0.02)
        self.project = nn.Dense(cfg.width, dtype=dtype)
        init = nn.initializers.normal(cfg.width**-0.5)
        self.words = nn.Embed(cfg.vocab_size, cfg.width, embedding_init=init)
        self.segments = nn.Embed(4, cfg.width, embedding_init=small)
        self.score_in = nn.Dense(cfg.width, kernel_init=small)
        self.vector_in = nn.Dense(cfg.width, dtype=dtype)
        self.start = self.param("start", small, (1, 1, cfg.width))
        self.question_places, self.caption_places = Places(cfg.width), Places(cfg.width)
        self.ranks = Places(cfg.width)
        sites = [SITES * i for i in range(1, 2 * cfg.num_layers + 1)]
        last = sites[cfg.num_layers - 1] if cfg.fusion == "concat" else None
        self.layers = [Layer(cfg, site, site == last) for site in sites[: cfg.num_layers]]
        if cfg.fusion == "fid":
            self.joins = [Layer(cfg, site) for site in sites[cfg.num_layers :]]
        self.norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        self.to_answer = nn.Dense(cfg.width)
        rare = nn.initializers.constant(-float(np.log(len(self.answer_text))))
        self.answer_bias = self.param("answer_bias", rare, (len(self.answer_text),))

    def picture(self, inputs: Batch, train: bool, axis: str | None, keys: Array | None) -> Array:
        """Image tokens [b, r, width]."""
        cfg = self.cfg
        if cfg.image == "compact":
            x = self.backbone(inputs["image"], train, axis)
            x = largest(x, cfg.pool)
            x = x.reshape(len(x), -1, x.shape[-1])
        else:
            x = self.backbone(inputs["regions"], keys)
        x = self.project(x)
        side = int(x.shape[1] ** 0.5)
        if cfg.grid and side * side == x.shape[1]:
            x = x + sine_positions(side, side, cfg.width).reshape(1, -1, cfg.width).astype(x.dtype)
        return x + self.segments(jnp.asarray(PICTURE))

    def sentence(self, text: Array, segment: int, places: Places) -> Array:
        """Word tokens of text [..., t], [..., t, width]."""
        x = self.words(text) * self.cfg.width**0.5
        return x + places(text.shape[-1]) + self.segments(jnp.asarray(segment))

    def captions(self, inputs: Batch) -> tuple[Array, Array]:
        """Tokens of the captions [b, k, t, width] and which are there [b, k, t].

        A caption knows its rank and its score, where it has a word.
        """
        text = inputs["retrieved"]
        ranks = self.ranks(text.shape[1])[:, None]
        score = self.score_in(inputs["retrieved_score"][..., None])[:, :, None]
        x = self.sentence(text, CAPTION, self.caption_places) + ranks + score
        mask = text > 0
        if "retrieved_vector" in inputs:
            found = self.vector_in(inputs["retrieved_vector"])[:, :, None] + ranks
            found = found + self.segments(jnp.asarray(FOUND))
            x = jnp.concatenate([x, found], axis=2)
            mask = jnp.concatenate([mask, mask.any(axis=2, keepdims=True)], axis=2)
        return x, mask

    def embed_question(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Array:
        """What the answer should be like, [b, width].

        Args:
          inputs: "question" [b, q]; "image" or "regions" of as many pictures, or of a divisor p:
            then of each b / p questions in a row; where captions are looked up, "retrieved" word
            ids [b, k, t], all 0 where there is none, "retrieved_score" [b, k], and optionally
            "retrieved_vector" [b, k, e], embeddings of their pictures.
          train: use and record batch statistics.
          axis: device axis.
          keys: [b], of dropout.
        """
        text = inputs["question"]
        rows = len(text)
        times = times_asked(inputs)
        picture = self.picture(inputs, train, axis, None if keys is None else keys[::times])
        # What a picture shows reaches the answer without a detour, as the towers learn little from
        # what attention does not find yet.
        start = self.start + dtypes.at_least_float32(picture).mean(axis=1, keepdims=True)
        asked = self.sentence(text, QUESTION, self.question_places)
        seen = jnp.concatenate([start, picture], axis=1)
        seen = jnp.concatenate([repeat(seen, times), asked], axis=1)
        ones = jnp.ones((rows, seen.shape[1] - text.shape[1]), bool)
        mask = jnp.concatenate([ones, text > 0], axis=1)
        captions = self.captions(inputs) if "retrieved" in inputs else None
        if self.cfg.fusion == "fid":
            x = self.join(seen, mask, asked, text > 0, captions, keys)
        else:
            if captions is not None:
                found, real = (x.reshape(rows, -1, *x.shape[3:]) for x in captions)
                if 0 < self.cfg.max_caption_words < real.shape[1]:
                    found, real = pack(found, real, self.cfg.max_caption_words)
                seen = jnp.concatenate([seen, found], axis=1)
                mask = jnp.concatenate([mask, real], axis=1)
            x = self.read(seen, mask, keys)
        return self.to_answer(self.norm(x[:, 0]))

    def read(self, x: Array, mask: Array, keys: Array | None) -> Array:
        """Every token attends to every other."""
        for layer in self.layers:
            x = layer(x, None, mask, keys)
        return x

    def join(self, seen, mask, asked, asked_mask, captions, keys) -> Array:
        """Reads the picture, and each caption, with the question; then the start token all."""
        x = self.read(seen, mask, keys)
        context, real = x, mask
        if captions is not None:
            found, found_mask = captions
            b, k, t, d = found.shape
            pairs = jnp.concatenate([repeat(asked, k), found.reshape(b * k, t, d)], axis=1)
            both = jnp.concatenate([repeat(asked_mask, k), found_mask.reshape(b * k, t)], axis=1)
            pairs = self.read(pairs, both, None if keys is None else repeat(keys, k))
            # Without its caption a question alone says nothing new.
            both &= found_mask.any(axis=2).reshape(b * k, 1)
            context = jnp.concatenate([context, pairs.reshape(b, -1, d)], axis=1)
            real = jnp.concatenate([real, both.reshape(b, -1)], axis=1)
        x = x[:, :1]
        for layer in self.joins:
            x = layer(x, context, real, keys)
        return x

    def embed_answers(self, ids: Array) -> tuple[Array, Array]:
        """Vectors [n, width], the means over their words, and biases [n] of answers."""
        text = jnp.asarray(self.answer_text)[ids]
        real = (text > 0)[..., None]
        vectors = jnp.sum(jnp.where(real, self.words(text), 0), axis=1)
        return vectors / jnp.maximum(real.sum(axis=1), 1), self.answer_bias[ids]

    def __call__(self, inputs: Batch) -> None:
        """Touches every parameter."""
        self.embed_question(inputs)
        self.embed_answers(jnp.arange(1))


def score(variables: Variables, query: Array, gallery: tuple[Array, Array]) -> Array:
    """Logits of answers [q, v]."""
    del variables
    vectors, bias = gallery
    query, vectors = dtypes.at_least_float32(query), dtypes.at_least_float32(vectors)
    return jnp.matmul(query, vectors.T, precision=dtypes.HIGHEST) + bias


def drop_captions(batch: Batch, key: Array, axis: str | None, cfg: Config) -> Batch:
    """A batch in which some questions get no captions, and some those of the next picture.

    So the reader learns to answer from the picture where it can, and not to trust whatever it is
    given. What an example gets does not depend on the number of devices.
    """
    names = [name for name in batch if name.startswith("retrieved")]
    if not names or not (cfg.no_caption_rate or cfg.other_caption_rate):
        return batch
    rows = len(batch["question"])
    draw = jax.vmap(jax.random.uniform)(parallel.example_keys(key, rows, axis))
    first, (everyone, total) = parallel.first_row(rows, axis), gathered(batch, names, axis)
    following = (first + jnp.arange(rows) + times_asked(batch)) % total
    none = draw < cfg.no_caption_rate
    other = ~none & (draw < cfg.no_caption_rate + cfg.other_caption_rate)

    def pick(name: str) -> Array:
        def wide(choice: Array) -> Array:
            return choice.reshape(-1, *[1] * (batch[name].ndim - 1))

        theirs = jnp.take(everyone[name], following, axis=0)
        given = jnp.where(wide(other), theirs, batch[name])
        return jnp.where(wide(none), 0, given)

    return {**batch, **{name: pick(name) for name in names}}


def gathered(batch: Batch, names: list[str], axis: str | None) -> tuple[Batch, int]:
    """Columns of all devices, and how many rows that is."""
    everyone = parallel.all_gather({name: batch[name] for name in names}, axis)
    return everyone, len(everyone[names[0]])


def with_tower(variables: Variables, retriever: Variables) -> Variables:
    """Variables whose image tower starts from that of a retriever.

    Raises:
      ValueError: the retriever has no tower, or one of other shapes.
    """
    found = {}
    for name in ("params", "batch_stats"):
        ours = variables[name]["backbone"]
        theirs = retriever.get(name, {}).get("image", {}).get("backbone")
        if jax.tree.map(jnp.shape, theirs) != jax.tree.map(jnp.shape, ours):
            raise ValueError(
                "config.lookup.share_tower is True, but the retriever has no image tower like "
                "that of config.model; use the same config.model.image, or set it to False."
            )
        # Copied: training steps reuse the memory of their variables, and the retriever goes on.
        found[name] = {**variables[name], "backbone": jax.device_get(theirs)}
    return {**variables, **found}


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option or value.
    """
    options = make_options(Config, cfg, CHOICES, "reader")
    if options.max_caption_words and options.fusion != "concat":
        raise ValueError(
            'config.model.max_caption_words limits what config.model.fusion = "concat" reads; '
            f"{options.fusion} reads each caption by itself, so set it to 0."
        )
    widths = tuple(options.tower_widths)
    if len(widths) != 3:
        raise ValueError(
            f"config.model.tower_widths is {widths}; give three: of the two stages and of what "
            f"the tower gives."
        )
    return dataclasses.replace(options, tower_widths=widths)


def make(cfg: Mapping[str, Any], answer_text: np.ndarray) -> Task:
    """The system that `config.model` describes, for answers with the words int32 [v, a].

    Seen as retrieval, questions (with what they come with) find answers. A batch holds a picture a
    question, or a picture for each group of questions (`ungrouped`), and is encoded as it is held.
    """
    config = make_config(cfg)
    model = Reader(config, tuple(tuple(row) for row in np.asarray(answer_text).tolist()))

    def init(key: Array, batch: Batch) -> Variables:
        return jax.jit(model.init)(key, ungrouped({name: x[:1] for name, x in batch.items()}))

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        caption_key, dropout_key = jax.random.split(key)
        batch = drop_captions(ungrouped(batch), caption_key, axis, config)
        keys = parallel.example_keys(dropout_key, len(batch["question"]), axis)
        wanted, mutables = model.apply(
            variables, batch, True, axis, keys, method="embed_question", mutable=["batch_stats"]
        )
        every = jnp.arange(config.num_answers)
        answers: Any = model.apply(variables, every, method="embed_answers")
        logits = score(variables, wanted, answers)
        total, count = answer_loss(logits, batch["answer"])
        worth = jnp.take_along_axis(batch["answer"], logits.argmax(axis=1)[:, None], axis=1)
        terms = {"answer": Term(total, count), "accuracy": Term(jnp.sum(worth), count, 0.0)}
        return terms, mutables

    def encode_question(variables: Variables, inputs: Batch) -> Any:
        found: Any = model.apply(variables, ungrouped(inputs), method="embed_question")
        return found.reshape(*inputs["question"].shape[:-1], -1)

    def encode_answer(variables: Variables, inputs: Batch) -> Any:
        return model.apply(variables, inputs["id"], method="embed_answers")

    return Task(init, loss, {"question": encode_question, "answer": encode_answer}, score)
