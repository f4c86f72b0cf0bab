"""Cross-attention between words and regions, scored without ever forming an attended vector.

SCAN (Lee et al., ECCV 2018, https://arxiv.org/abs/1803.08024) lets each fragment of one side, the
query, attend to all fragments of the other, the context, and averages how well it finds itself
there. IMRAM (Chen et al., CVPR 2020, https://arxiv.org/abs/2003.03772) repeats that: after each
step a gate distils what was attended into the query. The usual form makes a vector of d numbers per
query fragment, pair and step, and multiplies its concatenation with the query. Here, exactly equal:

- all cosines come from one product of all words with all regions, of both directions and all steps:
  w_i . c_i = sum_j a_ij (w_i . v_j) for the attended vector c_i = sum_j a_ij v_j;
- |c_i|^2 = a_i G a_i with the context's Gram matrix G, once per item;
- a cosine does not depend on the length of c_i, so attention need not add up to 1 for it;
- the gate's product splits, W [q; c] = W_q q + sum_j a_ij (W_c v_j), and W_c v_j and the first
  step's W_q q are made once per item;
- nothing is gated after the last step.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array
from jcmr.ops.attention import masked_softmax
from jcmr.ops.chunks import in_blocks

EPS = 1e-8
BUCKETS = (10, 12, 14, 16, 20, 24, 32, 48)
"""Lengths that captions are cut to."""
CACHE = 2 << 20
"""Bytes a core of the largest array of pairs that are scored at once on a CPU: so it stays in the
cache."""
NORMS = ("clipped_l2norm", "l2norm", "clipped", "softmax", "no_norm")
BOUNDED, LARGEST = ("clipped_l2norm", "l2norm", "softmax"), 16.0
"""Norms after which no logit exceeds 1 in size. Two, times a `smooth` of at most LARGEST, have an
exponential in float32, and its square too, so that no pass is spent on the largest of them."""
AGGREGATES = ("mean", "sum", "max", "lse")


class Fragments(NamedTuple):
    """Words or regions of n items, with all that scoring needs of an item alone."""

    tokens: Array
    """[n, t, d]."""
    mask: Array
    """[n, t], True = real."""
    norm: Array
    """[n, t], lengths of the tokens."""
    gram: Array
    """[n, t, t], tokens times tokens."""
    as_query: tuple[Array, Array] | None = None
    """[n, t, d] each, inputs of the first step to what is new and what stays; None where there is
    one step only. Apart, as XLA does not vectorise what takes two parts of one slice on a CPU."""
    as_context: Array | None = None
    """[n, t, 2d], what each token adds to the gate inputs of the other side."""


class Gate(NamedTuple):
    """Memory distillation: outputs 0..d go to tanh (what is new), d..2d to sigmoid (what stays)."""

    query_kernel: Array
    """[d, 2d]."""
    context_kernel: Array
    """[d, 2d]."""
    bias: Array
    """[2d]."""


class Matching(NamedTuple):
    """How two sets are compared; hashable."""

    steps: int = 1
    """K; scores of all steps are added up."""
    smooth: float = 9.0
    """Inverse temperature of the attention."""
    norm: str = "clipped_l2norm"
    """Of the logits over the query's fragments before the softmax, one of `NORMS`."""
    aggregate: str = "mean"
    """Over the query's fragments, one of `AGGREGATES`."""
    lse_scale: float = 6.0
    """l of log(sum exp(l cos)) / l."""
    renormalise: bool = False
    """Scales the memory to unit length after each step."""
    cosine: bool = False
    """Attends by the cosine with the memory, as the paper writes it, and not by the raw product."""
    dtype: str = "float32"
    """Of the inputs of products; they accumulate in float32."""


def l2_normalise(x: Array, axis: int = -1) -> Array:
    """X / (|x| + 1e-8) along `axis`; 0 with gradient 0 at 0.

    >>> [round(x, 3) for x in l2_normalise(jnp.array([3.0, 4.0])).tolist()]
    [0.6, 0.8]
    """
    squared = jnp.sum(x * x, axis=axis, keepdims=True)
    return jnp.where(squared > 0, x / (safe_sqrt(squared) + EPS), 0.0)


