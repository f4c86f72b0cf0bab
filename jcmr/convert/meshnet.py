"""Official MeshNets: that of the cross-modal center loss, and the paper's classifier."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, tensors


def mlp_rules(path: Path, name: str, layers: int = 1) -> dict[Path, Rule]:
    """`encoders.meshnet.MLP`: triples of convolution, BatchNorm and ReLU."""
    parts = []
    for layer in range(layers):
        parts.append(rules.pointwise((*path, f"dense{layer + 1}"), f"{name}.{3 * layer}"))
        parts.append(rules.batch_norm((*path, f"bn{layer + 1}"), f"{name}.{3 * layer + 1}"))
    return rules.merged(parts)


def rotate_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.meshnet.FaceRotate`."""
    return rules.merged(
        [
            mlp_rules((*path, "rotate"), f"{name}rotate_mlp", 2),
            mlp_rules((*path, "fuse"), f"{name}fusion_mlp", 2),
        ]
    )


def kernel_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.meshnet.FaceKernel`; the angles are [1, c, j] in torch."""
    angles = {
        ("params", *path, ours): Rule(f"{name}weight_{ours}", lambda w: w[0])
        for ours in ("alpha", "beta")
    }
    return {**angles, **rules.batch_norm((*path, "bn"), f"{name}bn")}


def structural_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.meshnet.Structural`."""
    return rules.merged(
        [
            rotate_rules((*path, "rotate"), f"{name}FRC."),
            kernel_rules((*path, "kernel"), f"{name}FKC."),
            mlp_rules((*path, "mlp"), f"{name}structural_mlp", 2),
        ]
    )


def mesh_conv_rules(path: Path, name: str, concat: bool = True) -> dict[Path, Rule]:
    """`encoders.meshnet.MeshConv`, `concat` where it aggregates so."""
    parts = [
        mlp_rules((*path, "combine"), f"{name}combination_mlp"),
        mlp_rules((*path, "aggregate"), f"{name}aggregation_mlp"),
    ]
    if concat:
        parts.append(rules.pointwise((*path, "pair"), f"{name}concat_mlp.0"))
        parts.append(rules.batch_norm((*path, "pair", "bn"), f"{name}concat_mlp.1"))
    return rules.merged(parts)


def meshnet_rules(path: Path = (), name: str = "", concat: Sequence[bool] = (True, True)):
    """`encoders.meshnet.MeshNet`; `concat` tells how each convolution aggregates."""
    convs = [
        mesh_conv_rules((*path, f"conv{i}"), f"{name}mesh_conv{i}.", each)
        for i, each in enumerate(concat, start=1)
    ]
    return rules.merged(
        [
            mlp_rules((*path, "spatial"), f"{name}spatial_descriptor.spatial_mlp", 2),
            structural_rules((*path, "structural"), f"{name}structural_descriptor."),
            *convs,
            mlp_rules((*path, "fuse"), f"{name}fusion_mlp"),
            mlp_rules((*path, "join"), f"{name}concat_mlp"),
            rules.linear((*path, "out"), f"{name}linear1", bias=False),
            rules.batch_norm((*path, "out_bn"), f"{name}bn6"),
        ]
    )


def not_needed(name: str) -> bool:
    """The paper's classifier and the counters of BatchNorm."""
    return name.startswith("classifier.") or name.endswith("num_batches_tracked")


def sizes(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The options of `MeshNet` that the shapes of a state dict tell.

    Raises:
      ValueError: it is no MeshNet with the head of the center loss; names what is missing.
    """

    def width(name: str) -> int:
        if name not in state:
            raise ValueError(
                f"The checkpoint has no tensor {name}; expected the state dict of a MeshNet with "
                f"the layers linear1 and bn6 of the cross-modal center loss."
            )
        return state[name].shape[0]

    convolutions = tuple(
        (
            width(f"mesh_conv{i}.combination_mlp.0.weight"),
            width(f"mesh_conv{i}.aggregation_mlp.0.weight"),
        )
        for i in (1, 2)
    )
    structural = "structural_descriptor."
    width(f"{structural}FKC.weight_alpha")
    num_kernels, num_vectors = state[f"{structural}FKC.weight_alpha"].shape[1:]
    return {
        "structural": width(f"{structural}structural_mlp.0.weight"),
        "rotate_widths": (
            width(f"{structural}FRC.rotate_mlp.0.weight"),
            width(f"{structural}FRC.fusion_mlp.0.weight"),
        ),
        "num_kernels": num_kernels,
        "num_vectors": num_vectors,
        "spatial": width("spatial_descriptor.spatial_mlp.0.weight"),
        "convolutions": convolutions,
        "fused": width("fusion_mlp.0.weight"),
        "joined": width("concat_mlp.0.weight"),
        "features": width("linear1.weight"),
    }


def convert_meshnet(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of `encoders.meshnet.MeshNet`."""
    sizes(state)
    return rules.convert(meshnet_rules(), state, ignored=not_needed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options beside --checkpoint and --out."""


def run(args: argparse.Namespace):
    """(variables, config, no vocabulary) of the file that the command line names."""
    state = tensors(load_checkpoint(args.checkpoint))
    return convert_meshnet(state), {"encoder": "meshnet", **sizes(state)}, None
