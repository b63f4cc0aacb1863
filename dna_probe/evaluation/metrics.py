"""Measures of a detector on labelled scores, with intervals.

Labels are 1 for fake and 0 for real, scores larger for fake, probabilities those of fake. Intervals are 95 % percentile
intervals of a stratified cluster bootstrap: groups (photographs, prompts) are drawn with replacement, those with real
images, those with fakes and those with both apart, so that each draw keeps the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DRAWS = 1000
Groups = Sequence[Any] | np.ndarray
# Rates at which detectors are compared in the field.
FALSE_POSITIVE_RATES = (0.01, 0.05)
BINS = 15


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Difference(NamedTuple):
    """A paired difference, its 95 % interval and the two-sided p-value of the bootstrap that it is none."""

    value: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.3g}"


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve, by steps, with both classes weighted alike.

    Without the weights it would move with the number of real images in the test set.
    """
    return _precision(*roc(labels, scores))


def _precision(false_positive: np.ndarray, true_positive: np.ndarray) -> float:
    """Of classes weighted alike, a threshold's precision is its true positives over all it calls fake."""
    called = true_positive[1:] + false_positive[1:]
    return float((np.diff(true_positive) * true_positive[1:] / called).sum())


def balanced_accuracy(labels: np.ndarray, decided: np.ndarray) -> float:
    """Mean of the accuracy on real and on fake; ``decided`` is true where the verdict is fake."""
    right = np.asarray(decided, bool) == (labels == 1)
    return float((right[labels == 0].mean() + right[labels == 1].mean()) / 2)