def safe_sqrt(x: Array) -> Array:
    """Square root of what is positive; 0 with gradient 0 elsewhere.

    >>> safe_sqrt(jnp.array([4.0, -1.0])).tolist()
    [2.0, 0.0]
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def narrow(x: Array, dtype: str) -> Array:
    """X in `dtype`; "float32" leaves it as it is.

    >>> narrow(jnp.ones(2), 'bfloat16').dtype.name
    'bfloat16'
    """
    return x if dtype == "float32" else x.astype(dtype)


def product(x: Array, y: Array, dtype: str) -> Array:
    """Matrix product with inputs of `dtype`, in at least float32.

    >>> product(jnp.ones((1, 2)), jnp.ones((2, 1)), 'bfloat16').dtype.name
    'float32'
    """
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    x, y = narrow(x, dtype), narrow(y, dtype)
    return jnp.matmul(x, y, precision=HIGHEST, preferred_element_type=wide)


def make_fragments(
    tokens: Array,
    mask: Array,
    as_query: Gate | None = None,
    as_context: Gate | None = None,
    dtype: str = "float32",
) -> Fragments:
    """The parts of a score that belong to one side.

    Args:
      tokens: [n, t, d]; masked ones are set to 0.
      mask: [n, t].
      as_query: the gate of the direction in which this side is the query, if it has one.
      as_context: the gate of the other direction.
      dtype: as in `Matching`.

    >>> words = make_fragments(jnp.ones((1, 2, 3)), jnp.array([[True, False]]))
    >>> words.gram.tolist()  # the second word is padding
    [[[3.0, 0.0], [0.0, 0.0]]]
    """
    mask = jnp.asarray(mask)
    tokens = jnp.where(mask[..., None], tokens, 0)
    return Fragments(
        tokens,
        mask,
        safe_sqrt(jnp.sum(tokens * tokens, axis=-1)),
        product(tokens, tokens.mT, "float32"),
        as_query and gate_inputs(tokens, as_query, dtype),
        # Nothing but an input of products, so it can be kept as they take it.
        as_context and narrow(product(tokens, as_context.context_kernel, dtype), dtype),
    )


def gate_inputs(memory: Array, gate: Gate, dtype: str) -> tuple[Array, Array]:
    """What a memory [..., d] gives to what is new and to what stays, [..., d] each.

    >>> gate = Gate(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([0.0, 1.0]))
    >>> [x.tolist() for x in gate_inputs(jnp.ones((1, 1)), gate, 'float32')]
    [[[1.0]], [[2.0]]]
    """
    new, kept = jnp.split(product(memory, gate.query_kernel, dtype) + gate.bias, 2, axis=-1)
    return new, kept


def normalise_logits(logits: Array, query_mask: Array, norm: str) -> Array:
    """Logits [n, c, q, m], compared among the real query fragments [q, m] of each query item.

    >>> logits = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
    >>> found = normalise_logits(logits, jnp.ones((2, 1), bool), 'l2norm')
    >>> [round(x, 3) for x in found.ravel().tolist()]
    [0.6, 0.8]
    """
    if norm.startswith("clipped"):
        logits = jax.nn.leaky_relu(logits, 0.1)
    if norm == "softmax":
        return masked_softmax(logits, query_mask, axis=2)
    if norm.endswith("l2norm"):
        return l2_normalise(jnp.where(query_mask, logits, 0.0), axis=2)
    return logits


def weigh(logits: Array, query_mask: Array, context_mask: Array, how: Matching) -> Array:
    """Attention [n, c, q, m] of each query fragment over real contexts, up to a factor of its own.

    Args:
      logits: [n, c, q, m], products of context and query.
      query_mask: [q, m].
      context_mask: [n, c].
      how: norm and smooth are read.

    >>> query, context = jnp.ones((1, 1), bool), jnp.ones((1, 2), bool)
    >>> weigh(jnp.zeros((1, 2, 1, 1)), query, context, Matching(smooth=0.0)).ravel().tolist()
    [1.0, 1.0]
    """
    logits = how.smooth * normalise_logits(logits, query_mask, how.norm)
    mask = context_mask[..., None, None]
    if how.norm in BOUNDED and how.smooth <= LARGEST:
        # Not below 1, as EPS would hide short sums of small weights.
        return jnp.where(mask, jnp.exp(logits + how.smooth), 0.0)
    return masked_softmax(logits, mask, axis=1)


def attend(weights: Array) -> Array:
    """Attention [n, c, q, m] that adds up to 1 over contexts, or to 0 where there are none.

    >>> attend(jnp.ones((1, 2, 1, 1))).ravel().tolist()
    [0.5, 0.5]
    """
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def attended_cosine(weights: Array, dots: Array, gram: Array, norm: Array) -> Array:
    """Cosine of each query fragment with what it attends to, [n, q, m].

    Args:
      weights: [n, c, q, m], attention up to a factor of each query fragment.
      dots: [n, c, q, m], products of the original fragments.
      gram: [n, c, c], of the contexts.
      norm: [q, m], lengths of the query's fragments.

    >>> one = jnp.ones((1, 1, 1, 1))
    >>> attended_cosine(one, one, one[0], jnp.ones((1, 1))).round(3).tolist()
    [[[1.0]]]
    """
    flat = weights.reshape(*weights.shape[:2], -1)
    both = jnp.matmul(gram, flat, precision=HIGHEST).reshape(weights.shape)
    squared = jnp.sum(both * weights, axis=1)
    return jnp.sum(weights * dots, axis=1) / jnp.maximum(norm * safe_sqrt(squared), EPS)


def aggregate(cosines: Array, mask: Array, how: Matching) -> Array:
    """Scores [n, m] from the cosines [n, q, m] of the real fragments [q, m]; 0 without any.

    >>> cosines, mask = jnp.array([1.0, 0.5, 9.0]), jnp.array([True, True, False])
    >>> float(aggregate(cosines[None, :, None], mask[:, None], Matching())[0, 0])
    0.75
    """
    number = jnp.sum(mask, axis=0)
    if how.aggregate == "max":
        top = jnp.max(jnp.where(mask, cosines, -jnp.inf), axis=1)
        return jnp.where(number > 0, top, 0.0)
    if how.aggregate == "lse":
        # Cosines are at most 1, so nothing overflows at any sensible scale.
        total = jnp.sum(jnp.where(mask, jnp.exp(how.lse_scale * cosines), 0.0), axis=1)
        return jnp.log(jnp.where(number > 0, total, 1.0)) / how.lse_scale
    total = jnp.sum(jnp.where(mask, cosines, 0.0), axis=1)
    return total / jnp.maximum(number, 1) if how.aggregate == "mean" else total


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat(x: Array, times: int) -> Array:
    """X [1, ...] as [times, ...]; its gradient is a product.

    XLA adds up wide arrays over their first axis far slower than that on a CPU.

    >>> repeat(jnp.ones((1, 2)), 3).shape, jax.grad(lambda x: repeat(x, 3).sum())(jnp.ones((1, 1)))
    ((3, 2), Array([[3.]], dtype=float32))
    """
    return jnp.broadcast_to(x, (times, *x.shape[1:]))


def _forward(x: Array, times: int) -> tuple[Array, None]:
    return repeat(x, times), None


def _backward(times: int, _: None, grad: Array) -> tuple[Array]:
    ones = jnp.ones((1, times), grad.dtype)
    total = jnp.matmul(ones, grad.reshape(times, -1), precision=HIGHEST)
    return (total.reshape(1, *grad.shape[1:]),)


repeat.defvjp(_forward, _backward)


def distil(memory: Array, new: Array, kept: Array, how: Matching) -> Array:
    """The memory [q, d] of the next step from gate inputs [q, d] to what is new and what stays.

    >>> distil(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)), Matching()).tolist()
    [[0.5, 0.5]]
    """
    kept = jax.nn.sigmoid(kept)
    memory = kept * memory + (1 - kept) * jnp.tanh(new)
    return l2_normalise(memory) if how.renormalise else memory


def match_direction(
    query: Fragments, context: Fragments, dots: Array, gate: Gate | None, how: Matching
) -> tuple[Array, Array]:
    """One direction of all pairs of m queries and n contexts.

    Context fragments come before query fragments, and query items last: neither axis that is
    reduced is the one along which a CPU computes many entries at once.

    Args:
      query: [m], of q fragments.
      context: [n], of c fragments.
      dots: [n, c, q, m], their products.
      gate: needed for more than one step.
      how: the kind of matching.

    Returns:
      (scores of each step [k, n, m], attention of each step [k, n, c, q, m]).

    >>> x = make_fragments(jnp.eye(2)[None], jnp.ones((1, 2), bool))
    >>> steps, attention = match_direction(x, x, jnp.eye(2)[None, :, :, None], None, Matching())
    >>> steps.shape, attention.shape
    ((1, 1, 1), (1, 1, 2, 2, 1))
    """
    query_mask = query.mask.T
    last = lambda x: jnp.swapaxes(x, 0, 1)[None]  # [m, q, d] -> [1, q, m, d]
    memory, logits = last(query.tokens), dots
    inputs = jax.tree.map(last, query.as_query)
    scores, attention = [], []

    @jax.checkpoint
    def refine(memory: Array, inputs: Any, weights: Array) -> tuple[Array, Array]:
        """The next memory [n, q, m, d] and its logits."""
        assert gate is not None and context.as_context is not None
        n, c, q, m = weights.shape
        if inputs is None:
            inputs = gate_inputs(memory, gate, how.dtype)
        else:
            memory, inputs = jax.tree.map(lambda x: repeat(x, n), (memory, inputs))
        added = product(weights.reshape(n, c, q * m).mT, context.as_context, how.dtype)
        new, kept = jnp.split(added.reshape(n, q, m, -1), 2, axis=-1)
        memory = distil(memory, inputs[0] + new, inputs[1] + kept, how)
        attending = l2_normalise(memory) if how.cosine else memory
        flat = attending.reshape(n, q * m, -1)
        return memory, product(context.tokens, flat.mT, how.dtype).reshape(weights.shape)

    for step in range(how.steps):
        weights = weigh(logits, query_mask, context.mask, how)
        cosines = attended_cosine(weights, dots, context.gram, query.norm.T)
        scores.append(aggregate(cosines, query_mask, how))
        attention.append(attend(weights))
        if step + 1 < how.steps:
            memory, logits = refine(memory, inputs, attention[-1])
            inputs = None
    return jnp.stack(scores), jnp.stack(attention)


Gates = Mapping[str, Gate | None]
"""Direction -> gate (None where there is one step): "t2i", in which words attend to regions, "i2t",
in which regions attend to words, or both. What is named is scored."""


def match_all(
    images: Fragments, captions: Fragments, gates: Gates, how: Matching
) -> dict[str, tuple[Array, Array]]:
    """`match_direction` of all images and all captions in each direction of `gates`.

    >>> x = make_fragments(jnp.eye(2)[None], jnp.ones((1, 2), bool))
    >>> sorted(match_all(x, x, {'t2i': None, 'i2t': None}, Matching()))
    ['i2t', 't2i']
    """
    (n, r, d), (m, t, _) = images.tokens.shape, captions.tokens.shape
    words = jnp.swapaxes(captions.tokens, 0, 1).reshape(t * m, d)
    dots = product(images.tokens.reshape(n * r, d), words.T, how.dtype).reshape(n, r, t, m)
    sides: dict[str, tuple[Fragments, Fragments, Array]] = {
        "t2i": (captions, images, dots),
        "i2t": (images, captions, dots.T),
    }
    return {name: match_direction(*sides[name], gate, how) for name, gate in gates.items()}


def match_directions(
    image: Fragments, caption: Fragments, gates: Gates, how: Matching
) -> dict[str, tuple[Array, Array]]:
    """One image and one caption, `Fragments` without their leading axis, in each direction.

    Returns:
      direction -> (score of each step [k], attention of each step [k, query, context]).

    >>> x = make_fragments(jnp.eye(2)[None], jnp.ones((1, 2), bool))
    >>> one = jax.tree.map(lambda part: part[0], x)
    >>> found = match_directions(one, one, {'t2i': None}, Matching())['t2i']
    >>> [x.shape for x in found]
    [(1,), (1, 2, 2)]
    """
    image, caption = jax.tree.map(lambda x: x[None], (image, caption))
    found = match_all(image, caption, gates, how)
    return {
        name: (scores[:, 0, 0], attention[:, 0, :, :, 0].mT)
        for name, (scores, attention) in found.items()
    }


def score_pairs(images: Fragments, captions: Fragments, gates: Gates, how: Matching) -> Array:
    """Scores [n, m] of all images [n] with all captions [m], at once.

    >>> x = make_fragments(jnp.eye(2)[:, None], jnp.ones((2, 1), bool))  # one fragment each
    >>> score_pairs(x, x, {'t2i': None}, Matching()).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    found = match_all(images, captions, gates, how)
    scores = {name: steps.sum(axis=0) for name, (steps, _) in found.items()}
    turned = (x.T if name == "i2t" else x for name, x in scores.items())
    return sum(turned, start=jnp.zeros(()))


