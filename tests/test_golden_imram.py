"""IMRAM, SCAN, VSE++ and VSE-infinity against the official code: values and gradients."""

import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from jcmr.convert import rules
from jcmr.convert.imram import convert_regions, image_rules, text_rules
from jcmr.convert.vse_infty import gpo_rules, infty_image_rules
from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Task, same_id
from jcmr.data.records import Arrays
from jcmr.eval import retrieval
from jcmr.losses.ranking import triplet_hinge
from jcmr.models import imram, vse
from jcmr.models.encoders.gpo import GPO, rank_encoding
from jcmr.ops import cross_attention as ca
from jcmr.train.optim import StageConfig, make_optimizer
from tests.conftest import GOLDEN_DIR, load_golden

AGGREGATES = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}
VARIANTS = {"full_IMRAM": "full", "text_IMRAM": "text", "image_IMRAM": "image"}


def part(arrays, prefix):
    return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}


def close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def close_rel(actual, expected, tolerance):
    """Errors as a share of the largest expected value; exact where all are 0."""
    close(actual, expected, tolerance * np.abs(expected).max())


def steps_of(golden, arrays, default):
    """K, from the file or its name."""
    found = re.search(r"_K(\d+)", golden.stem)
    stored = next((int(arrays[n]) for n in ("K", "steps", "iteration_step") if n in arrays), None)
    return stored or (int(found[1]) if found else default)


def word_mask(arrays):
    return np.arange(arrays["captions"].shape[1]) < arrays["lengths"][:, None]


def test_every_golden_file_is_claimed(request):
    """A file that no test reads would look like one that passes."""
    tests = [item for item in request.session.items if item.path == request.node.path]
    markers = [m for item in tests for m in item.iter_markers("golden")]
    prefixes = {prefix for marker in markers for prefix in marker.args[1:]}
    if len({item.originalname for item in tests}) == 1:
        pytest.skip("only this test was selected, so that no other can claim a file")
    files = [path.stem for path in (GOLDEN_DIR / "imram").glob("*.npz")]
    assert files and not [f for f in files if not f.startswith(tuple(prefixes))]


@pytest.mark.golden("imram", "attention_")
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_attention(golden: Path, direction):
    arrays = load_golden(golden)
    rest = golden.stem.removeprefix("attention_")
    norm = max((name for name in ca.NORMS if rest.startswith(name)), key=len)
    how = ca.Matching(norm=norm, smooth=float(arrays["lambda_softmax"]))
    arrays = part(arrays, f"{direction}.")

    def attended(query, context):
        everything = jnp.ones((len(query), 1), bool), jnp.ones((1, len(context)), bool)
        logits = (context @ query.T)[None, :, :, None]
        raw = ca.normalise_logits(logits, everything[0], how.norm)
        return ca.attend(ca.weigh(logits, *everything, how))[0, ..., 0].T @ context, raw[0, ..., 0]

    def total(query, context):
        weighted, raw = jax.vmap(attended)(query, context)
        return jnp.vdot(arrays["cotangent"], weighted), (weighted, raw)

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    grads, (weighted, raw) = grad(arrays["query"], arrays["context"])
    close(weighted, arrays["weighted"], 1e-5)
    close(raw, arrays["attn_raw"], 1e-5)
    close_rel(grads[0], arrays["g_query"], 1e-4)
    close_rel(grads[1], arrays["g_context"], 1e-4)


def gate_of(weights, direction):
    """The op's form of the official `linear_*` and `gate_*`, weights [d, 2d]."""
    kernel = jnp.concatenate([weights[f"{n}_{direction}.weight"].T for n in ("linear", "gate")], 1)
    bias = jnp.concatenate([weights[f"{n}_{direction}.bias"] for n in ("linear", "gate")])
    d = kernel.shape[0] // 2
    return ca.Gate(kernel[:d], kernel[d:], bias)


def fragments(images, captions, mask, gates):
    everything = jnp.ones(images.shape[:2], bool)
    return (
        ca.make_fragments(images, everything, gates.get("i2t"), gates.get("t2i")),
        ca.make_fragments(captions, mask, gates.get("t2i"), gates.get("i2t")),
    )


