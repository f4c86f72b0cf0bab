"""ResNets of torchvision and timm, which share their names."""

import argparse
from collections.abc import Mapping

import numpy as np

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, tensors
from jcmr.models.encoders.resnet import STAGES


def block_rules(path: Path, name: str, num_convs: int, projected: bool) -> dict[Path, Rule]:
    """A residual block of `num_convs` convolutions, `projected` where the shortcut is one too."""
    names = {f"conv{i}": f"conv{i}" for i in range(1, num_convs + 1)}
    norms = {f"bn{i}": f"bn{i}" for i in range(1, num_convs + 1)}
    if projected:
        names["downsample_conv"], norms["downsample_bn"] = "downsample.0", "downsample.1"
    return rules.merged(
        [rules.convolution((*path, ours), name + theirs) for ours, theirs in names.items()]
        + [rules.batch_norm((*path, ours), name + theirs) for ours, theirs in norms.items()]
    )


def resnet_rules(depth: int, path: Path = (), name: str = "") -> dict[Path, Rule]:
    """A ResNet of `depth` layers whose variables sit at `path` and whose tensors start with `name`.

    Raises:
      ValueError: a depth that torchvision does not have.
    """
    if depth not in STAGES:
        raise ValueError(f"ResNet comes with {sorted(STAGES)} layers, not {depth}.")
    num_convs = 2 if depth < 50 else 3
    parts = [
        rules.convolution((*path, "conv1"), f"{name}conv1"),
        rules.batch_norm((*path, "bn1"), f"{name}bn1"),
    ]
    for stage, num_blocks in enumerate(STAGES[depth], start=1):
        for index in range(num_blocks):
            projected = index == 0 and (stage > 1 or depth >= 50)
            torch_name = f"{name}layer{stage}.{index}."
            ours = (*path, f"layer{stage}_{index}")
            parts.append(block_rules(ours, torch_name, num_convs, projected))
    return rules.merged(parts)


def not_needed(name: str) -> bool:
    """The classifier and the counters of BatchNorm."""
    return name.startswith("fc.") or name.endswith("num_batches_tracked")


def convert_resnet(state: Mapping[str, np.ndarray], depth: int, path: Path = ()):
    """Variables of `encoders.resnet.ResNet(depth)` at `path`; the classifier `fc` is dropped."""
    return rules.convert(resnet_rules(depth, path), state, ignored=not_needed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    names = [f"resnet{depth}" for depth in STAGES]
    parser.add_argument("--arch", required=True, choices=names, help="which network it is")
    parser.add_argument(
        "--at", default="", metavar="PATH",
        help="where the network is in a model that starts from it: image/backbone for pcme",
    )  # fmt: skip


def run(args: argparse.Namespace):
    """(variables, config, no vocabulary) of the file that the command line names."""
    depth = int(args.arch.removeprefix("resnet"))
    path = tuple(filter(None, args.at.split("/")))
    variables = convert_resnet(tensors(load_checkpoint(args.checkpoint)), depth, path)
    return variables, {"encoder": "resnet", "depth": depth}, None
