"""IMRAM as a Task: cost by count, memory of one chunk, equal on any number of devices."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from jcmr.core import parallel
from jcmr.eval.tiles import score_tile
from jcmr.models import imram
from jcmr.ops import cross_attention as ca
from jcmr.train.state import objective

SMALL = {"vocab_size": 20, "word_dim": 6, "embed_dim": 8, "steps": 2, "chunk": 3}
MEGA, GIGA = 10**6, 10**9


def product_flops(jaxpr) -> int:
    """2 x multiply-adds of all matrix products; loops count each round, a choice its dearest."""

    def inner(value):
        return product_flops(getattr(value, "jaxpr", value))

    total = 0
    for eqn in jaxpr.eqns:
        parameters = eqn.params
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "cond":
            total += max(inner(branch) for branch in parameters["branches"])
        else:
            rounds = parameters["length"] if eqn.primitive.name == "scan" else 1
            for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
                if name in parameters:
                    total += rounds * inner(parameters[name])
                    break
            assert eqn.primitive.name != "while"
    return total


def test_the_counter_counts():
    """Against XLA's count of a product, and of one inside a loop and a choice."""
    x = jnp.ones((8, 16)), jnp.ones((16, 32))
    product = lambda x, y: x @ y
    one = jax.jit(product).lower(*x).compile().cost_analysis()["flops"]
    assert product_flops(jax.make_jaxpr(product)(*x).jaxpr) == one == 2 * 8 * 16 * 32

    def looped(x, y):
        choose = lambda row: jax.lax.cond(row.sum() > 0, lambda: row @ y @ y.T, lambda: row)
        return jax.lax.map(jax.checkpoint(choose), x)

    assert product_flops(jax.make_jaxpr(jax.jit(looped))(*x).jaxpr) == 2 * one


@pytest.mark.parametrize(
    ("steps", "variant", "limit"),
    [(1, "full", 1.2), (2, "full", 8.0), (3, "full", 230.0), (1, "text", 1.1), (3, "text", 67.0)],
)
def test_products_of_a_pair(steps, variant, limit):
    """At 14 words, 36 regions, d = 1024; the official code multiplies 424 M a step."""
    task = imram.make({"vocab_size": 100, "steps": steps, "variant": variant, "chunk": 4})
    batch = {"regions": np.zeros((16, 36, 2048), "f4"), "text": np.ones((8, 14), np.int32)}
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    sides = [jax.eval_shape(task.encode[name], variables, batch) for name in ("image", "text")]
    flops = product_flops(jax.make_jaxpr(task.score)(variables, *sides).jaxpr)
    assert flops / (16 * 8) <= limit * MEGA
    assert flops / (16 * 8) > 0.9 * limit * MEGA * (0.9 if steps == 2 else 1)


@pytest.mark.usefixtures("optimized")
def test_training_memory_of_the_headline_configuration():
    """Batch 128 at d = 1024 and three steps, compiled for shapes alone."""
    task, shape = imram.make({"vocab_size": 8481}), jax.ShapeDtypeStruct
    batch = {
        "regions": shape((128, 36, 2048), jnp.float32),
        "text": shape((128, 14), jnp.int32),
        "id": shape((128,), jnp.int32),
    }
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)

    def step(variables, batch):
        loss = lambda v: objective(task.loss(v, batch, jax.random.key(0), None)[0], None)
        return jax.grad(loss)(variables)

    compiled = jax.jit(step).lower(variables, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * GIGA


@pytest.mark.usefixtures("optimized")
def test_evaluation_memory_does_not_grow_with_the_galleries():
    task = imram.make(SMALL)
    batch = {"regions": np.zeros((2, 9, 6), "f4"), "text": np.ones((2, 7), np.int32)}
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    mesh = parallel.make_mesh(jax.devices()[:1])

    def measure(*sizes):
        tiles = []
        for name, size, tile in zip(("image", "text"), sizes, (50, 250)):
            one = jax.eval_shape(task.encode[name], variables, batch)
            cut = lambda x, n=size // tile, r=tile: jax.ShapeDtypeStruct(
                (n, r, *x.shape[1:]), x.dtype
            )
            tiles.append(jax.tree.map(cut, one))
        program = score_tile.lower(task.score, False, mesh, variables, *tiles, 0, 0).compile()
        found = program.memory_analysis()
        return found.temp_size_in_bytes, found.argument_size_in_bytes

    (temp, arguments), (more_temp, more_arguments) = measure(1000, 5000), measure(2000, 10_000)
    assert more_temp == temp
    assert more_arguments <= 2 * arguments  # what an item holds, and no more


