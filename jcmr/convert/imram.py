"""Official IMRAM checkpoints (github.com/HuiChen24/IMRAM)."""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, model_tensors, options_of
from jcmr.data.text import load_vocabulary
from jcmr.models import imram

VARIANTS = {"full_IMRAM": "full", "text_IMRAM": "text", "image_IMRAM": "image"}


def image_rules(path: Path, name: str, weight_norm: bool = False) -> dict[Path, Rule]:
    """`models.imram.ImageTower` on regions, from the linear layer `name`."""
    if not weight_norm:
        return rules.linear((*path, "project"), name)
    project = ("params", *path, "project")
    return {
        (*project, "kernel"): Rule(f"{name}.weight_v", np.transpose),
        (*project, "scale"): rules.copied(f"{name}.weight_g"),
        (*project, "bias"): rules.copied(f"{name}.bias"),
    }


def text_rules(path: Path, name: str, directions: int = 2) -> dict[Path, Rule]:
    """`encoders.words.WordStates`."""
    embedding = {("params", *path, "embed", "embedding"): rules.copied(f"{name}embed.weight")}
    return embedding | rules.bigru((*path, "rnn"), f"{name}rnn", directions)


def gate_rules(directions: tuple[str, ...]) -> dict[Path, Rule]:
    """`models.imram.GateWeights` of each direction."""
    return rules.merged(
        rules.linear((side, layer), f"{layer}_{side}")
        for side in directions
        for layer in ("linear", "gate")
    )


def convert_regions(
    state: Mapping[str, np.ndarray], layer: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config.model) of a model of regions and words.

    Args:
      state: all tensors, under `img_enc.` and `txt_enc.`.
      layer: the linear layer of the image side.
      options: of `models.imram.Config`, without the sizes.

    Raises:
      ValueError: names the tensors that are missing, left over or misshapen.
    """
    weight_norm = f"{layer}.weight_v" in state
    kernel = f"{layer}.weight_v" if weight_norm else f"{layer}.weight"
    for name in ("txt_enc.embed.weight", kernel):
        if name not in state:
            raise ValueError(
                f"The checkpoint has no tensor {name}; expected a model on precomputed regions "
                f"with a bidirectional GRU."
            )
    vocab_size, word_dim = state["txt_enc.embed.weight"].shape
    embed_dim, region_dim = state[kernel].shape
    sizes = {"vocab_size": vocab_size, "word_dim": word_dim, "embed_dim": embed_dim}
    model = {**options, **sizes, "weight_norm": weight_norm}
    config = imram.make_config(model)
    directions = imram.DIRECTIONS[config.variant] if config.steps > 1 else ()
    mapping = {
        **image_rules(("image",), layer, weight_norm),
        **text_rules(("text",), "txt_enc."),
        **gate_rules(directions),
    }
    batch = {
        "regions": np.zeros((1, 1, region_dim), np.float32),
        "text": np.ones((1, 2), np.int32),
        "id": np.zeros(1, np.int32),
    }
    expected = jax.eval_shape(imram.make(model).init, jax.random.key(0), batch)
    # The gates of directions and steps that are not scored.
    unused = ("linear_", "gate_")
    return rules.convert(mapping, state, expected, lambda name: name.startswith(unused)), model


def convert_imram(
    checkpoint: Mapping[str, Any], variant: str = "", steps: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config.model) of an official checkpoint or the state dict of its model.

    What the checkpoint's own options say is used; `variant` and `steps` override them, and without
    either it is full IMRAM of three steps.

    Raises:
      ValueError: it is something else; names the tensors that do not fit.
    """
    said = options_of(checkpoint)
    options = {
        "variant": variant or VARIANTS.get(said.get("model_mode", ""), "full"),
        "steps": steps or int(said.get("iteration_step", 3)),
        "smooth": float(said.get("lambda_softmax", 9.0)),
        "attention_norm": said.get("raw_feature_norm", "clipped_l2norm"),
        "renormalise": not said.get("no_IMRAM_norm", True),
        "margin": float(said.get("margin", 0.2)),
        "duplicates": "negative",
    }
    return convert_regions(model_tensors(checkpoint), "img_enc.fc_local", options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    parser.add_argument("--vocab", required=True, help="f30k_precomp_vocab.json or the like")
    parser.add_argument("--variant", default="", choices=sorted(imram.DIRECTIONS))
    parser.add_argument("--steps", type=int, default=0, help="K, if the checkpoint does not say")


def read_vocabulary(args: argparse.Namespace, vocab_size: int) -> dict[str, int]:
    """The vocabulary of --vocab.

    Raises:
      ValueError: it is not of the size that the checkpoint was trained with.
    """
    vocabulary = load_vocabulary(args.vocab)
    if vocab_size != len(vocabulary):
        raise ValueError(
            f"{args.vocab} has {len(vocabulary)} words, but {args.checkpoint} was trained with "
            f"{vocab_size}; they do not belong together."
        )
    return vocabulary


def run(args: argparse.Namespace):
    """(variables, config, vocabulary) of the files that the command line names."""
    checkpoint = load_checkpoint(args.checkpoint)
    variables, model = convert_imram(checkpoint, args.variant, args.steps)
    vocabulary = read_vocabulary(args, model["vocab_size"])
    return variables, {"task": "imram", "model": model}, vocabulary
