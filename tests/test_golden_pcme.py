"""Every golden file of the official PCME, PCME++, AdamP and ECCV Caption, in float32 and float64.

Sizes and options are those of the file, so that other files of the same kind are tested alike.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from jcmr.convert import rules
from jcmr.convert.pcme import (
    image_head_rules,
    image_uncertainty_rules,
    pie_rules,
    text_rules,
    text_uncertainty_rules,
)
from jcmr.core import parallel
from jcmr.core.types import same_id
from jcmr.data.glove import load_glove
from jcmr.eval import metrics, retrieval
from jcmr.losses import probabilistic as losses
from jcmr.losses.targets import Side, Targets
from jcmr.models import pcme
from jcmr.models.encoders import gaussian_towers as towers
from jcmr.models.encoders.pie import ImageUncertainty, PIENet, TextUncertainty
from jcmr.ops import gaussian, ranks
from jcmr.ops.distances import paired_squared_distances, squared_distances
from jcmr.train.optim import StageConfig, make_optimizer
from tests.conftest import GOLDEN_DIR, golden_cases, load_golden
from tests.golden_pcme import (
    Stored,
    check,
    compare,
    cutoffs,
    evaluate,
    named,
    part,
    plausible,
    regions_of,
    run_adamp,
    score_of,
)
from tests.test_metrics import naive_ranks


@pytest.mark.golden("pcme", "pienet_")
def test_pie_net(golden: Path):
    arrays = load_golden(golden)
    num_heads, features = arrays["w/attention.w_2.weight"].shape[0], arrays["w/fc.bias"].shape[0]
    module = PIENet(features, num_heads)

    def run(params, inputs):
        mask = ~inputs["pad_mask"] if "pad_mask" in inputs else None
        out, attention, residual = module.apply(
            {"params": params}, inputs["out"], inputs["x"], mask
        )
        if arrays["out32/out"].ndim == 2:
            out, residual = out[:, 0], residual[:, 0]
        return {"out": out, "attn": attention, "residual": residual}

    check(arrays, pie_rules((), ""), run)


@pytest.mark.golden("pcme", "uncertainty_image")
def test_image_uncertainty(golden: Path):
    arrays = load_golden(golden)
    module = ImageUncertainty(arrays["w/fc.bias"].shape[0])

    def run(params, inputs):
        log_scale, attention = module.apply({"params": params}, inputs["pooled"], inputs["x"])
        return {"logsigma": log_scale, "attention": attention}

    check(arrays, image_uncertainty_rules((), ""), run)


@pytest.mark.golden("pcme", "uncertainty_text")
def test_text_uncertainty(golden: Path):
    arrays = load_golden(golden)
    module = TextUncertainty(arrays["w/fc.bias"].shape[0], readout="last_word")

    def run(params, inputs):
        log_scale, attention = module.apply({"params": params}, inputs["x"], ~inputs["pad_mask"])
        return {"logsigma": log_scale, "attention": attention}

    check(arrays, text_uncertainty_rules((), ""), run)


@pytest.mark.golden("pcme", "encoder_image_head")
def test_image_head(golden: Path):
    arrays = load_golden(golden)
    module = towers.ImageHead(pcme.Config(embed_dim=arrays["w/fc.bias"].shape[0]))

    def run(params, inputs):
        outputs = module.apply({"params": params}, regions_of(inputs["fmap"]))
        return named(outputs, inputs.get("eps"))

    check(arrays, image_head_rules((), ""), run)


@pytest.mark.golden("pcme", "encoder_text_")
def test_text_encoder(golden: Path):
    arrays = load_golden(golden)
    vocab_size, word_dim = arrays["w/embed.weight"].shape
    attention = "w/pie_net.fc.weight" in arrays
    probabilistic = "ct/logsigma" in arrays
    cfg = pcme.Config(
        vocab_size=vocab_size,
        word_dim=word_dim,
        embed_dim=2 * arrays["w/rnn.weight_hh_l0"].shape[1],
        readout="last_word",
        attention=attention,
        deterministic=not probabilistic,
    )
    module = towers.TextTower(cfg)

    def run(params, inputs):
        return named(module.apply({"params": params}, inputs["tokens"]), inputs.get("eps"))

    check(arrays, text_rules((), "", attention, probabilistic), run)


@pytest.mark.golden("pcme", "train_trace")
@pytest.mark.parametrize(("bits", "loss_rtol", "weight_atol"), [(32, 1e-5, 1e-3), (64, 1e-8, 1e-8)])
def test_training(golden: Path, bits, loss_rtol, weight_atol):
    """Towers, loss, clipping, AdamP and schedule together, with the noise of the file."""
    arrays = load_golden(golden)
    cfg_of = {name: x.item() for name, x in part(arrays, "cfg/").items()}
    state = part(arrays, "w/")
    vocab_size, word_dim = state["txt_enc.embed.weight"].shape
    cfg = pcme.make_config(
        {
            "vocab_size": vocab_size,
            "word_dim": word_dim,
            "embed_dim": state["img_enc.fc.bias"].shape[0],
            "vib_weight": cfg_of["vib_beta"],
            "uniform_weight": cfg_of["uniform_lambda"],
            "parity": True,
        }
    )
    mapping = {**image_head_rules(("image",), "img_enc."), **text_rules(("text",), "txt_enc.")}
    params = rules.convert(mapping, state)["params"]
    params["criterion"] = {
        "shift": np.float32(cfg_of["init_shift"]),
        "negative_scale": np.float32(cfg_of["init_negative_scale"]),
    }
    num_steps = cfg_of["T_max_epochs"] * cfg_of["steps_per_epoch"]
    stage = StageConfig(
        optimizer="adamp",
        learning_rate=cfg_of["lr"],
        schedule="cosine_epochs",
        weight_decay=cfg_of["weight_decay"],
        clip_norm=cfg_of["grad_clip"],
        no_clip=("criterion",),
    )

    def gaussian(outputs, eps):
        samples = named(outputs, eps)["embedding"]
        return pcme.Gaussian(outputs.mean, pcme.log_variance(outputs, cfg), samples)

    def loss(params, inputs):
        image = towers.ImageHead(cfg).apply({"params": params["image"]}, regions_of(inputs["fmap"]))
        caption = towers.TextTower(cfg).apply({"params": params["text"]}, inputs["tokens"])
        row = jnp.arange(len(inputs["tokens"]))
        embedded = pcme.Embedded(
            gaussian(image, inputs["eps_image"]),
            gaussian(caption, inputs["eps_caption"]),
            image.log_scale,
            caption.log_scale,
            Side(row),
            Side(row),
            jnp.ones(len(row)),
        )
        terms = pcme.objective_terms(
            embedded, params["criterion"], cfg, jax.random.key(0), axis=None
        )
        return sum(term.weight * term.sum / term.count for term in terms.values())

    with jax.enable_x64(bits == 64):
        cast = partial(jax.tree.map, partial(jnp.asarray, dtype=f"float{bits}"))
        now = cast(params)
        optimizer = make_optimizer(stage, num_steps, now, cfg_of["steps_per_epoch"])
        opt_state = optimizer.init(now)
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        for t in range(cfg_of["steps"]):
            inputs = part(arrays, f"in/{t}/")
            inputs = {name: cast(x) if x.dtype == np.float32 else x for name, x in inputs.items()}
            value, grads = value_and_grad(now, inputs)
            np.testing.assert_allclose(value, arrays[f"out{bits}/{t}/loss"], rtol=loss_rtol)
            both = {name: grads[name] for name in ("image", "text")}
            norm = arrays[f"out{bits}/{t}/grad_norm_preclip"]
            np.testing.assert_allclose(optax.tree.norm(both), norm, rtol=10 * loss_rtol)
            updates, opt_state = optimizer.update(grads, opt_state, now)
            now = optax.apply_updates(now, updates)
            for name in ("shift", "negative_scale"):
                expected = arrays[f"out{bits}/{t}/{name}"].item()
                np.testing.assert_allclose(
                    now["criterion"][name], expected, rtol=0, atol=weight_atol
                )
    final = rules.convert(mapping, part(arrays, f"out{bits}/final/"), dtype=np.float64)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=weight_atol),
        {name: now[name] for name in ("image", "text")},
        final["params"],
    )


BITS = (32, 64)


def cast_all(arrays, bits):
    return {name: jnp.asarray(x, f"float{bits}") for name, x in arrays.items()}


def close_values(actual, expected, bits, rtol=1e-5, atol=2e-6):
    rtol, atol = (rtol, atol) if bits == 32 else (1e-9, 1e-10)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def close_grads(grads, arrays, bits, prefix="in"):
    """All stored gradients `grad<bits>/<prefix>/<name>` of `grads`."""
    stored = {n: x for n, x in part(arrays, f"grad{bits}/{prefix}/").items() if n in grads}
    assert stored
    for name, expected in stored.items():
        allowed = 2e-5 * max(1.0, np.abs(expected).max())
        actual = np.asarray(grads[name]).reshape(expected.shape)
        limits = {"rtol": 0, "atol": allowed} if bits == 32 else {"rtol": 1e-9, "atol": 1e-10}
        np.testing.assert_allclose(actual, expected, **limits, err_msg=name)


@pytest.mark.golden("pcme", "sampling")
@pytest.mark.parametrize("bits", BITS)
def test_sampling(golden: Path, bits):
    arrays = load_golden(golden)

    def total(inputs):
        outputs = towers.Outputs(inputs["mu"], inputs["logsigma"], None, None, None)
        cfg = pcme.make_config({"parity": True})
        log_var = pcme.log_variance(outputs, cfg)
        samples = pcme.reparametrise(outputs.mean, log_var, arrays["in/eps"])
        return jnp.vdot(arrays["ct/samples"], samples), samples

    with jax.enable_x64(bits == 64):
        inputs = cast_all({n: arrays[f"in/{n}"] for n in ("mu", "logsigma")}, bits)
        grads, samples = jax.grad(total, has_aux=True)(inputs)
        close_values(samples, arrays[f"out{bits}/samples"], bits)
        close_grads(grads, arrays, bits)


@pytest.mark.golden("pcme", "cdist_nll")
@pytest.mark.parametrize("bits", BITS)
def test_distances_and_their_loss(golden: Path, bits):
    arrays = load_golden(golden)
    with jax.enable_x64(bits == 64):
        x, y = (jnp.asarray(arrays[f"in/samples{i}"], f"float{bits}") for i in (1, 2))
        direct = paired_squared_distances(y, x)
        points = squared_distances(y.reshape(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]))
        product = points.reshape(*y.shape[:2], *x.shape[:2])
        row = np.arange(len(x))
        for name, squared in (
            ("cdist", direct),
            ("cdist", product[row, :, row]),
            ("cdist_bcast", product[:, :, 0]),
        ):
            if f"out{bits}/{name}" in arrays:
                distance = np.sqrt(squared.reshape(len(x), -1) + 1e-6)
                close_values(distance, arrays[f"out{bits}/{name}"], bits)
        # Distances whose logits, at shift 0 and scale -1, are those of the file, one row a pair.
        logit = jnp.asarray(arrays["in/logit"], f"float{bits}")
        low = jnp.floor(logit.min()) - 1
        squared = (logit - low)[:, None, :] ** 2 - 1e-6
        both = losses.log_mean_probabilities(squared, low, jnp.asarray(-1.0, logit.dtype), (1, 2))
        nll = -np.where(arrays["in/matched"] > 0, *both)
        close_values(nll, arrays[f"out{bits}/nll"], bits)


@pytest.mark.golden("pcme", "match_prob_")
@pytest.mark.parametrize("bits", BITS)
def test_match_probabilities(golden: Path, bits):
    arrays = load_golden(golden)
    expected = arrays["ref64/prob_sigmoid2x"]
    with jax.enable_x64(bits == 64):
        x, y = (jnp.asarray(arrays[f"in/{n}"], f"float{bits}") for n in ("query", "gallery"))
        shift, scale = (jnp.asarray(arrays[f"cfg/{n}"]) for n in ("shift", "negative_scale"))
        log_match, log_mismatch = losses.log_match_probability(x, y, shift, scale)
        log_match, log_mismatch = np.float64(log_match), np.float64(log_mismatch)
    if bits == 64:
        np.testing.assert_allclose(log_match, np.log(expected), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.exp(log_match), expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.exp(log_mismatch), 1 - expected, rtol=0, atol=2e-6)
    hidden = arrays["out32/prob"] == 0
    np.testing.assert_allclose(log_match[hidden], np.log(expected[hidden]), rtol=1e-4)
    seen = ~hidden
    for official in ("out32/prob", "out32/prob_from_f64_features"):
        np.testing.assert_allclose(
            np.exp(log_match)[seen], arrays[official][seen], rtol=0, atol=2e-6
        )
    # Where the probabilities of two columns differ, so does their order, also in log space.
    ahead = expected[:, :, None] - expected[:, None, :] > 1e-6
    assert np.all((log_match[:, :, None] > log_match[:, None, :])[ahead])


@pytest.mark.golden("pcme", "mcsc_")
@pytest.mark.parametrize(("bits", "chunk"), [(32, 0), (64, 0), (64, 3)])
def test_soft_contrastive_loss(golden: Path, bits, chunk, monkeypatch):
    """The model's objective in parity mode, with the noise and the drawn rows of the file."""
    arrays = load_golden(golden)
    cfg_of = {name: x.item() for name, x in part(arrays, "cfg/").items()}
    cfg = pcme.make_config(
        {
            "num_samples": cfg_of["num_samples"],
            "vib_weight": cfg_of["vib_beta"],
            "uniform_weight": cfg_of["uniform_lambda"],
            "chunk": chunk,
            "parity": True,
        }
    )
    if "in/uniform_indices" in arrays:
        drawn = arrays["in/uniform_indices"]
        monkeypatch.setattr(losses, "uniform_rows", lambda key, num, replace: drawn)

    def gaussian_of(mean, log_std, shift, noise):
        log_var = 2 * log_std
        return pcme.Gaussian(mean, log_var, pcme.reparametrise(mean, log_var, noise) + shift)

    def objective(inputs, weights, moved):
        """`moved` is added to the samples: its gradient is theirs."""
        sides = [
            gaussian_of(inputs[f"mu_{n}"], inputs[f"{n}_logsigma"], moved[n], arrays[f"in/eps_{n}"])
            for n in ("image", "caption")
        ]
        row = jnp.arange(len(sides[0].mean))
        scales = inputs["image_logsigma"], inputs["caption_logsigma"]
        embedded = pcme.Embedded(*sides, *scales, Side(row), Side(row), jnp.ones(len(row)))
        terms = pcme.objective_terms(embedded, weights, cfg, jax.random.key(0), None)
        return sum(t.weight * t.sum / t.count for t in terms.values()), (terms, sides)

    with jax.enable_x64(bits == 64):
        names = "mu_image", "mu_caption", "image_logsigma", "caption_logsigma"
        inputs = cast_all({n: arrays[f"in/{n}"] for n in names}, bits)
        weights = {n: cfg_of[f"init_{n}"] for n in ("shift", "negative_scale")}
        moved = {n: np.zeros_like(arrays[f"in/eps_{n}"]) for n in ("image", "caption")}
        gradient = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))
        (loss, (terms, sides)), grads = gradient(
            inputs, cast_all(weights, bits), cast_all(moved, bits)
        )
        loose = {"rtol": 5e-5, "atol": 2e-5}
        close_values(loss, arrays[f"loss{bits}"], bits, **loose)
        stored = part(arrays, f"out{bits}/loss_dict/")
        close_values(terms["match"].sum, stored["i2t_loss"], bits, **loose)
        close_values(terms["match"].sum, stored["t2i_loss"], bits, **loose)
        if cfg.vib_weight:
            vib = terms["vib_image"].sum + terms["vib_text"].sum
            close_values(vib, stored["vib_loss"], bits, **loose)
        if cfg.uniform_weight:
            close_values(terms["uniformity"].sum, stored["uniform_loss"], bits, **loose)
        for name, side in zip(("image", "caption"), sides):
            close_values(side.samples, arrays[f"out{bits}/{name}_features"], bits)
        close_grads(grads[0], arrays, bits)
        close_grads(grads[1], arrays, bits, "w")
        if not cfg.vib_weight:  # the divergence uses the samples too
            close_grads({f"{n}_features": g for n, g in grads[2].items()}, arrays, bits)


