"""Soft scores of answers that ten people gave to a question, and the loss against them (VQA).

Goyal et al., CVPR 2017 (VQA 2.0); the loss as in Pythia and its successors (`logit_bce` of MMF).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jcmr.core.types import Array

ABSENT = -1
"""An answer that is not there; the others of its question are repeated in their order instead."""
NUM_PEOPLE = 10
"""Who answer each question."""


def repeat_answers(answers: np.ndarray) -> np.ndarray:
    """Answer ids int [n, 10] of rows [n, a] in which some are `ABSENT`; all absent stay so.

    Raises:
      ValueError: more than ten a row.

    >>> repeat_answers(np.array([[3, 5, ABSENT]])).tolist()
    [[3, 5, 3, 5, 3, 5, 3, 5, 3, 5]]
    """
    answers = np.asarray(answers)
    if answers.shape[1] > NUM_PEOPLE:
        raise ValueError(
            f"A question has {answers.shape[1]} answers; their scores are defined for the first "
            f"{NUM_PEOPLE} of them."
        )
    there = answers != ABSENT
    first = np.take_along_axis(answers, np.argsort(~there, axis=1, kind="stable"), axis=1)
    places = np.arange(NUM_PEOPLE) % np.maximum(there.sum(axis=1, keepdims=True), 1)
    return np.take_along_axis(first, places, axis=1)


def soft_targets(answers: np.ndarray, num_answers: int, unknown: int | None = 0) -> np.ndarray:
    """What each answer is worth: min(1, others who gave it / 3), the mean over who is left out.

    Given once, twice, three times among ten it is worth 0.3, 0.6, 0.9, and more often 1.

    Args:
      answers: ids int [n, a], at most 10 a question, `ABSENT` where there are fewer.
      num_answers: v, size of the table of answers.
      unknown: id of answers outside the table, which are worth nothing; None where it holds all.

    Returns:
      float32 [n, v] in [0, 1]; a question without answers gets zeros.

    Raises:
      ValueError: an id outside the table, or more than ten answers a question.

    >>> [round(x, 2) for x in soft_targets(np.array([[1] * 9 + [2]]), 3)[0].tolist()]
    [0.0, 1.0, 0.3]
    """
    filled = repeat_answers(answers)
    if filled.size and (filled.min() < ABSENT or filled.max() >= num_answers):
        raise ValueError(
            f"Answer ids reach from {filled.min()} to {filled.max()}; the table has {num_answers} "
            f"answers, 0 to {num_answers - 1}."
        )
    counts = np.zeros((len(filled), num_answers + 1))
    np.add.at(counts, (np.arange(len(filled))[:, None], filled), 1)  # absent ones go to the end
    counts = counts[:, :num_answers]
    of_others = (NUM_PEOPLE - counts) * np.minimum(counts / 3, 1)
    of_givers = counts * np.minimum(np.maximum(counts - 1, 0) / 3, 1)
    targets = (of_others + of_givers) / NUM_PEOPLE
    if unknown is not None:
        targets[:, unknown] = 0
    return targets.astype(np.float32)


def answer_loss(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Binary cross-entropy of every answer, summed over answers: (sum, count) over questions.

    Args:
      logits: [n, v].
      targets: [n, v], from `soft_targets`.

    >>> total, count = answer_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    >>> round(float(total / count), 4)  # 2 log 2
    1.3863
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = jax.nn.softplus(logits) - logits * targets
    return jnp.sum(losses), jnp.asarray(len(logits), losses.dtype)