def cut_lengths(longest: int, steps: int) -> tuple[int, ...]:
    """Those of `BUCKETS` that pay where captions have up to `longest` words, and `longest`.

    Each is a program of its own to compile, which takes long where there are several steps.

    >>> cut_lengths(16, 1), cut_lengths(16, 2)
    ((10, 12, 14, 16), (12, 16))
    """
    sizes, most = (BUCKETS, 0.9) if steps == 1 else (BUCKETS[1::2], 0.8)
    return (*(size for size in sizes if size < most * longest), longest)


def cut(captions: Fragments, length: int) -> Fragments:
    """The first `length` words of each caption.

    >>> words = make_fragments(jnp.ones((1, 5, 2)), jnp.ones((1, 5), bool))
    >>> cut(words, 3).tokens.shape
    (1, 3, 2)
    """
    shorter = jax.tree.map(lambda x: x[:, :length], captions)
    return shorter._replace(gram=shorter.gram[:, :, :length])


def rows_at_once(images: Fragments, captions: Fragments, gates: Gates, chunk: int) -> int | None:
    """How many images are scored with `chunk` captions at once on a CPU; None for all.

    >>> x = make_fragments(jnp.ones((9, 1, 2)), jnp.ones((9, 1), bool))
    >>> rows_at_once(x, x, {'t2i': None}, chunk=1) is None
    True
    """
    (n, r, d), t = images.tokens.shape, captions.tokens.shape[1]
    if jax.default_backend() != "cpu" or not isinstance(n, int):  # exported for any number
        return None
    queries = {"t2i": t, "i2t": r}
    gated = [2 * d * queries[name] for name, gate in gates.items() if gate is not None]
    fitting = CACHE // (4 * chunk * max(r * t, *gated, 1))  # float32
    rows = max(fitting, 1) * (os.cpu_count() or 1)
    return rows if rows < n else None