@pytest.mark.golden("pcme", "pcmepp_csd", "pcmepp_wdist")
@pytest.mark.parametrize("bits", BITS)
def test_closed_form_loss(golden: Path, bits):
    """PCME++; its ablation compares by Wasserstein's distance."""
    arrays = load_golden(golden)
    cfg = {name: x.item() for name, x in part(arrays, "cfg/").items()}
    targets = Targets(jnp.asarray(arrays["in/matched"]), jnp.ones(arrays["in/matched"].shape, bool))

    def distance(*sides):
        if golden.stem.startswith("pcmepp_wdist"):
            return -gaussian.negative_wasserstein(*sides)
        return gaussian.csd(*sides)

    def objective(inputs, weights):
        sides = [inputs[n] for n in ("image_mean", "image_std", "caption_mean", "caption_std")]
        logits = weights["shift"] - weights["negative_scale"] * distance(*sides)
        loss = 2 * losses.binary_cross_entropy(logits, targets) / logits.size
        for mean, log_var in (sides[:2], sides[2:]):
            loss += cfg["vib_beta"] * losses.divergence(mean, log_var) / mean.size
        for x, pairs in ((logits, targets), (logits.T, Targets(*(t.T for t in targets)))):
            wider = losses.pseudo_positives(x, pairs)
            loss += cfg["smoothness_alpha"] * losses.binary_cross_entropy(x, wider) / x.size
        return loss

    with jax.enable_x64(bits == 64):
        names = "image_mean", "image_std", "caption_mean", "caption_std"
        inputs = cast_all({n: arrays[f"in/{n}"] for n in names}, bits)
        weights = cast_all({n: cfg[f"init_{n}"] for n in ("shift", "negative_scale")}, bits)
        loss, grads = jax.jit(jax.value_and_grad(objective, (0, 1)))(inputs, weights)
        close_values(loss, arrays[f"loss{bits}"], bits, rtol=5e-5, atol=2e-5)
        close_grads(grads[0], arrays, bits)
        close_grads(grads[1], arrays, bits, "w")


