"""Cut a ranking of units: the knee of the score curve, and plainer cuts as controls.

``knee``
    Curvature truncation: the knee of the sorted score curve by Kneedle (Satopaa et al. 2011), as implemented by
    kneed. A curve without a knee is a result with a reason, and a share of the units is kept in its place.
``cumulative_knee``
    The knee of the cumulated squares of the sorted scores, that is the units whose square is above the mean of all
    (the rule of Guttman 1954 and Kaiser 1960 for components). One extreme unit pulls the first knee up and leaves few
    units; this one hardly moves. Default.
``top_k``, ``fraction``
    A fixed number or share of the units.
``fdr``
    Units whose Welch t-test survives the Benjamini-Hochberg procedure (1995) at level ``alpha``; there may be none.
``local_fdr``
    Units whose own chance of being null, the local false discovery rate of their Welch t-test (Efron 2004), is at most
    ``level``; there may be none.
``stable``
    Stability selection (Meinshausen and Buehlmann 2010): units that are above the knee, or in the top ``fraction``, in
    a share ``frequency`` of the rankings of resampled images; there may be none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.moments import require_finite

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.scoring import UnitScores

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Knee:
    """Where a descending curve bends: the number of units kept, or why there is none."""

    kept: int
    found: bool
    reason: str

    def __bool__(self) -> bool:
        return self.found


def find_knee(scores: np.ndarray, sensitivity: float = 1.0, fallback: float = 0.1) -> Knee:
    """The knee of the scores sorted downwards.

    kneed can return None or 0 without a word on flat, tiny or oddly bent curves; those are told apart here. It takes
    the first bend, which may be a ripple among the best units: of all the bends it finds, the one furthest below the
    chord of the curve is the knee.

    Args:
        sensitivity: Kneedle's S; larger is more conservative.
        fallback: share of the units kept where there is no knee.

    Raises:
        NumericalError: a score is not finite.
    """
    import warnings

    from kneed import KneeLocator

    require_finite(scores, "score")
    kept = max(1, round(fallback * len(scores)))
    if len(scores) < 5:
        return Knee(len(scores), False, f"no knee: only {len(scores)} units, all kept")
    curve = np.sort(scores)[::-1]
    if curve[0] - curve[-1] <= 1e-12 * max(abs(curve[0]), 1e-300):
        return Knee(kept, False, f"no knee: all scores are equal, the first {kept} units are kept")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rank = np.arange(len(curve))
        scaled = (curve - curve[-1]) / (curve[0] - curve[-1])
        # online: every bend is listed, not the first alone.
        bends = KneeLocator(rank, scaled, S=sensitivity, curve="convex", direction="decreasing", online=True).all_knees
    depth = {int(bend): 1 - bend / rank[-1] - scaled[int(bend)] for bend in bends if bend >= 1}
    knee = max(depth, key=depth.__getitem__, default=0)
    if not knee or depth[knee] <= 0:
        return Knee(kept, False, f"no knee: the curve does not bend, the top {fallback:.0%} ({kept} units) are kept")
    return Knee(knee, True, f"knee at unit {knee} of {len(scores)}")


@dataclass(frozen=True)
class UnitSet:
    """The units left after a cut.

    Attributes:
        scores: what was cut.
        mask: (units,) bool.
        cut: name of the cut; ``scope`` whether it was made over all units or in each layer.
        reason: what the cut found, for people.
        found: False where a fallback or nothing was kept.
        spread: smallest, median and largest number of units kept over resampled images.
        frequency: (units,) share of the rankings of resampled images in which each unit is kept; None where there are
            no such rankings, or where the cut does not go by the ranking.
    """

    scores: UnitScores
    mask: np.ndarray
    cut: str
    scope: str
    reason: str
    found: bool
    spread: tuple[int, int, int]
    parameters: Mapping[str, float] = field(default_factory=dict)
    frequency: np.ndarray | None = None

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Mask of the units kept, or their positions, as in scikit-learn."""
        return np.flatnonzero(self.mask) if indices else self.mask

    def get_feature_names_out(self) -> np.ndarray:
        return np.array(self.units, dtype=object)

    @cached_property
    def units(self) -> list[str]:
        """Names of the units kept, in depth order."""
        return [self.scores.units[i] for i in np.flatnonzero(self.mask)]

    @property
    def widths(self) -> tuple[int, ...]:
        """How many units of each reading are kept, readings without any among them."""
        ends = np.cumsum([reading.width for reading in self.scores.readings])
        return tuple(int(part.sum()) for part in np.split(self.mask, ends[:-1]))

    @property
    def fraction(self) -> float:
        return float(self.mask.mean())

    def __len__(self) -> int:
        return int(self.mask.sum())

    def table(self) -> pd.DataFrame:
        """The units kept with score and factors, and ``frequency`` where it is known, best first."""
        table = self.scores.table()
        if self.frequency is not None:
            table["frequency"] = self.frequency[self.scores.order]
        return table[table["unit"].isin(self.units)].reset_index(drop=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "dna_probe.units/1",
            "units": self.units,
            "cut": self.cut,
            "scope": self.scope,
            "found": self.found,
            "reason": self.reason,
            "fraction": self.fraction,
            "spread": list(self.spread),
            "parameters": dict(self.parameters),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], scores: UnitScores) -> UnitSet:
        """The set again, with the scores that it was cut from."""
        low, middle, high = data["spread"]
        draws = _draws(scores, data["cut"], data["scope"], data["parameters"])
        return cls(
            scores=scores,
            mask=np.isin(scores.units, data["units"]),
            cut=data["cut"],
            scope=data["scope"],
            reason=data["reason"],
            found=data["found"],
            spread=(low, middle, high),
            parameters=data["parameters"],
            frequency=draws.mean(0) if len(draws) else None,
        )

    def __repr__(self) -> str:
        low, middle, high = self.spread
        return (
            f"UnitSet: {len(self)} of {len(self.mask)} units ({self.fraction:.1%}) by '{self.cut}', {self.scope}; "
            f"{self.reason}; over resampled images {low} to {high}, median {middle}"
        )


