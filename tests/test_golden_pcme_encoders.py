"""The encoders against the official modules, values and all gradients, and four steps of training.

In float32 and float64.
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
from jcmr.losses.targets import Side
from jcmr.models import pcme
from jcmr.models.encoders.pie import ImageUncertainty, PIENet, TextUncertainty
from jcmr.train.optim import StageConfig, make_optimizer
from tests.conftest import load_golden


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


def named(outputs: pcme.Outputs, eps):
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


@pytest.mark.golden("pcme", "encoder_image_head")
def test_image_head(golden: Path):
    arrays = load_golden(golden)
    module = pcme.ImageHead(pcme.Config(embed_dim=arrays["w/fc.bias"].shape[0]))

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
    module = pcme.TextTower(cfg)

    def run(params, inputs):
        return named(module.apply({"params": params}, inputs["tokens"]), inputs.get("eps"))

    check(arrays, text_rules((), "", attention, probabilistic), run)


@pytest.mark.golden("pcme", "train_trace")
def test_training(golden: Path):
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
        image = pcme.ImageHead(cfg).apply({"params": params["image"]}, regions_of(inputs["fmap"]))
        caption = pcme.TextTower(cfg).apply({"params": params["text"]}, inputs["tokens"])
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

    for bits, loss_rtol, weight_atol in ((32, 1e-5, 1e-3), (64, 1e-8, 1e-8)):
        with jax.enable_x64(bits == 64):
            cast = partial(jax.tree.map, partial(jnp.asarray, dtype=f"float{bits}"))
            now = cast(params)
            optimizer = make_optimizer(stage, num_steps, now, cfg_of["steps_per_epoch"])
            opt_state = optimizer.init(now)
            value_and_grad = jax.jit(jax.value_and_grad(loss))
            for t in range(cfg_of["steps"]):
                inputs = part(arrays, f"in/{t}/")
                inputs = {
                    name: cast(x) if x.dtype == np.float32 else x for name, x in inputs.items()
                }
                value, grads = value_and_grad(now, inputs)
                np.testing.assert_allclose(value, arrays[f"out{bits}/{t}/loss"], rtol=loss_rtol)
                towers = {name: grads[name] for name in ("image", "text")}
                norm = arrays[f"out{bits}/{t}/grad_norm_preclip"]
                np.testing.assert_allclose(optax.tree.norm(towers), norm, rtol=10 * loss_rtol)
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
