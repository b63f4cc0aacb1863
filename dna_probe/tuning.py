"""How the mean response of a unit moves as one nuisance grows.

A *sweep* is one nuisance, alone, in rising severity. How a unit's mean response moves along it is its *tuning curve*,
as neurophysiology plots the response of a neuron against one parameter of a stimulus (Dayan and Abbott 2001,
Theoretical Neuroscience, section 1.2). Responses are standardised: a unit's mean and standard deviation over the
untouched images are 0 and 1.

``shift``
    Mean over the images of a class of (response at a level - untouched response), with a 95 % t interval over images.
``contrast``
    Cohen's d (Cohen 1988, section 2.2): (mean of fake - mean of real) / s, where s^2 is the variance within the two
    classes, pooled over their degrees of freedom and taken at the same level.
shares of variance
    Eta squared, SS_effect / SS_total (Cohen 1988, section 8.2). Of a sweep, the untouched level included, in the
    two-way table of images by levels with one value per cell: SS_total = SS_image + SS_level + SS_interaction.
    ``level`` is the main effect, what the nuisance does to every image alike; ``interaction`` what it does to some and
    not to others; the sweep's own ``generation``, with which the level effect is compared, is the part of SS_image
    between real and fake.

A share belongs to its sweep: it grows with the severities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.degradations import DEGRADATIONS, Degradation
from dna_probe.images.sets import FAKE, REAL


@dataclass(frozen=True)
class Sweep:
    """One nuisance in rising severity.

    Attributes:
        name: what it is called in tables and figures.
        unit: what its values are.
        values: mild to severe; the untouched image comes before them.
        degradation: name in ``dna_probe.images.degradations``; the sweep's own name where left out.

    Raises:
        DataError: an unknown degradation, one that takes pairs, or no values.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    degradation: str = ""

    def __post_init__(self):
        kind = self.degradation or self.name
        if kind not in DEGRADATIONS:
            raise unknown_name("degradation", kind, DEGRADATIONS, DataError)
        if isinstance(DEGRADATIONS[kind].severities[0], tuple):
            raise DataError(f"The degradation {kind!r} takes pairs of values", "A sweep runs over one parameter")
        if not self.values:
            raise DataError(f"The sweep {self.name!r} has no values")
        object.__setattr__(self, "degradation", kind)
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))

    @property
    def levels(self) -> Degradation:
        """The degradation with this sweep's values as its severities."""
        return replace(DEGRADATIONS[self.degradation], severities=self.values)

    def at(self, level: int) -> str:
        """A level in words, the mildest is 0: ``blur 3``."""
        return f"{self.name} {self.values[level]:g}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "unit": self.unit, "values": list(self.values), "degradation": self.degradation}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sweep:
        return cls(data["name"], data["unit"], tuple(data["values"]), data["degradation"])


_ALL = (
    Sweep("jpeg", "quality", (90, 70, 50, 30)),
    Sweep("resize", "scale", (0.75, 0.5, 0.35, 0.25), "resize_bicubic"),
    Sweep("blur", "sigma", (0.5, 1, 2, 3), "gaussian_blur"),
    Sweep("noise", "sigma", (2, 5, 10, 20), "gaussian_noise"),
)
SWEEPS: dict[str, Sweep] = {sweep.name: sweep for sweep in _ALL}


def chosen_sweeps(wanted: Iterable[str | Sweep]) -> tuple[Sweep, ...]:
    """The sweeps asked for, by name or as they are.

    Raises:
        DataError: none, an unknown name, two of one name, or one that this installation cannot do.
    """
    found: dict[str, Sweep] = {}
    for one in [wanted] if isinstance(wanted, str | Sweep) else wanted:
        if isinstance(one, str) and one not in SWEEPS:
            raise unknown_name("sweep", one, SWEEPS, DataError)
        sweep = SWEEPS[one] if isinstance(one, str) else one
        if not sweep.levels.available():
            raise DataError(
                f"The sweep {sweep.name!r} cannot be done here", f"Pillow cannot write {sweep.levels.needs}"
            )
        if sweep.name in found:
            raise DataError(f"Two sweeps are called {sweep.name!r}", "", "Give each a name of its own")
        found[sweep.name] = sweep
    if not found:
        raise DataError("No sweep was named", "", f"Known: {', '.join(SWEEPS)}")
    return tuple(found.values())


@dataclass(frozen=True, eq=False)
class Tuning:
    """How every unit answers to one sweep; see the module's text for the measures.

    Attributes:
        shift, low, high: tuning curves of real and fake with their intervals, (2, levels, units).
        contrast: Cohen's d at each level, (levels, units).
        auc: of each unit at each level, in the direction of its untouched contrast, (levels, units).
        level, image, interaction: shares of the variance over the sweep, which add up to 1, (units,).
        generation: the part of ``image`` between real and fake, (units,).
    """

    sweep: Sweep
    shift: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contrast: np.ndarray
    auc: np.ndarray
    level: np.ndarray
    image: np.ndarray
    interaction: np.ndarray
    generation: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """By how much the sweep explains more of each unit's response than generation, below 0 where less, (units,)."""
        return self.level - self.generation

    def to_json(self) -> dict[str, Any]:
        return self.sweep.to_json() | {name: getattr(self, name).tolist() for name in _MEASURES}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tuning:
        return cls(Sweep.from_json(data), **{name: np.array(data[name], dtype=float) for name in _MEASURES})