def truncate(scores: UnitScores, cut: str = "cumulative_knee", scope: str = "global", **parameters: float) -> UnitSet:
    """Keep the units that ``cut`` leaves.

    Args:
        cut: ``knee`` (``sensitivity``, ``fallback``), ``cumulative_knee`` (``fallback``), ``top_k`` (``k``),
            ``fraction`` (``fraction``), ``fdr`` (``alpha``), ``local_fdr`` (``level``), ``stable`` (``frequency``,
            ``fraction``; without a fraction, ``sensitivity`` and ``fallback`` of the knee).
        scope: ``global`` cuts one ranking of all units, ``layer`` one per layer.

    Raises:
        DnaProbeError: unknown cut or scope, a parameter out of range, or no resampled scores for ``stable``.
        NumericalError: a score is not finite.
    """
    require_cut(cut, scope, parameters)
    require_finite(scores.score, "score", scores.scorer)
    pools = _pools(scores, scope)
    verdicts = [CUTS[cut].choose(pool, **parameters) for pool in pools]
    mask = np.zeros(len(scores.score), bool)
    for pool, verdict in zip(pools, verdicts, strict=True):
        mask[pool.units] = verdict.mask
    draws = _draws(scores, cut, scope, parameters)
    counts = draws.sum(1) if len(draws) else np.array([mask.sum()])
    reasons = [v.reason for v in verdicts]
    if scope == "layer":
        layers = np.unique(scores.layer)
        reasons = [f"layer {layer}: {reason}" for layer, reason in zip(layers, reasons, strict=True)]
    return UnitSet(
        scores=scores,
        mask=mask,
        cut=cut,
        scope=scope,
        reason="; ".join(reasons),
        found=all(v.found for v in verdicts) and bool(mask.any()),
        spread=(int(counts.min()), int(np.median(counts)), int(counts.max())),
        parameters=parameters,
        frequency=draws.mean(0) if len(draws) else None,
    )


def require_cut(cut: str, scope: str, parameters: Mapping[str, float] | None = None) -> None:
    """Raises ``DnaProbeError`` for an unknown cut or scope, and for a parameter that the cut does not take or bear."""
    if cut not in CUTS:
        raise unknown_name("cut", cut, CUTS)
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)
    taken = list(signature(CUTS[cut].rank or CUTS[cut].choose).parameters)[1:]
    strange = [name for name in parameters or {} if name not in taken]
    if strange:
        raise DnaProbeError(f"Cut {cut!r} does not take {', '.join(strange)}", f"It takes {', '.join(taken)}")
    # On made-up scores, so that a number out of range is refused before anything has been computed.
    trial = np.arange(8.0)
    CUTS[cut].choose(_Pool(np.arange(8), trial, np.linspace(0.01, 1, 8), trial[None]), **(parameters or {}))


