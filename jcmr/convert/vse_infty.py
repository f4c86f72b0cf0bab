"""Official VSE-infinity checkpoints, BiGRU on regions (github.com/woodfrog/vse_infty)."""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcmr.convert import rules
from jcmr.convert.imram import text_rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, model_tensors, options_of
from jcmr.data.text import load_vocabulary
from jcmr.models import vse

DROP_RATE = 0.2
"""Of words and regions in the official training."""


def gpo_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`encoders.gpo.GPO`."""
    return {
        **rules.bigru((*path, "gru"), f"{name}gru"),
        **rules.linear((*path, "linear"), f"{name}linear", bias=False),
    }


def infty_image_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`models.vse.ImageTower` of VSE-infinity on regions."""
    return {
        **rules.linear((*path, "project"), f"{name}fc"),
        **rules.linear((*path, "mlp", "first"), f"{name}mlp.layers.0"),
        **rules.batch_norm((*path, "mlp", "norm"), f"{name}mlp.bns.0"),
        **rules.linear((*path, "mlp", "second"), f"{name}mlp.layers.1"),
        **gpo_rules((*path, "pool"), f"{name}gpool."),
    }


def not_needed(name: str) -> bool:
    """Counters of BatchNorm, and the last one, which the official code makes but never calls."""
    return name.endswith("num_batches_tracked") or ".bns.1." in name


def convert_vse_infty(
    checkpoint: Mapping[str, Any], vocab_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, config.model) of an official checkpoint, or of the two state dicts of its model.

    Args:
      checkpoint: the file's content.
      vocab_size: words of its vocabulary; one word vector more is that of the mask word.

    Raises:
      ValueError: the vocabulary is of another size; names the tensors that do not fit.
    """
    state, said = model_tensors(checkpoint), options_of(checkpoint)
    for name in ("txt_enc.embed.weight", "img_enc.fc.weight", "img_enc.gpool.linear.weight"):
        if name not in state:
            raise ValueError(
                f"The checkpoint has no tensor {name}; expected VSE-infinity on precomputed "
                f"regions with a BiGRU."
            )
    rows, word_dim = state["txt_enc.embed.weight"].shape
    if rows - vocab_size not in (0, 1):
        raise ValueError(
            f"The checkpoint was trained with {rows} words, the last of which may be the mask "
            f"word; the vocabulary has {vocab_size}. They do not belong together."
        )
    embed_dim, region_dim = state["img_enc.fc.weight"].shape
    masked = rows > vocab_size
    model = {
        "method": "vse_infty",
        "vocab_size": vocab_size,
        "word_dim": word_dim,
        "embed_dim": embed_dim,
        "margin": float(said.get("margin", 0.2)),
        "region_drop_rate": DROP_RATE if masked else 0.0,
        "word_drop_rate": DROP_RATE if masked else 0.0,
        "duplicates": "negative",
    }
    mapping = {
        **infty_image_rules(("image",), "img_enc."),
        **text_rules(("text",), "txt_enc."),
        **gpo_rules(("text", "pool"), "txt_enc.gpool."),
    }
    batch = {
        "regions": np.zeros((1, 1, region_dim), np.float32),
        "text": np.ones((1, 2), np.int32),
        "id": np.zeros(1, np.int32),
    }
    expected = jax.eval_shape(vse.make(model).init, jax.random.key(0), batch)
    return rules.convert(mapping, state, expected, not_needed), model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    parser.add_argument("--vocab", required=True, help="f30k_precomp_vocab.json or the like")


def run(args: argparse.Namespace):
    """(variables, config, vocabulary) of the files that the command line names."""
    vocabulary = load_vocabulary(args.vocab)
    checkpoint = load_checkpoint(args.checkpoint)
    variables, model = convert_vse_infty(checkpoint, len(vocabulary))
    return variables, {"task": "vse", "model": model}, vocabulary
