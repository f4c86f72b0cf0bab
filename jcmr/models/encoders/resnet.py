"""ResNet v1.5 in NHWC, equal to torchvision's (He et al., CVPR 2016)."""

from typing import Any

import flax.linen as nn

from jcmr.core.types import Array
from jcmr.models.encoders.norm import BatchNorm

STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(features: int, size: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution without bias, padded as in torch: the same on both sides."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=KERNEL_INIT,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stride is on the first."""

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, h, w, c] -> [b, h / stride, w / stride, features]."""
        y = conv(self.features, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train, axis))
        y = conv(self.features, 3, 1, self.dtype, "conv2")(y)
        y = BatchNorm(name="bn2")(y, train, axis)
        return nn.relu(y + shortcut(x, self.features, self.stride, self.dtype, train, axis))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; v1.5 has the stride on the 3x3."""

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, h, w, c] -> [b, h / stride, w / stride, 4 features]."""
        y = conv(self.features, 1, 1, self.dtype, "conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train, axis))
        y = conv(self.features, 3, self.stride, self.dtype, "conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train, axis))
        y = conv(4 * self.features, 1, 1, self.dtype, "conv3")(y)
        y = BatchNorm(name="bn3")(y, train, axis)
        return nn.relu(y + shortcut(x, 4 * self.features, self.stride, self.dtype, train, axis))


def shortcut(x: Array, width: int, stride: int, dtype: Any, train: bool, axis: str | None):
    """x, projected where the block changes its shape; called inside the block's scope."""
    if stride == 1 and x.shape[-1] == width:
        return x
    x = conv(width, 1, stride, dtype, "downsample_conv")(x)
    return BatchNorm(name="downsample_bn")(x, train, axis)


class ResNet(nn.Module):
    """The convolutional part: no average pooling, no classifier.

    A stage with frozen weights may still be called with `train=True`: it then normalises by the
    batch and goes on recording statistics, as `model.train()` does in torch.
    """

    depth: int
    dtype: Any = None
    remat: bool = False
    """Keeps the inputs of the blocks alone for the gradient and computes them again."""

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, axis: str | None = None
    ) -> tuple[Array, list[Array]]:
        """Runs the network.

        Args:
          x: [b, h, w, 3], normalised pixels.
          train: normalise by the statistics of the batch and record them.
          axis: device axis over which the batch is shared.

        Returns:
          (map [b, h / 32, w / 32, d] with d = 512 or 2048, [stem, stage 1, ..., stage 4]).

        Raises:
          ValueError: a depth that torchvision does not have.
        """
        if self.depth not in STAGES:
            raise ValueError(f"ResNet comes with {sorted(STAGES)} layers, not {self.depth}.")
        block: Any = BasicBlock if self.depth < 50 else Bottleneck
        if self.remat:
            block = nn.remat(block, static_argnums=(2, 3))
        x = conv(64, 7, 2, self.dtype, "conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train, axis))
        around: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=around)
        outputs = [x]
        for stage, num_blocks in enumerate(STAGES[self.depth]):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                x = block(64 * 2**stage, stride, self.dtype, name=name)(x, train, axis)
            outputs.append(x)
        return x, outputs


def feature_dim(depth: int) -> int:
    """Channels of the last map."""
    return 512 if depth < 50 else 2048
