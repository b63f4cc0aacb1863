"""Streaming statistics of units, per class, that merge exactly.

Mean and M2 are updated a batch at a time with the pairwise formula of Chan, Golub and LeVeque (1979), eq. 2.1, in
float64; the same formula merges two streams, so that any split of the data gives the same result up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dna_probe.errors import NumericalError


@dataclass
class Moments:
    """Count, mean, sum of squared deviations (``m2``), minimum and maximum of each of ``width`` units."""

    count: int
    mean: np.ndarray
    m2: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls, width: int) -> Moments:
        zeros = np.zeros(width)
        return cls(0, zeros, zeros.copy(), np.full(width, np.inf), np.full(width, -np.inf))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Moments of one batch, (n, width)."""
        values = np.asarray(values, dtype=np.float64)
        if not len(values):
            return cls.empty(values.shape[1])
        mean = values.mean(0)
        return cls(len(values), mean, np.square(values - mean).sum(0), values.min(0), values.max(0))

    def merged(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * (self.count * share),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def variance(self) -> np.ndarray:
        """Population variance, (width,)."""
        return self.m2 / max(self.count, 1)


class ClassMoments:
    """Moments of the real (0) and the fake (1) class, updated in place.

    Raises:
        NumericalError: a value is not finite.
    """

    def __init__(self, width: int):
        self.classes = {0: Moments.empty(width), 1: Moments.empty(width)}

    def update(self, values: np.ndarray, labels: np.ndarray) -> None:
        require_finite(values, "activation")
        for label in self.classes:
            self.classes[label] = self.classes[label].merged(Moments.of(values[labels == label]))

    def part(self, units: slice) -> ClassMoments:
        """The same moments for some of the units."""
        part = ClassMoments(0)
        part.classes = {
            label: Moments(m.count, m.mean[units], m.m2[units], m.low[units], m.high[units])
            for label, m in self.classes.items()
        }
        return part

    def merge(self, other: ClassMoments) -> None:
        for label in self.classes:
            self.classes[label] = self.classes[label].merged(other.classes[label])


def require_finite(values: np.ndarray, what: str, where: str = "") -> None:
    """Raise ``NumericalError`` naming how many values are NaN or infinite."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        place = f" at {where}" if where else ""
        raise NumericalError(
            f"{bad} of {values.size} {what} values{place} are NaN or infinite",
            "The model overflowed or its weights are damaged",
            "Try float32 and check the weights file",
        )
