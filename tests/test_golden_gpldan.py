"""PVSE's blocks against its official code, the graph pattern loss against naive loops."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.convert import rules
from jcmr.convert.pcme import pie_rules
from jcmr.losses import graph_pattern, pvse
from jcmr.models.encoders.norm import unit_length
from jcmr.models.encoders.pie import PIENet
from tests.conftest import GOLDEN_DIR, load_golden
from tests.test_golden_gcn_text import EXACT, FLOAT32, SUMMED, cases

CLAIMED = ("gpl_spec", "pie_net", "pvse_losses")
BITS = pytest.mark.parametrize("bits", [32, 64])


def test_every_file_has_a_test():
    files = {path.stem for path in (GOLDEN_DIR / "gpldan").glob("*.npz")}
    assert files and not {f for f in files if not f.startswith(CLAIMED)}


def differentiate(function, arrays, names, bits):
    """`function` of the arrays `names` and its gradients, as numpy arrays: (value, aux), grads."""
    with jax.enable_x64(bits == 64):
        inputs = [jnp.asarray(arrays[name], f"float{bits}") for name in names]
        run = jax.jit(jax.value_and_grad(function, tuple(range(len(names))), has_aux=True))
        return jax.device_get(run(*inputs))


@BITS
@pytest.mark.golden("gpldan", "gpl_spec")
def test_graph_pattern(golden: Path, bits: int):
    close = EXACT if bits == 64 else FLOAT32
    for arrays in cases(load_golden(golden)).values():
        margins = graph_pattern.Margins(
            *(float(arrays[f"cfg_{n}"]) for n in ("alpha", "m_p", "m_n", "m_d", "m_c"))
        )
        weights = {n: float(arrays[f"w_{n}"]) for n in graph_pattern.WEIGHTS}

        def total(v, t, arrays=arrays, margins=margins, weights=weights):
            terms = graph_pattern.graph_pattern(
                unit_length(v), unit_length(t), None, None, margins, weights,
                bool(arrays["cfg_hard"]), block=2,
            )  # fmt: skip
            means = {n: t.sum / jnp.maximum(t.count, 1) for n, t in terms.items()}
            return sum(terms[n].weight * mean for n, mean in means.items()), means

        (value, means), grads = differentiate(total, arrays, ("v_raw", "t_raw"), bits)
        close(value, arrays["total"])
        for name, mean in means.items():
            close(mean, arrays[name], err_msg=name)
        close(grads[0], arrays["g_v_raw"])
        close(grads[1], arrays["g_t_raw"])


@BITS
@pytest.mark.golden("gpldan", "pie_net")
def test_pie_net(golden: Path, bits: int):
    close = EXACT if bits == 64 else FLOAT32
    for arrays in cases(load_golden(golden)).values():
        num_heads = arrays["attn"].shape[-1]
        module = PIENet(arrays["out_in"].shape[-1], num_heads)
        state = {n.removeprefix("param/"): x for n, x in arrays.items() if n.startswith("param/")}
        stored = {n.removeprefix("grad/"): x for n, x in arrays.items() if n.startswith("grad/")}
        params = rules.convert(pie_rules((), ""), state, dtype=np.float64)["params"]
        expected = rules.convert(pie_rules((), ""), stored, dtype=np.float64)["params"]
        mask = ~arrays["pad_mask"] if "pad_mask" in arrays else None
        up = arrays["up"].reshape(len(arrays["up"]), num_heads, -1)

        def total(params, g, x, module=module, mask=mask, up=up):
            y, attention, residual = module.apply({"params": params}, g, x, mask)
            unit = unit_length(y)
            return jnp.sum(unit * up), (y, attention, residual, unit)

        with jax.enable_x64(bits == 64):
            cast = partial(jax.tree.map, partial(jnp.asarray, dtype=f"float{bits}"))
            run = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
            inputs = cast(params), cast(arrays["out_in"]), cast(arrays["x"])
            grads, outputs = jax.device_get(run(*inputs))
        for name, found in zip(("y", "attn", "residual", "l2"), outputs):
            close(found.reshape(arrays[name].shape), arrays[name], err_msg=name)
        jax.tree.map(close, grads[0], expected)
        close(grads[1], arrays["g_out"])
        close(grads[2], arrays["g_x"])


@BITS
@pytest.mark.golden("gpldan", "pvse_losses")
def test_pvse_losses(golden: Path, bits: int):
    for arrays in cases(load_golden(golden)).values():
        summed = str(arrays.get("cfg_reduction", "mean")) == "sum"
        close = EXACT if bits == 64 else SUMMED if summed else FLOAT32
        option = {n.removeprefix("cfg_"): x for n, x in arrays.items() if n.startswith("cfg_")}
        order, hardest = (bool(option.get(n, False)) for n in ("order", "max_violation"))

        def reduce(pair, summed=summed):
            return pair[0] if summed else pair[0] / pair[1]

        def total(
            img, txt, img_r, txt_r, option=option, order=order, hardest=hardest, reduce=reduce
        ):
            several = img.ndim == 3
            x, y = (z if several else z[:, None] for z in (img, txt))
            scores = pvse.mil_scores(x, y, order)
            own = jnp.eye(len(scores), dtype=bool)
            margin = float(option["margin"])
            found = {
                "scores": scores,
                "ranking_loss": reduce(pvse.triplet(scores, own, margin, hardest))
                + reduce(pvse.triplet(scores.T, own, margin, hardest)),
            }
            value = found["ranking_loss"]
            if several and option.get("div_weight", 0):
                found["div_img_only"] = reduce(pvse.diversity(img_r))
                found["div_loss"] = found["div_img_only"] + reduce(pvse.diversity(txt_r))
                value += float(option["div_weight"]) * found["div_loss"]
            if option.get("mmd_weight", 0):
                flat = [z.reshape(-1, z.shape[-1]) for z in (img, txt)]
                found["mmd_loss"] = reduce(pvse.mmd(*flat, 0.5))
                found["mmd_default_gamma"] = reduce(pvse.mmd(*flat))
                value += float(option["mmd_weight"]) * found["mmd_loss"]
            return value, found

        names = "img", "txt", "img_r", "txt_r"
        (value, found), grads = differentiate(total, arrays, names, bits)
        close(value, arrays["total"])
        assert "scores" in arrays or "ranking_loss" in arrays
        for name, x in found.items():
            if name in arrays:
                close(x, arrays[name], err_msg=name)
        for name, gradient in zip(names, grads):
            close(gradient, arrays[f"g_{name}"], err_msg=name)