@pytest.mark.golden("pcme", "eval_coco_recall")
@pytest.mark.float64
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
@pytest.mark.float64
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
@pytest.mark.float64
def test_cub_metrics(golden: Path):
    golden_file = load_golden(golden)
    classes = golden_file["in/image_classes"], golden_file["in/caption_classes"]
    similarities = sorted({key.split("/")[1] for key in golden_file if key.startswith("out/")})
    found = {}
    for name in similarities:
        with jax.enable_x64(True):
            found[name] = evaluate(
                name,
                golden_file,
                {"class": same_id(*classes)},
                {},
                ks=cutoffs(golden_file, "recall"),
                precision_ks=cutoffs(golden_file, "/precision"),
            ).metrics
    for name in similarities:
        # Where a similarity has sides, ours scores images against captions both ways, the official
        # code scores queries against the gallery.
        swapped = {"kl": "reverse_kl", "reverse_kl": "kl"}.get(name, name)
        both = {n: found[swapped if "/t2i/" in n else name][n] for n in found[name]}
        compare(both, "golden", golden_file, f"out/{name}", scale=0.01)


@pytest.mark.golden("pcme", "eval_cub")
@pytest.mark.float64
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


@pytest.mark.golden("pcme", "eval_pmrp")
@pytest.mark.parametrize("variant", ["full", "drop_last"])
@pytest.mark.float64
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
@pytest.mark.float64
def test_plausible_match_precisions_query_by_query(golden: Path, variant: str):
    golden_file = load_golden(golden)
    split, _, known_captions = plausible(golden_file)
    known = golden_file["in/multihot"].any(axis=1), known_captions
    match_ranks = jax.jit(ranks.match_ranks, static_argnums=3)
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
                negative, most = valid & ~turn(match), scores.shape[1]
                found, _ = match_ranks(scores, positive, negative, most)
                precision = ranks.r_precision(found, positive.sum(1))[rows]
            expected = golden_file[f"out/{variant}/all/{direction}/rp_zeta{zeta}"]
            np.testing.assert_allclose(precision, expected, atol=1e-9)


