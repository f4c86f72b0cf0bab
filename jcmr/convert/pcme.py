"""Official PCME checkpoints and their vocabulary (github.com/naver-ai/pcme)."""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcmr.convert import rules
from jcmr.convert.resnet import resnet_rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, tensors
from jcmr.data.text import load_vocabulary
from jcmr.models import pcme
from jcmr.models.encoders.resnet import STAGES

DEFAULT = {"shift": np.float32(15), "negative_scale": np.float32(15)}
"""Starting values of the COCO recipe."""


def attention_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.SelfAttention`."""
    return rules.merged(rules.linear((*path, w), f"{name}{w}", bias=False) for w in ("w_1", "w_2"))


def pie_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.PIENet`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.layer_norm((*path, "layer_norm"), f"{name}layer_norm"),
    }


def image_uncertainty_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.ImageUncertainty`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.linear((*path, "fc2"), f"{name}fc2"),
    }


def text_uncertainty_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`pie.TextUncertainty`."""
    return {
        **attention_rules((*path, "attention"), f"{name}attention."),
        **rules.linear((*path, "fc"), f"{name}fc"),
        **rules.bigru((*path, "rnn"), f"{name}rnn"),
    }


def image_head_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.gaussian_towers.ImageHead`."""
    return {
        **rules.linear((*path, "fc"), f"{name}fc"),
        **pie_rules((*path, "pie_net"), f"{name}pie_net."),
        **image_uncertainty_rules((*path, "uncertain_net"), f"{name}uncertain_net."),
    }


def text_rules(
    path: Path, name: str, attention: bool = True, probabilistic: bool = True
) -> dict[Path, Rule]:
    """`encoders.gaussian_towers.TextTower`."""
    parts = [
        {("params", *path, "embed", "embedding"): rules.copied(f"{name}embed.weight")},
        rules.bigru((*path, "rnn"), f"{name}rnn"),
    ]
    if attention:
        parts.append(pie_rules((*path, "pie_net"), f"{name}pie_net."))
    if probabilistic:
        parts.append(text_uncertainty_rules((*path, "uncertain_net"), f"{name}uncertain_net."))
    return rules.merged(parts)


def sizes(state: Mapping[str, np.ndarray], depth: int) -> dict[str, Any]:
    """The model's options that the shapes of a checkpoint tell."""
    vocab_size, word_dim = state["txt_enc.embed.weight"].shape
    return {
        "image": f"resnet{depth}",
        "vocab_size": vocab_size,
        "word_dim": word_dim,
        "embed_dim": state["img_enc.fc.weight"].shape[0],
    }


def depth_of(state: Mapping[str, np.ndarray]) -> int:
    """Layers of the ResNet under `img_enc.cnn.`, by its numbers of blocks.

    Raises:
      ValueError: torchvision has no such network.
    """
    counts = tuple(
        len({name.split(".")[3] for name in state if name.startswith(f"img_enc.cnn.layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = "img_enc.cnn.layer1.0.conv3.weight" in state
    for depth, blocks in STAGES.items():
        if blocks == counts and bottleneck == (depth >= 50):
            return depth
    raise ValueError(
        f"The checkpoint's img_enc.cnn has {counts} residual blocks, which is no ResNet of "
        f"torchvision. Expected the state dict of an official PCME."
    )


def convert_pcme(
    checkpoint: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config.model) of an official checkpoint.

    Args:
      checkpoint: {"model": ..., "criterion": ..., ...} as `save_models` writes it, or a bare model
        state dict, whose shift and negative scale are then those of the COCO recipe.

    Raises:
      ValueError: it is something else; names the tensors that are missing, left over or misshapen.
    """
    state = tensors(checkpoint.get("model", checkpoint))
    for name in ("txt_enc.embed.weight", "img_enc.fc.weight"):
        if name not in state:
            raise ValueError(
                f"The checkpoint has no tensor {name}; expected an official PCME checkpoint or the "
                f"state dict of its model."
            )
    criterion = tensors(checkpoint["criterion"]) if "criterion" in checkpoint else DEFAULT
    state |= {f"criterion.{name}": np.reshape(x, ()) for name, x in criterion.items()}
    model = {**sizes(state, depth_of(state)), "parity": True}
    mapping = {
        **resnet_rules(depth_of(state), ("image", "backbone"), "img_enc.cnn."),
        **image_head_rules(("image", "head"), "img_enc."),
        **text_rules(("text",), "txt_enc."),
        ("params", "criterion", "shift"): rules.copied("criterion.shift"),
        ("params", "criterion", "negative_scale"): rules.copied("criterion.negative_scale"),
    }
    batch = {
        "image": np.zeros((1, 64, 64, 3), np.float32),
        "text": np.ones((1, 2), np.int32),
        "id": np.zeros(1, np.int32),
    }
    expected = jax.eval_shape(pcme.make(model).init, jax.random.key(0), batch)
    return rules.convert(mapping, state, expected, not_needed), model


def not_needed(name: str) -> bool:
    """Counters of BatchNorm."""
    return name.endswith("num_batches_tracked")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    parser.add_argument("--vocab", required=True, help="coco_vocab.pkl, cub_vocab.pkl or a .json")


def run(args: argparse.Namespace):
    """(variables, config, vocabulary) of the files that the command line names.

    Raises:
      ValueError: the vocabulary is not the one that the checkpoint was trained with.
    """
    vocabulary = load_vocabulary(args.vocab)
    checkpoint = load_checkpoint(args.checkpoint)
    variables, model = convert_pcme(checkpoint)
    if model["vocab_size"] != len(vocabulary):
        raise ValueError(
            f"{args.vocab} has {len(vocabulary)} words, but {args.checkpoint} was trained with "
            f"{model['vocab_size']}; they do not belong together."
        )
    if checkpoint.get("word2idx", vocabulary) != vocabulary:
        raise ValueError(
            f"{args.vocab} gives other ids to words than the vocabulary inside {args.checkpoint}; "
            f"they do not belong together."
        )
    return variables, {"task": "pcme", "model": model}, vocabulary
