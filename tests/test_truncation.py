import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dna_probe.errors import DnaProbeError, NumericalError
from dna_probe.scoring import UnitScores
from dna_probe.sites import Reading, Site
from dna_probe.truncation import find_knee, truncate


def scores_of(score, p_value=None, widths=None, resamples=()):
    widths = widths or [len(score)]
    readings = tuple(
        Reading(
            Site(f"blocks.{i}.hook_resid_post", "residual", i, f"blocks.{i}", "output", "tokens", w, 1, True), "cls"
        )
        for i, w in enumerate(widths)
    )
    score = np.asarray(score, dtype=float)
    p_value = np.ones(len(score)) if p_value is None else np.asarray(p_value)
    return UnitScores(readings, "cohens_d", score, {"contrast": score}, p_value, np.array(resamples))


def knee_by_brute_force(score: np.ndarray) -> int:
    """The point of the sorted curve furthest below its chord, both axes scaled to one: what Kneedle looks for."""
    curve = np.sort(score)[::-1]
    x = np.linspace(0, 1, len(curve))
    y = (curve - curve.min()) / (curve.max() - curve.min())
    return int(np.argmax((1 - x) - y))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_knee_agrees_with_brute_force_on_smooth_curves(shape):
    score = 1 / (1 + np.arange(500)) ** shape
    assert abs(find_knee(score).kept - knee_by_brute_force(score)) <= 2


def test_planted_units_are_kept(rng):
    score = rng.random(500) * 0.05
    planted = rng.choice(500, 20, replace=False)
    score[planted] += 1
    units = truncate(scores_of(score))
    assert units.found and 20 <= len(units) <= 22
    assert set(planted) <= set(units.get_support(indices=True))


@pytest.mark.parametrize(
    ("score", "reason"),
    [(np.ones(40), "all scores are equal"), (np.zeros(40), "all scores are equal"), (np.arange(3.0), "only 3 units")],
)
def test_no_knee_is_a_result_with_a_reason(score, reason):
    knee = find_knee(score)
    assert not knee and knee.kept >= 1 and reason in knee.reason
    units = truncate(scores_of(score))
    assert not units.found and reason in units.reason and len(units) == knee.kept


def test_concave_curve_says_why_there_is_no_knee():
    knee = find_knee(1 - np.linspace(0, 1, 50) ** 4)
    assert knee.kept >= 1
    assert knee.found or "does not bend" in knee.reason


def test_nan_raises():
    with pytest.raises(NumericalError, match=r"1 of 3 score values"):
        find_knee(np.array([1.0, np.nan, 0.0]))


def test_ties_go_by_position():
    units = truncate(scores_of([1, 2, 2, 2, 0]), "top_k", k=2)
    assert list(units.get_support(indices=True)) == [1, 2]


def test_cut_per_layer_keeps_a_share_of_each():
    units = truncate(scores_of([9, 8, 7, 6, 0.4, 0.3, 0.2, 0.1], widths=[4, 4]), "fraction", "layer", fraction=0.25)
    assert units.units == ["blocks.0.hook_resid_post[0]", "blocks.1.hook_resid_post[0]"]


def test_fdr_keeps_nothing_where_nothing_differs(rng):
    units = truncate(scores_of(rng.random(1000), p_value=rng.random(1000)), "fdr", alpha=0.05)
    assert len(units) == 0 and not units.found and "no unit differs" in units.reason


def test_fdr_keeps_the_units_that_differ(rng):
    p_value = rng.random(1000)
    p_value[:10] = 1e-8
    kept = truncate(scores_of(rng.random(1000), p_value=p_value), "fdr", alpha=0.05).get_support(indices=True)
    assert set(range(10)) <= set(kept) and len(kept) <= 13


def test_spread_over_resamples_is_reported(rng):
    draws = [1 / (1 + np.arange(100)) ** power for power in (0.5, 1.0, 2.0)]
    low, middle, high = truncate(scores_of(draws[1], resamples=draws)).spread
    assert low < middle < high


@given(st.floats(0.01, 1e6), st.integers(0, 100))
def test_cuts_do_not_depend_on_scale_or_order(scale, seed):
    rng = np.random.default_rng(seed)
    score = rng.lognormal(size=80)
    order = rng.permutation(80)
    kept = truncate(scores_of(score)).mask
    assert np.array_equal(truncate(scores_of(score * scale)).mask, kept)
    assert np.array_equal(truncate(scores_of(score[order])).mask, kept[order])


@pytest.mark.parametrize(
    ("cut", "parameters", "message"),
    [
        ("kne", {}, "Unknown cut 'kne'. Did you mean 'knee'"),
        ("top_k", {"k": 0}, "k = 0 is not a number of units"),
        ("fraction", {"fraction": 1.5}, "fraction = 1.5 is not a share"),
        ("fdr", {"alpha": 2}, "alpha = 2 is not a level"),
        ("top_k", {"sensitivity": 2}, "Cut 'top_k' does not take sensitivity"),
    ],
)
def test_wrong_use_is_named(cut, parameters, message):
    with pytest.raises(DnaProbeError) as caught:
        truncate(scores_of([3, 2, 1.0]), cut, **parameters)
    assert message in str(caught.value)


def test_support_follows_scikit_learn():
    units = truncate(scores_of([3, 1, 2.0]), "top_k", k=2)
    assert units.get_support().tolist() == [True, False, True]
    assert units.get_feature_names_out().tolist() == units.units
    assert list(units.table()["score"]) == [3, 2]
    assert units.to_json()["spread"] == [2, 2, 2]
