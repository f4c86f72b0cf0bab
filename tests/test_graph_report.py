"""The pictures of the graph systems."""

import numpy as np
import pytest

from jcmr.eval import graph_report
from jcmr.models.encoders.projector import Projected
from jcmr.ops import graph


def test_word_graph(tmp_path):
    rng = np.random.default_rng(0)
    words = graph.undirected(20, graph.knn_pairs(rng.normal(size=(20, 4)), 3))
    weights = np.zeros(20)
    weights[[2, 5]] = 1.0, 3.0
    names = [f"word{i}" for i in range(20)]
    graph_report.draw_word_graph(words, names, weights, tmp_path / "words.png")
    assert (tmp_path / "words.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no word of the vocabulary"):
        graph_report.draw_word_graph(words, names, 0 * weights, tmp_path / "none.png")


def test_rings_keep_words_apart():
    distance = np.array([0, 0, 1, 1, 1, 2])
    place = graph_report.ring_layout(distance)
    gaps = np.linalg.norm(place[:, None] - place[None], axis=-1) + np.eye(len(place))
    assert gaps.min() > 0.3
    radius = np.linalg.norm(place, axis=1)
    assert radius[:2].max() < radius[2:5].min() < radius[5]


def test_representations(tmp_path):
    rng = np.random.default_rng(1)
    reps = rng.normal(size=(1, 3, 5))
    reps /= np.linalg.norm(reps, axis=-1, keepdims=True)
    attention = rng.dirichlet(np.ones(4), (1, 3)).swapaxes(1, 2)
    made = Projected(reps, reps, reps, attention, reps[:, 0], attention[:, 0])  # pyright: ignore
    graph_report.draw_pair({"image": made, "text": made}, {"text": list("abcd")}, tmp_path)
    drawn = {"distances.png", "attention.png"}
    assert {path.name for path in tmp_path.iterdir()} == drawn
    pixels = np.zeros((8, 8, 3), np.uint8)
    graph_report.draw_pair({"image": made, "text": made}, {"text": list("ab")}, tmp_path, pixels)
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"attention_image.png"}