@pytest.mark.golden("imram", "imram_scores")
def test_imram_scores(golden: Path):
    arrays = load_golden(golden)
    mask, weights = word_mask(arrays), part(arrays, "w.")
    how = ca.Matching(
        steps=steps_of(golden, arrays, 0),
        smooth=float(arrays["lambda_softmax"]),
        renormalise="_renorm" in golden.stem,
    )

    def total(images, captions, weights):
        gates = {name: gate_of(weights, name) for name in ("t2i", "i2t")}
        pair = fragments(images, captions, mask, gates)
        match = jax.vmap(partial(ca.match_directions, gates=gates, how=how), (None, 0))
        found = {name: scores for name, (scores, _) in jax.vmap(match, (0, None))(*pair).items()}
        scores = sum(x.sum(2) for x in found.values())
        return jnp.vdot(arrays["cotangent_full"], scores), (scores, found)

    grad = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
    grads, (scores, found) = grad(arrays["images"], arrays["captions"], weights)
    for name, sums in (("t2i", "score_text"), ("i2t", "score_image")):
        for k in range(how.steps):
            close(found[name][:, :, k], arrays[f"{name}.step{k}"], 2e-5)
        close(found[name].sum(2), arrays[sums], 2e-5)
    close(scores, arrays["score_full"], 2e-5)
    close_rel(grads[0], arrays["g_images"], 5e-4)
    close_rel(grads[1], arrays["g_captions"], 5e-4)
    for name, expected in part(arrays, "g.").items():
        close_rel(grads[2][name], expected, 5e-4)


@pytest.mark.golden("imram", "imram_shard_eval")
def test_evaluation_scores(golden: Path):
    arrays = load_golden(golden)
    how = ca.Matching(steps_of(golden, arrays, 3), float(arrays["lambda_softmax"]))
    weights = part(arrays, "w.")
    for official, variant in VARIANTS.items():
        gates = {name: gate_of(weights, name) for name in imram.DIRECTIONS[variant]}
        pair = fragments(arrays["images"], arrays["captions"], word_mask(arrays), gates)
        score = jax.jit(partial(ca.score_tile, how=how, chunk=5))
        close(score(*pair, gates), arrays[f"score_{official}"], 2e-5)


@pytest.mark.golden("imram", "scan_scores")
def test_scan_scores(golden: Path):
    arrays = load_golden(golden)
    direction, mask = golden.stem.removeprefix("scan_scores_")[:3], word_mask(arrays)
    names = [n.removesuffix(".score") for n in arrays if n.endswith(".score")]
    assert names
    for name in names:
        kind, lse, smooth, norm = name.split("_", 3)
        how = ca.Matching(
            smooth=float(smooth.removeprefix("lam")),
            norm=norm,
            aggregate=AGGREGATES[kind],
            lse_scale=float(lse.removeprefix("lse")),
        )

        def total(images, captions, name=name, how=how):
            gates = {direction: None}
            scores = ca.score_pairs(*fragments(images, captions, mask, gates), gates, how)
            return jnp.vdot(arrays[f"{name}.cotangent"], scores), scores

        grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
        grads, scores = grad(arrays["images"], arrays["captions"])
        close(scores, arrays[f"{name}.score"], 5e-5)
        close_rel(grads[0], arrays[f"{name}.g_images"], 1e-3)
        close_rel(grads[1], arrays[f"{name}.g_captions"], 1e-3)


def hinge(scores, margin, hardest):
    """The official loss: matches are on the diagonal of a square matrix."""
    own = jnp.arange(len(scores))
    return triplet_hinge(scores, own, own, ~jnp.eye(len(scores), dtype=bool), margin, hardest).sum()


@pytest.mark.golden("imram", "scan_loss")
def test_scan_loss(golden: Path):
    arrays = load_golden(golden)
    mask, gates = word_mask(arrays), {golden.stem.removeprefix("scan_loss_")[:3]: None}
    option = lambda name, default: float(arrays.get(name, default))
    how = ca.Matching(
        smooth=option("lambda_softmax", 9), aggregate="lse", lse_scale=option("lambda_lse", 6)
    )

    @jax.jit
    def value_and_grad(images, captions, hardest):
        def loss(images, captions):
            scores = ca.score_pairs(*fragments(images, captions, mask, gates), gates, how)
            return hinge(scores, option("margin", 0.2), hardest)

        return jax.value_and_grad(loss, (0, 1))(images, captions)

    for name in ("max", "sum"):
        value, grads = value_and_grad(arrays["images"], arrays["captions"], name == "max")
        close(value, arrays[f"loss_{name}"], 2e-4)
        close_rel(grads[0], arrays[f"g_images_{name}"], 1e-3)
        close_rel(grads[1], arrays[f"g_captions_{name}"], 1e-3)


