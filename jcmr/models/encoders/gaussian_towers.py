"""Towers that embed an image or a text as a Gaussian: a mean on the unit sphere, and its scale."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn

from jcmr.core import dtypes
from jcmr.core.types import Array, Batch
from jcmr.models.encoders import resnet
from jcmr.models.encoders.bag import BagOfWords
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.gru import BiGRU, read_out
from jcmr.models.encoders.norm import unit_length
from jcmr.models.encoders.pie import (
    ImageUncertainty,
    PIENet,
    TextUncertainty,
    dropout,
    torch_dense,
)
from jcmr.models.encoders.regions import Regions


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Options of both towers."""

    image: str = "resnet50"
    """"resnet18" ... "resnet152", "compact", or "regions" for precomputed features."""
    text: str = "gru"
    """"gru", the recurrent tower of the paper, or "bag" of words for small data."""
    vocab_size: int = 0
    word_dim: int = 300
    embed_dim: int = 1024
    deterministic: bool = False
    """The same towers without uncertainty: one point per item."""
    readout: str = "ends"
    """Of the GRU: see `gru.read_out`."""
    log_scale_start: float = 0.0
    attention: bool = True
    region_dim: int = 0
    normalise_regions: bool = False
    input_dropout_rate: float = 0.0
    """Of words and regions."""
    dropout_rate: float = 0.0
    """Of what attention adds to the global feature."""
    remat: bool = False
    """Computes the blocks of a ResNet again for the gradient instead of keeping their insides."""
    dtype: str = "float32"


CHOICES = {
    "image": (*(f"resnet{depth}" for depth in resnet.STAGES), "compact", "regions"),
    "text": ("gru", "bag"),
    "readout": ("ends", "mean", "last_word"),
}


class Outputs(NamedTuple):
    """What a tower makes of a batch; absent parts are None."""

    mean: Array
    """[b, d], unit length."""
    log_scale: Array | None
    """[b, d], unbounded; the system says what it is the logarithm of."""
    attention: Array | None
    """[b, t, 1], over regions or words."""
    residual: Array | None
    """[b, d], what attention added."""
    uncertainty_attention: Array | None
    """[b, t, 1]."""


class ImageHead(nn.Module):
    """From a set of local image features to a Gaussian."""

    cfg: TowerConfig

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Outputs:
        """Local features x [b, r, d], dropout keys [b] -> Outputs."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        pooled = x.mean(axis=1)
        out = torch_dense(cfg.embed_dim, x.shape[-1], dtype, "fc")(pooled)
        attention = residual = log_scale = uncertainty_attention = None
        if cfg.attention:
            pie = PIENet(cfg.embed_dim, 1, cfg.dropout_rate, dtype, name="pie_net")
            out, attention, residual = pie(out, x, None, keys)
            out, residual = out[:, 0], residual[:, 0]
        if not cfg.deterministic:
            head = ImageUncertainty(cfg.embed_dim, cfg.log_scale_start, dtype, name="uncertain_net")
            log_scale, uncertainty_attention = head(pooled, x)
        return Outputs(unit_length(out), log_scale, attention, residual, uncertainty_attention)


class ImageTower(nn.Module):
    """The backbone that the config names, and the head."""

    cfg: TowerConfig

    @nn.compact
    def __call__(
        self, inputs: Batch, train: bool = False, axis: str | None = None, keys: Array | None = None
    ) -> Outputs:
        """Runs the tower on the batch's "image" [b, h, w, 3] or "regions" [b, r, d]."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if cfg.image == "regions":
            x = Regions(
                cfg.region_dim,
                cfg.normalise_regions,
                cfg.input_dropout_rate,
                dtype,
                name="backbone",
            )(inputs["regions"], keys)
        elif cfg.image == "compact":
            x = CompactNet(dtype=dtype, name="backbone")(inputs["image"], train, axis)
        else:
            depth = int(cfg.image.removeprefix("resnet"))
            net = resnet.ResNet(depth, dtype, cfg.remat, name="backbone")
            x, _ = net(inputs["image"], train, axis)
        return ImageHead(cfg, name="head")(x.reshape(x.shape[0], -1, x.shape[-1]), keys)


class TextTower(nn.Module):
    """From word ids to a Gaussian."""

    cfg: TowerConfig

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Outputs:
        """Word ids text [b, t], 0 = pad, dropout keys [b] -> Outputs."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        mask = text > 0
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(cfg.vocab_size, cfg.word_dim, embedding_init=normal, name="embed")(text)
        x = dropout(x, cfg.input_dropout_rate, keys, site=2)
        states, ends = BiGRU(cfg.embed_dim // 2, dtype, name="rnn")(x, mask)
        out = read_out(states, ends, mask, cfg.readout)
        attention = residual = log_scale = uncertainty_attention = None
        if cfg.attention:
            pie = PIENet(cfg.embed_dim, 1, cfg.dropout_rate, dtype, name="pie_net")
            out, attention, residual = pie(out, x, mask, keys)
            out, residual = out[:, 0], residual[:, 0]
        if not cfg.deterministic:
            head = TextUncertainty(
                cfg.embed_dim, cfg.readout, cfg.log_scale_start, dtype, name="uncertain_net"
            )
            log_scale, uncertainty_attention = head(x, mask)
        return Outputs(unit_length(out), log_scale, attention, residual, uncertainty_attention)


class BagTower(nn.Module):
    """From the words of a text, whatever their order, to a Gaussian."""

    cfg: TowerConfig

    @nn.compact
    def __call__(self, text: Array, keys: Array | None = None) -> Outputs:
        """Word ids text [b, t], 0 = pad, dropout keys [b] -> Outputs."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        size = cfg.vocab_size, cfg.embed_dim, cfg.input_dropout_rate
        mean = BagOfWords(*size, dtype=dtype, name="mean")(text, keys)
        log_scale = None
        if not cfg.deterministic:
            log_scale = BagOfWords(*size, cfg.log_scale_start, dtype, name="log_scale")(text, keys)
        return Outputs(unit_length(mean), log_scale, None, None, None)
