"""Measures against slow references and known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dna_probe.evaluation.metrics import (
    auc,
    auc_difference,
    auc_interval,
    average_precision,
    balanced_accuracy,
    balanced_accuracy_at,
    bootstrap_weights,
    brier,
    equal_error_rate,
    expected_calibration_error,
    measure,
    oracle_balanced_accuracy,
    rate_interval,
    reliability,
    tpr_at_fpr,
    weighted_auc,
    weighted_balanced_accuracy,
)


@pytest.fixture
def scored(rng):
    labels = np.repeat([0, 1], [60, 40])
    scores = np.round(rng.normal(size=100) + labels, 1)  # rounded, so that there are ties
    return labels, scores


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 20)]
    scores = rng.integers(0, 6, 22).astype(float)
    pairs = [(f > r) + 0.5 * (f == r) for f in scores[labels == 1] for r in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert measure(labels, scores)["auc"] == pytest.approx(np.mean(pairs))


def test_tpr_at_fpr_takes_the_conservative_point():
    labels = np.array([0] * 10 + [1] * 4)
    scores = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9.5, 8.5, 7.5, 1.0])
    assert tpr_at_fpr(labels, scores, 0.0) == 0.25
    assert tpr_at_fpr(labels, scores, 0.05) == 0.25, "one real of ten is 10 %, so 5 % allows none"
    assert tpr_at_fpr(labels, scores, 0.1) == 0.5
    assert tpr_at_fpr(labels, scores, 0.2) == 0.75


def test_equal_error_rate_of_a_perfect_a_random_and_a_reversed_score():
    labels = np.repeat([0, 1], 50)
    assert equal_error_rate(labels, labels.astype(float)) == 0
    assert equal_error_rate(labels, np.zeros(100)) == pytest.approx(0.5)
    assert equal_error_rate(labels, -labels.astype(float)) == 1


def test_equal_error_rate_balances_the_errors(scored):
    labels, scores = scored
    rate = equal_error_rate(labels, scores)
    thresholds = np.unique(scores)
    errors = [((scores[labels == 0] >= t).mean(), (scores[labels == 1] < t).mean()) for t in thresholds]
    assert min(max(pair) for pair in errors) >= rate - 1e-9
    assert max(min(pair) for pair in errors) <= rate + 1e-9


def test_no_threshold_beats_the_oracle(scored):
    labels, scores = scored
    best = max(balanced_accuracy(labels, scores >= t) for t in [*np.unique(scores), np.inf])
    assert oracle_balanced_accuracy(labels, scores) == pytest.approx(best)


def test_average_precision_is_scikit_learns_with_balancing_weights(scored):
    from sklearn.metrics import average_precision_score

    labels, scores = scored
    weights = np.where(labels == 1, 1 / labels.sum(), 1 / (1 - labels).sum())
    expected = average_precision_score(labels, scores, sample_weight=weights)
    assert average_precision(labels, scores) == pytest.approx(expected)


def test_balanced_accuracy_at_many_thresholds_is_that_at_each(rng):
    labels, probability = np.repeat([0, 1], [30, 20]), np.round(rng.random(50), 2)
    thresholds = np.linspace(0, 1, 21)
    expected = [balanced_accuracy(labels, probability >= t) for t in thresholds]
    np.testing.assert_allclose(balanced_accuracy_at(thresholds, labels, probability), expected)


def test_average_precision_does_not_move_with_the_number_of_reals(rng):
    real, fake = rng.normal(size=200), rng.normal(size=100) + 1
    few = average_precision(np.repeat([0, 1], [200, 100]), np.r_[real, fake])
    many = average_precision(np.repeat([0, 1], [2000, 100]), np.r_[np.repeat(real, 10), fake])
    assert few == pytest.approx(many)


class TestCalibration:
    def test_true_probabilities_have_a_small_error_and_shifted_ones_a_large_one(self, rng):
        probability = rng.random(20_000)
        labels = (rng.random(20_000) < probability).astype(int)
        assert expected_calibration_error(labels, probability) < 0.02
        assert expected_calibration_error(labels, np.clip(probability + 0.2, 0, 1)) > 0.12

    def test_classes_count_alike(self, rng):
        """Ten times as many reals, scored the same, change nothing."""
        probability = np.r_[rng.beta(2, 5, 300), rng.beta(5, 2, 300)]
        labels = np.repeat([0, 1], 300)
        many = np.r_[np.repeat(probability[:300], 10), probability[300:]]
        more = np.repeat([0, 1], [3000, 300])
        assert expected_calibration_error(more, many) == pytest.approx(
            expected_calibration_error(labels, probability), abs=0.01
        )
        assert brier(more, many) == pytest.approx(brier(labels, probability))

    def test_bins_have_equal_mass(self, rng):
        labels, probability = np.repeat([0, 1], 150), rng.random(300)
        curve = reliability(labels, probability)
        assert len(curve.weight) == 15 and curve.weight.sum() == pytest.approx(1)
        assert curve.weight.max() < 1.1 / 15

    def test_a_constant_probability_is_one_bin_on_the_diagonal_when_it_is_right(self):
        labels = np.repeat([0, 1], 30)
        assert expected_calibration_error(labels, np.full(60, 0.5)) < 0.5
        assert brier(labels, np.full(60, 0.5)) == 0.25


def test_exact_binomial_interval():
    rate = rate_interval(0, 10)
    assert rate.value == 0 and rate.low == 0
    assert rate.high == pytest.approx(1 - 0.025 ** (1 / 10))


class TestBootstrap:
    def test_weighted_auc_equals_the_auc_of_the_images_drawn(self, scored):
        labels, scores = scored
        weights = bootstrap_weights(labels, draws=20, seed=1)
        found = weighted_auc(labels, scores[None], weights)
        for row, value in zip(weights.astype(int), found, strict=True):
            drawn = np.repeat(np.arange(len(labels)), row)
            assert value == pytest.approx(auc(labels[drawn], scores[drawn]), abs=1e-5)

    def test_weighted_balanced_accuracy_equals_that_of_the_images_drawn(self, scored):
        labels, scores = scored
        weights = bootstrap_weights(labels, draws=20, seed=1)
        found = weighted_balanced_accuracy(labels, (scores > 0.5)[None], weights)
        for row, value in zip(weights.astype(int), found, strict=True):
            drawn = np.repeat(np.arange(len(labels)), row)
            assert value == pytest.approx(balanced_accuracy(labels[drawn], scores[drawn] > 0.5), abs=1e-5)

    def test_several_rows_of_scores_are_averaged(self, scored, rng):
        labels, scores = scored
        weights = bootstrap_weights(labels, draws=20)
        rows = np.stack([scores, rng.normal(size=len(labels))])
        each = [weighted_auc(labels, row[None], weights) for row in rows]
        np.testing.assert_allclose(weighted_auc(labels, rows, weights), np.mean(each, axis=0), rtol=1e-5)

    def test_each_draw_keeps_the_classes_and_takes_groups_whole(self, rng):
        labels = np.repeat([0, 1, 1], 30)
        groups = [
            *(f"photo {i}" for i in range(30)),
            *(f"prompt {i}" for i in range(30)),
            *(f"prompt {i}" for i in range(30)),
        ]
        weights = bootstrap_weights(labels, groups, draws=50)
        assert (weights[:, labels == 0].sum(1) == 30).all() and (weights[:, labels == 1].sum(1) == 60).all()
        np.testing.assert_array_equal(weights[:, 30:60], weights[:, 60:])

    def test_the_interval_covers_the_truth_about_as_often_as_it_says(self):
        """AUC of two unit normals one apart is 0.760."""
        covered = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            labels = np.repeat([0, 1], 60)
            found = auc_interval(labels, rng.normal(size=120) + labels, draws=200, seed=seed)
            covered += found.low <= 0.7602 <= found.high
        assert covered >= 88

    def test_wider_where_images_of_a_group_agree(self, rng):
        labels = np.repeat([0, 1], 100)
        scores = np.repeat(rng.normal(size=40), 5) + labels
        groups = [str(i // 5) for i in range(200)]
        tied, free = auc_interval(labels, scores, groups), auc_interval(labels, scores)
        assert tied.high - tied.low > 1.5 * (free.high - free.low)

    def test_the_paired_difference_is_sharper_than_two_intervals(self, rng):
        labels = np.repeat([0, 1], 100)
        scores = rng.normal(size=200) + labels
        better = scores + 0.3 * labels
        found = auc_difference(labels, better, scores)
        assert found.low > 0 and found.p < 0.01
        same = auc_difference(labels, scores, scores)
        assert same.value == 0 and same.p == 1


def test_what_needs_a_probability_is_nan_without_one(scored):
    labels, scores = scored
    measured = measure(labels, scores)
    assert np.isnan(measured["ece"]) and np.isnan(measured["brier"]) and measured["balanced_accuracy"] > 0.5


def test_the_unsure_band_leaves_the_sure_ones(scored):
    labels, scores = scored
    probability = 1 / (1 + np.exp(0.5 - scores))
    measured = measure(labels, scores, probability, 0.5, (0.4, 0.6))
    assert 0 < measured["unsure_share"] < 1
    assert measured["accuracy_sure"] > measured["balanced_accuracy"]