def score_tile(
    images: Fragments, captions: Fragments, gates: Gates, how: Matching, chunk: int
) -> Array:
    """Scores [n, m], `chunk` captions at a time against all images, on a CPU against some.

    Captions are taken in the order of their lengths, and each chunk is cut to the shortest of
    `BUCKETS` that holds it, as cost grows with the padded length. The gradient recomputes a chunk
    with all of its steps, so that its memory is that of one chunk too.

    Args:
      images: [n].
      captions: [m], real words first.
      gates: the directions to score.
      how: the kind of matching.
      chunk: captions at a time.

    >>> x = make_fragments(jnp.eye(2)[:, None], jnp.ones((2, 1), bool))
    >>> score_tile(x, x, {'t2i': None}, Matching(), chunk=1).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    (num, longest), num_images = captions.mask.shape, images.mask.shape[0]
    chunk = min(chunk, num)
    lengths = jnp.max(jnp.where(captions.mask, jnp.arange(1, longest + 1), 0), axis=1)
    order = jnp.argsort(lengths)
    filled = jnp.pad(order, (0, -num % chunk), mode="edge")
    chunks = jax.tree.map(lambda x: x[filled].reshape(-1, chunk, *x.shape[1:]), captions)
    sizes = cut_lengths(longest, how.steps)
    rows = rows_at_once(images, captions, gates, chunk)
    blocks = None if rows is None else in_blocks(images, rows)

    def score_blocks(captions: Fragments) -> Array:
        if blocks is None:
            return score_pairs(images, captions, gates, how).T
        scores = lax.map(lambda block: score_pairs(block, captions, gates, how), blocks)
        return scores.reshape(-1, chunk)[:num_images].T

    @jax.checkpoint
    def score_chunk(part: tuple[Fragments, Array]) -> Array:
        captions, length = part
        branches = [lambda captions, size=size: score_blocks(cut(captions, size)) for size in sizes]
        bucket = jnp.searchsorted(jnp.asarray(sizes), length)
        return lax.switch(bucket, branches, captions)

    scores = lax.map(score_chunk, (chunks, lengths[filled].reshape(-1, chunk).max(axis=1)))
    return scores.reshape(filled.shape[0], -1)[jnp.argsort(order)].T
