"""ResNet v1.5 in torch (He et al., CVPR 2016), its parts named as ours, and a training step."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.device import DEVICE, tensor
from jcmr.models.encoders.resnet import STAGES


class Block(nn.Module):
    """Convolutions of (features, size, stride), each with BatchNorm, and a shortcut."""

    def __init__(self, width: int, parts: list[tuple[int, int, int]], stride: int):
        super().__init__()
        self.count, out = len(parts), parts[-1][0]
        self.short = stride == 1 and width == out
        if not self.short:
            self.downsample_conv = nn.Conv2d(width, out, 1, stride, bias=False)
            self.downsample_bn = nn.BatchNorm2d(out)
        for i, (features, size, step) in enumerate(parts, start=1):
            conv = nn.Conv2d(width, features, size, step, size // 2, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(features))
            width = features

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block."""
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        x = x if self.short else self.downsample_bn(self.downsample_conv(x))
        return torch.relu(y + x)


class ResNet(nn.Module):
    """Up to the last map."""

    def __init__(self, depth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width, self.names = 64, []
        for stage, blocks in enumerate(STAGES[depth]):
            f = 64 * 2**stage
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                basic = [(f, 3, stride), (f, 3, 1)]
                parts = basic if depth < 50 else [(f, 1, 1), (f, 3, stride), (4 * f, 1, 1)]
                self.names.append(f"layer{stage + 1}_{i}")
                setattr(self, self.names[-1], Block(width, parts, stride))
                width = parts[-1][0]

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, h, w] -> [b, d, h / 32, w / 32]."""
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for name in self.names:
            x = getattr(self, name)(x)
        return x


def load(net: nn.Module, params: Mapping[str, Any]) -> None:
    """Our parameters into the modules of the same names."""
    for name, part in params.items():
        module: Any = getattr(net, name)
        if "kernel" in part:
            module.weight.data = tensor(np.asarray(part["kernel"]).transpose(3, 2, 0, 1).copy())
        elif "scale" in part:
            module.weight.data, module.bias.data = tensor(part["scale"]), tensor(part["bias"])
        else:
            load(module, part)


def make(depth: int, params: Mapping[str, Any], x: np.ndarray, rate: float, narrow: bool):
    """A call of one step of gradient descent on the mean square of the last map.

    It gives (value, gradient of the first kernel). Weights are put back before each step, so that
    every call computes the same; `narrow` runs under autocast to bfloat16, channels last.
    """
    net = ResNet(depth)
    load(net, params)
    net = net.to(DEVICE).to(memory_format=torch.channels_last)  # pyright: ignore
    images = tensor(x.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    weights = list(net.parameters())
    run_net: Any = torch.compile(net) if DEVICE.type == "cuda" else net

    def run():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=narrow):
            value = run_net(images).float().pow(2).mean()
        grads = torch.autograd.grad(value, weights)
        with torch.no_grad():
            new = [w - rate * g for w, g in zip(weights, grads)]
        del new
        return value.detach(), grads[0].permute(2, 3, 1, 0)

    return run