def needs_resamples(cut: str) -> bool:
    """Whether the cut looks at the scores of resampled images."""
    return CUTS[cut].needs_resamples


def local_false_discovery_rate(p_value: np.ndarray) -> np.ndarray:
    """Chance that a unit with this p-value is null, ``share of nulls x null density / density of all``, (units,).

    Efron (2004) with the theoretical null, under which p-values are uniform (and z-scores N(0, 1)). The density is that
    of Grenander (1956), the slope of the least concave majorant of the distribution function, which knows only that
    small p-values are not rarer than large ones and has nothing to tune, as in fdrtool (Strimmer 2008); the share of
    nulls is that of Storey (2002) at one half. Where every unit is null, the smallest rate is below q in a share q of
    all cases, as with the Benjamini-Hochberg procedure.
    """
    from scipy.optimize import isotonic_regression

    places, which, counts = np.unique(p_value, return_inverse=True, return_counts=True)
    gaps = np.maximum(np.diff(places, prepend=0.0), 1e-300)
    density = isotonic_regression(counts / len(p_value) / gaps, weights=gaps, increasing=False).x
    nulls = min(1.0, 2 * (np.sum(p_value > 0.5) + 1) / len(p_value))
    return np.minimum(1.0, nulls / density)[which]


@dataclass(frozen=True)
class _Pool:
    """Units that are ranked together: their positions, and what a cut may look at; ``resamples`` is (draws, units)."""

    units: np.ndarray
    score: np.ndarray
    p_value: np.ndarray
    resamples: np.ndarray


@dataclass(frozen=True)
class _Verdict:
    """The units of a pool that are kept, as a mask, whether the cut found them or fell back, and words for people."""

    mask: np.ndarray
    found: bool
    reason: str


def _pools(scores: UnitScores, scope: str) -> list[_Pool]:
    positions = [np.arange(len(scores.score))]
    if scope == "layer":
        positions = [np.flatnonzero(scores.layer == layer) for layer in np.unique(scores.layer)]
    draws = scores.resamples if len(scores.resamples) else np.zeros((0, len(scores.score)))
    return [_Pool(own, scores.score[own], scores.p_value[own], draws[:, own]) for own in positions]


def _draws(scores: UnitScores, cut: str, scope: str, parameters: Mapping[str, float]) -> np.ndarray:
    """What the cut keeps in each ranking of resampled images, (draws, units) bool; no row where it is not by rank."""
    rule = CUTS[cut].rank
    kept = np.zeros((len(scores.resamples) if rule else 0, len(scores.score)), bool)
    if rule:
        for pool in _pools(scores, scope):
            kept[:, pool.units] = _rows_kept(rule, pool.resamples, parameters)
    return kept


def _rows_kept(rule: Callable[..., Knee], rankings: np.ndarray, parameters: Mapping[str, float]) -> np.ndarray:
    """What a rule keeps in each of some rankings of the same units, (rankings, units) bool."""
    return np.array([_best(ranking, rule(ranking, **parameters).kept) for ranking in rankings]).reshape(rankings.shape)


def _best(score: np.ndarray, count: int) -> np.ndarray:
    """Mask of the units with the largest scores; of equals the first."""
    mask = np.zeros(len(score), bool)
    mask[np.argsort(-score, kind="stable")[:count]] = True
    return mask


def _knee(score: np.ndarray, sensitivity: float = 1.0, fallback: float = 0.1) -> Knee:
    return find_knee(score, sensitivity, fallback)


def _cumulative_knee(score: np.ndarray, fallback: float = 0.1) -> Knee:
    energy = score**2
    # The curve is concave and bends furthest from its chord where its slope falls to that of the chord, the mean.
    above = int(np.sum(energy > energy.mean() * (1 + 1e-9)))
    if above:
        return Knee(above, True, f"{above} of {len(score)} units hold more than an equal share of the squared score")
    kept = max(1, round(fallback * len(score)))
    return Knee(kept, False, f"no knee: all scores are equal, the first {kept} units are kept")


