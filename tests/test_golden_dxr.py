"""DXR, BERT and the VQA metric against the official code; ResNets are in test_golden_resnet.py."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.convert import rules
from jcmr.convert.bert import bert_rules, convert_bert
from jcmr.convert.rules import Rule
from jcmr.core import parallel
from jcmr.core.types import RetrievalSplit, Task, same_id
from jcmr.data.records import Arrays
from jcmr.eval import retrieval
from jcmr.eval.answers import answer_scores, best_answers
from jcmr.losses.answers import answer_loss, repeat_answers, soft_targets
from jcmr.losses.ranking import triplet_hinge
from jcmr.models import dxr
from jcmr.models.encoders.attention_pool import AttentionPool
from jcmr.models.encoders.bert import Bert, Pooler, Size
from jcmr.ops.position import sine_positions
from jcmr.ops.ranks import count_ahead
from tests.conftest import GOLDEN_DIR, load_golden

ELSEWHERE = {"resnet"}
"""Prefixes that test_golden_resnet.py claims."""


def part(arrays, prefix):
    return {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}


def close(actual, expected, tolerance):
    """Errors as a share of the largest expected value."""
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_every_golden_file_is_claimed():
    """A file that no test reads would look like one that passes."""
    marks = [mark for test in list(globals().values()) for mark in getattr(test, "pytestmark", [])]
    prefixes = {prefix for mark in marks if mark.name == "golden" for prefix in mark.args[1:]}
    for path in (GOLDEN_DIR / "dxr").glob("*.npz"):
        assert path.name.startswith((*prefixes, *ELSEWHERE)), path.name


def cases(arrays):
    return [part(arrays, f"case{i}/") for i in range(int(arrays["num_cases"]))]


@pytest.mark.golden("dxr", "dxr_position")
def test_positions(golden: Path):
    arrays = load_golden(golden)
    assert float(arrays["scale"]) == pytest.approx(2 * np.pi) and float(arrays["eps"]) == 1e-6
    for case in cases(arrays):
        size = int(case["h"]), int(case["w"]), 2 * int(case["num_pos_feats"])
        for name in ("pos", "pos_not_normalised", "pos_official_f32"):
            normalise = name != "pos_not_normalised"
            found = sine_positions(*size, normalise, float(arrays["temperature"]))
            tolerance = 1e-12 if case[name].dtype == np.float64 else 1e-6
            np.testing.assert_allclose(found.transpose(2, 0, 1), case[name], rtol=0, atol=tolerance)


def pool_rules(path, name):
    """`AttentionPool` from the official AttnPool1d."""
    return {
        **rules.linear((*path, "first"), f"{name}linear.0"),
        **rules.linear((*path, "second"), f"{name}linear.3"),
    }


def check_grads(grads, mapping, arrays, prefix, tolerance=1e-4):
    """Every gradient that the file stores, errors as a share of its tensor's largest value."""
    expected = part(arrays, prefix)
    stored = {path: rule for path, rule in mapping.items() if rule.name in expected}
    assert stored and {rule.name for rule in stored.values()} == set(expected)
    for path, rule in stored.items():
        found = grads
        for name in path[1:]:
            found = found[name]
        whole = expected[rule.name]
        allowed = tolerance * np.abs(whole).max()
        np.testing.assert_allclose(
            found, rule.build(whole), rtol=0, atol=allowed, err_msg=rule.name
        )


def run_pool(case):
    """`run(mask)` of a case: ((outputs, weights), gradients of parameters and of x)."""
    module, mapping = AttentionPool(int(case["num_attn"])), pool_rules((), "")
    params = rules.convert(mapping, part(case, "w/"))["params"]

    def product(params, x, mask):
        out, attention = module.apply({"params": params}, x, mask)
        return jnp.sum(out * case["cot"]), (out, attention)

    grad = jax.jit(jax.grad(product, (0, 1), has_aux=True))
    return lambda mask: grad(params, case["x"], mask)[::-1]


