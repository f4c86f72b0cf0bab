"""How much a program computes and sends, counted in what JAX has traced.

XLA's `cost_analysis` counts the body of a loop once, however often it runs. Here a scan counts its
body as often as it says, so that recurrent nets, blocks of rows and remembered or recomputed layers
are all counted as they run.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcmr.core.types import Array

GATHERS = ("all_gather", "all_gather_invariant")


class Work(NamedTuple):
    """Of one device."""

    flops: float = 0.0
    """Of matrix products and convolutions, a multiply-add being two; nothing else counts, as in
    model FLOPs utilization."""
    gathered: float = 0.0
    """Bytes that all-gathers hand to the device, its own part included."""


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """The work of `function(*arguments)`, arrays or their shapes; nothing is compiled or run.

    Inside a mapped function it is that of one device. Of a conditional the dearest branch counts;
    the body of a loop whose length only the data decides counts once.
    """
    return work_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def work_of(jaxpr: Any) -> Work:
    """The work of a traced program."""
    total = Work()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            found = Work(flops=dot_flops(equation))
        elif name == "conv_general_dilated":
            found = Work(flops=convolution_flops(equation))
        elif name in GATHERS:
            found = Work(gathered=float(sum(size_of(x) for x in equation.outvars)))
        elif name == "cond":
            found = max((work_of(branch.jaxpr) for branch in params["branches"]), default=Work())
        else:
            times = params["length"] if name == "scan" else 1
            inside = [work_of(part) for part in programs(params)]
            found = Work(*(times * sum(x) for x in zip(Work(), *inside)))
        total = Work(*map(sum, zip(total, found)))
    return total


def programs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "jaxpr"):
                yield part.jaxpr
            elif hasattr(part, "eqns"):
                yield part


def size_of(variable: Any) -> int:
    """Bytes of a traced array."""
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize


def dot_flops(equation: Any) -> float:
    """Of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def convolution_flops(equation: Any) -> float:
    """Of a `conv_general_dilated`; the zeros of a strided one's gradient do not count."""
    numbers, params = equation.params["dimension_numbers"], equation.params
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    channels = kernel[numbers.rhs_spec[1]]
    dilation = math.prod(params["lhs_dilation"])
    return 2.0 * math.prod(out) * taps * channels / (params["batch_group_count"] * dilation)


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree, or of their shapes."""

    def one(x: Array) -> int:
        return math.prod(x.shape) * x.dtype.itemsize

    return sum(one(x) for x in jax.tree.leaves(tree))


@functools.cache
def product_peak(dtype: str, now: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s that one device reaches here in a large matrix product, the best of some.

    Args:
      dtype: of the factors; "float32" is not rounded.
      now: the clock, in seconds.
    """
    size = 512 if jax.default_backend() == "cpu" else 8192
    x = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices()[0])
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    jax.block_until_ready(product(x))
    best = math.inf
    for _ in range(5):
        began = now()
        jax.block_until_ready(product(x))
        best = min(best, now() - began)
    return 2.0 * size**3 / best


def utilization(flops: float, seconds: float) -> float:
    """Model FLOPs utilization of a device: `flops` of it in `seconds`, as a share of the peak.

    The peak is measured, not read from a data sheet: in bfloat16 on accelerators, whatever the
    program computes in, and in float32 on a CPU.
    """
    peak = product_peak("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return flops / seconds / peak
