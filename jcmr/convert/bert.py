"""BERT as Hugging Face saves it: model.safetensors or pytorch_model.bin."""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jcmr.convert import rules
from jcmr.convert.rules import Path, Rule
from jcmr.convert.torch_files import load_checkpoint, tensors
from jcmr.models.encoders.bert import SIZES, Bert, Size

FIRST = "embeddings.word_embeddings.weight"


def layer_rules(path: Path, name: str) -> dict[Path, Rule]:
    """`transformer.Layer`."""
    theirs = {
        "query": "self.query",
        "key": "self.key",
        "value": "self.value",
        "out": "output.dense",
    }
    return {
        **rules.merged(
            rules.linear((*path, "attention", ours), f"{name}attention.{inner}")
            for ours, inner in theirs.items()
        ),
        **rules.layer_norm((*path, "attention_norm"), f"{name}attention.output.LayerNorm"),
        **rules.linear((*path, "first"), f"{name}intermediate.dense"),
        **rules.linear((*path, "second"), f"{name}output.dense"),
        **rules.layer_norm((*path, "norm"), f"{name}output.LayerNorm"),
    }


def bert_rules(num_layers: int, path: Path = ()) -> dict[Path, Rule]:
    """`encoders.bert.Bert` whose variables sit at `path`."""
    tables = {"words": "word", "types": "token_type", "positions": "position"}
    parts = [
        {
            ("params", *path, ours, "embedding"): rules.copied(
                f"embeddings.{theirs}_embeddings.weight"
            )
            for ours, theirs in tables.items()
        },
        rules.layer_norm((*path, "norm"), "embeddings.LayerNorm"),
    ]
    for index in range(num_layers):
        parts.append(layer_rules((*path, f"layer_{index}"), f"encoder.layer.{index}."))
    return rules.merged(parts)


def named_as_today(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors without the "bert." of whole models, and with today's names of layer norms."""
    today = {".gamma": ".weight", ".beta": ".bias"}
    return {
        re.sub(r"\.(gamma|beta)$", lambda found: today[found[0]], name.removeprefix("bert.")): x
        for name, x in state.items()
    }


def size_of(state: Mapping[str, np.ndarray]) -> str:
    """Which of `SIZES` it is.

    Raises:
      ValueError: none of them, or no BERT.
    """
    if FIRST not in state:
        raise ValueError(
            f"The checkpoint has no tensor {FIRST}; expected a BERT as Hugging Face saves it."
        )
    found = re.compile(r"encoder\.layer\.(\d+)\.")
    layers = {match[1] for match in map(found.match, state) if match}
    for name, size in SIZES.items():
        if (len(layers), state[FIRST].shape[1]) == (size.num_layers, size.width):
            return name
    raise ValueError(
        f"The checkpoint has {len(layers)} layers of width {state[FIRST].shape[1]}; known are "
        + ", ".join(f"{name} {s.num_layers} x {s.width}" for name, s in SIZES.items())
        + "."
    )


def not_needed(name: str) -> bool:
    """Heads of pretraining, the pooler, and buffers."""
    return name.startswith(("cls.", "pooler.")) or name.endswith(("position_ids", "token_type_ids"))


def convert_bert(
    state: Mapping[str, np.ndarray], size: Size | None = None, path: Path = ()
) -> dict[str, Any]:
    """Variables of `encoders.bert.Bert` at `path`; pooler and heads of pretraining are dropped.

    Args:
      state: tensors by name, of BertModel or of a model around it.
      size: how large it is; one of `SIZES`, found out, when None.
      path: where it goes.

    Raises:
      ValueError: it is something else; names the tensors that are missing, left over or misshapen.
    """
    state = named_as_today(state)
    size = SIZES[size_of(state)] if size is None else size
    mapping = bert_rules(size.num_layers, path)
    text = np.zeros((1, 2), np.int32)
    module = Bert(state[FIRST].shape[0] if FIRST in state else 0, size)
    inside: Any = jax.eval_shape(module.init, jax.random.key(0), text)["params"]
    for name in reversed(path):
        inside = {name: inside}
    return rules.convert(mapping, state, {"params": inside}, not_needed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --checkpoint and --out."""
    parser.add_argument(
        "--at", default="", metavar="PATH",
        help="where it is in a model that starts from it: text/bert for dxr",
    )  # fmt: skip


def run(args: argparse.Namespace):
    """(variables, config, no vocabulary) of the file that the command line names."""
    state = tensors(load_checkpoint(args.checkpoint))
    path = tuple(filter(None, args.at.split("/")))
    size = size_of(named_as_today(state))
    return convert_bert(state, path=path), {"encoder": "bert", "size": size}, None
