"""Whitening by real images, the probes on it, and elimination, each against a slow and literal reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dna_probe.probing import PROBE_C, linear_probe
from dna_probe.whitening import RIDGE, WhitenedProbes, Whitening, blocks, elimination_order, whitened_weights


def two_classes(rng, n=30, width=12, shift=2.0, signal=3):
    """Correlated units on many scales, the first ``signal`` of them shifted in fakes."""
    labels = np.repeat([0, 1], n)
    values = rng.normal(size=(2 * n, width)) @ rng.normal(size=(width, width))
    values[:, :signal] += labels[:, None] * shift * values[:, :signal].std(0)
    return values * rng.uniform(0.1, 10, width) + rng.normal(0, 5, width), labels


def standardised(values):
    return (values - values.mean(0)) / values.std(0)


def reference_white(values, labels, ridge=RIDGE):
    """Standardised values times (C / ridge + 1) ** -1/2, C the covariance of the real images among them."""
    z = standardised(values)
    variance, axes = np.linalg.eigh(np.cov(z[labels == 0].T, bias=True))
    return z @ (axes @ np.diag((variance.clip(0) / ridge + 1) ** -0.5) @ axes.T)


class TestWhitening:
    # With fewer reals than units most directions have no variance; with more, all have.
    @pytest.mark.parametrize("n", [4, 40])
    @pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
    def test_it_is_the_inverse_square_root_of_the_covariance_of_reals_plus_a_ridge(self, n, ridge, rng):
        values, labels = two_classes(rng, n)
        white = Whitening.fit(values, labels, ridge).apply(values)
        np.testing.assert_allclose(white, reference_white(values, labels, ridge), atol=1e-9)

    def test_every_direction_is_damped_by_the_formula(self, rng):
        values, labels = two_classes(rng)
        whitening = Whitening.fit(values, labels)
        along = standardised(values)[labels == 0] @ whitening.axes.T
        np.testing.assert_allclose(whitening.axes @ whitening.axes.T, np.eye(12), atol=1e-9)
        np.testing.assert_allclose(whitening.gain, np.sqrt(RIDGE / (along.var(0) + RIDGE)))
        white = whitening.apply(values)[labels == 0] @ whitening.axes.T
        np.testing.assert_allclose(white.var(0), along.var(0) * RIDGE / (along.var(0) + RIDGE))

    def test_what_reals_do_not_differ_in_is_left_alone(self, rng):
        values, labels = two_classes(rng, n=4)
        whitening = Whitening.fit(values, labels)
        outside = rng.normal(size=12)
        outside -= outside @ whitening.axes.T @ whitening.axes
        np.testing.assert_allclose(whitening.pull_back(outside), outside, atol=1e-9)

    def test_fakes_count_for_the_scale_but_not_for_the_directions(self, rng):
        values, labels = two_classes(rng)
        moved = values.copy()
        moved[labels == 1] = rng.permutation(values[labels == 1])
        a, b = (Whitening.fit(part, labels) for part in (values, moved))
        np.testing.assert_allclose(a.apply(values), b.apply(values), atol=1e-9)

    def test_pull_back_is_the_transpose(self, rng):
        values, labels = two_classes(rng)
        whitening, weight = Whitening.fit(values, labels), rng.normal(size=12)
        on_white = whitening.apply(values) @ weight
        on_units = standardised(values) @ whitening.pull_back(weight)
        np.testing.assert_allclose(on_white, on_units, atol=1e-9)

    def test_one_real_image_tells_no_direction(self, rng):
        values, labels = two_classes(rng, n=5)
        alone = np.r_[0, 5:10]
        white = Whitening.fit(values[alone], labels[alone]).apply(values[alone])
        np.testing.assert_allclose(white, standardised(values[alone]), atol=1e-9)

    def test_constant_units_become_zero(self, rng):
        values, labels = two_classes(rng)
        values[:, [2, 7]] = 0, 1e6
        whitening = Whitening.fit(values, labels)
        white = whitening.apply(values)
        assert np.isinf(whitening.scale[[2, 7]]).all() and np.isfinite(white).all()
        assert np.abs(white[:, [2, 7]]).max() < 1e-12
        # Also for images in which they are not constant.
        assert np.isfinite(whitening.apply(values + rng.normal(size=values.shape))).all()

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(-100, 100))
    def test_units_may_have_any_scale_and_offset(self, seed, scale, offset):
        rng = np.random.default_rng(seed)
        values, labels = two_classes(rng, n=10, width=5)
        other = values * scale * rng.uniform(0.5, 2, 5) + offset
        white, again = (Whitening.fit(part, labels).apply(part) for part in (values, other))
        np.testing.assert_allclose(white, again, atol=1e-6)


def reference_decision(train, labels, test, widths):
    """Per reading a probe on whitened values, over its own spread, summed."""
    found, start = np.zeros(len(test)), 0
    for width in widths:
        if not width:
            continue
        own = slice(start, start + width)
        start += width
        whitening = Whitening.fit(train[:, own], labels)
        white, others = whitening.apply(train[:, own]), whitening.apply(test[:, own])
        probe = LogisticRegression(C=PROBE_C, max_iter=300, class_weight="balanced").fit(white, labels)
        found += probe.decision_function(others) / (white @ probe.coef_[0]).std()
    return found


class TestWhitenedProbes:
    @pytest.mark.parametrize("widths", [(12,), (4, 8), (0, 5, 0, 7, 0), (1, 11)])
    def test_the_decision_is_the_sum_of_probes_on_whitened_values(self, widths, rng):
        values, labels = two_classes(rng)
        fresh = rng.permutation(values) + rng.normal(size=values.shape)
        probes = WhitenedProbes(widths).fit(values, labels)
        expected = reference_decision(values, labels, fresh, widths)
        np.testing.assert_allclose(probes.decision_function(fresh), expected, atol=1e-8)
        by_hand = ((fresh - probes.mean_) / probes.scale_) @ probes.coef_[0] + probes.intercept_[0]
        np.testing.assert_allclose(by_hand, expected, atol=1e-8)
        np.testing.assert_array_equal(whitened_weights(values, labels, widths), probes.coef_[0])

    def test_without_widths_all_columns_are_one_reading(self, rng):
        values, labels = two_classes(rng)
        one, other = (WhitenedProbes(widths).fit(values, labels).coef_ for widths in (None, [12]))
        np.testing.assert_array_equal(one, other)

    def test_no_reading_outvotes_the_others(self, rng):
        """Each adds a decision value of spread one, whatever it is worth and however many units it has."""
        values, labels = two_classes(rng, width=20)
        probes = WhitenedProbes((2, 18)).fit(values, labels)
        parts = [
            ((values - probes.mean_) / probes.scale_ * probes.coef_[0])[:, own] for own in (slice(2), slice(2, 20))
        ]
        np.testing.assert_allclose([part.sum(1).std() for part in parts], 1)

    def test_content_that_reals_differ_in_counts_less_than_in_a_plain_probe(self, rng):
        """Eight units follow the content and one does not; all come apart by one standard deviation."""
        labels, share = np.repeat([0, 1], 40), []
        for _ in range(3):
            content = rng.normal(size=(80, 1)) + labels[:, None] + 0.1 * rng.normal(size=(80, 8))
            values = np.hstack([content, rng.normal(size=(80, 1)) + labels[:, None]])
            whitened, plain = whitened_weights(values, labels, [9]), linear_probe().fit(values, labels)[-1].coef_[0]
            share.append([np.abs(weight[:8]).sum() / np.abs(weight[8]) for weight in (whitened, plain)])
        whitened, plain = np.mean(share, axis=0)
        assert whitened < 0.75 * plain

    def test_constant_units_have_no_weight(self, rng):
        values, labels = two_classes(rng)
        values[:, 3] = 7
        assert abs(whitened_weights(values, labels, [12])[3]) < 1e-12
        nothing = WhitenedProbes((2, 10)).fit(np.where(np.arange(12) < 2, 7, values), labels)
        assert np.isfinite(nothing.decision_function(values)).all() and not nothing.coef_[0, :2].any()

    def test_one_image_of_each_class(self, rng):
        values, labels = two_classes(rng, n=1)
        decided = WhitenedProbes((4, 8)).fit(values, labels).decision_function(values)
        assert decided[0] < decided[1]

    def test_scikit_learn_can_copy_it(self):
        from sklearn.base import clone

        probes = clone(WhitenedProbes((4, 8), c=0.5, random_state=3)).set_params(c=0.1)
        assert probes.get_params() == {"widths": (4, 8), "c": 0.1, "random_state": 3}


def test_blocks_are_the_columns_of_each_reading_that_has_some():
    values = np.arange(10).reshape(2, 5)
    assert [part.tolist() for part in blocks(values, [2, 0, 3])] == [[[0, 1], [5, 6]], [[2, 3, 4], [7, 8, 9]]]
    assert blocks(values, [0]) == []


class TestElimination:
    def test_half_of_the_units_leave_in_each_round(self, rng):
        values, labels = two_classes(rng, width=64)
        score = elimination_order(values, labels, [40, 24])
        rounds = np.ceil(score).astype(int)
        # Scores of one round lie between its number and the next.
        assert np.bincount(rounds)[1:].tolist() == [32, 16, 8, 4, 2, 2]

    def test_the_first_to_leave_are_the_weakest_of_the_probes_on_all_units(self, rng):
        values, labels = two_classes(rng, width=64)
        weight = np.abs(whitened_weights(values, labels, [64]))
        score = elimination_order(values, labels, [64])
        gone = score <= 1  # of one round the largest share is one, and it stays
        assert weight[gone].max() <= weight[~gone].min()
        np.testing.assert_allclose(score[gone], weight[gone] / weight.max())

    def test_it_ends_at_the_share_asked_for(self, rng):
        values, labels = two_classes(rng, width=64)
        assert elimination_order(values, labels, [64], least=1.0).max() == 1
        assert elimination_order(values, labels, [64], least=0.25).max() == 3

    def test_one_of_many_copies_outlives_noise(self):
        """A dozen units that say the same share the weight; by weight alone all of them look weak."""
        beaten = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            labels = np.repeat([0, 1], 20)
            copies = np.repeat(rng.normal(size=(40, 1)) + 1.5 * labels[:, None], 12, axis=1)
            values = np.hstack([rng.normal(size=(40, 36)), copies + 0.01 * rng.normal(size=copies.shape)])
            ranked = elimination_order(values, labels, [48]), np.abs(whitened_weights(values, labels, [48]))
            beaten.append([(score[:36] < score[36:].max()).mean() for score in ranked])
        eliminated, weighed = np.mean(beaten, axis=0)
        assert eliminated > 0.8 and eliminated > weighed + 0.2

    def test_readings_without_units_change_nothing(self, rng):
        values, labels = two_classes(rng, width=16)
        plain, gaps = (elimination_order(values, labels, widths) for widths in ([6, 10], [0, 6, 0, 10, 0]))
        np.testing.assert_array_equal(plain, gaps)

    def test_units_may_have_any_scale_and_constant_ones_leave_first(self, rng):
        values, labels = two_classes(rng, width=16)
        values[:, 5] = 3
        score = elimination_order(values, labels, [16])
        assert score[5] == score.min() < 1e-9 and np.isfinite(score).all()
        other = elimination_order(values * rng.uniform(0.1, 10, 16) - 4, labels, [16])
        np.testing.assert_allclose(score, other, atol=1e-3)

    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_a_handful_of_units(self, width, rng):
        values, labels = two_classes(rng, width=width, signal=1)
        score = elimination_order(values, labels, [width])
        assert score.shape == (width,) and np.isfinite(score).all() and score.max() == (2 if width == 3 else 1)