@pytest.mark.golden("pcme", "eccv_metrics")
@pytest.mark.float64
def test_eccv_metrics(golden: Path):
    golden_file = load_golden(golden)
    ranking, matching = golden_file["in/ranking"], golden_file["in/gt_padded"]
    hits = np.stack([np.isin(r, g[g >= 0]) for r, g in zip(ranking, matching)])
    first = hits.argmax(axis=1)
    with jax.enable_x64(True):
        number = hits.sum(axis=1)
        found = jnp.asarray(naive_ranks(hits))
        r_precision = np.mean(ranks.r_precision(found, number))
        map_at_r = np.mean(ranks.map_at_r(found, number))
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


@pytest.mark.golden("pcme", "adamp_")
@pytest.mark.parametrize("layout", [None, "flax"])
@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-12), (32, 1e-6)])
def test_adamp_equals_the_package(golden: Path, bits, tolerance, layout):
    data = load_golden(golden)
    with jax.enable_x64(bits == 64):
        for t, params, names in run_adamp(data, f"float{bits}", layout):
            for name in names:
                want = data[f"out{bits}/{t}/{name}"]
                want = want if layout is None or want.ndim < 2 else np.moveaxis(want, 0, -1)
                np.testing.assert_allclose(params[name], want, rtol=0, atol=tolerance)