@pytest.mark.golden("dxr", "dxr_attnpool")
def test_attention_pool(golden: Path):
    for case in cases(load_golden(golden)):
        run, real = run_pool(case), ~case["pad_mask"]
        for name, mask in (("masked", real), ("unmasked", np.ones_like(real))):
            (out, attention), (to_params, to_x) = run(mask)
            close(out, case[f"{name}/out"], 1e-5)
            close(attention.transpose(0, 2, 1), case[f"{name}/attn"], 1e-5)
            close(to_x, case[f"{name}/grad_x"], 1e-4)
            check_grads(to_params, pool_rules((), ""), case, f"{name}/grad_w/")
        # A set with nothing real: weights of 0 where the official ones are 1 / T.
        empty = real.copy()
        empty[0] = False
        (out, attention), _ = run(empty)
        np.testing.assert_array_equal(attention[0], 0)
        np.testing.assert_array_equal(out[0], 0)
        close(attention[1:].transpose(0, 2, 1), case["row0_all_padded/attn"][1:], 1e-5)
        close(out[1:], case["row0_all_padded/out"][1:], 1e-5)
        close(case["row0_all_padded/attn"][0], 1 / case["x"].shape[1], 1e-6)


def sum_hinge(images, texts, margin, hard):
    """The official loss: f captions an image are f matrices of as many captions as images."""
    rows, factor = np.arange(len(images)), len(texts) // len(images)
    mismatch = ~np.eye(len(images), dtype=bool)
    return sum(
        triplet_hinge(images @ texts[j::factor].T, rows, rows, mismatch, margin, hard).sum()
        for j in range(factor)
    )


@pytest.mark.golden("dxr", "dxr_in_batch_hinge")
def test_in_batch_hinge(golden: Path):
    arrays, loss_and_grad = load_golden(golden), jax.jit(jax.value_and_grad(sum_hinge, (0, 1)))
    for name in arrays["names"]:
        case = part(arrays, f"{name}/")
        margin, hard = float(case["margin"]), bool(case["hard"])
        loss, (to_image, to_text) = loss_and_grad(case["image"], case["text"], margin, hard)
        assert float(loss) == pytest.approx(float(case["loss"]), rel=1e-5), name
        if case.get("has_clamp_boundary"):
            continue  # official clamp passes a gradient of 1 at 0, relu 0
        close(to_text, case["grad_text"], 1e-4)
        if case.get("has_max_tie"):  # the official max gives all to the first, ours shares
            groups = np.zeros_like(case["image"])
            np.add.at(groups, case["image_group"], np.asarray(to_image))
            close(groups, case["grad_image_group_sum"], 1e-4)
        else:
            close(to_image, case["grad_image"], 1e-4)


