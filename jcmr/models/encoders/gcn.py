"""Text as a signal on the graph of its vocabulary (Yu et al., arXiv 1802.00985 and 1810.13151).

Of the first paper the abstract and a summary could be read, of the second the code (SCKR): a global
graph of words, a document's counts on its vertices, two spectral convolutions, a dense layer.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jcmr.core.dtypes import HIGHEST
from jcmr.core.types import Array
from jcmr.ops import graph, propagation


class GraphConv(nn.Module):
    """Graph convolution: sum over taps k and features f of W_fk (tap k of x_f), plus a bias.

    Taps are T_0(L) x, T_1(L) x, ... ("chebyshev"; Defferrard et al., 2016), or the one smoothed
    signal D^-1/2 (A + I) D^-1/2 x of Kipf and Welling, 2017 ("kipf"). Rows of the kernel
    [f * k, features] have the tap fastest, as in the official code of SCKR.
    """

    features: int = 1
    num_taps: int = 3
    bias: str = "per_node"
    """"per_node", one a vertex and filter, or "per_filter"."""
    kind: str = "chebyshev"

    @nn.compact
    def __call__(self, operator: Any, x: Array, precomputed: bool = False) -> Array:
        """Signals on the vertices of one graph.

        Args:
          operator: the scaled Laplacian, a `graph.Graph` or for "chebyshev" a matrix [v, v].
          x: [b, v, f], or with `precomputed` their taps [b, v, f, k], which depend on data alone.
          precomputed: see `x`.

        Returns:
          [b, v, features].
        """
        num_nodes, width = x.shape[1:3]
        num_taps = self.num_taps if self.kind == "chebyshev" else 1
        init = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", init, (width * num_taps, self.features), jnp.float32)
        kernel = kernel.reshape(width, num_taps, self.features).astype(x.dtype)
        if precomputed:
            out = jnp.einsum("bvfk,fko->bvo", x, kernel, precision=HIGHEST)
        else:
            # Vertices first: one propagation serves all documents.
            signal = jnp.swapaxes(x, 0, 1)
            taps = taps_of(operator, signal, num_taps, self.kind)
            out = jnp.einsum("kvbf,fko->bvo", taps, kernel, precision=HIGHEST)
        nodes = num_nodes if self.bias == "per_node" else 1
        return out + self.param("bias", nn.initializers.zeros, (1, nodes, self.features))


def taps_of(operator: Any, signal: Array, num_taps: int, kind: str) -> Array:
    """What a convolution mixes, [k, v, ...] of a signal [v, ...]."""
    if kind == "kipf":
        return graph.kipf(operator, signal)[None]
    return propagation.chebyshev(operator, signal, num_taps)


class GraphText(nn.Module):
    """Convolutions with ReLU; all vertices' filters side by side, vertex by vertex."""

    filters: Sequence[int] = (1, 1)
    num_taps: int = 3
    bias: str = "per_node"
    convolution: str = "chebyshev"
    """"chebyshev" or "kipf"."""

    @nn.compact
    def __call__(self, operator: Any, x: Array, precomputed: bool = False) -> Array:
        """Signals [b, v, f], or the first layer's taps [b, v, f, k] -> [b, v * last filters]."""
        for index, features in enumerate(self.filters):
            name = f"conv{index + 1}"
            layer = GraphConv(features, self.num_taps, self.bias, self.convolution, name=name)
            x = nn.relu(layer(operator, x, precomputed and index == 0))
        return x.reshape(len(x), -1)
