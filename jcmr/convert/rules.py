"""How tensors of torch state dicts become variables: a rule per leaf, and nothing left over."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jcmr.core.types import Variables

Path = tuple[str, ...]


class Rule(NamedTuple):
    """One leaf of our variables: the tensor it is made of, and how."""

    name: str
    build: Callable[[np.ndarray], np.ndarray]


Rules = Mapping[Path, Rule]


def copied(name: str) -> Rule:
    """The tensor as it is."""
    return Rule(name, np.asarray)


def linear(path: Path, name: str, bias: bool = True) -> dict[Path, Rule]:
    """nn.Linear: weight [out, in] -> kernel [in, out]."""
    rules = {("params", *path, "kernel"): Rule(f"{name}.weight", np.transpose)}
    if bias:
        rules["params", *path, "bias"] = copied(f"{name}.bias")
    return rules


def convolution(path: Path, name: str) -> dict[Path, Rule]:
    """nn.Conv2d without bias: weight [out, in, h, w] -> kernel [h, w, in, out]."""
    rule = Rule(f"{name}.weight", lambda w: np.transpose(w, (2, 3, 1, 0)))
    return {("params", *path, "kernel"): rule}


def pointwise(path: Path, name: str, bias: bool = True) -> dict[Path, Rule]:
    """nn.Conv1d or nn.Conv2d of size 1: weight [out, in, 1, ...] -> kernel [in, out]."""
    flat = Rule(f"{name}.weight", lambda w: w.reshape(w.shape[:2]).T)
    rules = {("params", *path, "kernel"): flat}
    if bias:
        rules["params", *path, "bias"] = copied(f"{name}.bias")
    return rules


def layer_norm(path: Path, name: str) -> dict[Path, Rule]:
    """nn.LayerNorm."""
    return {
        ("params", *path, "scale"): copied(f"{name}.weight"),
        ("params", *path, "bias"): copied(f"{name}.bias"),
    }


def batch_norm(path: Path, name: str) -> dict[Path, Rule]:
    """nn.BatchNorm: weights and running statistics."""
    return {
        **layer_norm(path, name),
        ("batch_stats", *path, "mean"): copied(f"{name}.running_mean"),
        ("batch_stats", *path, "var"): copied(f"{name}.running_var"),
    }


def bigru(path: Path, name: str, directions: int = 2) -> dict[Path, Rule]:
    """nn.GRU, one layer, both directions or the forward one alone."""
    rules = {}
    for side, suffix in (("forward", "_l0"), ("backward", "_l0_reverse"))[:directions]:
        for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
            kernel = Rule(f"{name}.weight_{theirs}{suffix}", np.transpose)
            rules["params", *path, f"{side}_{ours}_kernel"] = kernel
            rules["params", *path, f"{side}_{ours}_bias"] = copied(f"{name}.bias_{theirs}{suffix}")
    return rules


def convert(
    rules: Rules,
    state: Mapping[str, np.ndarray],
    expected: Variables | None = None,
    ignored: Callable[[str], bool] = lambda name: False,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """The variables that `rules` make of `state`.

    Args:
      rules: one per leaf.
      state: torch name -> array.
      expected: variables or their shapes; every leaf must come out with the same shape.
      ignored: tells which tensors may be left over.
      dtype: of all leaves.

    Raises:
      ValueError: names every missing, unexpected and wrongly shaped tensor.
    """
    used = {rule.name for rule in rules.values()}
    problems = listed("missing", sorted(used - state.keys()))
    problems += listed("unexpected", sorted(n for n in state.keys() - used if not ignored(n)))
    if problems:
        raise ValueError("The checkpoint does not fit the model: " + "; ".join(problems) + ".")
    leaves = {path: rule.build(state[rule.name]) for path, rule in rules.items()}
    if expected is not None:
        flat: Any = traverse_util.flatten_dict(dict(expected))
        shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
        wrong = [
            f"{rules[path].name} gives {np.shape(leaf)} for {'/'.join(path)}, "
            f"expected {shapes.get(path)}"
            for path, leaf in leaves.items()
            if shapes.get(path) != np.shape(leaf)
        ]
        wrong += [f"nothing gives {'/'.join(path)}" for path in sorted(shapes.keys() - leaves)]
        if wrong:
            raise ValueError("The checkpoint does not fit the model: " + "; ".join(wrong) + ".")
    arrays = jax.tree.map(lambda x: np.asarray(x, dtype, order="C"), leaves)
    return traverse_util.unflatten_dict(arrays)


def listed(what: str, names: Sequence[str]) -> list[str]:
    """["missing tensors a, b"], or [] when there are none."""
    return [f"{what} tensors {', '.join(names)}"] if names else []


def merged(parts: Iterable[Rules]) -> dict[Path, Rule]:
    """All rules of `parts`."""
    return {path: rule for part in parts for path, rule in part.items()}
