"""DXR, BERT and the VQA metric against the official code; ResNets are in test_golden_resnet.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jcmr.eval.answers import answer_scores, best_answers
from jcmr.losses.answers import answer_loss, repeat_answers, soft_targets
from tests.conftest import load_golden


@pytest.mark.golden("dxr", "vqa_metric")
def test_vqa_metric(golden: Path):
    arrays = load_golden(golden)
    scores, unknown = arrays["scores"], int(arrays["unk_index"])
    for name, targets in (
        ("answers_indices", "soft_targets"),
        ("short_answers", "short_soft_targets"),
    ):
        found = soft_targets(arrays[name], scores.shape[1], unknown)
        np.testing.assert_allclose(found, arrays[targets], atol=1e-6)
    np.testing.assert_array_equal(repeat_answers(arrays["short_answers"]), arrays["short_indices"])
    targets = arrays["soft_targets"]
    np.testing.assert_array_equal(best_answers(scores, unknown), arrays["pred"])
    accuracy = answer_scores(scores, targets, unknown).mean()
    assert accuracy == pytest.approx(float(arrays["vqa_accuracy"]), abs=1e-6)

    def mean_loss(scores):
        total, count = answer_loss(scores, targets)
        return total / count

    loss, grad = jax.value_and_grad(mean_loss)(scores)
    assert float(loss) == pytest.approx(float(arrays["logit_bce"]), rel=1e-6)
    scale = np.abs(arrays["grad_scores"]).max()
    np.testing.assert_allclose(grad, arrays["grad_scores"], rtol=0, atol=1e-4 * scale)


def test_answers_outside_the_table_are_named():
    with pytest.raises(ValueError, match="Answer ids reach from 3 to 9; the table has 5"):
        soft_targets(np.array([[3, 9]]), 5)
    np.testing.assert_array_equal(soft_targets(np.array([[-1, -1]]), 3), np.zeros((1, 3)))