def naive_score(image, caption, weights, how):
    """One pair in float64 as the papers write it: attended vectors, concatenation, gates."""
    total = 0.0
    for name in weights:
        query, context = (caption, image) if name == "t2i" else (image, caption)
        memory = query
        for step in range(how.steps):
            attending = memory / np.linalg.norm(memory, axis=1)[:, None] if how.cosine else memory
            logits = attending @ context.T
            logits = np.where(logits > 0, logits, 0.1 * logits)
            logits /= np.linalg.norm(logits, axis=0) + 1e-8
            attention = np.exp(how.smooth * logits)
            attention /= attention.sum(1, keepdims=True)
            attended = attention @ context
            lengths = np.linalg.norm(query, axis=1) * np.linalg.norm(attended, axis=1)
            total += np.mean((query * attended).sum(1) / lengths)
            if step + 1 < how.steps:
                both = np.concatenate([memory, attended], 1)
                linear, gate = (both @ w[0] + w[1] for w in weights[name])
                kept = 1 / (1 + np.exp(-gate))
                memory = kept * memory + (1 - kept) * np.tanh(linear)
                if how.renormalise:
                    memory /= np.linalg.norm(memory, axis=1)[:, None]
    return total


def random_fragments(rng, sizes, longest, d):
    """[n, longest, d] unit vectors, and which of them are real."""
    tokens = rng.normal(size=(len(sizes), longest, d))
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    return tokens.astype(np.float32), np.arange(longest) < np.asarray(sizes)[:, None]


@pytest.fixture(scope="module")
def case():
    """Images of different sizes, captions of lengths in two buckets, gates."""
    rng, d = np.random.default_rng(0), 6
    images = random_fragments(rng, [5, 4, 5], 5, d)
    captions = random_fragments(rng, [21, 1, 3, 9, 17, 8, 16, 2, 12], 21, d)
    weights = {
        name: [(rng.normal(size=(2 * d, d)), rng.normal(size=d)) for _ in range(2)]
        for name in ("t2i", "i2t")
    }
    gates = {}
    for name, ((a, b), (c, e)) in weights.items():
        kernel = jnp.asarray(np.concatenate([a, c], 1), jnp.float32)
        bias = jnp.asarray(np.concatenate([b, e]), jnp.float32)
        gates[name] = ca.Gate(kernel[:d], kernel[d:], bias)
    sides = (
        ca.make_fragments(*images, gates["i2t"], gates["t2i"]),
        ca.make_fragments(*captions, gates["t2i"], gates["i2t"]),
    )
    return weights, gates, sides


SCORE = jax.jit(ca.score_tile, static_argnames=("how", "chunk"))
HOW = ca.Matching(steps=3, renormalise=True)


def test_scores_are_those_of_the_formulas(case):
    weights, gates, (images, captions) = case
    found = SCORE(images, captions, gates, HOW, 4)
    for i in range(3):
        for j in range(9):
            image = np.asarray(images.tokens[i], np.float64)[np.asarray(images.mask[i])]
            caption = np.asarray(captions.tokens[j], np.float64)[np.asarray(captions.mask[j])]
            expected = naive_score(image, caption, weights, HOW)
            np.testing.assert_allclose(found[i, j], expected, atol=2e-5)


