"""EdgeConv forward and backward: ours against an eager torch layer in the usual form.

python -m benchmarks.edgeconv

The torch layer is written here from the paper's formula: nearest neighbours, a tensor
[x_j - x_i ; x_i] of all edges, a 1x1 convolution, BatchNorm, LeakyReLU, the maximum. Both compute
the same numbers, which is checked first. Rounds are interleaved.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np
import torch
from jax import numpy as jnp

from benchmarks import record
from jcmr.models.encoders.dgcnn import EdgeConv


class TorchEdgeConv(torch.nn.Module):
    """The layer with a value for every edge."""

    def __init__(self, width: int, features: int, k: int):
        super().__init__()
        self.k = k
        self.conv = torch.nn.Conv2d(2 * width, features, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, d, n] -> [b, features, n]."""
        b, d, n = x.shape
        squared = (x**2).sum(dim=1, keepdim=True)
        nearness = 2 * x.transpose(2, 1) @ x - squared - squared.transpose(2, 1)
        index = nearness.topk(self.k, dim=-1).indices
        rows = (index + n * torch.arange(b)[:, None, None]).reshape(-1)
        points = x.transpose(2, 1).reshape(b * n, d)
        near = points[rows].view(b, n, self.k, d)
        own = points.view(b, n, 1, d).expand(-1, -1, self.k, -1)
        edges = torch.cat([near - own, own], dim=3).permute(0, 3, 1, 2).contiguous()
        y = torch.nn.functional.leaky_relu(self.norm(self.conv(edges)), 0.2)
        return y.max(dim=-1).values


def make_ours(layer: TorchEdgeConv, features: int, k: int, x: np.ndarray, cotangent: np.ndarray):
    """A function that gives (output, gradient of the input, of the kernel)."""
    module = EdgeConv(features, k)
    variables: Any = module.init(jax.random.key(0), jnp.asarray(x))
    weight = layer.conv.weight.detach().numpy()[:, :, 0, 0].T
    params = {**variables["params"], "kernel": jnp.asarray(weight)}

    @jax.jit
    def run(params: Any, x: Any):
        def value(params: Any, x: Any):
            out: Any = module.apply(
                {**variables, "params": params}, x, True, mutable=["batch_stats"]
            )
            return (out[0] * cotangent).sum(), out[0]

        (of_params, of_x), out = jax.grad(value, (0, 1), has_aux=True)(params, x)
        return out, of_x, of_params["kernel"]

    placed = jnp.asarray(x)
    return lambda: jax.block_until_ready(run(params, placed))


def make_torch(layer: TorchEdgeConv, x: np.ndarray, cotangent: np.ndarray):
    """The same of the torch layer."""
    given = torch.tensor(np.swapaxes(x, 1, 2).copy(), requires_grad=True)
    weight = torch.tensor(np.swapaxes(cotangent, 1, 2).copy())

    def run():
        layer.zero_grad()
        given.grad = None
        out = layer(given)
        (out * weight).sum().backward()
        return out.detach().numpy(), given.grad, layer.conv.weight.grad

    return run


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of outputs and both gradients, each relative to its largest value."""
    out, of_x, of_kernel = (np.asarray(v) for v in ours)
    expected = (
        np.swapaxes(np.asarray(theirs[0]), 1, 2),
        np.swapaxes(theirs[1].numpy(), 1, 2),
        theirs[2].numpy()[:, :, 0, 0].T,
    )
    pairs = zip((out, of_x, of_kernel), expected)
    return max(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs)


def main() -> None:
    """Checks equality, times interleaved rounds, records one line a layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for width, features in ((3, 64), (64, 64), (64, 128), (128, 256)):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(args.batch, args.points, width)).astype(np.float32)
        cotangent = rng.normal(size=(args.batch, args.points, features)).astype(np.float32)
        torch.manual_seed(0)
        layer = TorchEdgeConv(width, features, args.k)
        ours, theirs = (
            make_ours(layer, features, args.k, x, cotangent),
            make_torch(layer, x, cotangent),
        )
        difference = largest_difference(ours(), theirs())
        if difference > 1e-3:
            raise ValueError(f"The two layers differ by {difference:.2g}: nothing to compare.")
        seconds: dict[str, list[float]] = {"ours": [], "torch": []}
        for _ in range(args.rounds):
            for name, run in (("torch", theirs), ("ours", ours)):
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        result = {
            "layer": f"{width}->{features}",
            "batch": args.batch,
            "points": args.points,
            "k": args.k,
            "seconds": {name: [round(v, 4) for v in values] for name, values in seconds.items()},
            "speedup": round(middle["torch"] / middle["ours"], 2),
            "largest_difference": difference,
            "edge_flops": 2 * args.batch * args.points * args.k * 2 * width * features,
            "our_flops": 2 * args.batch * args.points * 2 * width * features,
        }
        record.append("edgeconv", result)
        print(
            f"{width:>4}->{features:<4} torch {1000 * middle['torch']:8.1f} ms   "
            f"ours {1000 * middle['ours']:8.1f} ms   {result['speedup']:5.1f}x   "
            f"difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
