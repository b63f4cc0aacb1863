"""Independent components on the budget of the detector: planted sources are found and read."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from dna_probe.evaluation.bases import ComponentProbe


@pytest.fixture
def mixed(rng):
    """Two readings of 20 units that mix six sparse sources each; the classes differ in one source of the second."""
    mixing = rng.normal(size=(2, 6, 20))

    def draw(count):
        labels = np.repeat([0, 1], count)
        sources = rng.laplace(size=(2, 2 * count, 6))
        sources[1, :, 2] += 2.5 * labels
        # A constant beside them, so that a length of one does not take the size of a source away.
        parts = [np.hstack([s @ m, np.full((2 * count, 1), 40.0)]) for s, m in zip(sources, mixing, strict=True)]
        return np.hstack(parts), labels

    return draw


def test_one_component_reads_the_planted_source(mixed):
    values, labels = mixed(100)
    new, truth = mixed(300)
    fitted = ComponentProbe((21, 21), 1).fit(values, labels)
    assert fitted.kept_.tolist() and fitted.kept_[0] >= len(fitted.bases_[0][1].T)
    assert roc_auc_score(truth, fitted.decision_function(new)) > 0.85


def test_components_are_white_and_as_many_as_the_data_bears(mixed):
    values, labels = mixed(100)
    found = ComponentProbe((21, 21), 4).fit(values, labels).components(values)
    assert found.shape[1] <= 2 * 20
    for part in np.split(found, 2, axis=1):
        covariance = np.cov(part.T)
        np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(len(covariance)), atol=1e-3)
    assert ComponentProbe((21, 21), 1000).fit(*mixed(5)).kept_.size == 2 * 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_do_not_fail(count, mixed):
    values, labels = mixed(count)
    fitted = ComponentProbe((21, 21), 30).fit(values, labels)
    assert np.isfinite(fitted.decision_function(values)).all()


def test_a_reading_that_does_not_vary_gives_nothing(mixed):
    values, labels = mixed(20)
    fitted = ComponentProbe((42,), 3).fit(np.ones_like(values), labels)
    assert not fitted.decision_function(values).any()


def test_the_length_of_a_row_does_not_matter_and_the_seed_fixes_the_rest(mixed, rng):
    values, labels = mixed(30)
    probe = ComponentProbe((21, 21), 5)
    one, two = (clone(probe).fit(values, labels).decision_function(values) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    # Powers of two, so that nothing is rounded.
    longer = np.hstack([part * 2.0 ** rng.integers(-3, 4, (60, 1)) for part in np.split(values, 2, axis=1)])
    np.testing.assert_array_equal(clone(probe).fit(longer, labels).decision_function(longer), one)


def test_components_that_differ_are_kept_whatever_the_balance(mixed):
    """Every real image four times over: the class means and variances are the same."""
    values, labels = mixed(60)
    fitted = ComponentProbe((21, 21), 2).fit(values, labels)
    again = clone(fitted)
    more = np.concatenate([values, *[values[labels == 0]] * 3]), np.concatenate([labels, np.zeros(180, int)])
    new, truth = mixed(200)
    assert roc_auc_score(truth, again.fit(*more).decision_function(new)) > 0.8
