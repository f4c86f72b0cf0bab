"""The evaluator against the official evaluators of PCME and ECCV Caption, on their own inputs.

Everything runs in float64, so that counts must be equal.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.core.types import Relevance, RetrievalSplit, Task, same_id
from jcmr.data.records import Arrays
from jcmr.eval import metrics, retrieval
from jcmr.models import pcme
from jcmr.ops import gaussian, ranks
from tests.conftest import load_golden

CLOSED_FORMS = {
    "elk": gaussian.expected_likelihood,
    "l2": gaussian.negative_l2,
    "min": gaussian.negative_min,
    "max": gaussian.negative_max,
    "wasserstein": gaussian.negative_wasserstein,
    "kl": gaussian.negative_kl,
    "reverse_kl": gaussian.negative_reverse_kl,
    "js": gaussian.negative_js,
    "bhattacharyya": gaussian.negative_bhattacharyya,
}


class Stored(NamedTuple):
    """An embedding read from a golden file."""

    samples: jax.Array
    log_std: jax.Array


def encode_stored(variables, inputs):
    return Stored(inputs["samples"], inputs["log_std"])


def score_of(name: str):
    """The similarity that the official code calls `name`, of stored embeddings."""
    if name in ("matmul", "matching_prob"):
        score = pcme.make({"score": name, "image": "regions"}).score

        def official(variables, query, gallery):
            pair = [pcme.Gaussian(e.samples[:, 0], e.log_std, e.samples) for e in (query, gallery)]
            return score(variables, *pair)
    elif name == "matmul_max":

        def official(variables, query, gallery):
            return gaussian.max_dot(query.samples, gallery.samples)
    else:
        form = CLOSED_FORMS[name]

        def official(variables, query, gallery):
            sides = [(e.samples[:, 0], 2 * e.log_std) for e in (query, gallery)]
            return form(*sides[0], *sides[1])

    return official


def evaluate(name, golden, relevance, extras, **cfg) -> retrieval.Results:
    """Runs the evaluator on the stored embeddings of a golden file."""
    items = {
        kind: Arrays(
            {
                "samples": golden[f"in/{part}_features"],
                "log_std": golden.get(
                    f"in/{part}_logsigma", np.zeros(len(golden[f"in/{part}_features"]))
                ),
            }
        )
        for kind, part in (("image", "image"), ("text", "caption"))
    }
    encode = {"image": encode_stored, "text": encode_stored}
    task = Task(None, None, encode, score_of(name))  # pyright: ignore
    split = RetrievalSplit("golden", items, relevance, extras)
    mesh = parallel.make_mesh(jax.devices()[:2])
    cfg = {"tile": (7, 24), "batch_size": 10, **cfg}
    criterion = {n: jnp.float64(golden[f"cfg/{n}"]) for n in ("shift", "negative_scale")}
    variables = {"params": {"criterion": criterion}}
    return retrieval.make_evaluator(task, split, cfg, lambda batch: batch, mesh)(variables)


def compare(found, protocol, golden, prefix, scale=1.0, rename=()):
    """Holds metrics against all `prefix/{i2t,t2i}/<name>` that the golden file has."""
    ours = {"rsum": None, "r_precision": "r_precision", "map_r": "map@r"}
    compared = 0
    for direction in ("i2t", "t2i"):
        stored = {
            key.rpartition("/")[2]: float(value)
            for key, value in golden.items()
            if key.rpartition("/")[0] == f"{prefix}/{direction}" and value.ndim == 0
        }
        for name, value in stored.items():
            kind, _, k = name.rpartition("_")
            if kind == "recall":
                actual = found[f"{protocol}/{direction}/r@{k}"] * scale
            elif kind == "precision":
                actual = found[f"{protocol}/{direction}/p@{k}"]
            elif name == "rsum":
                prefix_of = f"{protocol}/{direction}/"
                mine = {n.removeprefix(prefix_of): v for n, v in found.items() if prefix_of in n}
                actual = metrics.rsum(mine) * scale
            else:
                actual = found[f"{protocol}/{direction}/{ours.get(name, name)}"]
            assert actual == pytest.approx(value, abs=1e-9), f"{prefix}/{direction}/{name}"
            compared += 1
    assert compared


def cutoffs(golden, kind):
    """The k of all `.../<kind>_<k>` in a golden file."""
    found = {key.rpartition("_")[2] for key in golden if key.rpartition("_")[0].endswith(kind)}
    return tuple(sorted(map(int, found)))


@pytest.mark.golden("pcme", "eval_coco_recall")
def test_coco_recalls_and_rankings(golden: Path):
    golden_file = load_golden(golden)
    images, owners = golden_file["in/image_ids"], golden_file["in/caption_image_ids"]
    order = {image: i for i, image in enumerate(images)}
    owner = np.array([order[image] for image in owners])
    fold = np.arange(len(images)) // int(golden_file["cfg/images_per_fold"])
    folds = {
        "all": (np.zeros(len(images), int), np.zeros(len(owners), int)),
        "folds": (fold, fold[owner]),
    }
    methods = sorted({key.split("/")[1] for key in golden_file if key.startswith("out/")})
    for name in methods:
        relevance = {"own": same_id(np.arange(len(images)), owner)}
        with jax.enable_x64(True):
            results = evaluate(
                name,
                golden_file,
                relevance,
                {"protocols": folds},
                ks=cutoffs(golden_file, "recall"),
                num_top=len(owners),
            )
        compare(results.metrics, "all", golden_file, f"out/{name}")
        compare(results.metrics, "folds", golden_file, f"out/{name}/n_fold")
        captions = golden_file["in/caption_ids"][results.top["i2t"]]
        np.testing.assert_array_equal(captions, golden_file[f"out/{name}/retrieve_i2t_full"])
        dropped = golden_file[f"out/{name}/retrieve_i2t_topk_minus1"]
        np.testing.assert_array_equal(captions[:, :-1], dropped)
        ranked = images[results.top["t2i"]]
        np.testing.assert_array_equal(ranked, golden_file[f"out/{name}/retrieve_t2i_full"])


@pytest.mark.golden("pcme", "eval_coco_recall")
def test_coco_scores(golden: Path):
    golden_file = load_golden(golden)
    for key in golden_file:
        if not key.endswith("retrieve_i2t_negscore_sorted"):
            continue
        name = key.split("/")[1]
        with jax.enable_x64(True):
            sides = [
                Stored(jnp.asarray(golden_file[f"in/{part}_features"]), jnp.zeros(1))
                for part in ("image", "caption")
            ]
            criterion = {n: golden_file[f"cfg/{n}"] for n in ("shift", "negative_scale")}
            scores = score_of(name)({"params": {"criterion": criterion}}, *sides)
            values = jnp.exp(scores) if name == "matching_prob" else scores
        ours = np.sort(-np.asarray(values), axis=1)
        tolerance = 2e-6 if name == "matching_prob" else 1e-9
        np.testing.assert_allclose(ours, golden_file[key], atol=tolerance, rtol=1e-9)


@pytest.mark.golden("pcme", "eval_cub")
def test_cub_metrics(golden: Path):
    golden_file = load_golden(golden)
    classes = golden_file["in/image_classes"], golden_file["in/caption_classes"]
    similarities = sorted({key.split("/")[1] for key in golden_file if key.startswith("out/")})
    for name in similarities:
        with jax.enable_x64(True):
            results = evaluate(
                name,
                golden_file,
                {"class": same_id(*classes)},
                {},
                ks=cutoffs(golden_file, "recall"),
                precision_ks=cutoffs(golden_file, "/precision"),
            )
        compare(results.metrics, "golden", golden_file, f"out/{name}", scale=0.01)


@pytest.mark.golden("pcme", "eval_cub")
def test_cub_similarities(golden: Path):
    golden_file = load_golden(golden)
    for key, expected in golden_file.items():
        if not key.startswith("sim/"):
            continue
        with jax.enable_x64(True):
            sides = [
                Stored(
                    jnp.asarray(golden_file[f"in/{part}_features"])[:rows],
                    jnp.asarray(golden_file[f"in/{part}_logsigma"])[:rows],
                )
                for part, rows in (("image", len(expected)), ("caption", None))
            ]
            found = score_of(key[4:])({}, *sides)
        # The official code computes one constant of this one in float32.
        exact = {"rtol": 1e-10} if "bhattacharyya" not in key else {"atol": 1e-5}
        np.testing.assert_allclose(found, expected, **exact)


def plausible(golden_file) -> tuple[RetrievalSplit, Task, np.ndarray]:
    """The synthetic COCO of eval_pmrp: scores are given, an item embeds as its row of them."""
    images = golden_file["in/image_ids"]
    order = {image: i for i, image in enumerate(images)}
    owner = np.array([order[image] for image in golden_file["in/caption_image_ids"]])
    vectors = golden_file["in/multihot"]
    # The vectors are those of the annotations.
    for image, present in zip(images, vectors):
        categories = golden_file["in/ann_category_id"][golden_file["in/ann_image_id"] == image]
        assert present.sum() == len(set(categories))
    known = vectors.any(axis=1)
    # The official folds are those of the sorted image ids.
    fold = np.argsort(np.argsort(images)) * 5 // len(images)
    whole = np.zeros(len(images), int), np.zeros(len(owner), int)
    protocols = {"all": whole, "folds": (fold, fold[owner])}
    for i in range(5):
        protocols[f"fold{i}"] = tuple(np.where(f == i, 0, -1) for f in (fold, fold[owner]))
    relevance = {
        f"pm{zeta}": Relevance(
            vectors,
            vectors[owner],
            lambda a, b, zeta=zeta: (a[:, None] != b[None]).sum(-1) <= zeta,
        )
        for zeta in (0, 1, 2)
    }
    items = {
        "image": Arrays({"scores": golden_file["in/scores_i2t"]}),
        "text": Arrays({"column": np.arange(len(owner))}),
    }
    extras = {"protocols": protocols, "annotated": (known, known[owner])}
    encode = {name: lambda variables, inputs: dict(inputs) for name in items}

    def score(variables, query, gallery):
        return query["scores"][:, gallery["column"]]

    task = Task(None, None, encode, score)  # pyright: ignore
    return RetrievalSplit("coco", items, relevance, extras), task, known[owner]


@pytest.mark.golden("pcme", "eval_pmrp")
@pytest.mark.parametrize("variant", ["full", "drop_last"])
def test_plausible_match_precisions(golden: Path, variant: str):
    golden_file = load_golden(golden)
    split, task, _ = plausible(golden_file)
    cfg = {"tile": (9, 40), "batch_size": 10, "official_pmrp": variant == "drop_last"}
    mesh = parallel.make_mesh(jax.devices()[:1])
    with jax.enable_x64(True):
        evaluator = retrieval.make_evaluator(task, split, cfg, lambda batch: batch, mesh)
        found = evaluator({}).metrics
    for direction in ("i2t", "t2i"):
        stored = {
            part: golden_file[f"out/{variant}/{part}/{direction}/pmrp"] for part in ("all", "folds")
        }
        per_fold = golden_file[f"out/{variant}/folds/{direction}/pmrp_per_fold"]
        stored |= {f"fold{i}": value for i, value in enumerate(per_fold)}
        for protocol, value in stored.items():
            ours = found[f"{protocol}/{direction}/pmrp"]
            assert ours == pytest.approx(float(value), abs=1e-9), protocol
        first = float(golden_file[f"out/{variant}/all/{direction}/pmr1"])
        assert found[f"all/{direction}/pmr@1"] == pytest.approx(first, abs=1e-9)


@pytest.mark.golden("pcme", "eval_pmrp")
@pytest.mark.parametrize("variant", ["full", "drop_last"])
def test_plausible_match_precisions_query_by_query(golden: Path, variant: str):
    golden_file = load_golden(golden)
    split, _, known_captions = plausible(golden_file)
    known = golden_file["in/multihot"].any(axis=1), known_captions
    for zeta in (0, 1, 2):
        relation = split.relevance[f"pm{zeta}"]
        match = np.asarray(relation.match(relation.rows, relation.columns))
        for direction, turn in (("i2t", lambda x: x), ("t2i", np.transpose)):
            with jax.enable_x64(True):
                scores = jnp.asarray(turn(golden_file["in/scores_i2t"]))
                rows, columns = known if direction == "i2t" else known[::-1]
                valid = jnp.ones(scores.shape, bool)
                if variant == "drop_last":
                    valid = ranks.without_last(scores, valid)
                valid &= columns[None, :]
                positive = valid & turn(match)
                hits = ranks.ordered_hits(
                    jnp.where(valid, scores, -jnp.inf), positive, scores.shape[1]
                )
                found = ranks.r_precision(hits, positive.sum(1))[rows]
            expected = golden_file[f"out/{variant}/all/{direction}/rp_zeta{zeta}"]
            np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.golden("pcme", "eccv_metrics")
def test_eccv_metrics(golden: Path):
    golden_file = load_golden(golden)
    ranking, matching = golden_file["in/ranking"], golden_file["in/gt_padded"]
    hits = np.stack([np.isin(r, g[g >= 0]) for r, g in zip(ranking, matching)])
    first = hits.argmax(axis=1)
    with jax.enable_x64(True):
        number = hits.sum(axis=1)
        r_precision = np.mean(ranks.r_precision(jnp.asarray(hits), number))
        map_at_r = np.mean(ranks.map_at_r(jnp.asarray(hits), number))
    values = {
        "eccv_map_at_r": map_at_r,
        "eccv_rprecision": r_precision,
        "rprecision": r_precision,
        "eccv_r1": metrics.hit_rate(first, 1),
    }
    folded = []
    queries = golden_file["in/query_ids"]
    for row, query in enumerate(queries):
        if query in golden_file["in/fold_query_ids"]:
            inside = np.isin(ranking[row], golden_file["in/fold_item_ids"])
            folded.append(hits[row][inside].argmax())
    for key, expected in golden_file.items():
        if not key.startswith("out/"):
            continue
        name = key.removeprefix("out/")
        if name not in values:
            found = folded if name.startswith("fold_r") else first
            values[name] = metrics.hit_rate(np.asarray(found), int(name.rpartition("r")[2]))
        assert values[name] == pytest.approx(float(expected), abs=1e-9), name
