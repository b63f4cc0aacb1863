"""Measures of a detector on labelled scores, with intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def auc_interval(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None = None, draws: int = 1000, seed: int = 0
) -> Interval:
    """AUC with a 95 % percentile bootstrap over groups (over images, where no groups are given)."""
    return _interval(auc(labels, scores), _drawn(labels, scores, groups, draws, seed))


def auc_difference(
    labels: np.ndarray,
    scores: np.ndarray,
    others: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUC of ``scores`` minus AUC of ``others`` on the same images, with a paired 95 % bootstrap over groups."""
    drawn = (_drawn(labels, part, groups, draws, seed) for part in (scores, others))
    return _interval(auc(labels, scores) - auc(labels, others), np.subtract(*drawn))


def _drawn(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None, draws: int, seed: int) -> np.ndarray:
    """AUC in each bootstrap draw; a draw without one of the classes says nothing and is left out."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, member = np.unique(names, return_inverse=True)
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, member].astype(float)
    real, fake = labels == 0, labels == 1
    wins = (scores[fake][:, None] > scores[real]) + 0.5 * (scores[fake][:, None] == scores[real])
    pairs = times[:, fake].sum(1) * times[:, real].sum(1)
    drawn = ((times[:, fake] @ wins) * times[:, real]).sum(1)
    return drawn[pairs > 0] / pairs[pairs > 0]


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
