import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dna_probe.anchor import CLASSIFIERS, AnchorClassifier, require_resolvable
from dna_probe.errors import DataError, DnaProbeError, NumericalError


def two_classes(rng, n=40, width=12, shift=1.5):
    labels = np.repeat([0, 1], n)
    values = rng.normal(size=(2 * n, width)) * rng.uniform(0.1, 10, width) + 5
    values[:, :3] += labels[:, None] * shift * values[:, :3].std(0)
    return values, labels


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_every_classifier_learns_and_is_stored_as_arrays(kind, rng):
    values, labels = two_classes(rng)
    anchor = AnchorClassifier(kind).fit(values[::2], labels[::2])
    probability = anchor.predict_proba(values[1::2])
    assert probability.shape == (40, 2) and np.allclose(probability.sum(1), 1)
    assert roc_auc_score(labels[1::2], probability[:, 1]) > 0.8
    again = AnchorClassifier.restore(anchor.to_json(), anchor.to_arrays())
    assert np.array_equal(again.predict_proba(values), anchor.predict_proba(values))
    assert again.band_ == anchor.band_ and again.threshold_ == anchor.threshold_


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_exported_decision_equals_scikit_learn(kind, rng):
    values, labels = two_classes(rng)
    anchor = AnchorClassifier(kind, strength=0.1).fit(values, labels)
    theirs = anchor.build(0.1).fit(values, labels)
    mine = anchor.decision_function(values)
    assert np.array_equal(mine > 0, theirs.predict(values) == 1)
    if kind != "prototype":
        assert np.allclose(mine, theirs.decision_function(values), atol=1e-8)


def test_probabilities_are_calibrated_on_new_images(rng):
    values, labels = two_classes(rng, n=400, shift=0.8)
    train = rng.permutation(800) < 400
    anchor = AnchorClassifier().fit(values[train], labels[train])
    probability = anchor.predict_proba(values[~train])[:, 1]
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (probability >= low) & (probability <= high)
        assert abs(labels[~train][inside].mean() - probability[inside].mean()) < 0.12


def test_outside_the_band_errors_stay_near_the_rate(rng):
    errors = []
    for seed in range(10):
        values, labels = two_classes(np.random.default_rng(seed), n=200, shift=0.7)
        anchor = AnchorClassifier(error_rate=0.1).fit(values[::2], labels[::2])
        verdicts = np.array([anchor.verdict(p) for p in anchor.predict_proba(values[1::2])[:, 1]])
        errors.append((verdicts[labels[1::2] == 0] == "fake").mean())
        assert {"real", "fake"} <= set(verdicts)
    assert np.mean(errors) < 0.13


def test_labels_without_signal_give_no_confidence(rng):
    values, labels = rng.normal(size=(80, 30)), np.repeat([0, 1], 40)
    anchor = AnchorClassifier().fit(values, labels)
    fresh = anchor.predict_proba(rng.normal(size=(100, 30)))[:, 1]
    assert np.abs(fresh - 0.5).mean() < 0.15
    unsure = np.mean([anchor.verdict(p) == "unsure" for p in fresh])
    assert unsure > 0.5


def test_one_image_per_class_is_fitted_but_marked_uncalibrated(rng):
    values, labels = two_classes(rng, n=1)
    anchor = AnchorClassifier().fit(values, labels)
    assert not anchor.calibrated_
    assert anchor.predict(values).tolist() == [0, 1]


def test_groups_are_never_split(rng):
    """A unit that only tells groups apart must not look useful."""
    groups = np.repeat(np.arange(16), 6)
    labels = groups % 2
    values = rng.normal(size=(16, 40))[groups] + 0.01 * rng.normal(size=(96, 40))
    honest = AnchorClassifier(strength=0.05).fit(values, labels, [str(g) for g in groups])
    leaky = AnchorClassifier(strength=0.05).fit(values, labels)
    assert roc_auc_score(labels, leaky.out_of_fold_) > 0.95
    assert roc_auc_score(labels, honest.out_of_fold_) < 0.85


def test_same_seed_same_answer(rng):
    values, labels = two_classes(rng)
    a, b = (AnchorClassifier(random_state=3).fit(values, labels) for _ in range(2))
    assert a.to_json() == b.to_json()


def test_wrong_input_is_named(rng):
    values, labels = two_classes(rng, n=5)
    with pytest.raises(DnaProbeError, match=r"Unknown classifier 'logisitc'. Did you mean 'logistic'"):
        AnchorClassifier("logisitc")
    with pytest.raises(DataError, match=r"both classes"):
        AnchorClassifier().fit(values, np.zeros(10))
    values[0, 0] = np.nan
    with pytest.raises(NumericalError, match=r"1 of 120 activation values"):
        AnchorClassifier().fit(values, labels)


class TestOperatingPoint:
    def test_the_realised_rate_is_near_the_target(self, rng):
        """Over many fits the false positive rate on new images stays at or below the one asked for."""
        realised = []
        for _ in range(20):
            labels = np.repeat([0, 1], 60)
            values = rng.normal(size=(120, 5)) + labels[:, None]
            anchor = AnchorClassifier(strength=0.05, target_fpr=0.1).fit(values, labels)
            new = anchor.predict_proba(rng.normal(size=(2000, 5)))[:, 1]
            realised.append((new >= anchor.threshold_).mean())
        assert 0.04 < np.mean(realised) < 0.125

    def test_too_few_reals_are_refused_with_the_number_needed(self, rng):
        labels = np.repeat([0, 1], 10)
        values = rng.normal(size=(20, 3)) + labels[:, None]
        with pytest.raises(
            DataError, match=r"0.05 needs at least 19 real training samples, and there are 10.*Give 9 more"
        ):
            AnchorClassifier(target_fpr=0.05).fit(values, labels)
        AnchorClassifier(target_fpr=1 / 11).fit(values, labels)

    def test_the_smallest_number_that_is_enough_is_enough(self):
        for rate, needed in ((0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1)):
            require_resolvable(rate, needed)
            with pytest.raises(DataError, match=f"at least {needed} real"):
                require_resolvable(rate, needed - 1)

    def test_a_rate_that_is_none_is_refused(self):
        with pytest.raises(DataError, match="between 0 and 1"):
            require_resolvable(1.5, 100)

    def test_it_is_stored(self, rng):
        labels = np.repeat([0, 1], 30)
        anchor = AnchorClassifier(target_fpr=0.1).fit(rng.normal(size=(60, 3)) + labels[:, None], labels)
        again = AnchorClassifier.restore(anchor.to_json(), anchor.to_arrays())
        assert again.threshold_ == anchor.threshold_ != 0.5 and again.target_fpr == 0.1


def test_the_prototype_scores_alike_in_cross_fitting_and_after_export(rng):
    labels = np.repeat([0, 1], 20)
    values = rng.normal(size=(40, 4)) * [1, 2, 3, 4] + labels[:, None]
    anchor = AnchorClassifier("prototype").fit(values, labels)
    np.testing.assert_allclose(anchor.fit_decision(values, labels, values), anchor.decision_function(values))
    alone = AnchorClassifier("prototype").fit(values[[0, -1]], labels[[0, -1]])
    assert np.isfinite(alone.decision_function(values)).all()
