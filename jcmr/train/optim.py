"""From a stage of the config to an optimizer."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax import numpy as jnp

from jcmr.train.adamp import path_name, scale_by_adamp

OPTIMIZERS = ("adamp", "adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "cosine_epochs", "steps")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What a stage of `config.train.stages` may set besides its name and length."""

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    """"constant"; "cosine" to 0 by steps, or once an epoch as in most official code; "steps" times
    `decay_rate` after each of `decay_epochs`."""
    schedule_epochs: int = 0
    """Epochs until a cosine is at 0; 0 is the length of the stage."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_epochs: tuple[int, ...] = ()
    decay_rate: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""
    frozen: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are and take no optimizer memory."""
    no_clip: tuple[str, ...] = ()
    """Patterns of parameters whose gradients are left out of the norm and are not clipped."""
    no_decay: tuple[str, ...] = ()
    lr_scales: tuple[tuple[str, float], ...] = ()
    """(pattern, factor of the learning rate)."""


def stage_config(fields: Mapping[str, Any]) -> StageConfig:
    """Checks the fields of a stage.

    Raises:
      ValueError: an unknown field, optimizer or schedule.
    """
    known = [field.name for field in dataclasses.fields(StageConfig)]
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"A stage of config.train.stages has no field {name!r}; {hint}")
    config = StageConfig(**fields)
    for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} of a stage is {getattr(config, name)!r}; it can be {', '.join(choices)}."
            )
    return config


def matches(params: Any, patterns: Sequence[str]) -> Any:
    """Which parameters some pattern is found in (regular expressions on paths joined by "/")."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(p, path_name(path)) for p in patterns), params
    )


def make_mask(params: Any, patterns: Sequence[str]) -> Any:
    """`matches` of patterns that must each fit something.

    Raises:
      ValueError: a pattern fits no parameter.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ValueError(
                f"The pattern {pattern!r} of a stage fits no parameter; the nearest are "
                f"{', '.join(near)}."
            )
    return matches(params, patterns)


def without(params: Any, patterns: Sequence[str]) -> Callable[[Any], Any]:
    """A mask of what no pattern fits, for whatever part of the tree optax hands over."""
    make_mask(params, patterns)
    return lambda tree: jax.tree.map(lambda kept: not kept, matches(tree, patterns))


def make_schedule(
    config: StageConfig, num_steps: int, steps_per_epoch: int
) -> Callable[[Any], Any]:
    """Step of the stage -> learning rate."""
    length = config.schedule_epochs * steps_per_epoch or num_steps

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        epoch = jnp.floor(step / steps_per_epoch)
        rate = jnp.asarray(config.learning_rate, jnp.float32)
        if config.schedule == "cosine":
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / length, 1)))
        if config.schedule == "cosine_epochs":
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(epoch * steps_per_epoch / length, 1)))
        if config.schedule == "steps":
            passed = sum(epoch >= e for e in config.decay_epochs)
            rate *= config.decay_rate ** jnp.asarray(passed, jnp.float32)
        if config.warmup_steps:
            rate *= jnp.minimum(1, (step + 1) / config.warmup_steps)
        return rate

    return schedule


def direction(config: StageConfig, params: Any) -> optax.GradientTransformation:
    """The optimizer's step of unit learning rate, uphill."""
    decay = optax.add_decayed_weights(config.weight_decay, without(params, config.no_decay))
    if config.optimizer == "adamp":
        if config.no_decay:
            raise ValueError("adamp decays all weights or none: leave no_decay of the stage empty.")
        return scale_by_adamp(config.b1, config.b2, config.eps, config.weight_decay)
    if config.optimizer == "sgd":
        trace = optax.trace(config.momentum) if config.momentum else optax.identity()
        return optax.chain(decay, trace)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(adam, decay) if config.optimizer == "adamw" else optax.chain(decay, adam)


def make_optimizer(
    config: StageConfig, num_steps: int, params: Any, steps_per_epoch: int = 1
) -> optax.GradientTransformation:
    """The optimizer of a stage of `num_steps` steps over `params`.

    Raises:
      ValueError: a pattern of the stage fits no parameter.
    """
    parts = []
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
        parts.append(optax.masked(clip, without(params, config.no_clip)))
    parts.append(direction(config, params))
    parts.append(optax.scale_by_learning_rate(make_schedule(config, num_steps, steps_per_epoch)))
    for pattern, factor in config.lr_scales:
        make_mask(params, [pattern])
        parts.append(optax.masked(optax.scale(factor), lambda tree, p=pattern: matches(tree, [p])))
    optimizer = optax.chain(*parts)
    if not config.frozen:
        return optimizer
    frozen = make_mask(params, config.frozen)
    labels = jax.tree.map(lambda still: "frozen" if still else "trained", frozen)
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