@pytest.mark.golden("pcme", "glove_init")
def test_glove_rows_are_the_official_ones(golden, tmp_path):
    data = load_golden(golden)
    path = tmp_path / "glove.txt"
    with path.open("w") as file:
        for word, vector in zip(data["in/glove_words"], data["in/glove_vectors"]):
            print(word, *(repr(float(x)) for x in vector), file=file)
    vocabulary = {str(word): index for index, word in enumerate(data["in/vocab_words"])}
    vectors, found = load_glove(path, vocabulary)
    np.testing.assert_array_equal(found, data["out/hit_mask"])
    rows = data["out/source_row"]
    np.testing.assert_array_equal(vectors[found], data["in/glove_vectors"][rows[found]])
    np.testing.assert_array_equal(vectors[found], data["out/embed_weight"][found])
    assert not vectors[~found].any()


def claimed_prefixes():
    """The prefixes of all markers of this file."""
    marks = [m for f in globals().values() for m in getattr(f, "pytestmark", [])]
    return {prefix for m in marks if m.name == "golden" for prefix in m.args[1:]}


def test_every_golden_file_is_tested():
    files = [path.stem for path in golden_cases("pcme", "")]
    ignored = [name for name in files if not name.startswith(tuple(claimed_prefixes()))]
    assert not ignored, f"{GOLDEN_DIR}/pcme has files that no test reads"


def test_every_test_has_a_golden_file():
    committed = [path.stem for path in (Path(__file__).parent / "golden" / "pcme").glob("*.npz")]
    for prefix in claimed_prefixes():
        assert any(name.startswith(prefix) for name in committed), prefix
