"""Ranks and metrics against plain loops, with ties, and the limits that they must keep."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from jcmr.eval import metrics
from jcmr.eval.occlusion import occlusion_curve
from jcmr.eval.uncertainty import binned, spearman
from jcmr.ops import ranks
from jcmr.ops.topk import TopK, merge_topk


def naive_order(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Items of one gallery, best first; of equal scores those that do not match come first."""
    return np.array(sorted(range(len(scores)), key=lambda j: (-scores[j], positive[j])), int)


def naive_hits(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return np.stack([p[naive_order(s, p)] for s, p in zip(scores, positive)])


def tied(seed: int, n: int = 6, m: int = 23, values: int = 5):
    """Scores of few values, so that most are tied, and some rows without a match."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, values, (n, m)).astype(np.float32)
    positive = rng.random((n, m)) < rng.choice([0.0, 0.1, 0.5], (n, 1))
    return scores, positive


def naive_ranks(hits: np.ndarray, most: int | None = None) -> np.ndarray:
    """Where sorted hits [n, m] are, [n, most], padded."""
    found = np.full((len(hits), most or max(int(hits.sum(1).max()), 1)), ranks.ABSENT)
    for row, hit in zip(found, hits):
        row[: hit.sum()] = np.flatnonzero(hit)
    return found


def match_ranks(scores, positive, most=23):
    found, misses = jax.jit(ranks.match_ranks, static_argnums=3)(scores, positive, ~positive, most)
    np.testing.assert_array_equal(misses, (~positive).sum(axis=1))
    return found


@pytest.mark.parametrize("values", [1, 2, 5, 1000])
def test_ranks_of_matches_are_those_of_a_full_sort(values):
    for seed in range(5):
        scores, positive = tied(seed, values=values)
        positive[0], positive[1] = False, True
        found = match_ranks(scores, positive)
        np.testing.assert_array_equal(found, naive_ranks(naive_hits(scores, positive), 23))


@pytest.mark.parametrize("sizes", [{}, {"MOST": 0}, {"LANES": 2}, {"ROWS": 1000}])
def test_ranks_of_matches_of_many_items_of_which_some_are_left_out(sizes, monkeypatch):
    """However the misses are counted, and with scores that are infinite or zeros of both signs."""
    for name, size in sizes.items():
        monkeypatch.setattr(ranks, name, size)
    rng = np.random.default_rng(0)
    scores = rng.choice(np.array([-np.inf, -1, -0.0, 0.0, 1e-20, 2, np.inf]), (40, 300))
    scores[::2] = rng.standard_normal(scores[::2].shape)
    positive = rng.random(scores.shape) < rng.choice([0.0, 0.02, 0.5], (40, 1))
    negative = ~positive & (rng.random(scores.shape) < 0.8)
    positive[-1], negative[-1] = True, False
    scores = scores.astype(np.float32)
    match_all = jax.jit(lambda *args: ranks.match_ranks(*args, 300))
    found, misses = match_all(scores, positive, negative)
    np.testing.assert_array_equal(misses, negative.sum(axis=1))
    for s, p, taken, row in zip(scores, positive, positive | negative, np.asarray(found)):
        hits = p[taken][naive_order(s[taken], p[taken])]
        np.testing.assert_array_equal(row, naive_ranks(hits[None], 300)[0])


def test_counting_gives_the_place_of_the_first_hit():
    for seed in range(5):
        scores, positive = tied(seed)
        best = ranks.best_positive(scores, positive)
        counted = np.asarray(ranks.count_ahead(scores, ~positive, best))
        hits = naive_hits(scores, positive)
        some = positive.any(axis=1)
        np.testing.assert_array_equal(counted[some], hits[some].argmax(axis=1))
        np.testing.assert_array_equal(counted[~some], scores.shape[1])


def test_a_constant_score_is_worth_nothing():
    positive = np.zeros((1, 10), bool)
    positive[0, :3] = True
    scores = np.ones((1, 10), np.float32)
    found = match_ranks(scores, positive, 3)
    np.testing.assert_array_equal(found, [[7, 8, 9]])
    assert ranks.r_precision(found, np.array([3]))[0] == 0


def test_precisions_against_loops():
    with jax.enable_x64(True):
        for seed in range(5):
            scores, positive = tied(seed, values=50)
            hits = naive_hits(scores, positive)
            number = positive.sum(axis=1)
            found = naive_ranks(hits)
            for hit, total, rp, mapr, ap, ap4 in zip(
                hits,
                number,
                ranks.r_precision(found, number),
                ranks.map_at_r(found, number),
                ranks.average_precision(found, number),
                ranks.average_precision_found(found, 4),
            ):
                precision = [hit[: i + 1].mean() for i in range(len(hit))]
                at_hits = [p for p, h in zip(precision, hit) if h]
                top = [p for p, h in zip(precision[:total], hit[:total]) if h]
                assert rp == pytest.approx(hit[:total].mean() if total else 0, abs=1e-12)
                assert mapr == pytest.approx(sum(top) / total if total else 0, abs=1e-12)
                assert ap == pytest.approx(sum(at_hits) / total if total else 0, abs=1e-12)
                some = at_hits[: hit[:4].sum()]
                assert ap4 == pytest.approx(np.mean(some) if some else 0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_rankings_do_not_depend_on_the_order_of_the_gallery(seed, values):
    scores, positive = tied(seed, values=values)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    here = match_ranks(scores, positive)
    there = match_ranks(scores[:, order], positive[:, order])
    np.testing.assert_array_equal(here, there)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_monotone_change_of_scores_changes_nothing(seed):
    scores, positive = tied(seed)
    here = match_ranks(scores, positive)
    np.testing.assert_array_equal(here, match_ranks(3 * scores - 7, positive))


def test_raising_a_match_never_lowers_a_metric():
    scores, positive = tied(3, values=1000)
    row = int(np.flatnonzero(positive.any(axis=1))[0])
    raised = scores.copy()
    raised[row, np.flatnonzero(positive[row])[0]] = 1e6
    number = positive.sum(axis=1)
    for measure in (ranks.r_precision, ranks.map_at_r, ranks.average_precision):
        before = measure(match_ranks(scores, positive), number)
        after = measure(match_ranks(raised, positive), number)
        assert after[row] >= before[row]


def test_without_last_drops_what_a_stable_sort_puts_last():
    for seed in range(4):
        scores, _ = tied(seed)
        valid = np.random.default_rng(seed).random(scores.shape) < 0.8
        kept = np.asarray(ranks.without_last(scores, jnp.asarray(valid)))
        for row, (s, ok) in enumerate(zip(scores, valid)):
            order = [j for j in np.argsort(-s, kind="stable") if ok[j]]
            np.testing.assert_array_equal(np.flatnonzero(kept[row]), np.sort(order[:-1]))


def test_merging_tiles_gives_the_top_k_of_all():
    scores, _ = tied(0, m=24)
    best = TopK(jnp.full((6, 5), -jnp.inf), jnp.full((6, 5), -1))
    for start in range(0, 24, 8):
        ids = jnp.broadcast_to(start + jnp.arange(8), (6, 8))
        best = merge_topk(best, jnp.asarray(scores[:, start : start + 8]), ids)
    values, ids = jax.lax.top_k(scores, 5)
    np.testing.assert_array_equal(best.scores, values)
    np.testing.assert_array_equal(best.payload, ids)


def test_values_of_ranks():
    found = np.array([0, 0, 3, 4, 20])
    assert metrics.recall_values(found, (1, 5)) == {
        "r@1": 40.0, "r@5": 80.0, "medr": 4.0, "meanr": 6.4,
    }  # fmt: skip
    assert metrics.hit_values(found, (1,)) == {"hit@1": 0.4}
    assert metrics.median_rank(np.array([0, 1])) == 1  # floor(0.5) + 1, not 1.5
    assert metrics.rsum({"r@1": 10.0, "r@5": 20.0, "medr": 3.0}, {"r@1": 5.0}) == 35.0
    assert metrics.pmrp([np.array([0.0, 1.0]), np.array([1.0, 1.0])]) == 75.0


def test_folds_weigh_the_same_and_leave_out_who_has_no_match():
    values = np.array([1.0, 1.0, 0.0, 9.0, 9.0])
    folds = np.array([0, 0, 1, 1, -1])
    counts = np.array([True, True, True, False, True])

    def measure(q):
        return {"mean": float(values[q].mean())}

    assert metrics.mean_over_folds(measure, folds, counts) == {"mean": 0.5}
    assert metrics.mean_over_folds(measure, folds, np.zeros(5, bool)) == {}


def test_uncertainty_that_follows_ambiguity():
    rng = np.random.default_rng(0)
    matches = rng.integers(1, 50, 300)
    uncertainty = np.log(matches) + 0.1 * rng.normal(size=300)
    assert spearman(uncertainty, matches) > 0.9
    assert spearman(uncertainty, np.ones(300)) == 0.0
    assert spearman(matches, matches**3) == pytest.approx(1)
    x, y = binned(uncertainty, matches < 10, num_bins=7)
    assert len(x) == 7 and np.all(np.diff(x) > 0) and y[0] == 1 > y[-1]
    np.testing.assert_allclose(y.mean(), np.mean(matches < 10), atol=0.01)
    assert len(binned(uncertainty[:3], matches[:3])[0]) == 3


def test_occlusion_is_correlated_image_by_image():
    shares = [0.0, 0.25, 0.5]
    both = occlusion_curve(lambda share: share * np.array([1.0, 2.0]), shares)
    assert both.uncertainty.shape == (3, 2) and both.correlation == pytest.approx(1)
    opposed = occlusion_curve(lambda share: share * np.array([1.0, -2.0]), shares)
    assert opposed.correlation == pytest.approx(0)
