"""Graphs, convolutions, loss, model and AP of SCKR against its official code; in 32 and 64 bit."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.losses.pairwise import pairwise_global
from jcmr.models import gcn_text
from jcmr.models.encoders.gcn import GraphConv
from jcmr.ops import graph, ranks
from tests.conftest import GOLDEN_DIR, load_golden

CLAIMED = ("cheb_conv", "pairwise_global_loss", "sckr_model", "sckr_ap")
EXACT = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
FLOAT32 = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
SUMMED = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
OFFICIAL = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def test_every_file_has_a_test():
    files = {path.stem for path in (GOLDEN_DIR / "gcn_text").glob("*.npz")}
    assert files and not {f for f in files if not f.startswith(CLAIMED)}


def cases(arrays):
    """Prefix -> arrays of each case "c<i>_"; the whole file is one case without such prefixes."""
    names = sorted({name.split("_", 1)[0] for name in arrays if name[0] == "c" and "_" in name})
    names = [name for name in names if name[1:].isdigit()]
    if not names:
        return {"": arrays}
    return {
        n: {k[len(n) + 1 :]: x for k, x in arrays.items() if k.startswith(n + "_")} for n in names
    }


def from_adjacency(adjacency, dtype=np.float64):
    receivers, senders = np.nonzero(adjacency)
    return graph.make_graph(
        len(adjacency), senders, receivers, adjacency[receivers, senders], dtype
    )


@pytest.mark.golden("gcn_text", "cheb_conv")
def test_graph_and_laplacian(golden: Path):
    arrays = load_golden(golden)
    num_words, k = len(arrays["emb"]), int(arrays["k"])
    np.testing.assert_array_equal(graph.nearest(arrays["emb"], k), arrays["knn_idx"])
    built = graph.undirected(num_words, graph.knn_pairs(arrays["emb"], k))
    np.testing.assert_array_equal(graph.to_dense(built, num_words), arrays["A"])
    laplacian = graph.scaled_laplacian(from_adjacency(arrays["A"]))
    with jax.enable_x64(True):
        EXACT(graph.to_dense(laplacian, num_words), arrays["L_tilde"])


@pytest.mark.golden("gcn_text", "cheb_conv")
@pytest.mark.parametrize("bits", [32, 64])
def test_convolution(golden: Path, bits: int):
    arrays = load_golden(golden)
    orders = sorted(name.removesuffix("_W") for name in arrays if name.endswith("_W"))
    assert orders
    laplacian = graph.scaled_laplacian(from_adjacency(arrays["A"]))
    for order in orders:
        kernel, target = arrays[f"{order}_W"], arrays[f"{order}_y"]
        num_taps = int(order.removeprefix("K"))
        layer = GraphConv(kernel.shape[1], num_taps, "per_filter")
        up = arrays.get(f"{order}_up", np.ones_like(target))
        with jax.enable_x64(bits == 64):
            cast = partial(jnp.asarray, dtype=f"float{bits}")
            operator = laplacian._replace(edges=cast(laplacian.edges))
            bias = jnp.zeros((1, 1, kernel.shape[1]), f"float{bits}")

            def total(kernel, x, layer=layer, operator=operator, bias=bias, up=up):
                variables = {"params": {"kernel": kernel, "bias": bias}}
                out = layer.apply(variables, operator, x)
                return jnp.sum(out * up), out

            run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
            (kernel_grad, x_grad), out = jax.device_get(run(cast(kernel), cast(arrays["x"])))
        (EXACT if bits == 64 else FLOAT32)(out, target)
        if f"{order}_y_official_f32" in arrays:
            OFFICIAL(out, arrays[f"{order}_y_official_f32"])
            OFFICIAL(kernel_grad, arrays[f"{order}_gW_official_f32"])
            OFFICIAL(x_grad, arrays[f"{order}_gx_official_f32"])
        if f"{order}_y_sckr_bug" in arrays:
            assert np.abs(out - arrays[f"{order}_y_sckr_bug"]).max() > 0.1


def paths(arrays):
    """Our tree of parameters with the file's names at its leaves."""
    image = {"fc": {"kernel": "param/fc_2/weights", "bias": "param/fc_2/bias"}}
    text = {"fc": {"kernel": "param/fc_1/weights", "bias": "param/fc_1/bias"}}
    names = {
        "image": {"head": image},
        "text": {"head": text},
        "metric": {"kernel": "param/metrics/fc/weights", "bias": "param/metrics/fc/bias"},
    }
    gconvs = sorted(n for n in arrays if n.startswith("param/") and "gconv" in n)
    if gconvs:
        layers = sorted({n.rsplit("/", 1)[0] for n in gconvs})
        names["text"]["graph"] = {
            f"conv{i + 1}": {"kernel": f"{layer}/weights", "bias": f"{layer}/bias"}
            for i, layer in enumerate(layers)
        }
    return names


