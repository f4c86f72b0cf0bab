"""Pictures: words around a query, an item's representations, and what each attends to."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from jcmr.core.types import RetrievalSplit, Source, Variables
from jcmr.data.image import make_prepare
from jcmr.data.records import take
from jcmr.eval.attention_report import draw_grids
from jcmr.eval.report import BLUE, GREY, ORANGE, STYLE, plt, save
from jcmr.models import gcn_text, gpldan
from jcmr.ops import graph

MAX_WORDS = 60


def ring_layout(distance: np.ndarray) -> np.ndarray:
    """Positions [n, 2]: vertices of equal distance from the query on one ring, the query inside."""
    place = np.zeros((len(distance), 2))
    for ring in np.unique(distance):
        on_ring = np.flatnonzero(distance == ring)
        angle = 2 * np.pi * (np.arange(len(on_ring)) + 0.5 * ring) / len(on_ring)
        radius = ring + (0.45 if len(on_ring) > 1 else 0.0)
        place[on_ring] = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return place


def draw_word_graph(
    words: graph.Graph, names: Sequence[str], weights: np.ndarray, path: Path, steps: int = 1
) -> None:
    """The graph within `steps` edges of a query's words; circles grow with the words' weights.

    Args:
      words: the graph of all words.
      names: of its vertices; their numbers where empty.
      weights: [v], what the query puts on the vertices.
      path: PNG file.
      steps: how far to go; at most `MAX_WORDS` words are drawn, the nearest ones.

    Raises:
      ValueError: the query has no word of the vocabulary.
    """
    own = np.flatnonzero(weights)
    if not len(own):
        raise ValueError("The query holds no word of the vocabulary; there is no graph to draw.")
    own = own[np.argsort(-np.abs(weights[own]), kind="stable")][:MAX_WORDS]
    distance = graph.hops(words, own, steps)
    near = np.flatnonzero(distance >= 0)
    near = near[np.argsort(distance[near], kind="stable")][:MAX_WORDS]
    part = graph.subgraph(words, near)
    place, size = ring_layout(distance[near]), np.abs(weights[near])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 7))
        for sender, receiver in zip(part.senders, part.receivers):
            axis.plot(*place[[sender, receiver]].T, color=GREY, lw=0.6, alpha=0.5, zorder=1)
        colours = [ORANGE if d == 0 else BLUE for d in distance[near]]
        axis.scatter(*place.T, s=30 + 400 * size / size.max(), c=colours, zorder=2)
        for word, (x, y) in zip(near, place):
            label = str(names[word] if len(names) else word)
            axis.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", zorder=3)
        axis.set(title="the query's words (orange, by weight) and their neighbours")
        axis.set_axis_off()
        save(figure, path)


def draw_distances(images: np.ndarray, texts: np.ndarray, path: Path) -> None:
    """Distances 1 - x . y among all representations of a pair.

    Args:
      images: [k, d], unit rows.
      texts: [k, d].
      path: PNG file.
    """
    both = np.concatenate([images, texts])
    names = [f"{side} {i + 1}" for side in ("image", "text") for i in range(len(images))]
    distance = np.maximum(1 - both @ both.T, 0)
    largest = max(distance.max(), 1e-6)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axis = plt.subplots(figsize=(5.2, 4.6))
        shown = axis.imshow(distance, cmap="viridis", vmin=0, vmax=largest)
        for row, column in np.ndindex(*distance.shape):
            colour = "white" if distance[row, column] < 0.6 * largest else "black"
            text = f"{distance[row, column]:.2f}"
            axis.text(column, row, text, ha="center", va="center", size=6, color=colour)
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        axis.set(title="distances among the representations of a pair")
        figure.colorbar(shown)
        save(figure, path)


def draw_attention(
    attention: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]], path: Path
) -> None:
    """What each representation attends to, one panel a modality.

    Args:
      attention: modality -> [t, k] over tokens, of one item.
      names: modality -> [t] names of the tokens; their numbers where absent.
      path: PNG file.
    """
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(len(attention), 1, figsize=(8, 2.2 * len(attention)))
        for axis, (modality, weights) in zip(np.atleast_1d(axes), attention.items()):
            tokens = names.get(modality) or [str(i) for i in range(len(weights))]
            axis.imshow(weights.T, aspect="auto", cmap="Blues", vmin=0)
            axis.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
            axis.set_yticks(range(weights.shape[1]), [f"{i + 1}" for i in range(weights.shape[1])])
            axis.set(title=f"{modality}: attention of each representation", ylabel="representation")
        save(figure, path)


def draw_pair(
    explained: Mapping[str, Any],
    names: Mapping[str, Sequence[str]],
    folder: Path,
    pixels: np.ndarray | None = None,
):
    """`distances.png` and `attention.png` of one pair; `attention_image.png` over its pixels.

    Args:
      explained: modality -> `models.encoders.projector.Projected` of one item.
      names: modality -> names of the first tokens, which alone are drawn; numbers where absent.
      folder: exists.
      pixels: [h, w, 3] uint8 of the image, where it has them.
    """
    image, text = (np.asarray(explained[name].reps[0]) for name in ("image", "text"))
    draw_distances(image, text, folder / "distances.png")
    attention = {name: np.asarray(item.attention[0]) for name, item in explained.items()}
    attention |= {name: attention[name][: len(tokens)] for name, tokens in names.items()}
    tokens, num = attention["image"].shape
    side = math.isqrt(tokens)
    if pixels is not None and side * side == tokens:
        grid = attention.pop("image").T.reshape(1, num, side, side)
        title = "where each representation looks"
        labels = [str(i + 1) for i in range(num)]
        with plt.rc_context(STYLE):
            draw_grids(pixels, labels, grid, title, folder / "attention_image.png")
    draw_attention(attention, names, folder / "attention.png")


def draw_run(
    folder: Path, config: Any, variables: Variables, split: RetrievalSplit, source: Source
) -> None:
    """The pictures that the system of a run has, of the first pair of a split; none for others."""
    vocabulary = getattr(source, "vocabulary", {})
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    prepare = make_prepare(config.data)
    pair = {name: prepare(take(items, np.arange(1))) for name, items in split.items.items()}
    if config.task == "gpldan":
        explained = {n: gpldan.explain(config.model, variables, n, one) for n, one in pair.items()}
        ids = np.asarray(pair["text"]["text"][0])
        named = words and np.issubdtype(ids.dtype, np.integer)
        names = {"text": [words[i] for i in ids if i > 0]} if named else {}
        draw_pair(explained, names, folder, split.items["image"][0].get("image"))
    elif config.task == "gcn_text":
        stored = jax.device_get(variables["graph"])
        edges = stored["senders"], stored["receivers"]
        graph_of_words = graph.make_graph(len(stored["idf"]), *edges)
        text = jnp.asarray(pair["text"]["text"])
        weights = gcn_text.word_weights(
            text, stored["idf"], config.model.get("weighting", "counts")
        )
        weights = np.asarray(weights)[0].reshape(len(stored["idf"]), -1).sum(axis=1)
        if weights.any():
            draw_word_graph(graph_of_words, words, weights, folder / "words.png")