@pytest.mark.golden("imram", "contrastive_loss")
def test_contrastive_losses(golden: Path):
    arrays = load_golden(golden)
    grad = jax.jit(jax.value_and_grad(hinge))
    names = [n for n in arrays if re.fullmatch(r"loss_(max|sum)_m[\d.]+", n)]
    assert names
    for name in names:
        _, kind, margin = name.split("_")
        value, found = grad(arrays["scores"], float(margin[1:]), kind == "max")
        close(value, arrays[name], 1e-4)
        np.testing.assert_array_equal(found, arrays[f"g_{kind}_{margin}"])
    for system, measure, margin in (
        ("vsepp_cosine", "cosine", 0.2),
        ("vsepp_order", "order", 0.05),
        ("vseinf", "cosine", 0.2),
    ):
        config = vse.make_config({"measure": measure, "vocab_size": 5})
        score = vse.make({"measure": measure}).score

        @jax.jit
        def value_and_grad(images, captions, hardest, score=score, margin=margin, config=config):
            def loss(images, captions):
                if config.measure == "order":
                    images, captions = jnp.abs(images), jnp.abs(captions)
                scores = score({}, images, captions)
                return hinge(scores, margin, hardest), scores

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(images, captions)

        for kind in ("max", "sum"):
            pair = arrays["vse_im"], arrays["vse_s"]
            (value, scores), grads = value_and_grad(*pair, kind == "max")
            close(value, arrays[f"loss_{system}_{kind}"], 1e-4)
            close(grads[0], arrays[f"g_im_{system}_{kind}"], 1e-5)
            close(grads[1], arrays[f"g_s_{system}_{kind}"], 1e-5)
            if f"sim_{system}_{kind}" in arrays:
                close(scores, arrays[f"sim_{system}_{kind}"], 1e-5)


def gradient(run, mapping, arrays, inputs, cotangent):
    """(outputs, gradients of the official names that the file stores, gradients of inputs).

    `mapping` makes parameters of torch weights; it is linear but for order, so gradients compare
    in our layout.
    """
    params = rules.convert(mapping, part(arrays, "w."))["params"]

    def total(params, inputs):
        out = run(params, inputs)
        return jnp.vdot(cotangent, out), out

    grads, out = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, inputs)
    return out, grads


def close_params(grads, mapping, stored, tolerance, ignored=lambda name: False):
    expected = rules.convert(mapping, stored, ignored=ignored)["params"]
    jax.tree.map(partial(close_rel, tolerance=tolerance), grads, expected)


@pytest.mark.golden("imram", "encoder_image")
def test_image_encoder(golden: Path):
    arrays = load_golden(golden)
    weight_norm = "w.fc_local.weight_v" in arrays
    cfg = imram.Config(
        embed_dim=len(arrays["w.fc_local.bias"]),
        weight_norm=weight_norm,
        unit_images="nonorm" not in golden.stem,
    )
    mapping = image_rules((), "fc_local", weight_norm)

    def run(params, images):
        return imram.ImageTower(cfg).apply({"params": params}, {"regions": images})

    out, grads = gradient(run, mapping, arrays, arrays["images"], arrays["cotangent_local"])
    close(out, arrays["out_local"], 1e-5)
    close_params(grads[0], mapping, part(arrays, "g."), 1e-4)
    close_rel(grads[1], arrays["g_images"], 1e-4)


def text_tower(arrays, unit_words=True):
    vocab_size, word_dim = arrays["w.embed.weight"].shape
    features = arrays["w.rnn.weight_hh_l0"].shape[1]
    return imram.TextTower(
        imram.Config(
            vocab_size=vocab_size, word_dim=word_dim, embed_dim=features, unit_words=unit_words
        )
    )


