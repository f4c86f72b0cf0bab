"""The evaluator against a plain numpy ranking of the whole score matrix."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Relevance, RetrievalSplit, Task, by_matrix, same_id
from jcmr.data.records import Arrays
from jcmr.eval import counting, embed, ranking, retrieval, table, tiles
from tests.test_metrics import naive_order

ROWS, COLUMNS, DIM = 13, 41, 6


def score(variables, query, gallery):
    """Not symmetric: who is the query matters."""
    return jnp.round(variables["scale"] * query["x"] @ (gallery["x"] ** 2).T)


def encode(variables, inputs):
    return {"x": inputs["x"] * 1.0}


TASK = Task(None, None, {"image": encode, "text": encode}, score)  # pyright: ignore
VARIABLES = {"scale": jnp.float32(4)}


def prepare(batch):
    return batch


class Items:
    """Random access without `take`, which counts its reads."""

    def __init__(self, x):
        self.x, self.reads = x, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.reads += 1
        return {"x": self.x[index]}


def make_data(seed: int = 0, n: int = ROWS, m: int = COLUMNS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, DIM)).astype(np.float32)
    y = rng.normal(size=(m, DIM)).astype(np.float32)
    owner = rng.integers(0, n, m)
    classes = rng.integers(0, 4, n), rng.integers(0, 4, m)
    exact = (rng.random((n, m)) < 0.15) | (owner == np.arange(n)[:, None])
    vectors = rng.random((n, 4)) < 0.4
    return x, y, owner, classes, exact, vectors


def make_split(relations, seed=0, n=ROWS, m=COLUMNS, **extras):
    x, y, owner, classes, exact, vectors = make_data(seed, n, m)
    every = {
        "own": same_id(np.arange(n), owner),
        "class": same_id(*classes),
        "exact": by_matrix(exact),
        "eccv": by_matrix(exact & (np.arange(n) % 3 > 0)[:, None]),
    }
    for zeta in (0, 1, 2):
        every[f"pm{zeta}"] = Relevance(
            vectors,
            vectors[owner],
            lambda a, b, zeta=zeta: (a[:, None] != b[None]).sum(-1) <= zeta,
        )
    items = {"image": Arrays({"x": x}), "text": Arrays({"x": y})}
    return RetrievalSplit("test", items, {name: every[name] for name in relations}, extras)


def evaluate(split, num_devices=1, variables=VARIABLES, task=TASK, **cfg):
    mesh = parallel.make_mesh(jax.devices()[:num_devices])
    cfg = {"batch_size": 8, "tile": (4, 16), **cfg}
    return retrieval.make_evaluator(task, split, cfg, prepare, mesh)(variables)


def naive_scores(split):
    x, y = (items.columns["x"] for items in split.items.values())
    return np.round(4 * x.astype(np.float64) @ (y.astype(np.float64) ** 2).T)


def dense(split, relation):
    rows, columns, match, _ = split.relevance[relation]
    return np.asarray(match(jnp.asarray(rows), jnp.asarray(columns)))


def naive(scores, match, groups, ks=(1, 5, 10), cuts=(5, 10)):
    """relation metrics of the rows of a dense matrix, averaged over folds."""
    folds = []
    for fold in np.unique(groups[0][groups[0] >= 0]):
        inside = np.flatnonzero(groups[1] == fold)
        each = []
        for row in np.flatnonzero(groups[0] == fold):
            hit = match[row, inside]
            if not hit.any():
                continue
            hits = hit[naive_order(scores[row, inside], hit)]
            total, first = hits.sum(), hits.argmax()
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            each.append(
                {f"hit@{k}": first < k for k in ks}
                | {f"p@{k}": hits[:k].sum() / k for k in cuts}
                | {
                    "r_precision": hits[:total].mean(),
                    "map@r": (precision * hits)[:total].sum() / total,
                    "map": (precision * hits).sum() / total,
                    "rank": first,
                }
            )
        values = {name: np.mean([e[name] for e in each]) for name in each[0]}
        values["medr"] = np.floor(np.median([e["rank"] for e in each])) + 1
        values["meanr"] = values.pop("rank") + 1
        values |= {f"r@{k}": 100 * values[f"hit@{k}"] for k in ks}
        folds.append(values)
    return {name: np.mean([f[name] for f in folds]) for name in folds[0]}


def check(split, found, protocol, relation, prefix, groups, names):
    scores, match = naive_scores(split), dense(split, relation)
    sides = ("i2t", scores, match, groups), ("t2i", scores.T, match.T, groups[::-1])
    for direction, s, p, g in sides:
        expected = naive(s, p, g)
        for name in names:
            key = f"{protocol}/{direction}/{prefix}{name}"
            assert found[key] == pytest.approx(expected[name], abs=1e-6), key


RECALLS = ("r@1", "r@5", "r@10", "medr", "meanr")
RANKED = ("p@5", "p@10", "r_precision", "map@r")
WHOLE = np.zeros(ROWS, int), np.zeros(COLUMNS, int)


@pytest.mark.parametrize("tile", [(4, 16), (100, 7), (1, 100)])
def test_recalls_are_counted(tile):
    split = make_split(["own"])
    results = evaluate(split, tile=tile)
    check(split, results.metrics, "test", "own", "", WHOLE, RECALLS)
    recalls = [results.metrics[f"test/{d}/r@{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10)]
    assert results.metrics["test/rsum"] == pytest.approx(sum(recalls))


@pytest.mark.parametrize("full_map", [False, True])
def test_rankings_are_sorted(full_map):
    split = make_split(["own", "exact", "class", "eccv"])
    results = evaluate(split, full_map=full_map)
    names = (*RANKED, "map") if full_map else RANKED
    check(split, results.metrics, "test", "own", "", WHOLE, RECALLS)
    check(split, results.metrics, "test", "exact", "", WHOLE, ("hit@1", "hit@5", *names))
    check(split, results.metrics, "test", "class", "class_", WHOLE, (*RECALLS, *names))
    check(split, results.metrics, "test", "eccv", "eccv_", WHOLE, (*RECALLS, *names))
    assert "test/i2t/map" in results.metrics or not full_map


def test_class_alone_has_the_plain_names():
    split = make_split(["class"])
    check(split, evaluate(split).metrics, "test", "class", "", WHOLE, (*RECALLS, *RANKED))


@pytest.mark.parametrize("relations", [["own"], ["own", "exact"]])
def test_folds_are_averaged(relations):
    owner = make_data()[2]
    folds = np.arange(ROWS) % 3 - 1  # a third takes no part
    protocols = {"all": WHOLE, "folds": (folds, folds[owner])}
    split = make_split(relations, protocols=protocols)
    found = evaluate(split).metrics
    for name, groups in protocols.items():
        check(split, found, name, "own", "", groups, RECALLS)
        if "exact" in relations:
            check(split, found, name, "exact", "", groups, ("hit@1", *RANKED))
    assert "all/rsum" in found and "folds/rsum" in found and "test/rsum" not in found


def test_plausible_matches_leave_out_what_was_not_annotated():
    owner = make_data()[2]
    known = np.arange(ROWS) != 3, owner != 3
    split = make_split(["own", "pm0", "pm1", "pm2"], annotated=known)
    found = evaluate(split).metrics
    groups = np.where(known[0], 0, -1), np.where(known[1], 0, -1)
    scores = naive_scores(split)
    matches = [dense(split, f"pm{zeta}") for zeta in (0, 1, 2)]
    for direction in ("i2t", "t2i"):
        if direction == "t2i":
            scores, matches, groups = scores.T, [match.T for match in matches], groups[::-1]
        each = [naive(scores, match, groups) for match in matches]
        values = [100 * e["r_precision"] for e in each]
        assert found[f"test/{direction}/pmrp"] == pytest.approx(np.mean(values), abs=1e-6)
        assert found[f"test/{direction}/eccv_pmrp"] == pytest.approx(values[2], abs=1e-6)
    check(split, found, "test", "own", "", WHOLE, RECALLS)  # others keep all items


@pytest.mark.parametrize("relations", [["own"], ["own", "exact"]])
def test_what_the_report_shows(relations):
    split = make_split(relations)
    results = evaluate(split, num_top=5)
    match = dense(split, relations[-1])
    scores = naive_scores(split)
    for direction, s, p in (("i2t", scores, match), ("t2i", scores.T, match.T)):
        order = np.argsort(-s, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(results.top[direction], order)
        np.testing.assert_array_equal(results.hits[direction], np.take_along_axis(p, order, 1))
    np.testing.assert_array_equal(results.num_matches["image"], match.sum(1))
    np.testing.assert_array_equal(results.num_matches["text"], match.sum(0))
    assert set(results.first_hit) == {"i2t", "t2i"} and not results.uncertainty
    shown = table.metrics_table(results.metrics)
    assert "i2t" in shown and len(shown.splitlines()) > 6


def test_vague_captions_and_the_oracle():
    split = make_split(["own", "exact"])
    found = evaluate(split, vague_matches=3)
    own, exact = dense(split, "own"), dense(split, "exact")
    vague = exact.sum(0)[found.top["i2t"][:, 0]] > 3
    assert found.metrics["test/i2t/vague_top1"] == pytest.approx(vague.mean())
    some = own.any(1)
    share = own.sum(1)[some] / exact.sum(1)[some]
    assert found.metrics["test/i2t/oracle_r@1"] == pytest.approx(100 * share.mean())
    assert found.metrics["test/t2i/oracle_r@1"] == pytest.approx(100 * (1 / exact.sum(0)).mean())


@pytest.mark.parametrize("relations", [["own"], ["own", "exact", "pm0", "pm1", "pm2"]])
def test_one_and_eight_devices_agree(relations):
    split = make_split(relations)
    one, eight = evaluate(split), evaluate(split, num_devices=8)
    assert one.metrics.keys() == eight.metrics.keys()
    for name in one.metrics:
        assert one.metrics[name] == pytest.approx(eight.metrics[name], abs=1e-6), name
    np.testing.assert_array_equal(one.top["t2i"], eight.top["t2i"])


@pytest.mark.parametrize("relations", [["own"], ["own", "exact"]])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_one_compilation_a_shape(relations, num_devices):
    """Also for another split of the same sizes, as the one that a run is tested on."""
    programs = [tiles.match_tile, tiles.score_tile, embed.encode_batch]
    programs += [counting.add_matches, counting.raise_best, counting.add_ahead, counting.merge_tops]
    programs += [ranking.measure_block, ranking.top_of_block]

    def run(scale):
        split = make_split(relations, n=9 + num_devices, m=50)
        evaluate(split, num_devices, {"scale": jnp.float32(scale)}, tile=(3, 11))
        return [program._cache_size() for program in programs]

    jax.clear_caches()
    sizes = run(1)
    # Both galleries are embedded by the same function in batches of one shape; rankings of rows
    # and of columns have two shapes, and relations may differ in how many matches an item has.
    matches, *others, blocks, tops = sizes
    assert matches == (1 if relations == ["own"] else 4)
    if relations == ["own"]:
        assert others == [1, 1, 1, 1, 1, 1] and blocks == tops == 0
    else:
        assert others == [2, 1, 1, 0, 0, 0] and 2 <= blocks <= 4 and tops == 2
    assert run(2) == sizes


@pytest.mark.usefixtures("optimized")
def test_memory_of_a_tile_does_not_grow_with_the_galleries():
    mesh = parallel.make_mesh(jax.devices()[:1])

    def temporaries(n, m):
        rows, columns = (
            tiles.make_side({"x": np.zeros((k, DIM), np.float32)}, {}, {}, 16, mesh) for k in (n, m)
        )
        arguments = VARIABLES, rows.embedding, columns.embedding, 0, 0
        lowered = tiles.score_tile.lower(score, False, mesh, *arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(64, 160) == temporaries(128, 320) < 16 * 16 * 4 * 8


def test_items_are_read_once_and_padding_is_cut_off():
    x = np.arange(21, dtype=np.float32).reshape(7, 3)
    items = Items(x)
    mesh = parallel.make_mesh(jax.devices()[:2])
    found = embed.embed(TASK, VARIABLES, items, "image", 3, prepare, mesh)
    np.testing.assert_array_equal(found["x"], x)
    assert items.reads == 8  # seven, and the last one again to fill up two batches of four
    with pytest.raises(ValueError, match="no image to embed"):
        embed.embed(TASK, VARIABLES, Items(x[:0]), "image", 3, prepare, mesh)


@pytest.mark.parametrize("relations", [["own"], ["own", "exact"]])
def test_a_score_that_is_no_number_ranks_last(relations):
    task = TASK._replace(score=lambda v, q, g: score(v, q, g) * jnp.nan)
    found = evaluate(make_split(relations), task=task).metrics
    assert found["test/i2t/r@1"] == 0 and found["test/t2i/r@10"] == 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        evaluate(make_split(["own"]), batchsize=3)
    with pytest.raises(ValueError, match=r"config.eval.relations names 'exakt'"):
        evaluate(make_split(["own"]), relations=("exakt",))
    with pytest.raises(ValueError, match="describes 2 and 41 items"):
        evaluate(make_split(["own"], protocols={"folds": (np.zeros(2), WHOLE[1])}))


class Gaussian(NamedTuple):
    x: jax.Array
    log_var: jax.Array


def test_uncertainty_is_compared_with_ambiguity():
    split = make_split(["own", "exact"])

    def encode(variables, inputs):
        return Gaussian(inputs["x"], inputs["x"])

    def score(variables, query, gallery):
        return query.x @ gallery.x.T

    task = TASK._replace(encode={"image": encode, "text": encode}, score=score)
    found = evaluate(split, task=task)
    x = split.items["image"].columns["x"]  # pyright: ignore
    np.testing.assert_allclose(found.uncertainty["image"], x.mean(1), rtol=1e-5)
    assert found.metrics["test/image/log_var"] == pytest.approx(x.mean(), rel=1e-5)
    assert -1 <= found.metrics["test/text/uncertainty_vs_matches"] <= 1
