"""One gallery searched with its own items, pairs that are not compared, classes and their means."""

from typing import NamedTuple

import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Task, same_class, split_list
from jcmr.data.records import Arrays
from jcmr.eval import classification, metrics, report_objects, retrieval, table

NUM, DIM, CLASSES = 23, 4, 3


class Item(NamedTuple):
    feature: jnp.ndarray
    logits: jnp.ndarray


def encode(variables, inputs):
    return Item(inputs["x"] * variables["scale"], inputs["x"][:, :CLASSES])


TASK = Task(
    None,  # pyright: ignore
    None,  # pyright: ignore
    {"image": encode, "mesh": encode},
    lambda variables, query, gallery: jnp.round(query.feature @ gallery.feature.T, 1),
)


class Counted(Arrays):
    """Counts how many batches were read."""

    reads = 0

    def take(self, indices):
        self.reads += 1
        return super().take(indices)


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, NUM)
    items = {n: Counted({"x": rng.normal(size=(NUM, DIM)).astype("f4")}) for n in TASK.encode}
    own = {
        "class": same_class(labels, labels),
        "others": same_class(labels, labels, self_match=False),
    }
    extras = {"class_names": ("a", "b", "c")}
    splits = [
        RetrievalSplit("test", {"image": items["image"]}, own, extras),
        RetrievalSplit("test", {"mesh": items["mesh"]}, own, extras),
        RetrievalSplit("test", items, {"class": own["class"]}, extras),
    ]
    cfg = {"full_map": True, "batch_size": 32, "tile": (8, 16)}
    evaluators = [
        retrieval.make_evaluator(TASK, s, cfg, lambda x: x, parallel.make_mesh()) for s in splits
    ]
    embedded = {}
    results = [evaluate({"scale": jnp.float32(2)}, embedded) for evaluate in evaluators]
    return labels, items, splits, results


def naive_map(queries, gallery, labels, skip_self):
    scores = np.round((2 * queries) @ (2 * gallery).T, 1)
    values = []
    for i in range(NUM):
        kept = np.arange(NUM) != i if skip_self else np.ones(NUM, bool)
        hit, score = (labels == labels[i])[kept], scores[i, kept]
        if not hit.any():
            continue
        hits = hit[np.lexsort((hit, -score))]  # of equal scores misses come first
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        values.append((precision * hits).sum() / hits.sum())
    return np.mean(values), np.asarray(values)


def test_directions_and_self_match(found):
    labels, items, splits, results = found
    merged = retrieval.merge_metrics(splits, results)
    x, y = (items[n].columns["x"] for n in ("image", "mesh"))
    for direction, queries, gallery in (("i2i", x, x), ("m2m", y, y), ("i2m", x, y), ("m2i", y, x)):
        expected, _ = naive_map(queries, gallery, labels, False)
        assert merged[f"test/{direction}/map"] == pytest.approx(expected, abs=1e-5)
    for direction, features in (("i2i", x), ("m2m", y)):
        expected, _ = naive_map(features, features, labels, True)
        assert merged[f"test/{direction}/others_map"] == pytest.approx(expected, abs=1e-5)
    four = [merged[f"test/{d}/map"] for d in ("i2i", "m2m", "i2m", "m2i")]
    assert merged["test/map"] == pytest.approx(np.mean(four))
    assert "test/rsum" not in merged


def test_items_are_embedded_once(found):
    _, items, _, results = found
    assert {n: x.reads for n, x in items.items()} == {"image": 1, "mesh": 1}
    assert results[2].embedding["mesh"] is results[1].embedding["mesh"]


def test_accuracy_and_classes(found):
    labels, items, splits, results = found
    x, y = (items[n].columns["x"] for n in ("image", "mesh"))
    right = np.argmax(x[:, :CLASSES], axis=1) == labels
    assert results[0].metrics["test/image/accuracy"] == pytest.approx(right.mean())
    _, values = naive_map(x, y, labels, False)
    for label, value in results[2].map_by_class["i2m"].items():
        assert value == pytest.approx(values[labels == label].mean(), abs=1e-5)
    lines = report_objects.class_table(splits, results).splitlines()
    assert lines[0].split() == ["class", "i2i", "m2m", "i2m", "m2i"] and len(lines) == 4
    assert classification.logits_of({"feature": x}) is None


def test_the_table_has_a_column_a_direction(found):
    _, _, splits, results = found
    merged = retrieval.merge_metrics(splits, results)
    lines = table.metrics_table({**merged, "test/views2/map": 0.5}).splitlines()
    assert lines[0].split() == ["metric", "i2i", "i2m", "m2i", "m2m"]
    assert any(line.split() == ["test/views2/map", "0.5"] for line in lines)


def test_chance_against_shuffles():
    rng = np.random.default_rng(0)
    for matches, gallery in ((1, 9), (4, 12), (12, 12)):
        values = []
        for _ in range(4000):
            hits = rng.permutation(np.arange(gallery) < matches)
            precision = np.cumsum(hits) / np.arange(1, gallery + 1)
            values.append((precision * hits).sum() / matches)
        (expected,) = metrics.chance_map(np.array([matches]), np.array([gallery]))
        assert np.mean(values) == pytest.approx(expected, abs=0.015)


def test_one_split_or_several(found):
    _, _, splits, _ = found
    assert split_list(splits[0]) == [splits[0]] and split_list(tuple(splits)) == splits