def test_cosines_with_the_memory(case):
    """The paper's form: equal to the official one where memories have unit length."""
    _, gates, sides = case
    paper = SCORE(*sides, gates, HOW._replace(cosine=True), 4)
    np.testing.assert_allclose(paper, SCORE(*sides, gates, HOW, 4), atol=1e-5)


def test_narrow_products(case):
    """Inputs of products in bfloat16 move scores by less than 2e-3 a step and direction."""
    _, gates, (images, captions) = case
    pair = images, jax.tree.map(lambda x: x[:2], captions)
    run = jax.jit(ca.score_pairs, static_argnames="how")
    wide, half = (run(*pair, gates, ca.Matching(2, dtype=d)) for d in ("float32", "bfloat16"))
    assert half.dtype == jnp.float32
    difference = np.abs(np.asarray(wide) - half).max()
    assert 0 < difference < 4 * 2e-3


def test_padding_and_chunks_do_not_matter(case):
    _, gates, (images, captions) = case
    expected = SCORE(images, captions, gates, HOW, 4)

    def spoil(x, mask):
        return jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, 1e3)

    dirty = [
        ca.Fragments(
            spoil(side.tokens, side.mask),
            side.mask,
            spoil(side.norm, side.mask),
            spoil(spoil(side.gram, side.mask).mT, side.mask).mT,
            tuple(spoil(x, side.mask) for x in side.as_query),
            spoil(side.as_context, side.mask),
        )
        for side in (images, captions)
    ]
    np.testing.assert_allclose(SCORE(*dirty, gates, HOW, 4), expected, atol=1e-6)
    order = np.array([4, 2, 8, 0, 1, 3, 7, 5, 6])
    turned = jax.tree.map(lambda x: x[order], captions)
    np.testing.assert_allclose(SCORE(images, turned, gates, HOW, 4), expected[:, order], atol=1e-6)


