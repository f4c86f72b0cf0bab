"""Images, point clouds and meshes of objects in one space: the cross-modal center loss.

Jing et al., CVPR 2021 (https://arxiv.org/abs/2008.03561). One tower a modality, one classifier and
one center per class for all of them; features are compared by cosine. Any subset of the modalities
trains, one alone included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jcmr.core import dtypes
from jcmr.core.options import make_options
from jcmr.core.types import Array, Batch, Task, Term, Terms, Variables
from jcmr.losses import center
from jcmr.models.encoders import resnet
from jcmr.models.encoders.compact import CompactNet
from jcmr.models.encoders.dgcnn import DGCNN, WIDTHS
from jcmr.models.encoders.gru import uniform_init
from jcmr.models.encoders.meshnet import Faces, MeshNet
from jcmr.models.encoders.norm import BatchNorm, unit_length
from jcmr.models.encoders.pie import torch_dense

MODALITIES = ("image", "points", "mesh")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `config.model`; the defaults are the sizes of the official code."""

    modalities: tuple[str, ...] = MODALITIES
    """Those that are trained and compared."""
    num_classes: int = 0
    features: int = 512
    hidden: int = 256
    """Of the classifier that all modalities share."""
    image: str = "resnet18"
    """"resnet18" ... "resnet152", or "compact"."""
    views: str = "mean"
    """How the views of an object become one feature: "mean" or "max"."""
    k: int = 20
    """Neighbours of a point."""
    point_embed_dim: int = 1024
    """Of DGCNN's fused feature; the official release does not tell."""
    point_widths: tuple[int, ...] = WIDTHS
    mesh_structural: int = 131
    mesh_kernels: int = 64
    mesh_convolutions: tuple[tuple[int, int], ...] = ((256, 256), (512, 512))
    mesh_fused: int = 1024
    mesh_joined: int = 1024
    class_weight: float = 1.0
    center_weight: float = 10.0
    mse_weight: float = 0.1
    center_update: str = "official"
    """How centers move: "official", or "normalised" by the number of features of their class."""
    dtype: str = "float32"


CHOICES = {
    "image": (*(f"resnet{depth}" for depth in resnet.STAGES), "compact"),
    "views": ("mean", "max"),
    "center_update": ("official", "normalised"),
}

COMPARES_WITHIN = True
"""Items of one modality can be scored with each other, too."""


def make_config(cfg: Mapping[str, Any]) -> Config:
    """Checks `config.model`.

    Raises:
      ValueError: an unknown option, value or modality.
    """
    config = make_options(Config, cfg, CHOICES, "center3d")
    wrong = [name for name in config.modalities if name not in MODALITIES]
    if wrong or not config.modalities:
        raise ValueError(
            f"config.model.modalities is {tuple(config.modalities)}; give some of "
            f"{', '.join(MODALITIES)}."
        )
    return config


class ViewHead(nn.Module):
    """ReLU(BatchNorm(W x)) of every view."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False, axis: str | None = None) -> Array:
        """[n, d] -> [n, features]."""
        init = uniform_init(x.shape[-1] ** -0.5)
        x = nn.Dense(self.features, False, self.dtype, kernel_init=init, name="out")(x)
        return nn.relu(BatchNorm(name="out_bn")(x, train, axis))


def merge_views(x: Array, num_views: int, how: str) -> Array:
    """Features [b * v, d] of v views each -> [b, d], their mean or maximum."""
    x = x.reshape(-1, num_views, x.shape[-1])
    return x.max(axis=1) if how == "max" else x.mean(axis=1)


class ImageTower(nn.Module):
    """A convolutional network on every view.

    All views of all objects pass together, so BatchNorm sees them as one batch; the official code
    passes first views and second views in calls of their own.
    """

    cfg: Config

    @nn.compact
    def __call__(self, image: Array, train: bool = False, axis: str | None = None) -> Array:
        """[b, v, h, w, 3] -> [b, features]."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        num_views = image.shape[1]
        x = image.reshape(-1, *image.shape[2:])
        if cfg.image == "compact":
            x = CompactNet(dtype=dtype, name="backbone")(x, train, axis)
        else:
            depth = int(cfg.image.removeprefix("resnet"))
            x, _ = resnet.ResNet(depth, dtype, name="backbone")(x, train, axis)
        x = ViewHead(cfg.features, dtype, name="head")(x.mean((1, 2)), train, axis)
        return merge_views(x, num_views, cfg.views)


def as_faces(inputs: Batch) -> Faces:
    """The batch's "faces" [b, f, 15] (centre, corners, normal) and "neighbors" [b, f, 3]."""
    faces = inputs["faces"]
    centers = faces[..., :3]
    corners = faces[..., 3:12] - jnp.tile(centers, 3)
    return Faces(centers, corners, faces[..., 12:], inputs["neighbors"].astype(jnp.int32))