def roc(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at every threshold, ascending, from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    return false_positive, true_positive


def oracle_balanced_accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The best balanced accuracy of any threshold, chosen on the test labels: a bound, never a result."""
    return _oracle(*roc(labels, scores))


def _oracle(false_positive: np.ndarray, true_positive: np.ndarray) -> float:
    return float(((true_positive + 1 - false_positive) / 2).max())


def balanced_accuracy_at(thresholds: np.ndarray, labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Balanced accuracy at each of some thresholds, (thresholds,)."""
    kept = [np.searchsorted(np.sort(probability[labels == label]), thresholds) for label in (0, 1)]
    counts = np.bincount(labels, minlength=2)
    return (kept[0] / counts[0] + 1 - kept[1] / counts[1]) / 2


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """Share of fakes found at the conservative ROC point: the highest whose false positive rate is at most ``rate``."""
    return float(tpr_at(rate, *roc(labels, scores)))


def tpr_at(rates: np.ndarray | float, false_positive: np.ndarray, true_positive: np.ndarray) -> np.ndarray:
    """The conservative true positive rate of a ROC curve at each of some false positive rates."""
    return true_positive[np.searchsorted(false_positive, np.asarray(rates) + 1e-12, side="right") - 1]


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """Where the false positive rate equals the false negative rate, on the ROC's line segments."""
    return _equal_error(*roc(labels, scores))


def _equal_error(false_positive: np.ndarray, true_positive: np.ndarray) -> float:
    gap = false_positive - (1 - true_positive)
    above = int(np.argmax(gap >= 0))
    if gap[above] == 0 or above == 0:
        return float(false_positive[above])
    share = -gap[above - 1] / (gap[above] - gap[above - 1])
    return float(false_positive[above - 1] + share * (false_positive[above] - false_positive[above - 1]))


class Reliability(NamedTuple):
    """Mean predicted probability, observed share of fakes and weight of each bin, (bins,)."""

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of predicted from observed."""
        return float((self.weight * np.abs(self.predicted - self.observed)).sum())


def reliability(labels: np.ndarray, probability: np.ndarray, bins: int = BINS) -> Reliability:
    """The reliability curve in bins of equal mass, both classes weighted alike (Guo et al. 2017, Nixon et al. 2019)."""
    weight = _balancing(labels)
    weight = weight / weight.sum()
    # Equal probabilities share a bin, whatever their order.
    _, value = np.unique(probability, return_inverse=True)
    together = np.bincount(value, weight)
    middle = (np.cumsum(together) - together / 2)[value]
    member = np.minimum((middle * bins).astype(int), bins - 1)
    mass = np.bincount(member, weight, bins)
    held = mass > 0
    predicted = np.bincount(member, weight * probability, bins)[held] / mass[held]
    observed = np.bincount(member, weight * labels, bins)[held] / mass[held]
    return Reliability(predicted, observed, mass[held])


def expected_calibration_error(labels: np.ndarray, probability: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of predicted from observed over ``reliability``'s bins."""
    return reliability(labels, probability, bins).error


def brier(labels: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared error of the probability, both classes weighted alike."""
    squared = (probability - labels) ** 2
    return float((squared[labels == 0].mean() + squared[labels == 1].mean()) / 2)


def rate_interval(events: int, trials: int) -> Interval:
    """A rate and its exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(int(events), int(trials)).proportion_ci(0.95, method="exact")
    return Interval(events / trials, float(found.low), float(found.high))


def measure(
    labels: np.ndarray,
    scores: np.ndarray,
    probability: np.ndarray | None = None,
    threshold: float = 0.0,
    band: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Every measure of one method on one test set; NaN for what needs a probability where there is none.

    Args:
        threshold: of the probability, or of the score where there is no probability.
        band: probabilities between which the verdict is *unsure*.
    """
    decided = (scores if probability is None else probability) >= threshold
    real, fake = labels == 0, labels == 1
    points = roc(labels, scores)
    low, high = tpr_at(np.array(FALSE_POSITIVE_RATES), *points)
    measured = {
        "auc": float(np.sum(np.diff(points[0]) * (points[1][1:] + points[1][:-1]) / 2)),
        "average_precision": _precision(*points),
        "balanced_accuracy": balanced_accuracy(labels, decided),
        "oracle_balanced_accuracy": _oracle(*points),
        "accuracy_real": float(1 - decided[real].mean()),
        "accuracy_fake": float(decided[fake].mean()),
        "fpr": float(decided[real].mean()),
        "tpr_at_1": float(low),
        "tpr_at_5": float(high),
        "eer": _equal_error(*points),
    }
    nothing = dict.fromkeys(("ece", "brier", "unsure_share", "accuracy_sure"), float("nan"))
    if probability is None:
        return measured | nothing
    unsure = np.zeros(len(labels), bool) if band is None else (probability > band[0]) & (probability < band[1])
    sure = _both_classes(labels[~unsure])
    return measured | {
        "ece": expected_calibration_error(labels, probability),
        "brier": brier(labels, probability),
        "unsure_share": float((unsure[real].mean() + unsure[fake].mean()) / 2),
        "accuracy_sure": balanced_accuracy(labels[~unsure], decided[~unsure]) if sure else float("nan"),
    }


def auc_interval(
    labels: np.ndarray, scores: np.ndarray, groups: Groups | None = None, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """AUC with its interval over groups (over images, where no groups are given)."""
    weights = bootstrap_weights(labels, groups, draws, seed)
    return interval(auc(labels, scores), weighted_auc(labels, scores[None], weights))


def auc_difference(
    labels: np.ndarray,
    scores: np.ndarray,
    others: np.ndarray,
    groups: Groups | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """AUC of ``scores`` minus AUC of ``others`` on the same images, paired draw by draw."""
    weights = bootstrap_weights(labels, groups, draws, seed)
    ours, theirs = (weighted_auc(labels, part[None], weights) for part in (scores, others))
    return difference(auc(labels, scores) - auc(labels, others), ours - theirs)


def bootstrap_weights(
    labels: np.ndarray, groups: Groups | None = None, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """How often each image is drawn, (draws, n) float32: the stratified cluster bootstrap."""
    labels = np.asarray(labels)
    _, member = np.unique(np.arange(len(labels)) if groups is None else np.asarray(groups), return_inverse=True)
    holds = np.zeros((int(member.max()) + 1, 2), bool)
    holds[member, labels] = True
    stratum = holds @ np.array([1, 2])
    rng = np.random.default_rng(seed)
    times = np.zeros((draws, len(holds)), np.float32)
    for kind in np.unique(stratum):
        own = np.flatnonzero(stratum == kind)
        times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=draws)
    return times[:, member]


def weighted_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC under each row of image weights (draws, n), averaged over the rows of ``scores`` (rows, n); (draws,).

    NaN where a draw holds one class only.
    """
    real, fake = weights * (labels == 0), weights * (labels == 1)
    mass = real.sum(1) * fake.sum(1)
    won = np.zeros(len(weights))
    for row in scores:
        order = np.argsort(row, kind="stable")
        _, first, value = np.unique(row[order], return_index=True, return_inverse=True)
        # Of every value, the weight of the reals below it, and half of that at it.
        at = np.add.reduceat(real[:, order], first, axis=1)
        beaten = np.cumsum(at, axis=1) - at / 2
        won += (fake[:, order] * beaten[:, value]).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mass > 0, won / mass / len(scores), np.nan)


def weighted_balanced_accuracy(labels: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Balanced accuracy under each row of weights (draws, n), averaged over the verdicts (rows, n); (draws,)."""
    right = (decided == (labels == 1)).mean(0, dtype=np.float32)
    parts = []
    for label in (0, 1):
        own = labels == label
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(weights[:, own] @ right[own] / weights[:, own].sum(1))
    return (parts[0] + parts[1]) / 2


def interval(value: float, drawn: np.ndarray) -> Interval:
    """The percentile interval of bootstrap draws around a value; draws that are NaN say nothing and are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def difference(value: float, drawn: np.ndarray) -> Difference:
    """A difference with the percentile interval and the p-value of its bootstrap draws (Efron and Tibshirani 1993)."""
    drawn = drawn[np.isfinite(drawn)]
    around = interval(value, drawn)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(*around, float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))))


def _balancing(labels: np.ndarray) -> np.ndarray:
    """Weights under which both classes count alike."""
    labels = np.asarray(labels)
    return 1 / np.bincount(labels, minlength=2)[labels]


def _both_classes(labels: np.ndarray) -> bool:
    return len(np.unique(labels)) == 2
