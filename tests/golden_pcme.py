"""What the tests of the official golden files in test_golden_pcme.py share."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from jcmr.convert import rules
from jcmr.core import parallel
from jcmr.core.types import Relevance, RetrievalSplit, Task
from jcmr.data.records import Arrays
from jcmr.eval import metrics, retrieval
from jcmr.models import pcme
from jcmr.models.encoders import gaussian_towers as towers
from jcmr.ops import gaussian
from jcmr.train.adamp import scale_by_adamp

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


def part(arrays, prefix):
    return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}


def check(arrays, mapping, run):
    """Compares `run(params, inputs) -> {name: output}` with the file, value and gradient.

    `mapping` makes parameters of torch weights; it is linear, so it also maps their gradients.
    """
    used = {rule.name for rule in mapping.values()}
    state, cotangents = part(arrays, "w/"), part(arrays, "ct/")
    params = rules.convert(mapping, state, ignored=lambda name: name not in used)["params"]
    floats = {n: x for n, x in part(arrays, "in/").items() if x.dtype == np.float32}
    others = {n: x for n, x in part(arrays, "in/").items() if n not in floats}

    def total(params, floats):
        outputs = run(params, {**floats, **others})
        loss = sum(jnp.vdot(cotangents[name], outputs[name]) for name in cotangents)
        return loss, outputs

    for bits, close in (
        (32, partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)),
        (64, partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)),
    ):
        with jax.enable_x64(bits == 64):
            cast = partial(jax.tree.map, partial(jnp.asarray, dtype=f"float{bits}"))
            grads, outputs = jax.jit(jax.grad(total, (0, 1), has_aux=True))(
                cast(params), cast(floats)
            )
            grads, outputs = jax.device_get((grads, outputs))

        def close_grad(actual, expected, bits=bits, close=close):
            if bits == 64:
                return close(actual, expected)
            allowed = 2e-5 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)

        for name in cotangents:
            close(outputs[name], arrays[f"out{bits}/{name}"])
        stored = part(arrays, f"grad{bits}/w/")
        unused = {name: np.zeros_like(x) for name, x in state.items() if name in used}
        expected = rules.convert(mapping, {**unused, **stored}, dtype=np.float64)["params"]
        jax.tree.map(close_grad, grads[0], expected)
        for name, expected in part(arrays, f"grad{bits}/in/").items():
            close_grad(grads[1][name], expected)


def named(outputs: towers.Outputs, eps):
    """The official names; samples with the noise of the file where it has some."""
    embedding = outputs.mean
    if eps is not None:
        embedding = outputs.mean[:, None] + jnp.exp(outputs.log_scale)[:, None] * eps
    return {
        "embedding": embedding,
        "logsigma": outputs.log_scale,
        "attention": outputs.attention,
        "residual": outputs.residual,
        "uncertainty_attention": outputs.uncertainty_attention,
    }


def regions_of(fmap):
    """[b, c, h, w] -> [b, h w, c]."""
    return fmap.reshape(*fmap.shape[:2], -1).swapaxes(1, 2)


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
    # The official folds go through the images as they are listed.
    fold = np.arange(len(images)) * 5 // len(images)
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


def run_adamp(data, dtype, move):
    """The trajectory of a golden; `move` turns torch layout into the layout under test."""
    names = [n.removeprefix("in/") for n in data if n.startswith("in/") and n.count("/") == 1]
    tx = optax.chain(
        scale_by_adamp(
            *data["cfg/betas"].tolist(),
            eps=float(data["cfg/eps"]),
            weight_decay=float(data["cfg/weight_decay"]),
            delta=float(data["cfg/delta"]),
            wd_ratio=float(data["cfg/wd_ratio"]),
            channel_axis=lambda path: 0 if move is None else -1,
        ),
        optax.scale(-float(data["cfg/lr"])),
    )
    there = lambda x: x if move is None or x.ndim < 2 else np.moveaxis(x, 0, -1)
    params = {n: jnp.asarray(there(data[f"in/{n}"]), dtype) for n in names}
    state = tx.init(params)
    for t in range(int(data["cfg/steps"])):
        grads = {n: jnp.asarray(there(data[f"in/grad/{t}/{n}"]), dtype) for n in names}
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield t, params, names
