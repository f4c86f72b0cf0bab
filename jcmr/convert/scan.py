"""Official SCAN checkpoints (github.com/kuanghuei/SCAN)."""

import argparse
from collections.abc import Mapping
from typing import Any

from jcmr.convert.imram import convert_regions, read_vocabulary
from jcmr.convert.torch_files import load_checkpoint, model_tensors, options_of

VARIANTS = {"t2i": "text", "i2t": "image"}
AGGREGATES = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}


def convert_scan(
    checkpoint: Mapping[str, Any], direction: str = "", aggregate: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config.model) of an official checkpoint, or of the two state dicts of its model.

    Args:
      checkpoint: its own options are used where it holds them.
      direction: "t2i" or "i2t"; overrides them.
      aggregate: of `ops.cross_attention.AGGREGATES`; overrides them.

    Raises:
      ValueError: it does not say in which direction it attends; tensors that do not fit.
    """
    said = options_of(checkpoint)
    direction = direction or said.get("cross_attn", "")
    if direction not in VARIANTS:
        raise ValueError(
            "The checkpoint does not say whether words attend to regions (t2i) or regions to words "
            "(i2t); give --direction."
        )
    options = {
        "variant": VARIANTS[direction],
        "steps": 1,
        "aggregate": aggregate or AGGREGATES.get(said.get("agg_func", ""), "lse"),
        "smooth": float(said.get("lambda_softmax", 9.0)),
        "lse_scale": float(said.get("lambda_lse", 6.0)),
        "attention_norm": said.get("raw_feature_norm", "clipped_l2norm"),
        "margin": float(said.get("margin", 0.2)),
        "duplicates": "negative",
    }
    return convert_regions(model_tensors(checkpoint), "img_enc.fc", options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    parser.add_argument("--vocab", required=True, help="f30k_precomp_vocab.json or the like")
    parser.add_argument("--direction", default="", choices=sorted(VARIANTS))
    parser.add_argument("--aggregate", default="", choices=sorted(AGGREGATES.values()))


def run(args: argparse.Namespace):
    """(variables, config, vocabulary) of the files that the command line names."""
    checkpoint = load_checkpoint(args.checkpoint)
    variables, model = convert_scan(checkpoint, args.direction, args.aggregate)
    vocabulary = read_vocabulary(args, model["vocab_size"])
    return variables, {"task": "imram", "model": model}, vocabulary