@pytest.mark.parametrize("smooth", [9.0, 16.0, 20.0, 60.0])
@pytest.mark.parametrize("norm", ["clipped_l2norm", "l2norm"])
def test_small_attention_has_its_cosine(smooth, norm):
    """One word that points away from all regions: every logit is -smooth, and all are short."""
    regions = 1e-2 * np.array([[1.0, 2.0, 0.5], [2.0, 1.0, 0.5]])
    word = -1e-2 * np.array([[1.0, 1.0, 1.0]])
    make = lambda x: ca.make_fragments(
        jnp.asarray(x, jnp.float32)[None], jnp.ones((1, len(x)), bool)
    )
    image, caption = make(regions), make(word)
    found = ca.score_pairs(image, caption, {"t2i": None}, ca.Matching(smooth=smooth, norm=norm))
    attended = regions.mean(axis=0)
    expected = attended @ word[0] / np.linalg.norm(attended) / np.linalg.norm(word)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_blocks_of_images_do_not_matter(case, steps, monkeypatch):
    """Scores and gradients are those of all images at once, whatever fits into the cache."""
    _, gates, (images, captions) = case
    gates, captions = gates if steps > 1 else dict.fromkeys(gates), ca.cut(captions, 5)

    def run(rows):
        monkeypatch.setattr(ca, "rows_at_once", lambda *_: rows)

        def total(images, captions, gates):
            scores = ca.score_tile(images, captions, gates, ca.Matching(steps), 4)
            return (scores**2).sum(), scores

        grad = jax.grad(total, (0, 1, 2), has_aux=True, allow_int=True)
        return jax.jit(grad)(images, captions, gates)

    expected, found = run(None), run(2)
    assert np.isfinite(expected[1]).all()
    floats = lambda tree: [x for x in jax.tree.leaves(tree) if x.dtype == np.float32]
    for a, b in zip(floats(found), floats(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5 * max(1.0, float(np.abs(b).max())))


def test_blocks_of_images_fit_the_cache(case, monkeypatch):
    """One image a core at least, all where they fit."""
    _, gates, (images, captions) = case
    monkeypatch.setattr(ca.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(ca, "CACHE", 1)
    assert ca.rows_at_once(images, captions, gates, 4) == 2
    monkeypatch.setattr(ca, "CACHE", 1 << 30)
    assert ca.rows_at_once(images, captions, gates, 4) is None


@pytest.mark.parametrize("aggregate", ca.AGGREGATES)
def test_an_empty_side_is_finite(case, aggregate):
    """Neither value nor gradient is NaN where a caption has no words, or a region is all zero."""
    _, gates, (images, captions) = case
    how = ca.Matching(steps=2 if aggregate == "mean" else 1, aggregate=aggregate)
    mask = captions.mask[:2].at[1].set(False)

    def total(tokens, words):
        image = ca.make_fragments(tokens, images.mask[:1], gates["i2t"], gates["t2i"])
        caption = ca.make_fragments(words, mask, gates["t2i"], gates["i2t"])
        return ca.score_pairs(image, caption, gates, how).sum()

    inputs = images.tokens[:1].at[0, 1].set(0.0), captions.tokens[:2]
    value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(*inputs)
    assert all(np.isfinite(x).all() for x in (value, *grads))


def make_batch(size=16, num_captions=2, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, (size, num_captions, 1))
    text = rng.integers(1, 20, (size, num_captions, 7))
    ids = np.arange(size, dtype=np.int32)
    ids[-1] = ids[0]
    regions = rng.normal(size=(size, 4, 6)).astype(np.float32)
    regions[1, 2] = 0
    return {
        "regions": regions,
        "text": np.where(np.arange(7) < lengths, text, 0).astype(np.int32),
        "id": ids,
    }


def make_step(task):
    def step(variables, batch, axis):
        def share(params):
            terms, new = task.loss({**variables, "params": params}, batch, jax.random.key(5), axis)
            return objective(terms, axis), new

        value_and_grad = jax.value_and_grad(share, has_aux=True)
        (value, new), grads = value_and_grad(parallel.varying(variables["params"], axis))
        return parallel.psum((value, grads), axis), parallel.pmean(dict(new), axis)

    return step


def check_devices(task, batch):
    """One device, and eight under both mappers; returns the one device's results."""
    variables = task.init(jax.random.key(0), batch)
    step = make_step(task)
    one = jax.jit(lambda v, b: step(v, b, None))(variables, batch)
    mesh = parallel.make_mesh()
    for how in ("pmap", "shard_map"):
        placed = parallel.put_batch(batch, mesh, how)
        many = parallel.data_parallel(step, mesh, how, donate=False)(variables, placed)

        def compare(a, e):
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * max(1.0, np.abs(e).max()))

        jax.tree.map(compare, many, one)
    assert np.isfinite(one[0][0]) and one[0][0] > 0
    return one


def test_devices_do_not_matter():
    task = imram.make({**SMALL, "variant": "text", "dropout_rate": 0.2})
    check_devices(task, make_batch())


def test_regions_of_pixels():
    """The compact tower's grid are the regions; K = 1 has no memory to learn."""
    task = imram.make({**SMALL, "image": "compact", "steps": 1, "aggregate": "lse"})
    batch = {**make_batch(2, 1), "image": np.zeros((2, 16, 24, 3), np.float32)}
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    assert set(variables["params"]) == {"image", "text"}
    assert jax.eval_shape(task.encode["image"], variables, batch).mask.shape == (2, 6)


def test_options_are_checked():
    with pytest.raises(ValueError, match="no option 'step' for imram; did you mean 'steps'"):
        imram.make({"step": 3})
    with pytest.raises(ValueError, match=r"config.model.variant is 'both'; it can be full, text"):
        imram.make({"variant": "both"})
    with pytest.raises(ValueError, match="steps is 0; one step is the least"):
        imram.make({"steps": 0})
    with pytest.raises(ValueError, match="dtype is 'float32' or 'bfloat16', not 'half'"):
        imram.make({"score_dtype": "half"})