@pytest.mark.golden("imram", "encoder_text_bigru", "scan_encoder_text")
def test_text_encoder(golden: Path):
    arrays = load_golden(golden)
    tower = text_tower(arrays, "nonorm" not in golden.stem)
    mapping = text_rules((), "")
    params = rules.convert(mapping, part(arrays, "w."))["params"]
    text, words = arrays["captions"], arrays["out_words"]
    np.testing.assert_array_equal(text > 0, word_mask(arrays))

    @jax.jit
    def total(params):
        out = tower.apply({"params": params}, text)
        return jnp.vdot(arrays.get("cotangent_words", words), out), out

    if "cotangent_words" not in arrays:
        return close(total(params)[1], words, 1e-5)
    grads, out = jax.jit(jax.grad(total, has_aux=True))(params)
    close(out, words, 1e-5)
    close_params(grads, mapping, part(arrays, "g."), 1e-4)


@pytest.mark.golden("imram", "vsepp_encoders")
def test_vsepp_encoders(golden: Path):
    arrays = load_golden(golden)
    vocab_size, word_dim = arrays["txt.embed.weight"].shape
    cfg = vse.Config(
        method="vsepp",
        vocab_size=vocab_size,
        word_dim=word_dim,
        embed_dim=len(arrays["img.fc.bias"]),
    )
    mapping = text_rules((), "", directions=1)
    params = rules.convert(mapping, part(arrays, "txt."))["params"]

    def total(params):
        out = vse.TextTower(cfg).apply({"params": params}, arrays["captions"])
        return jnp.vdot(arrays["cotangent_txt"], out), out

    grads, out = jax.jit(jax.grad(total, has_aux=True))(params)
    close(out, arrays["out_txt"], 1e-5)
    close_params(grads, mapping, part(arrays, "gtxt."), 1e-4)
    image = rules.convert(image_rules((), "fc"), part(arrays, "img."))
    out = vse.ImageTower(cfg).apply(image, {"regions": arrays["global_image"][:, None]})
    close(out, arrays["out_img"], 1e-5)


@pytest.mark.golden("imram", "vseinf_gpo")
def test_pooling(golden: Path):
    arrays = load_golden(golden)
    dim, hidden = int(arrays["d_pe"]), int(arrays["d_hidden"])
    close(rank_encoding(len(arrays["pe"]), dim), arrays["pe"], 1e-5)
    mask = np.arange(arrays["features"].shape[1]) < arrays["lengths"][:, None]
    mapping = gpo_rules((), "")

    def run(params, features, sizes=(dim, hidden)):
        return GPO(*sizes).apply({"params": params}, features, mask)

    inputs = arrays["features"], arrays["cotangent"]
    pooled = lambda params, features: run(params, features)[0]
    out, grads = gradient(pooled, mapping, arrays, *inputs)
    close(out, arrays["pooled"], 2e-5)
    close_params(grads[0], mapping, part(arrays, "g."), 2e-4)
    close_rel(grads[1], arrays["g_features"], 2e-4)
    for prefix, suffix, sizes in (("w.", "", (dim, hidden)), ("w32.", "32", (32, 32))):
        params = rules.convert(mapping, part(arrays, prefix))["params"]
        out, weights = run(params, arrays["features"], sizes)
        close(out, arrays[f"pooled{suffix}"], 2e-5)
        close(weights[..., None], arrays[f"pool_weights{suffix}"], 2e-5)


def counter(name):
    return name.endswith("num_batches_tracked") or ".bns.1." in name