def _top_k(score: np.ndarray, k: float = 100) -> Knee:
    if k < 1 or k != int(k):
        raise DnaProbeError(f"k = {k} is not a number of units", fix="Give a whole number of at least 1")
    kept = min(int(k), len(score))
    return Knee(kept, True, f"the best {kept} units")


def _fraction(score: np.ndarray, fraction: float = 0.2) -> Knee:
    _require_share(fraction, "fraction")
    kept = max(1, round(fraction * len(score)))
    return Knee(kept, True, f"the best {fraction:.1%}")


def _knee_or_fraction(
    score: np.ndarray,
    frequency: float = 0.6,
    fraction: float | None = None,
    sensitivity: float = 1.0,
    fallback: float = 0.1,
) -> Knee:
    """How ``stable`` cuts one ranking of resampled images; ``frequency`` is for what it makes of all of them."""
    return find_knee(score, sensitivity, fallback) if fraction is None else _fraction(score, fraction)


def _stable(pool: _Pool, frequency: float = 0.6, **parameters: float) -> _Verdict:
    _require_share(frequency, "frequency")
    count = len(pool.resamples)
    if not count:
        raise DnaProbeError(
            "The cut 'stable' needs scores of resampled images",
            "These scores were made without",
            "Score with resamples, of which there are 10 by default",
        )
    share = _rows_kept(_knee_or_fraction, pool.resamples, parameters).mean(0)
    # A share of 0.6 of ten draws must count as 0.6, whatever its last bit.
    mask = share >= frequency - 1e-9
    told = f"{frequency:.0%} of {count} rankings of resampled images"
    if mask.any():
        return _Verdict(mask, True, f"{mask.sum()} units are kept in at least {told}")
    return _Verdict(mask, False, f"no unit is stable: none is kept in {told}, and at most in {share.max():.0%}")


def _fdr(pool: _Pool, alpha: float = 0.05) -> _Verdict:
    from scipy.stats import false_discovery_control

    _require_level(alpha, "alpha")
    return _discoveries(false_discovery_control(pool.p_value) <= alpha, f"a false discovery rate of {alpha:g}")


def _local_fdr(pool: _Pool, level: float = 0.2) -> _Verdict:
    _require_level(level, "level")
    rate = local_false_discovery_rate(pool.p_value)
    return _discoveries(rate <= level, f"a local false discovery rate of {level:g}")


def _discoveries(mask: np.ndarray, rate: str) -> _Verdict:
    kept = int(mask.sum())
    return _Verdict(mask, kept > 0, f"{kept} units at {rate}" if kept else f"no unit differs at {rate}")


def _require_share(value: float, name: str) -> None:
    if not 0 < value <= 1:
        raise DnaProbeError(f"{name} = {value} is not a share", fix="Give a number above 0 and at most 1")


def _require_level(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise DnaProbeError(f"{name} = {value} is not a level", fix="Give a number between 0 and 1")


@dataclass(frozen=True)
class Cut:
    """A rule that keeps some units.

    Attributes:
        choose: from a pool of units and parameters to the verdict.
        rank: how it cuts one ranking, given as scores; None where it goes by something else.
        needs_resamples: whether it looks at the scores of resampled images.
    """

    choose: Callable[..., _Verdict]
    rank: Callable[..., Knee] | None = None
    needs_resamples: bool = False

    @classmethod
    def by_rank(cls, rule: Callable[..., Knee]) -> Cut:
        """Keep the best of the scores, as many as the rule says."""

        def choose(pool: _Pool, **parameters: float) -> _Verdict:
            end = rule(pool.score, **parameters)
            return _Verdict(_best(pool.score, end.kept), end.found, end.reason)

        return cls(choose, rule)


CUTS: dict[str, Cut] = {
    "knee": Cut.by_rank(_knee),
    "cumulative_knee": Cut.by_rank(_cumulative_knee),
    "top_k": Cut.by_rank(_top_k),
    "fraction": Cut.by_rank(_fraction),
    "fdr": Cut(_fdr),
    "local_fdr": Cut(_local_fdr),
    "stable": Cut(_stable, _knee_or_fraction, needs_resamples=True),
}
