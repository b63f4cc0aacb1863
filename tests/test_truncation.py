import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dna_probe.errors import DnaProbeError, NumericalError
from dna_probe.scoring import UnitScores
from dna_probe.sites import Reading, Site
from dna_probe.truncation import CUTS, UnitSet, find_knee, local_false_discovery_rate, needs_resamples, truncate


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


CUTS_AT_A_KNEE = ("knee", "cumulative_knee")


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


@pytest.mark.parametrize("cut", CUTS_AT_A_KNEE)
def test_planted_units_are_kept(rng, cut):
    score = rng.random(500) * 0.05
    planted = rng.choice(500, 20, replace=False)
    score[planted] += 1
    units = truncate(scores_of(score), cut)
    assert units.found and 20 <= len(units) <= 22
    assert set(planted) <= set(units.get_support(indices=True))


@pytest.mark.parametrize(
    ("score", "reason"),
    [(np.ones(40), "all scores are equal"), (np.zeros(40), "all scores are equal"), (np.arange(3.0), "only 3 units")],
)
def test_no_knee_is_a_result_with_a_reason(score, reason):
    knee = find_knee(score)
    assert not knee and knee.kept >= 1 and reason in knee.reason
    units = truncate(scores_of(score), "knee")
    assert not units.found and reason in units.reason and len(units) == knee.kept


def test_the_cumulative_knee_is_where_the_cumulated_squares_are_furthest_from_their_chord(rng):
    score = rng.lognormal(size=300)
    curve = np.cumsum(np.sort(score)[::-1] ** 2)
    chord = np.linspace(0, curve[-1], 301)[1:]
    units = truncate(scores_of(score), "cumulative_knee")
    assert units.found and len(units) == np.argmax(curve - chord) + 1
    assert "more than an equal share" in units.reason


def test_one_extreme_unit_hardly_moves_the_cumulative_knee(rng):
    score = np.abs(rng.normal(size=400))
    extreme = np.append(score, 2 * score.max())
    before, after = ({cut: len(truncate(scores_of(one), cut)) for cut in CUTS_AT_A_KNEE} for one in (score, extreme))
    shrunk = {cut: after[cut] / before[cut] for cut in CUTS_AT_A_KNEE}
    assert shrunk["knee"] < 0.85 < shrunk["cumulative_knee"]