@pytest.mark.golden("imram", "vseinf_encoder_image")
def test_vse_infty_image_encoder(golden: Path):
    arrays = load_golden(golden)
    tower = vse.ImageTower(vse.Config(embed_dim=len(arrays["w.fc.bias"])))
    mapping = infty_image_rules((), "")
    variables = rules.convert(mapping, part(arrays, "w."), ignored=counter)
    kept = np.arange(arrays["images"].shape[1]) < arrays["image_lengths"][:, None]
    inputs = {"regions": arrays["images"]}
    close(tower.apply(variables, inputs, kept), arrays["out_eval"], 3e-5)

    @jax.jit
    def total(params):
        everything = {**variables, "params": params}
        out, new = tower.apply(everything, inputs, kept, True, mutable=["batch_stats"])
        return jnp.vdot(arrays["cotangent_train"], out), (out, new)

    grads, (out, new) = jax.grad(total, has_aux=True)(variables["params"])
    close(out, arrays["out_train"], 3e-5)
    after = rules.convert(mapping, {**part(arrays, "w."), **part(arrays, "after.")}, None, counter)
    jax.tree.map(partial(close, tolerance=3e-5), new["batch_stats"], after["batch_stats"])
    weights = {path: rule for path, rule in mapping.items() if path[0] == "params"}
    # BatchNorm takes the first bias out again: its gradient is 0, and the file holds noise.
    first = grads["mlp"]["first"]
    close(first.pop("bias"), 0, 1e-6 * np.abs(first["kernel"]).max())
    del weights["params", "mlp", "first", "bias"]
    noise = lambda name: counter(name) or name == "mlp.layers.0.bias"
    close_params(grads, weights, part(arrays, "g."), 5e-4, noise)


@pytest.mark.golden("imram", "vseinf_encoder_text")
def test_vse_infty_text_encoder(golden: Path):
    arrays = load_golden(golden)
    vocab_size, word_dim = arrays["w.embed.weight"].shape
    features = arrays["w.rnn.weight_hh_l0"].shape[1]
    tower = vse.TextTower(vse.Config(vocab_size=vocab_size, word_dim=word_dim, embed_dim=features))
    mapping = {**text_rules((), ""), **gpo_rules(("pool",), "gpool.")}
    params = rules.convert(mapping, part(arrays, "w."))["params"]

    def total(params):
        out = tower.apply({"params": params}, arrays["captions"])
        return jnp.vdot(arrays["cotangent"], out), out

    grads, out = jax.jit(jax.grad(total, has_aux=True))(params)
    close(out, arrays["out"], 3e-5)
    close_params(grads, mapping, part(arrays, "g."), 5e-4)


def system(arrays, state, variant, steps):
    """(task, variables, batch) of an end-to-end file."""
    options = {
        "variant": variant,
        "steps": steps,
        "smooth": float(arrays["lambda_softmax"]),
        "margin": float(arrays["margin"]),
        "duplicates": "negative",
        "chunk": 4,
    }
    variables, model = convert_regions(state, "img_enc.fc_local", options)
    batch = {
        "regions": jnp.asarray(arrays["images"]),
        "text": jnp.asarray(arrays["captions"], jnp.int32),
        "id": jnp.arange(len(arrays["images"])),
    }
    return imram.make(model), variables, batch


PROGRAMS: dict = {}


@pytest.mark.golden("imram", "imram_e2e")
def test_system(golden: Path):
    arrays = load_golden(golden)
    official, kind = re.search(r"e2e_(\w+IMRAM)_(max|sum)", golden.stem).groups()
    steps, state, variant = steps_of(golden, arrays, 3), part(arrays, "w."), VARIANTS[official]
    task, variables, batch = system(arrays, state, variant, steps)

    def run(variables, batch, margin, hardest):
        def loss(variables):
            sides = [task.encode[name](variables, batch) for name in ("image", "text")]
            scores = task.score(variables, *sides)
            return hinge(scores, margin, hardest), scores

        return jax.value_and_grad(loss, has_aux=True)(variables)

    # The files of both losses share a program.
    key = variant, steps, float(arrays["lambda_softmax"])
    run = PROGRAMS.setdefault(key, jax.jit(run))
    (value, scores), grads = run(variables, batch, float(arrays["margin"]), kind == "max")
    close(scores.T, arrays["scores_train"], 2e-5)
    close(value, arrays["loss"], 1e-3)
    # The files leave out the gradients of weights that a variant does not use.
    stored = {n: part(arrays, "g.").get(n, np.zeros_like(x)) for n, x in state.items()}
    options = {"variant": variant, "steps": steps}
    expected, _ = convert_regions(stored, "img_enc.fc_local", options)
    jax.tree.map(partial(close_rel, tolerance=1e-3), grads["params"], expected["params"])
    close_rel(optax.tree.norm(grads), arrays["grad_norm"], 1e-3)