class Center3D(nn.Module):
    """The towers of the modalities, their classifier and their centers."""

    cfg: Config

    def setup(self) -> None:
        """Names the parts: params/{image,points,mesh,hidden,out,centers}."""
        cfg, dtype = self.cfg, dtypes.tower_dtype(self.cfg.dtype)
        if "image" in cfg.modalities:
            self.image = ImageTower(cfg)
        if "points" in cfg.modalities:
            self.points = DGCNN(
                cfg.k, cfg.point_embed_dim, cfg.point_widths, cfg.features, dtype=dtype
            )
        if "mesh" in cfg.modalities:
            self.mesh = MeshNet(
                structural=cfg.mesh_structural,
                num_kernels=cfg.mesh_kernels,
                convolutions=cfg.mesh_convolutions,
                fused=cfg.mesh_fused,
                joined=cfg.mesh_joined,
                features=cfg.features,
                dtype=dtype,
            )
        self.hidden = torch_dense(cfg.hidden, cfg.features, dtype, "hidden")
        self.out = torch_dense(cfg.num_classes, cfg.hidden, None, "out")
        normal = nn.initializers.normal(1.0)
        self.centers = self.param("centers", normal, (cfg.num_classes, cfg.features))

    def feature(self, modality: str, inputs: Batch, train: bool = False, axis: str | None = None):
        """Features [b, d] of one modality of a batch, at least 0, float32."""
        if modality == "image":
            x = self.image(inputs["image"], train, axis)
        elif modality == "points":
            x = self.points(inputs["points"], train, axis)
        else:
            x = self.mesh(as_faces(inputs), train, axis)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def classify(self, feature: Array) -> Array:
        """Features [b, d] -> logits [b, c]."""
        return self.out(nn.relu(self.hidden(feature)))

    def __call__(self, inputs: Batch, train: bool = False, axis: str | None = None):
        """(features, logits) of each modality, and the centers."""
        features = {m: self.feature(m, inputs, train, axis) for m in self.cfg.modalities}
        logits = {m: self.classify(x) for m, x in features.items()}
        return features, logits, self.centers


class Item(NamedTuple):
    """An embedded object."""

    feature: Array
    """[n, d], unit length, or 0 where every channel was off."""
    logits: Array
    """[n, c]."""


def objective_terms(
    features: Mapping[str, Array],
    logits: Mapping[str, Array],
    centers: Array,
    labels: Array,
    cfg: Config,
    axis: str | None,
) -> Terms:
    """Cross-entropy of each modality, distance to the centers, and between the modalities."""
    terms = {}
    for name, x in logits.items():
        losses = optax.softmax_cross_entropy_with_integer_labels(x.astype(jnp.float32), labels)
        terms[f"class_{name}"] = Term(jnp.sum(losses), len(labels), cfg.class_weight)
        right = jnp.sum(jnp.argmax(x, axis=-1) == labels)
        terms[f"accuracy_{name}"] = Term(right, len(labels), 0.0)
    if cfg.center_weight:
        every, repeated = jnp.concatenate([*features.values()]), jnp.tile(labels, len(features))
        if cfg.center_update == "official":
            centers = center.with_official_update(centers, cfg.center_weight)
        else:
            centers = center.with_normalised_update(centers, cfg.center_weight, repeated, axis)
        terms["center"] = Term(*center.center_loss(every, centers, repeated), cfg.center_weight)
    if cfg.mse_weight and len(features) > 1:
        terms["mse"] = Term(*center.pairwise_mse([*features.values()]), cfg.mse_weight)
    return terms


def make(cfg: Mapping[str, Any]) -> Task:
    """The system that `config.model` describes; see `Config`.

    A batch has "label" [b] and, of its modalities, "image" [b, v, h, w, 3], "points" [b, p, 3],
    "faces" [b, f, 15] with "neighbors" [b, f, 3].
    """
    config = make_config(cfg)
    model = Center3D(config)

    def init(key: Array, batch: Batch) -> Variables:
        return jax.jit(model.init)(key, {name: x[:1] for name, x in batch.items()})

    def loss(variables: Variables, batch: Batch, key: Array, axis: str | None):
        del key
        outputs: Any = model.apply(variables, batch, True, axis, mutable=["batch_stats"])
        (features, logits, centers), mutables = outputs
        return objective_terms(features, logits, centers, batch["label"], config, axis), mutables

    def make_encode(modality: str):
        def encode(variables: Variables, inputs: Batch) -> Item:
            feature: Any = model.apply(variables, modality, inputs, method="feature")
            logits: Any = model.apply(variables, feature, method="classify")
            return Item(unit_length(feature), logits)

        return encode

    def score(variables: Variables, query: Item, gallery: Item) -> Array:
        del variables
        return jnp.matmul(query.feature, gallery.feature.T, precision=dtypes.HIGHEST)

    return Task(init, loss, {name: make_encode(name) for name in config.modalities}, score)
