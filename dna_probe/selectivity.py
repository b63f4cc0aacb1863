"""What the units of a detector respond to: generation, or the way an image was saved, resized, blurred or made noisy.

Each image goes through controlled sweeps, one nuisance each, on real and fake alike; ``dna_probe.tuning`` defines the
sweeps and measures how a unit answers to one: ``shift``, ``contrast`` and the shares of variance. The treatment that a
detector gives its images (``Detector.equalisation``) comes first and the nuisance acts on what results.

Two shares are of the untouched responses, eta squared as there: ``generation`` real against fake, and ``generator``
between the generators within fake; both are parts of one total, and few images per generator inflate the second.

Labels, by the paired bootstrap over groups of images, 95 % percentile intervals:

``robust``
    At every level of every sweep the contrast keeps its sign and at least ``KEPT`` of its size, and no level effect is
    larger than that of generation.
``fragile``
    One of these fails beyond chance.
``unclear``
    The untouched contrast is not told from zero (Welch's t-test, at a false discovery rate of ``ALPHA`` over the
    units), or one of these fails within chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Options
from dna_probe.errors import DataError
from dna_probe.evaluation.metrics import DRAWS, bootstrap_weights
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import FAKE, REAL, UNLABELLED, ImageSet
from dna_probe.samples import read_images_for
from dna_probe.stimuli import LEAST, collect_responses, draw_stimuli, require_enough
from dna_probe.tuning import (
    SWEEPS,
    Sweep,
    Tuning,
    chosen_sweeps,
    cohens_d,
    eta_squared,
    measure_tuning,
    standardised,
    unit_auc,
    variance_shares,
)

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.detector import Detector

SCHEMA = "dna_probe.selectivity/1"
LABELS = ("robust", "fragile", "unclear")
# Share of the untouched contrast that a robust unit keeps.
KEPT = 0.5
ALPHA = 0.05
# Units whose bootstrap is in memory at once.
CHUNK = 256
_OF_UNITS = ("contrast", "p_value", "auc", "generation", "generator", "response")


@dataclass(frozen=True, repr=False, eq=False)
class Selectivity:
    """What the units of a detector respond to.

    Attributes:
        origin: where the images came from.
        units: names, in the detector's order.
        labels, reasons: of each unit, see ``LABELS``.
        contrast, p_value, auc: Cohen's d of the untouched responses, its p-value by Welch's t-test, and the AUC of the
            unit alone in the direction of its contrast, (units,).
        generation, generator: shares of the variance of the untouched responses, (units,).
        response: mean untouched response of real and fake, (2, units), from which the shifts count.
        tunings: one ``Tuning`` per sweep.
        counts: images by generator, the reals first.
        trained_on: names of images that the detector was fitted on, which flatter the contrast.
        skipped: (name, reason) of images that could not be used.
        provenance: backbone, treatment, constants, data fingerprint and seed.
    """

    origin: str
    units: tuple[str, ...]
    labels: tuple[str, ...]
    reasons: tuple[str, ...]
    contrast: np.ndarray
    p_value: np.ndarray
    auc: np.ndarray
    generation: np.ndarray
    generator: np.ndarray
    response: np.ndarray
    tunings: tuple[Tuning, ...]
    counts: Mapping[str, int]
    trained_on: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def q_value(self) -> np.ndarray:
        """The p-values adjusted for the number of units (Benjamini and Hochberg 1995), (units,)."""
        from scipy.stats import false_discovery_control

        return false_discovery_control(self.p_value)

    @property
    def told(self) -> np.ndarray:
        """Which units have an untouched contrast that is told from zero, (units,)."""
        return self.q_value <= ALPHA

    @cached_property
    def retained(self) -> np.ndarray:
        """Share of each unit's contrast that is left at each level of each sweep, one after the other,
        (all levels, units); below 0 where the sign has turned."""
        whole = np.concatenate([tuning.contrast for tuning in self.tunings])
        return np.divide(whole, self.contrast, out=np.zeros_like(whole), where=self.contrast != 0)

    @cached_property
    def places(self) -> list[str]:
        """The levels of all sweeps in words, one after the other."""
        return [tuning.sweep.at(i) for tuning in self.tunings for i in range(len(tuning.sweep.values))]

    def count(self, label: str) -> int:
        """How many units have a label."""
        return self.labels.count(label)

    def most_robust(self, many: int | None = None) -> list[int]:
        """Positions of the robust units, the largest contrast at the worst level first."""
        left = np.abs(self.contrast) * self.retained.min(0)
        own = [i for i, label in enumerate(self.labels) if label == "robust"]
        return sorted(own, key=lambda i: (-left[i], i))[:many]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What was found, in plain sentences."""
        number = len(self)
        found = [
            f"{self.count('robust')} of {number} units are robust, {self.count('fragile')} fragile and "
            f"{self.count('unclear')} unclear."
        ]
        for tuning in sorted(self.tunings, key=lambda tuning: -tuning.level.mean()):
            more = int((tuning.excess > 0).sum())
            if more:
                found.append(
                    f"{tuning.sweep.name} explains more of the response than generation in {more} of {number} units "
                    f"(mean share {tuning.level.mean():.2f} against {tuning.generation.mean():.2f})."
                )
        if self.told.any():
            left = np.median(self.retained[:, self.told], axis=1)
            worst = int(left.argmin())
            found.append(
                f"At {self.places[worst]} most is lost: of the units with a clear contrast, the median keeps "
                f"{left[worst]:.2f} of it."
            )
        if self.trained_on:
            found.append(
                f"{len(self.trained_on)} of {sum(self.counts.values())} images were trained on, "
                "so the contrasts are too large."
            )
        if self.skipped:
            found.append(f"{len(self.skipped)} {_images(len(self.skipped))} could not be used.")
        return tuple(found)

    def table(self) -> pd.DataFrame:
        """One row per unit: label, reason, contrast, AUC, shares of variance, and where its contrast suffers most."""
        import pandas as pd

        retained = self.retained
        worst = retained.argmin(0)
        columns: dict[str, Any] = {
            "unit": self.units,
            "label": self.labels,
            "reason": self.reasons,
            "d": self.contrast,
            "p_value": self.p_value,
            "auc": self.auc,
            "worst_auc": np.concatenate([tuning.auc for tuning in self.tunings]).min(0),
            "share_generation": self.generation,
            "share_generator": self.generator,
        }
        columns |= {f"share_{tuning.sweep.name}": tuning.level for tuning in self.tunings}
        columns |= {"worst_retained": retained.min(0), "worst_at": [self.places[i] for i in worst]}
        return pd.DataFrame(columns)

    def curves(self) -> pd.DataFrame:
        """One row per unit, sweep, level and class: the tuning curve; contrast and AUC are of both classes together.

        Level 0 is the untouched image, whose ``value`` is missing.
        """
        import pandas as pd

        parts = []
        for tuning in self.tunings:
            values = (np.nan, *tuning.sweep.values)
            both = {"contrast": np.vstack([self.contrast, tuning.contrast]), "auc": np.vstack([self.auc, tuning.auc])}
            keys = {
                "unit": np.tile(np.array(self.units, dtype=object), len(values)),
                "sweep": tuning.sweep.name,
                "level": np.repeat(np.arange(len(values)), len(self)),
                "value": np.repeat(values, len(self)),
            }
            for code, word in enumerate(("real", "fake")):
                own = {name: np.pad(getattr(tuning, name)[code], ((1, 0), (0, 0))) for name in ("shift", "low", "high")}
                measured = {name: part.ravel() for name, part in (own | both).items()}
                parts.append(pd.DataFrame({**keys, "class": word, **measured}))
        return pd.concat(parts, ignore_index=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "origin": self.origin,
            "verdicts": list(self.verdicts),
            "units": list(self.units),
            "labels": list(self.labels),
            "reasons": list(self.reasons),
            **{name: getattr(self, name).tolist() for name in _OF_UNITS},
            "sweeps": [tuning.to_json() for tuning in self.tunings],
            "images": dict(self.counts),
            "trained_on": list(self.trained_on),
            "skipped": [list(pair) for pair in self.skipped],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selectivity:
        """The result that ``to_json`` gave; the verdicts are worked out again."""
        arrays = {name: np.array(data[name], dtype=float) for name in _OF_UNITS}
        return cls(
            origin=data["origin"],
            units=tuple(data["units"]),
            labels=tuple(data["labels"]),
            reasons=tuple(data["reasons"]),
            tunings=tuple(map(Tuning.from_json, data["sweeps"])),
            counts=data["images"],
            trained_on=tuple(data["trained_on"]),
            skipped=tuple((name, reason) for name, reason in data["skipped"]),
            provenance=data["provenance"],
            **arrays,
        )

    def __repr__(self) -> str:
        total, reals = sum(self.counts.values()), self.counts["real"]
        lines = [
            f"Selectivity of {len(self)} units on {self.origin}: {reals} real, {total - reals} fake images",
            "  " + ", ".join(f"{label} {self.count(label)}" for label in LABELS),
        ]
        strongest = max(self.tunings, key=lambda tuning: tuning.level.mean())
        lines.append(
            f"  strongest nuisance: {strongest.sweep.name}, mean share {strongest.level.mean():.2f} of the response, "
            f"generation {strongest.generation.mean():.2f}"
        )
        lines += [f"  {self.units[i]}: d {self.contrast[i]:+.2f}, {self.reasons[i]}" for i in self.most_robust(5)]
        return "\n".join([*lines, *(f"  ! {text}" for text in self.verdicts[1:])])


def measure_selectivity(
    detector: Detector,
    data: Any,
    *,
    sweeps: Iterable[str | Sweep] = tuple(SWEEPS),
    max_images: int = 64,
    seed: int = 0,
    options: Options | None = None,
) -> Selectivity:
    """How much of the response of each of the detector's units is explained by nuisance, and how much by generation.

    Classes are balanced, fakes spread over generators, and images of one group drawn together only where there are no
    others. Images that the detector was fitted on are used only where others are too few. There is one pass over the
    images for each level of each sweep, and an image is degraded when it is read.

    Args:
        data: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``.
        sweeps: names in ``dna_probe.tuning.SWEEPS``, or ``Sweep`` objects.
        max_images: most images in each pass.

    Raises:
        DataError: an unknown sweep, one class only, or too few images that can be used.
        NumericalError: an activation is not finite.
    """
    options = options or Options()
    chosen = chosen_sweeps(sweeps)
    given = read_images_for("Selectivity", data)
    given = given.subset(given.labels != UNLABELLED)
    require_two_classes(given)
    if max_images < 2 * LEAST:
        raise DataError(f"max_images = {max_images} is too few", f"The intervals need {LEAST} images of each class")
    images, trained_on = draw_stimuli(detector, given, max_images // 2, seed)
    images, values = collect_responses(replace(detector, equalisation=None), images, chosen, seed, options)
    require_enough(images)
    return _analyse(
        detector.units,
        chosen,
        images,
        values,
        seed,
        trained_on=tuple(name for name in images.names if name in trained_on),
        provenance={
            "backbone": detector.backbone.identity(),
            "equalisation": detector.equalisation.to_json() if detector.equalisation else None,
            "data": images.fingerprint(),
            "kept": KEPT,
            "alpha": ALPHA,
            "draws": DRAWS,
            "seed": seed,
        },
    )


def _analyse(
    units: tuple[str, ...],
    sweeps: Sequence[Sweep],
    images: ImageSet,
    values: Sequence[np.ndarray],
    seed: int,
    **about: Any,
) -> Selectivity:
    """Everything from the responses, one array (1 + levels, images, units) per sweep."""
    from scipy.stats import ttest_ind

    labels = images.labels
    real, fake = labels == REAL, labels == FAKE
    scaled, constant = standardised(values)
    untouched = scaled[0][0]
    contrast, generation = cohens_d(untouched, labels)[0], eta_squared(untouched, labels)[0]
    sign = np.where(contrast < 0, -1.0, 1.0)
    p_value = np.ones(len(units))
    alive = ~constant
    if alive.any():
        p_value[alive] = ttest_ind(untouched[fake][:, alive], untouched[real][:, alive], equal_var=False).pvalue
    weights = bootstrap_weights(labels, images.groups, seed=seed).astype(np.float64)
    result = Selectivity(
        origin=images.origin,
        units=units,
        labels=(),
        reasons=(),
        contrast=contrast,
        p_value=p_value,
        auc=unit_auc(untouched, labels, sign),
        generation=generation,
        generator=np.maximum(eta_squared(untouched, _makers(images))[0] - generation, 0),
        response=np.stack([untouched[real].mean(0), untouched[fake].mean(0)]),
        tunings=tuple(measure_tuning(sweep, part, labels, sign) for sweep, part in zip(sweeps, scaled, strict=True)),
        counts={
            "real": int(real.sum()),
            **Counter(name for name, own in zip(images.generators, fake, strict=True) if own),
        },
        skipped=images.skipped,
        **about,
    )
    evidence = [_evidence(part, labels, sign, weights) for part in scaled]
    lost = np.concatenate([most_left for most_left, _ in evidence]) < 0
    nuisance = np.stack([least_excess for _, least_excess in evidence]) > 0
    judged = [
        _label(result, unit, lost[:, unit], nuisance[:, unit]) if told else ("unclear", _not_told(result, unit))
        for unit, told in enumerate(result.told)
    ]
    return replace(result, labels=tuple(label for label, _ in judged), reasons=tuple(reason for _, reason in judged))


def _makers(images: ImageSet) -> np.ndarray:
    """A number for each generator, one for all reals, (images,)."""
    names = ["" if label == REAL else name for label, name in zip(images.labels, images.generators, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def _evidence(
    values: np.ndarray, labels: np.ndarray, sign: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Upper limit, at each level, of the contrast less what a robust unit keeps, (levels, units), and lower limit of
    the sweep's share less that of generation, (units,).

    The difference in place of the ratio: it stays finite in draws without an untouched contrast.
    """
    most_left, least_excess = np.empty((len(values) - 1, len(sign))), np.empty(len(sign))
    for start in range(0, len(sign), CHUNK):
        own = slice(start, start + CHUNK)
        part = values[:, :, own]
        untouched = KEPT * cohens_d(part[0], labels, weights)
        for i, level in enumerate(part[1:]):
            left = sign[own] * (cohens_d(level, labels, weights) - untouched)
            most_left[i, own] = np.percentile(left, 97.5, axis=0)
        by_level, by_image, _ = variance_shares(part, weights)
        excess = by_level - by_image * eta_squared(part.mean(0), labels, weights)
        least_excess[own] = np.percentile(excess, 2.5, axis=0)
    return most_left, least_excess


def _not_told(result: Selectivity, unit: int) -> str:
    if not any(tuning.image[unit] for tuning in result.tunings):
        return "the same on every untouched image"
    return f"contrast {result.contrast[unit]:+.2f} not told from zero (q = {result.q_value[unit]:.2g})"


def _label(result: Selectivity, unit: int, lost: np.ndarray, nuisance: np.ndarray) -> tuple[str, str]:
    """Label and reason of a unit with a clear contrast, from what is surely lost (levels,) and in excess (sweeps,)."""
    retained = result.retained[:, unit]
    excess = np.array([tuning.excess[unit] for tuning in result.tunings])

    def left(level: int) -> str:
        return f"{retained[level]:.2f} of its contrast at {result.places[level]}"

    def more(sweep: int) -> str:
        tuning = result.tunings[sweep]
        shares = f"explains {tuning.level[unit]:.2f} of its response, generation {tuning.generation[unit]:.2f}"
        return f"{tuning.sweep.name} {shares}"

    if lost.any():
        return "fragile", f"keeps {left(int(np.where(lost, retained, np.inf).argmin()))}"
    if nuisance.any():
        return "fragile", more(int(np.where(nuisance, excess, -np.inf).argmax()))
    worst, strongest = int(retained.argmin()), int(excess.argmax())
    if retained[worst] < KEPT:
        return "unclear", f"keeps {left(worst)}, which may be chance"
    if excess[strongest] > 0:
        return "unclear", f"{more(strongest)}, which may be chance"
    return "robust", f"keeps at least {left(worst)}"


def _images(count: int) -> str:
    return "image" if count == 1 else "images"
