"""An EdgeConv layer as it is usually written in torch: a tensor of all edges, then a convolution.

From the formula of Wang et al. (TOG 2019): nearest neighbours, [x_j - x_i ; x_i] of all edges, a
1x1 convolution, BatchNorm, LeakyReLU, the maximum.
"""

import numpy as np
import torch

from benchmarks.baselines.device import DEVICE, tensor


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
        rows = (index + n * torch.arange(b, device=x.device)[:, None, None]).reshape(-1)
        points = x.transpose(2, 1).reshape(b * n, d)
        near = points[rows].view(b, n, self.k, d)
        own = points.view(b, n, 1, d).expand(-1, -1, self.k, -1)
        edges = torch.cat([near - own, own], dim=3).permute(0, 3, 1, 2).contiguous()
        y = torch.nn.functional.leaky_relu(self.norm(self.conv(edges)), 0.2)
        return y.max(dim=-1).values


def make(x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, k: int):
    """A call that gives output, gradient of the input and of the kernel, laid out as ours are."""
    layer = TorchEdgeConv(x.shape[-1], kernel.shape[1], k).to(DEVICE)
    layer.conv.weight.data = tensor(kernel.T[:, :, None, None])
    given = tensor(np.swapaxes(x, 1, 2), grad=True)
    weight = tensor(np.swapaxes(cotangent, 1, 2))

    def run():
        out = layer(given)
        grads = torch.autograd.grad((out * weight).sum(), (given, layer.conv.weight))
        return out.detach().mT, grads[0].mT, grads[1][:, :, 0, 0].T

    return run