_MEASURES = ("shift", "low", "high", "contrast", "auc", "level", "image", "interaction", "generation")


def standardised(values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Responses in standard deviations from the mean of the untouched ones, and which units do not vary there."""
    untouched = values[0][0].astype(np.float64)
    mean, deviation = untouched.mean(0), untouched.std(0, ddof=1)
    # A unit that has not yet looked at the image is constant but for rounding.
    constant = deviation <= 1e-6 * np.abs(untouched).mean(0)
    scale = np.where(constant, np.inf, deviation)
    return [(part - mean) / scale for part in values], constant


def measure_tuning(sweep: Sweep, values: np.ndarray, labels: np.ndarray, sign: np.ndarray) -> Tuning:
    """How every unit answers to a sweep, from standardised responses (1 + levels, images, units), untouched first.

    ``sign`` is that of each unit's untouched contrast, (units,).
    """
    from scipy.stats import t

    curves = []
    for label in (REAL, FAKE):
        moved = values[1:, labels == label] - values[0, labels == label]
        count = moved.shape[1]
        shift = moved.mean(1)
        half = t.ppf(0.975, count - 1) * moved.std(1, ddof=1) / np.sqrt(count)
        curves.append((shift, shift - half, shift + half))
    shift, low, high = (np.stack(pair) for pair in zip(*curves, strict=True))
    level, image, interaction = (share[0] for share in variance_shares(values))
    return Tuning(
        sweep=sweep,
        shift=shift,
        low=low,
        high=high,
        contrast=np.stack([cohens_d(part, labels)[0] for part in values[1:]]),
        auc=np.stack([unit_auc(part, labels, sign) for part in values[1:]]),
        level=level,
        image=image,
        interaction=interaction,
        generation=image * eta_squared(values.mean(0), labels)[0],
    )


def cohens_d(values: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(mean of fake - mean of real) / pooled standard deviation of each unit, (draws, units).

    Args:
        values: standardised responses, (images, units).
        weights: how often each image counts, (draws, images); once where left out.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    means, squares, degrees = [], np.zeros((len(weights), values.shape[1])), np.zeros((len(weights), 1))
    for label in (REAL, FAKE):
        own, part = values[labels == label], weights[:, labels == label]
        count = part.sum(1, keepdims=True)
        means.append(part @ own / count)
        squares += part @ own**2 - count * means[-1] ** 2
        degrees += count - 1
    # The floor is for a unit that a degradation silences: no difference is left and no variance.
    return (means[1] - means[0]) / np.sqrt(np.maximum(squares / degrees, 1e-12))


def eta_squared(values: np.ndarray, codes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """SS_between / SS_total of each unit in a one-way table of the classes in ``codes``, (draws, units).

    ``values`` are (images, units), ``weights`` as in ``cohens_d``. 0 where nothing varies.
    """
    weights = np.ones((1, len(codes))) if weights is None else weights
    count = weights.sum(1, keepdims=True)
    mean = weights @ values / count
    between = np.zeros_like(mean)
    for code in np.unique(codes):
        part = weights[:, codes == code]
        size = part.sum(1, keepdims=True)
        between += size * (part @ values[codes == code] / size - mean) ** 2
    return _share(between, weights @ values**2 - count * mean**2)


def variance_shares(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eta squared of level, image and their interaction in the two-way table of each unit, (draws, units) each.

    ``values`` are (levels, images, units), one value per cell; ``weights`` as in ``cohens_d``.
    """
    levels, images, _ = values.shape
    weights = np.ones((1, images)) if weights is None else weights
    count = weights.sum(1, keepdims=True)
    means = np.stack([weights @ level / count for level in values])
    mean = means.mean(0)
    total = sum(weights @ level**2 for level in values) - levels * count * mean**2
    by_level = count * ((means - mean) ** 2).sum(0)
    by_image = levels * (weights @ values.mean(0) ** 2 - count * mean**2)
    level, image = _share(by_level, total), _share(by_image, total)
    return level, image, np.where(total > 1e-9, np.maximum(1 - level - image, 0), 0)


def _share(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.zeros_like(part), where=total > 1e-9)


def unit_auc(values: np.ndarray, labels: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """AUC of each unit (Mann-Whitney U over the number of pairs), fakes above reals where ``sign`` is 1, (units,)."""
    from scipy.stats import mannwhitneyu

    real, fake = values[labels == REAL], values[labels == FAKE]
    above = mannwhitneyu(fake, real, method="asymptotic").statistic
    return 0.5 + sign * (above / (len(real) * len(fake)) - 0.5)
