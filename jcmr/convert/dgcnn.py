"""Official DGCNNs: that of the cross-modal center loss, and the paper's classifier."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, tensors

NUM_LAYERS = 4


def dgcnn_rules(path: Path = (), name: str = "") -> dict[Path, Rule]:
    """`encoders.dgcnn.DGCNN` whose variables sit at `path` and whose tensors start with `name`."""
    parts = []
    for layer in range(1, NUM_LAYERS + 1):
        parts.append(rules.pointwise((*path, f"edge{layer}"), f"{name}conv{layer}.0", bias=False))
        parts.append(rules.batch_norm((*path, f"edge{layer}", "bn"), f"{name}conv{layer}.1"))
    parts += [
        rules.pointwise((*path, "fuse"), f"{name}conv5.0", bias=False),
        rules.batch_norm((*path, "fuse_bn"), f"{name}conv5.1"),
        rules.linear((*path, "out"), f"{name}linear1", bias=False),
        rules.batch_norm((*path, "out_bn"), f"{name}bn6"),
    ]
    return rules.merged(parts)


def classifier_rules(path: Path = (), name: str = "") -> dict[Path, Rule]:
    """`encoders.dgcnn.Classifier`."""
    return rules.merged(
        [
            rules.linear((*path, "hidden"), f"{name}linear2"),
            rules.batch_norm((*path, "hidden_bn"), f"{name}bn7"),
            rules.linear((*path, "out"), f"{name}linear3"),
        ]
    )


def not_needed(name: str) -> bool:
    """The classifier, norms that the state dict lists twice, and the counters of BatchNorm."""
    twice = [f"bn{layer}." for layer in range(1, 6)]
    dropped = ("linear2.", "linear3.", "bn7.", *twice)
    return name.startswith(dropped) or name.endswith("num_batches_tracked")


def sizes(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The options of `DGCNN` that the shapes of a state dict tell; it does not tell k.

    Raises:
      ValueError: it is no DGCNN; names a tensor that is missing.
    """
    needed = [*(f"conv{layer}.0.weight" for layer in range(1, 6)), "linear1.weight"]
    for name in needed:
        if name not in state:
            raise ValueError(
                f"The checkpoint has no tensor {name}; expected the state dict of a DGCNN."
            )
    return {
        "embed_dim": state["conv5.0.weight"].shape[0],
        "widths": tuple(state[f"conv{i}.0.weight"].shape[0] for i in range(1, NUM_LAYERS + 1)),
        "features": state["linear1.weight"].shape[0],
    }


def convert_dgcnn(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of `encoders.dgcnn.DGCNN`; a classifier behind the features is dropped."""
    sizes(state)
    return rules.convert(dgcnn_rules(), state, ignored=not_needed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options beside --checkpoint and --out."""


def run(args: argparse.Namespace):
    """(variables, config, no vocabulary) of the file that the command line names."""
    state = tensors(load_checkpoint(args.checkpoint))
    return convert_dgcnn(state), {"encoder": "dgcnn", **sizes(state)}, None
