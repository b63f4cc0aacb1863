import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from dna_probe.errors import DataError
from dna_probe.tuning import Sweep, cohens_d, eta_squared, unit_auc, variance_shares


def test_sweeps_that_make_no_sense():
    with pytest.raises(DataError, match=r"Unknown degradation 'jpg'. Did you mean 'jpeg'"):
        Sweep("jpg", "quality", (90,))
    with pytest.raises(DataError, match="takes pairs of values"):
        Sweep("social", "side", (90,))
    with pytest.raises(DataError, match="has no values"):
        Sweep("jpeg", "quality", ())


def brute_force_shares(table):
    """Two-way analysis of variance of one unit, cell by cell; (levels, images)."""
    levels, images = table.shape
    mean = table.mean()
    total = sum((table[i, j] - mean) ** 2 for i in range(levels) for j in range(images))
    level = sum(images * (table[i].mean() - mean) ** 2 for i in range(levels))
    image = sum(levels * (table[:, j].mean() - mean) ** 2 for j in range(images))
    interaction = sum(
        (table[i, j] - table[i].mean() - table[:, j].mean() + mean) ** 2 for i in range(levels) for j in range(images)
    )
    return level / total, image / total, interaction / total


class TestFormulas:
    @settings(max_examples=30, deadline=None)
    @given(arrays(float, (4, 6, 2), elements=st.floats(-3, 3, width=16)))
    def test_two_way_shares_are_those_of_a_brute_force_table(self, values):
        values = values + np.linspace(0, 1, 12).reshape(6, 2)
        found = variance_shares(values)
        for unit in range(2):
            np.testing.assert_allclose([s[0, unit] for s in found], brute_force_shares(values[:, :, unit]), atol=1e-9)

    def test_weights_are_repeated_images(self, rng):
        values, labels = rng.normal(size=(3, 8, 5)), np.arange(8) % 2
        times = np.array([2, 1, 1, 3, 1, 1, 2, 1])
        again = np.repeat(values, times, axis=1)
        for one, other in zip(variance_shares(values, times[None].astype(float)), variance_shares(again), strict=True):
            np.testing.assert_allclose(one, other)
        for measure in (cohens_d, eta_squared):
            weighted = measure(values[0], labels, times[None].astype(float))
            np.testing.assert_allclose(weighted, measure(again[0], np.repeat(labels, times)))

    def test_cohens_d_and_its_eta_squared(self, rng):
        values, labels = rng.normal(size=(40, 3)) + np.arange(3), np.repeat([0, 1], [16, 24])
        values[labels == 1] += 1
        real, fake = values[labels == 0], values[labels == 1]
        pooled = np.sqrt((15 * real.var(0, ddof=1) + 23 * fake.var(0, ddof=1)) / 38)
        d = cohens_d(values, labels)[0]
        np.testing.assert_allclose(d, (fake.mean(0) - real.mean(0)) / pooled)
        # Cohen 1988, section 8.2: with the classes' shares p and q, d^2 p q / (d^2 p q + 1), on population variances.
        scaled = d**2 * (16 * 24 / 40**2) * 40 / 38
        np.testing.assert_allclose(eta_squared(values, labels)[0], scaled / (scaled + 1))

    def test_eta_squared_of_classes_and_generators_add_up(self, rng):
        from scipy.stats import f_oneway

        values, codes = rng.normal(size=(30, 1)), np.repeat([0, 1, 2], 10)
        f = f_oneway(*(values[codes == code, 0] for code in range(3))).statistic
        assert eta_squared(values, codes)[0, 0] == pytest.approx(2 * f / (2 * f + 27))

    def test_auc_is_that_of_each_unit_alone_in_the_direction_of_its_sign(self, rng):
        values, labels = rng.integers(0, 5, size=(30, 3)).astype(float), np.repeat([0, 1], [12, 18])
        values[:, 2] = 1
        expected = [roc_auc_score(labels, sign * values[:, i]) for i, sign in enumerate((1, -1, 1))]
        np.testing.assert_allclose(unit_auc(values, labels, np.array([1.0, -1, 1])), expected)