@pytest.mark.golden("dxr", "dxr_recall")
def test_recall(golden: Path):
    """Through the evaluator, in tiles that do not divide the galleries."""
    arrays, cuts = load_golden(golden), (1, 5, 10)
    images, texts, factor = arrays["image"], arrays["text"], int(arrays["factor"])
    ids = [np.arange(len(x), dtype=np.int32) for x in (images, texts)]
    items = {
        name: Arrays({"x": x, "id": i})
        for name, x, i in zip(("image", "text"), (images, texts), ids)
    }
    split = RetrievalSplit("test", items, {"own": same_id(ids[0], ids[1] // factor)})
    encode = {name: lambda variables, inputs: inputs["x"] for name in items}
    score = lambda variables, query, gallery: dxr.similarity(query, gallery)
    task = Task(None, None, encode, score)  # pyright: ignore
    cfg = {"tile": (7, 13), "ks": cuts, "num_top": 10}
    mesh = parallel.make_mesh(jax.devices()[:1])
    found = retrieval.make_evaluator(task, split, cfg, lambda batch: batch, mesh)({}, {})
    for way in ("i2t", "t2i"):
        for k in cuts:
            recall = found.metrics[f"test/{way}/r@{k}"] / 100
            assert recall == pytest.approx(float(arrays[f"{way}/r@{k}"]), abs=1e-6)
            hits = arrays[f"{way}/hits@{k}"].astype(bool)
            np.testing.assert_array_equal(found.first_hit[way] < k, hits)
        np.testing.assert_array_equal(found.top[way], arrays[f"{way}/top10"])
    scores = dxr.similarity(images, texts[::factor])
    for name, expected in part(arrays, "single/").items():
        way, k = name.split("/r@")
        table = scores if way == "i2t" else scores.T
        ranks = count_ahead(table, ~np.eye(len(table), dtype=bool), jnp.diag(table))
        assert np.mean(ranks < int(k)) == pytest.approx(float(expected), abs=1e-6)


def packed(name, which, d, transpose):
    """Query, key or value (0, 1, 2) out of torch's packed projection."""
    take = lambda w: w[which * d : (which + 1) * d]
    return Rule(name, (lambda w: take(w).T) if transpose else take)


def official_rules(num_layers, d):
    """`models.dxr.DXR` behind its towers, from the official CMSharedTransformer."""
    parts = [
        rules.linear(("image_project",), "image_proj"),
        rules.linear(("text_project",), "text_proj"),
        pool_rules(("image_pool",), "image_pool."),
        pool_rules(("text_pool",), "text_pool."),
    ]
    for index in range(num_layers):
        path, name = (f"shared_{index}",), f"shared_transformer.layers.{index}."
        for which, ours in enumerate(("query", "key", "value")):
            at, inner = ("params", *path, "attention", ours), f"{name}self_attn.in_proj_"
            parts.append(
                {
                    (*at, "kernel"): packed(f"{inner}weight", which, d, True),
                    (*at, "bias"): packed(f"{inner}bias", which, d, False),
                }
            )
        parts += [
            rules.linear((*path, "attention", "out"), f"{name}self_attn.out_proj"),
            rules.linear((*path, "first"), f"{name}linear1"),
            rules.linear((*path, "second"), f"{name}linear2"),
            rules.layer_norm((*path, "attention_norm"), f"{name}norm1"),
            rules.layer_norm((*path, "norm"), f"{name}norm2"),
        ]
    return rules.merged(parts)


@pytest.mark.golden("dxr", "dxr_shared")
def test_shared_transformer(golden: Path):
    arrays = load_golden(golden)
    size = {ours: int(arrays[theirs]) for ours, theirs in (
        ("embed_dim", "d"), ("hidden", "ffn"), ("num_layers", "num_layers"),
        ("num_heads", "num_heads"),
    )}  # fmt: skip
    cfg = dxr.make_config({"image": "regions", "text": "words", "parity": True, **size})
    model = dxr.DXR(cfg)
    mapping = official_rules(cfg.num_layers, cfg.embed_dim)
    params = rules.convert(mapping, part(arrays, "w/"))["params"]
    b, c, h, w = arrays["image_grid"].shape
    mask = arrays["text_mask"] > 0

    @jax.jit
    def run(params, image, states, to_image, to_text):
        """Both branches, and the gradients of all inputs for cotangents of the embeddings."""

        def align(params, image, states):
            grid = image.reshape(b, c, h * w).swapaxes(1, 2)
            apply = partial(model.apply, {"params": params})
            aligned = (
                apply(grid, method="align_image"), apply(states, mask, method="align_text"),
            )  # fmt: skip
            return [x.embedding for x in aligned], aligned

        _, pull, aligned = jax.vjp(align, params, image, states, has_aux=True)
        return aligned, pull([to_image, to_text])

    inputs = params, arrays["image_grid"], arrays["text_states"]
    (image, text), grads = run(*inputs, arrays["cot0"], arrays["cot1"])
    close(image.embedding, arrays["out_image"], 1e-5)
    close(text.embedding, arrays["out_text"], 1e-5)
    close(image.tokens, arrays["image_tokens"], 1e-5)
    close(np.where(mask[..., None], text.tokens, 0), arrays["text_tokens_valid"], 1e-5)
    close(image.attention[..., 0], arrays["image_attn"], 1e-5)
    close(text.attention[..., 0], arrays["text_attn"], 1e-5)
    places = sine_positions(h, w, cfg.embed_dim).transpose(2, 0, 1)
    np.testing.assert_allclose(places, arrays["image_pos"], rtol=0, atol=1e-6)
    for name in arrays["analytically_zero_grads"]:
        _, *path = next(path for path, rule in mapping.items() if rule.name == name)
        zero = grads[0]
        for part_name in path:
            zero = zero[part_name]
        assert np.abs(zero).max() < 1e-5
    loss, cotangents = jax.value_and_grad(sum_hinge, (0, 1))(
        image.embedding, text.embedding, float(arrays["hinge_margin"]), True
    )
    assert float(loss) == pytest.approx(float(arrays["hinge_loss"]), rel=1e-5)
    _, of_hinge = run(*inputs, *cotangents)
    for prefix, found in (("", grads), ("hinge_", of_hinge)):
        close(found[1], arrays[f"{prefix}grad_image_grid"], 1e-4)
        close(found[2], arrays[f"{prefix}grad_text_states"], 1e-4)
        np.testing.assert_array_equal(np.asarray(found[2])[~mask], 0)
        check_grads(found[0], mapping, arrays, f"{prefix}grad_w/")


@pytest.mark.golden("dxr", "bert")
def test_bert(golden: Path):
    arrays = load_golden(golden)
    state = part(arrays, "w/")
    num_layers = len({n.split(".")[2] for n in state if n.startswith("encoder.layer.")})
    vocab_size, width = state["embeddings.word_embeddings.weight"].shape
    size = Size(
        num_layers,
        width,
        int(arrays["num_heads"]),
        state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        len(state["embeddings.position_embeddings.weight"]),
        float(arrays["layer_norm_eps"]),
    )
    mapping = {
        **bert_rules(num_layers, ("bert",)),
        **rules.linear(("pooler", "fc"), "pooler.dense"),
    }
    params = rules.convert(mapping, state)["params"]
    converted = convert_bert(state, size, ("bert",))["params"]
    jax.tree.map(np.testing.assert_array_equal, converted["bert"], params["bert"])
    module = Bert(vocab_size, size)
    ids, types = arrays["input_ids"], arrays["token_type_ids"]
    mask = arrays["attention_mask"] > 0

    def product(params, mask, types):
        states, seen = module.apply(
            {"params": params["bert"]}, ids, mask, None, types,
            capture_intermediates=lambda module, _: module.name in ("norm", "layer_0"),
            mutable=["intermediates"],
        )  # fmt: skip
        pooled = Pooler().apply({"params": params["pooler"]}, states)
        total = jnp.sum(states * arrays["cot0"]) + jnp.sum(pooled * arrays["cot1"])
        return total, (states, pooled, seen["intermediates"])

    run = jax.jit(jax.grad(product, has_aux=True))
    grads, (states, pooled, seen) = run(params, mask, types)
    valid = mask[..., None]
    for found, name in (
        (states, "last_hidden_state"),
        (seen["norm"]["__call__"][0], "embedding_output"),
        (seen["layer_0"]["__call__"][0], "hidden_layer1"),
    ):
        close(found * valid, arrays[name] * valid, 1e-5)
    close(pooled, arrays["pooler_output"], 1e-5)
    check_grads(grads, mapping, arrays, "grad_w/")
    assert not np.any(grads["bert"]["words"]["embedding"][0])
    for layer in range(num_layers):
        zero = grads["bert"][f"layer_{layer}"]["attention"]["key"]["bias"]
        assert np.abs(zero).max() < 1e-5
    _, (plain, *_) = run(params, np.ones_like(mask), np.zeros_like(types))
    close(plain, arrays["last_hidden_state_no_mask_no_types"], 1e-5)


@pytest.mark.golden("dxr", "vqa")
def test_vqa_metric(golden: Path):
    arrays = load_golden(golden)
    scores, unknown = arrays["scores"], int(arrays["unk_index"])
    for name, targets in (
        ("answers_indices", "soft_targets"),
        ("short_answers", "short_soft_targets"),
    ):
        found = soft_targets(arrays[name], scores.shape[1], unknown)
        np.testing.assert_allclose(found, arrays[targets], atol=1e-6)
    np.testing.assert_array_equal(repeat_answers(arrays["short_answers"]), arrays["short_indices"])
    targets = arrays["soft_targets"]
    np.testing.assert_array_equal(best_answers(scores, unknown), arrays["pred"])
    accuracy = answer_scores(scores, targets, unknown).mean()
    assert accuracy == pytest.approx(float(arrays["vqa_accuracy"]), abs=1e-6)

    def mean_loss(scores):
        total, count = answer_loss(scores, targets)
        return total / count

    loss, grad = jax.value_and_grad(mean_loss)(scores)
    assert float(loss) == pytest.approx(float(arrays["logit_bce"]), rel=1e-6)
    scale = np.abs(arrays["grad_scores"]).max()
    np.testing.assert_allclose(grad, arrays["grad_scores"], rtol=0, atol=1e-4 * scale)


def test_answers_outside_the_table_are_named():
    with pytest.raises(ValueError, match="Answer ids reach from 3 to 9; the table has 5"):
        soft_targets(np.array([[3, 9]]), 5)
    with pytest.raises(ValueError, match="A question has 11 answers"):
        soft_targets(np.zeros((1, 11), int), 5)
    np.testing.assert_array_equal(soft_targets(np.array([[-1, -1]]), 3), np.zeros((1, 3)))
    assert soft_targets(np.zeros((0, 10), int), 3).shape == (0, 3)
    assert soft_targets(np.zeros((1, 10), int), 3, None)[0, 0] == 1