@pytest.mark.golden("imram", "imram_train")
@pytest.mark.float64
def test_training(golden: Path):
    """Towers, loss, clipping and Adam together.

    In float64, as the first step of Adam divides each gradient by its own size: where that is 3e-7
    of the largest, the noise of float32 is a tenth of a step.
    """
    arrays = load_golden(golden)
    steps, number = steps_of(golden, arrays, 2), len(arrays["losses"])
    task, variables, batch = system(arrays, part(arrays, "w0."), "full", steps)
    stage = StageConfig(
        optimizer="adam",
        learning_rate=float(arrays["lr"]),
        schedule="constant",
        clip_norm=float(arrays["grad_clip"]),
    )

    def objective(params, batch):
        return task.loss({"params": params}, batch, jax.random.key(0), None)[0]["hinge"].sum

    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(x, "float64" if x.dtype == np.float32 else x.dtype)
        params, batch = jax.tree.map(widen, (variables["params"], batch))
        optimizer = make_optimizer(stage, number, params)
        opt_state = optimizer.init(params)
        value_and_grad = jax.jit(jax.value_and_grad(objective))
        for t in range(number):
            value, grads = value_and_grad(params, batch)
            assert value.dtype == np.float64
            close(value, arrays["losses"][t], 1e-4)
            close_rel(optax.tree.norm(grads), arrays["grad_norms"][t], 1e-3)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        params = jax.device_get(params)
    last = part(arrays, f"w{number}.")
    options = {"variant": "full", "steps": steps}
    expected, _ = convert_regions(last, "img_enc.fc_local", options)
    jax.tree.map(partial(close, tolerance=2e-5), params, expected["params"])


def evaluate_scores(scores, fold_of_image=None):
    """The evaluator's results on a matrix of scores, 5 captions an image."""
    num, num_captions = scores.shape
    owner = np.arange(num_captions) // (num_captions // num)
    items = {
        "image": Arrays({"scores": scores}),
        "text": Arrays({"column": np.arange(num_captions)}),
    }
    encode = {name: lambda variables, inputs: dict(inputs) for name in items}
    score = lambda variables, query, gallery: query["scores"][:, gallery["column"]]
    extras = {}
    if fold_of_image is not None:
        extras["protocols"] = {"folds": (fold_of_image, fold_of_image[owner])}
        for fold in np.unique(fold_of_image):
            only = np.where(fold_of_image == fold, 0, -1)
            extras["protocols"][f"fold{fold}"] = (only, only[owner])
    relevance = {"own": same_id(np.arange(num), owner)}
    split = RetrievalSplit("golden", items, relevance, extras)
    task = Task(None, None, encode, score)  # pyright: ignore
    cfg = {"tile": (32, 128), "batch_size": 64, "num_top": 1}
    mesh = parallel.make_mesh(jax.devices()[:1])
    return retrieval.make_evaluator(task, split, cfg, lambda batch: batch, mesh)({})


@pytest.mark.golden("imram", "recall_metrics")
@pytest.mark.float64
def test_recalls(golden: Path):
    arrays = load_golden(golden)
    names = ("r@1", "r@5", "r@10", "medr", "meanr")
    for case in {n.partition(".")[0] for n in arrays if re.match(r"n\d+\.", n)}:
        stored = part(arrays, f"{case}.")
        with jax.enable_x64(True):
            results = evaluate_scores(stored["sims"])
        for direction in ("i2t", "t2i"):
            found = [results.metrics[f"golden/{direction}/{name}"] for name in names]
            close(found, stored[direction], 1e-9)
            np.testing.assert_array_equal(
                results.first_hit[direction], stored[f"{direction}_ranks"]
            )
            top = stored[f"{direction}_top1"]
            np.testing.assert_array_equal(results.top[direction][:, 0], top)
    sims, rows = arrays["fold5.sims"], arrays["fold5.rows"]
    folds = np.arange(len(sims)) * len(rows) // len(sims)
    with jax.enable_x64(True):
        found = evaluate_scores(sims, folds).metrics
    for protocol, expected in (
        ("folds", arrays["fold5.mean"]),
        *((f"fold{i}", row) for i, row in enumerate(rows)),
    ):
        values = [found[f"{protocol}/{d}/{name}"] for d in ("i2t", "t2i") for name in names]
        close(values, expected[:10], 1e-9)
        close(found[f"{protocol}/rsum"], expected[12], 1e-9)
