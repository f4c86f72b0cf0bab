"""Accuracy of answers to visual questions, as the VQA challenge counts it."""

import numpy as np


def best_answers(scores: np.ndarray, unknown: int | None = 0) -> np.ndarray:
    """Id of the highest of scores [n, v], the lowest id among equals, int [n].

    Args:
      scores: of each answer.
      unknown: id that stands for answers outside the table and is never given; None where the
        table holds every answer.
    """
    scores = np.array(scores, np.float64)
    if unknown is not None:
        scores[:, unknown] = -np.inf
    return scores.argmax(axis=1)


def answer_scores(scores: np.ndarray, targets: np.ndarray, unknown: int | None = 0) -> np.ndarray:
    """What the best answer of each question is worth, [n] in [0, 1]; its mean is the VQA accuracy.

    Args:
      scores: [n, v], by any measure, higher = better.
      targets: [n, v], from `losses.answers.soft_targets`.
      unknown: see `best_answers`.
    """
    best = best_answers(scores, unknown)
    return np.asarray(targets)[np.arange(len(best)), best]
