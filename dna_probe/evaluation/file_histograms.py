"""How real and fake files are distributed over formats, qualities and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_probe.images.views import CLASSES

BINS = 20
# The order in which they are shown.
TITLES = {
    "format": "format",
    "exif": "EXIF",
    "quality": "JPEG quality",
    "width": "width (pixels)",
    "height": "height (pixels)",
    "aspect": "width / height",
    "bytes_per_pixel": "bytes per pixel",
}


@dataclass(frozen=True)
class Histogram:
    """Images of each class in each bin.

    Attributes:
        bins: names of categories, or the edges of numeric bins (one more than there are counts).
        real, fake: numbers of images.
        logarithmic: whether the edges grow by a factor.
        missing: class -> images without a value: a PNG has no JPEG quality.
    """

    bins: tuple[str, ...] | tuple[float, ...]
    real: tuple[int, ...]
    fake: tuple[int, ...]
    logarithmic: bool
    missing: Mapping[str, int]

    @property
    def numeric(self) -> bool:
        return len(self.bins) == len(self.real) + 1

    def to_json(self) -> dict[str, Any]:
        return {
            "bins": list(self.bins),
            "real": list(self.real),
            "fake": list(self.fake),
            "logarithmic": self.logarithmic,
            "missing": dict(self.missing),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        bins, real, fake = (tuple(data[name]) for name in ("bins", "real", "fake"))
        return cls(bins, real, fake, data["logarithmic"], dict(data["missing"]))


def histograms(facts: Sequence[Mapping[str, Any]], labels: np.ndarray) -> dict[str, Histogram]:
    """Histograms by the names of ``TITLES``; ``facts`` as ``inspect`` gives them, labels 0 or 1."""
    pixels = np.array([one["width"] * one["height"] for one in facts], dtype=float)
    numbers = {
        name: np.array([np.nan if one[name] is None else one[name] for one in facts], dtype=float)
        for name in ("quality", "width", "height", "bytes")
    }
    return {
        "format": _categories([one["format"] or "none" for one in facts], labels),
        "exif": _categories(["with" if one["exif"] else "without" for one in facts], labels, ("without", "with")),
        "quality": _bins(numbers["quality"], labels, np.arange(0.0, 101.0, 5.0)),
        "width": _bins(numbers["width"], labels),
        "height": _bins(numbers["height"], labels),
        "aspect": _bins(numbers["width"] / numbers["height"], labels),
        "bytes_per_pixel": _bins(numbers["bytes"] / pixels, labels),
    }


def _categories(values: list[str], labels: np.ndarray, order: tuple[str, ...] = ()) -> Histogram:
    counted = {
        name: Counter(value for value, label in zip(values, labels.tolist(), strict=True) if label == code)
        for name, code in CLASSES.items()
    }
    bins = order or tuple(name for name, _ in Counter(values).most_common())
    real, fake = (tuple(counted[name][value] for value in bins) for name in CLASSES)
    return Histogram(bins, real, fake, False, dict.fromkeys(CLASSES, 0))


def _bins(values: np.ndarray, labels: np.ndarray, edges: np.ndarray | None = None) -> Histogram:
    """Numeric bins; without ``edges``, between the least and the largest value, growing by a factor."""
    known = np.isfinite(values)
    logarithmic = edges is None
    if edges is None:
        edges = _growing_edges(values[known])
    real, fake = (
        tuple(int(count) for count in np.histogram(values[known & (labels == code)], edges)[0])
        for code in CLASSES.values()
    )
    missing = {name: int((~known & (labels == code)).sum()) for name, code in CLASSES.items()}
    return Histogram(tuple(float(edge) for edge in edges), real, fake, logarithmic, missing)


def _growing_edges(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.array([0.5, 2.0])
    low, high = float(values.min()), float(values.max())
    # Around a single value, one bin that holds it; else rounding must not put the extremes outside.
    if high / low < 1 + 1e-6:
        return np.array([low / 1.1, high * 1.1])
    return np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), BINS + 1)