@pytest.mark.parametrize("score", [np.ones(40), np.zeros(40), np.ones(1)])
def test_equal_scores_have_no_cumulative_knee(score):
    units = truncate(scores_of(score), "cumulative_knee")
    assert not units.found and "all scores are equal" in units.reason and len(units) == max(1, len(score) // 10)


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
        ("local_fdr", {"level": 0}, "level = 0 is not a level"),
        ("stable", {"frequency": 1.1}, "frequency = 1.1 is not a share"),
        ("stable", {}, "The cut 'stable' needs scores of resampled images"),
        ("stabel", {}, "Unknown cut 'stabel'. Did you mean 'stable'"),
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


def rankings(rng, draws=10, units=200, steady=10, lucky=10):
    """Scores in which ``steady`` units are always on top, and as many others as ``lucky`` in each draw by chance."""
    found = rng.random((draws, units)) * 0.05
    found[:, :steady] += 1
    for draw in found:
        draw[rng.choice(np.arange(steady, units), lucky, replace=False)] += 1
    return found


def test_stable_units_are_those_that_stay_on_top(rng):
    draws = rankings(rng)
    units = truncate(scores_of(draws[0], resamples=draws), "stable")
    assert units.found and units.get_support(indices=True).tolist() == list(range(10))
    assert units.reason == "10 units are kept in at least 60% of 10 rankings of resampled images"
    assert np.array_equal(units.frequency[:10], np.ones(10)) and units.frequency[10:].max() < 0.6
    assert units.spread[0] <= 20 <= units.spread[2]
    by_share = truncate(scores_of(draws[0], resamples=draws), "stable", fraction=0.1)
    assert set(range(10)) == set(by_share.get_support(indices=True)) and by_share.spread == (20, 20, 20)


def test_a_share_of_draws_counts_exactly(rng):
    draws = np.tile([3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (10, 1))
    draws[6:, 0] = 0
    for frequency, kept in ((0.6, 1), (0.61, 0)):
        units = truncate(scores_of(draws[0], resamples=draws), "stable", fraction=0.1, frequency=frequency)
        assert units.mask[0] == bool(kept) and units.frequency[0] == 0.6


def test_nothing_stable_is_a_result_with_a_reason(rng):
    units = truncate(scores_of(np.ones(200), resamples=rng.random((10, 200))), "stable", fraction=0.05)
    assert len(units) == 0 and not units.found
    assert "no unit is stable: none is kept in 60% of 10 rankings of resampled images, and at most in" in units.reason


def test_stability_per_layer(rng):
    draws = rankings(rng, units=100)
    doubled = np.concatenate([draws, 1000 * draws], axis=1)
    units = truncate(scores_of(doubled[0], widths=[100, 100], resamples=doubled), "stable", "layer")
    assert units.get_support(indices=True).tolist() == [*range(10), *range(100, 110)]
    assert units.reason.startswith("layer 0: 10 units")


def test_frequency_is_shown_with_the_units_and_comes_back_from_json(rng):
    scores = scores_of(rng.random(50), resamples=rng.random((8, 50)))
    for cut in ("knee", "top_k", "fraction", "stable"):
        units = truncate(scores, cut, **({"k": 5} if cut == "top_k" else {}))
        expected = dict(zip(scores.units, units.frequency, strict=True))
        assert all(row.frequency == expected[row.unit] for row in units.table().itertuples())
        again = UnitSet.from_json(units.to_json(), scores)
        assert np.array_equal(again.frequency, units.frequency) and np.array_equal(again.mask, units.mask)
    for units in (truncate(scores, "fdr"), truncate(scores_of(rng.random(50)))):
        assert units.frequency is None and "frequency" not in units.table()


def test_only_the_stable_cut_needs_resamples():
    assert [cut for cut in CUTS if needs_resamples(cut)] == ["stable"]


def test_local_fdr_keeps_planted_units(rng):
    """A mixture whose rates are known: 10 % of z-scores around 4, the others null."""
    z = rng.normal(size=4000)
    z[:400] += 4
    p_value = 2 * norm.sf(np.abs(z))
    truth = 0.9 * 2 * norm.pdf(z) / (0.9 * 2 * norm.pdf(z) + 0.1 * (norm.pdf(z - 4) + norm.pdf(z + 4)))
    rate = local_false_discovery_rate(p_value)
    assert np.abs(rate - truth).mean() < 0.05
    units = truncate(scores_of(rng.random(4000), p_value=p_value), "local_fdr")
    kept = units.get_support(indices=True)
    assert (kept < 400).sum() / 400 > 0.75 and (kept >= 400).mean() < 0.1


def test_local_fdr_never_falls_as_p_values_grow(rng):
    p_value = rng.beta(0.5, 1, 300).round(2)
    rate = local_false_discovery_rate(p_value)
    order = np.argsort(p_value)
    assert (np.diff(rate[order]) >= 0).all() and (rate >= 0).all() and (rate <= 1).all()
    shuffled = rng.permutation(300)
    assert np.allclose(local_false_discovery_rate(p_value[shuffled]), rate[shuffled])


def test_local_fdr_keeps_nothing_where_nothing_differs():
    """Of many sets of null units at most a share ``level`` has a unit left; none where every p-value is one."""
    kept = []
    for seed in range(300):
        p_value = np.random.default_rng(seed).random(200)
        kept.append((local_false_discovery_rate(p_value) <= 0.2).any())
    assert np.mean(kept) < 0.27
    units = truncate(scores_of(np.arange(20.0), p_value=np.ones(20)), "local_fdr")
    assert len(units) == 0 and units.reason == "no unit differs at a local false discovery rate of 0.2"
