"""Cut a ranking of units: the knee of the score curve, and plainer cuts as controls.

``knee``
    Curvature truncation: the knee of the sorted score curve by Kneedle (Satopaa et al. 2011), as implemented by
    kneed. A curve without a knee is a result with a reason, and a share of the units is kept in its place.
``top_k``, ``fraction``
    A fixed number or share of the units.
``fdr``
    Units whose Welch t-test survives the Benjamini-Hochberg procedure (1995) at level ``alpha``; there may be none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
    """

    scores: UnitScores
    mask: np.ndarray
    cut: str
    scope: str
    reason: str
    found: bool
    spread: tuple[int, int, int]
    parameters: Mapping[str, float] = field(default_factory=dict)

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
    def fraction(self) -> float:
        return float(self.mask.mean())

    def __len__(self) -> int:
        return int(self.mask.sum())

    def table(self) -> pd.DataFrame:
        """The units kept with score and factors, best first."""
        table = self.scores.table()
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
        return cls(
            scores=scores,
            mask=np.isin(scores.units, data["units"]),
            cut=data["cut"],
            scope=data["scope"],
            reason=data["reason"],
            found=data["found"],
            spread=(low, middle, high),
            parameters=data["parameters"],
        )

    def __repr__(self) -> str:
        low, middle, high = self.spread
        return (
            f"UnitSet: {len(self)} of {len(self.mask)} units ({self.fraction:.1%}) by '{self.cut}', {self.scope}; "
            f"{self.reason}; over resampled images {low} to {high}, median {middle}"
        )


def truncate(scores: UnitScores, cut: str = "knee", scope: str = "global", **parameters: float) -> UnitSet:
    """Keep the units that ``cut`` leaves.

    Args:
        cut: ``knee`` (``sensitivity``, ``fallback``), ``top_k`` (``k``), ``fraction`` (``fraction``), ``fdr``
            (``alpha``).
        scope: ``global`` cuts one ranking of all units, ``layer`` one per layer.

    Raises:
        DnaProbeError: unknown cut or scope, or a parameter out of range.
        NumericalError: a score is not finite.
    """
    require_cut(cut, scope)
    require_finite(scores.score, "score", scores.scorer)
    pools = [np.arange(len(scores.score))]
    if scope == "layer":
        pools = [np.flatnonzero(scores.layer == layer) for layer in np.unique(scores.layer)]
    try:
        verdicts = [CUTS[cut](scores.score[pool], scores.p_value[pool], **parameters) for pool in pools]
    except TypeError as error:
        raise DnaProbeError(f"Cut {cut!r} does not take {', '.join(parameters)}", str(error)) from error
    mask = _keep(scores.score, pools, [v.kept for v in verdicts], scores.p_value if cut == "fdr" else None)
    total = int(mask.sum())
    spread = total, total, total
    if cut == "knee" and len(scores.resamples):
        counts = [sum(find_knee(draw[pool], **parameters).kept for pool in pools) for draw in scores.resamples]
        spread = int(min(counts)), int(np.median(counts)), int(max(counts))
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
        spread=spread,
        parameters=parameters,
    )


def require_cut(cut: str, scope: str) -> None:
    if cut not in CUTS:
        raise unknown_name("cut", cut, CUTS)
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES)


def _keep(score: np.ndarray, pools: list[np.ndarray], counts: list[int], p_value: np.ndarray | None) -> np.ndarray:
    mask = np.zeros(len(score), bool)
    for pool, count in zip(pools, counts, strict=True):
        rank = score[pool] if p_value is None else -p_value[pool]
        mask[pool[np.argsort(-rank, kind="stable")[:count]]] = True
    return mask


def _knee(score: np.ndarray, p_value: np.ndarray, sensitivity: float = 1.0, fallback: float = 0.1) -> Knee:
    return find_knee(score, sensitivity, fallback)


def _top_k(score: np.ndarray, p_value: np.ndarray, k: float = 100) -> Knee:
    if k < 1 or k != int(k):
        raise DnaProbeError(f"k = {k} is not a number of units", fix="Give a whole number of at least 1")
    kept = min(int(k), len(score))
    return Knee(kept, True, f"the best {kept} units")


def _fraction(score: np.ndarray, p_value: np.ndarray, fraction: float = 0.1) -> Knee:
    if not 0 < fraction <= 1:
        raise DnaProbeError(f"fraction = {fraction} is not a share", fix="Give a number above 0 and at most 1")
    kept = max(1, round(fraction * len(score)))
    return Knee(kept, True, f"the best {fraction:.1%}")


def _fdr(score: np.ndarray, p_value: np.ndarray, alpha: float = 0.05) -> Knee:
    from scipy.stats import false_discovery_control

    if not 0 < alpha < 1:
        raise DnaProbeError(f"alpha = {alpha} is not a level", fix="Give a number between 0 and 1")
    kept = int((false_discovery_control(p_value) <= alpha).sum())
    told = f"{kept} units at a false discovery rate of {alpha:g}"
    return Knee(kept, kept > 0, told if kept else f"no unit differs at a false discovery rate of {alpha:g}")


CUTS: dict[str, Callable[..., Knee]] = {"knee": _knee, "top_k": _top_k, "fraction": _fraction, "fdr": _fdr}
