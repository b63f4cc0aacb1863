"""Discount content: directions in which real images differ from each other are no evidence of forgery.

Real photographs differ in what they show, so the covariance of real images is that of content. A probe that sees the
units after whitening by it cannot lean on content that happens to tell a few fakes from a few reals. This is Fisher's
linear discriminant (1936) with the covariance of one class, made stable by a ridge (regularised discriminant analysis,
Friedman 1989); the within-class covariance normalisation of speaker recognition (Hatch et al. 2006) is the same step.
It needs real images only, which are cheap: the more of them, the better the covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_probe.probing import PROBE_C

# Added to the variance of every direction, in units of the mean variance of a unit.
RIDGE = 1.0


@dataclass(frozen=True)
class Whitening:
    """A linear map after which real images vary alike in all directions, up to a ridge.

    Attributes:
        mean, scale: of each unit over all images, (width,); a constant unit has an infinite scale.
        axes: principal directions of the standardised real images, (k, width), orthonormal.
        gain: what each of them is multiplied by, (k,): ``sqrt(ridge / (variance + ridge))``.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    gain: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, labels: np.ndarray, ridge: float = RIDGE) -> Whitening:
        """From labelled rows (n, width); directions come from those with label 0."""
        mean, scale = values.mean(0), values.std(0)
        scale = np.where(scale > 1e-9 * (np.abs(mean) + 1), scale, np.inf)
        real = ((values - mean) / scale)[labels == 0]
        _, size, axes = np.linalg.svd(real - real.mean(0), full_matrices=False)
        return cls(mean, scale, axes, np.sqrt(ridge / (size**2 / len(real) + ridge)))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """(n, width) -> (n, width)."""
        return self._damp((values - self.mean) / self.scale)

    def pull_back(self, weight: np.ndarray) -> np.ndarray:
        """Weights of whitened values -> weights of standardised units; the map is symmetric, (width,)."""
        return self._damp(weight)

    def _damp(self, values: np.ndarray) -> np.ndarray:
        return values + ((values @ self.axes.T) * (self.gain - 1)) @ self.axes


class WhitenedProbes:
    """One logistic probe per reading on whitened units, averaged: a scikit-learn style linear classifier.

    Each probe's decision value is divided by its standard deviation over the training images, so that no reading
    outvotes the others; an average of probes bears few images better than one probe on all units side by side.

    Args:
        widths: columns of each reading, in order; None takes all columns as one.
        c: inverse shrinkage of each probe.

    After ``fit``: ``mean_``, ``scale_``, ``coef_`` (per standard deviation of a unit, (1, units)), ``intercept_``.
    """

    def __init__(self, widths: Sequence[int] | None = None, c: float = PROBE_C, random_state: int = 0):
        self.widths, self.c, self.random_state = widths, c, random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"widths": self.widths, "c": self.c, "random_state": self.random_state}

    def set_params(self, **parameters: Any) -> WhitenedProbes:
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def fit(self, values: np.ndarray, labels: np.ndarray) -> WhitenedProbes:
        from sklearn.linear_model import LogisticRegression

        values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
        parts, self.intercept_ = [], np.zeros(1)
        for block in blocks(values, self.widths or [values.shape[1]]):
            whitening = Whitening.fit(block, labels)
            white = whitening.apply(block)
            probe = LogisticRegression(
                C=self.c, max_iter=300, class_weight="balanced", random_state=self.random_state
            ).fit(white, labels)
            decided = white @ probe.coef_[0]
            spread = float(decided.std()) or 1.0
            parts.append((whitening.mean, whitening.scale, whitening.pull_back(probe.coef_[0]) / spread))
            self.intercept_ += probe.intercept_ / spread
        self.mean_, self.scale_, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.coef_ = weight[None]
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, values: np.ndarray) -> np.ndarray:
        return ((np.asarray(values, dtype=np.float64) - self.mean_) / self.scale_) @ self.coef_[0] + self.intercept_[0]

    def predict(self, values: np.ndarray) -> np.ndarray:
        return (self.decision_function(values) > 0).astype(int)


def blocks(values: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """Something of all units, (..., units), by reading; readings without units are left out."""
    ends = np.cumsum(widths)
    return [values[..., end - width : end] for width, end in zip(widths, ends, strict=True) if width]


def whitened_weights(values: np.ndarray, labels: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Weight of each unit, per standard deviation, in ``WhitenedProbes``, signed, (units,)."""
    return WhitenedProbes(widths).fit(values, labels).coef_[0]


def elimination_order(values: np.ndarray, labels: np.ndarray, widths: Sequence[int], least: float = 0.02) -> np.ndarray:
    """How long each unit survives recursive elimination (Guyon et al. 2002), (units,).

    The half of the units with the smallest weights in ``WhitenedProbes`` is taken out, the probes are fitted again on
    the rest, and so on until no more than a share ``least`` is left. Units that say the same share their weight and
    look weak together; taking out some of them lets the others show what they carry.

    Returns:
        The number of rounds survived, plus the weight as a share of the largest in its last round, so that of two
        units the later survivor always scores higher.
    """
    score, kept = np.zeros(values.shape[1]), np.arange(values.shape[1])
    reading = np.repeat(np.arange(len(widths)), widths)
    for survived in range(64):
        left = np.bincount(reading[kept], minlength=len(widths)).tolist()
        weight = np.abs(whitened_weights(values[:, kept], labels, left))
        score[kept] = survived + weight / max(weight.max(), 1e-300)
        if len(kept) <= max(2, least * len(score)):
            break
        kept = np.sort(kept[np.argsort(-weight, kind="stable")[: (len(kept) + 1) // 2]])
    return score