def run_model(arrays, words, laplacian, filters, num_taps, bits):
    """Loss, outputs, and gradients against the file's."""
    names = paths(arrays)
    cfg = gcn_text.make_config(
        {
            "text": "gcn" if filters else "mlp",
            "filters": filters,
            "num_taps": num_taps,
            "embed_dim": len(arrays["param/fc_1/bias"]),
            "gap_weight": float(arrays["lamda"]),
            "margin": float(arrays["mu"]),
        }
    )
    model = gcn_text.GCNText(cfg)
    labels = arrays["labels"] > 0
    with jax.enable_x64(bits == 64):
        cast = partial(jnp.asarray, dtype=f"float{bits}")
        params = jax.tree.map(lambda name: cast(arrays[name]), names)
        if laplacian is not None:
            laplacian = laplacian._replace(edges=cast(laplacian.edges))

        def total(params, shift):
            variables = {"params": params}
            image = model.apply(
                variables, {"features": cast(arrays["image"])}, method="embed_image"
            ).feature
            text = model.apply(variables, laplacian, cast(words), method="embed_text").feature
            logits = jnp.diagonal(model.apply(variables, image, text, method="compare")) + shift
            terms = pairwise_global(logits, labels, None, cfg.gap_weight, cfg.margin)
            value = sum(t.weight * t.sum / jnp.maximum(t.count, 1) for t in terms.values())
            return value, (text, image, logits)

        run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        shift = jnp.zeros(len(labels), f"float{bits}")
        (value, aux), grads = jax.device_get(run(params, shift))
    for name, expected in (("desc_text", aux[0]), ("desc_image", aux[1])):
        OFFICIAL(expected, arrays[name])

    def compare(name, found):
        OFFICIAL(found, arrays[name.replace("param/", "grad/", 1)])

    jax.tree.map(compare, names, grads[0])
    return value, aux[2], grads[1]


@pytest.mark.golden("gcn_text", "pairwise_global_loss")
def test_pairwise_global_loss(golden: Path):
    for arrays in cases(load_golden(golden)).values():
        for bits, close in ((32, FLOAT32), (64, OFFICIAL)):
            value, logits, gradient = run_model(arrays, arrays["text"], None, (), 1, bits)
            OFFICIAL(value, arrays["loss_official_f32"])
            OFFICIAL(logits, arrays["logits_official_f32"])
            OFFICIAL(gradient, arrays["g_logits"])
            close(value, arrays["loss_f64"])
        with jax.enable_x64(True):
            exact = jnp.asarray(arrays["logits_f64"])

            def loss(scores, arrays=arrays):
                terms = pairwise_global(
                    scores, arrays["labels"] > 0, None, arrays["lamda"], arrays["mu"]
                )
                return sum(
                    t.weight * t.sum / jnp.maximum(t.count, 1) for t in terms.values()
                ), terms

            found = jax.jit(jax.value_and_grad(loss, has_aux=True))(exact)
            (value, terms), gradient = jax.device_get(found)
        EXACT(value, arrays["loss_f64"])
        EXACT(gradient, arrays["g_logits_f64"])
        EXACT(terms["gap"].sum, max(arrays["gap_f64"], 0.0))
        parts = [terms[f"variance_{n}"] for n in ("positive", "negative")]
        EXACT(sum(part.sum / max(part.count, 1) for part in parts), arrays["var_f64"])


@pytest.mark.golden("gcn_text", "sckr_model")
@pytest.mark.parametrize("bits", [32, 64])
def test_model(golden: Path, bits: int):
    arrays = load_golden(golden)
    layers = sorted(n for n in arrays if n.startswith("param/") and "gconv" in n and "weights" in n)
    filters = tuple(arrays[n].shape[1] for n in layers)
    width = arrays["x"].shape[-1]
    num_taps = arrays[layers[0]].shape[0] // width
    laplacian = graph.scaled_laplacian(from_adjacency(arrays["A"]))
    value, logits, _ = run_model(arrays, arrays["x"], laplacian, filters, num_taps, bits)
    OFFICIAL(value, arrays["loss"])
    OFFICIAL(logits, arrays["logits"])


@pytest.mark.golden("gcn_text", "sckr_ap")
def test_average_precision(golden: Path):
    arrays = load_golden(golden)
    positive = arrays["q_labels"][:, None] == arrays["r_labels"][None, :]
    with jax.enable_x64(True):
        match_ranks = jax.jit(ranks.match_ranks, static_argnums=3)
        found, _ = match_ranks(arrays["scores"], positive, ~positive, positive.shape[1])
        for k in arrays["ats"]:
            cut = int(k) if k > 0 else positive.shape[1]
            EXACT(ranks.average_precision_found(found, cut), arrays[f"ap_at{k}"])
