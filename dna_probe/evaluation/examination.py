"""A fitted detector on labelled images: every measure with its interval, per generator, beside the data's audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import NoReadableImage, Options
from dna_probe.errors import DataError
from dna_probe.evaluation.audit import audit_inspected, inspect_set
from dna_probe.evaluation.metrics import (
    Interval,
    bootstrap_weights,
    interval,
    measure,
    rate_interval,
    weighted_auc,
    weighted_balanced_accuracy,
)
from dna_probe.evaluation.results import plain
from dna_probe.fitting import HASH_DIGITS, no_views
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import FAKE, REAL, UNLABELLED, ImageSet, noun_of
from dna_probe.images.views import Equalisation
from dna_probe.precision import agreement_of
from dna_probe.samples import read_samples

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.detector import Detector

ALL = "all"


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What a detector reaches on labelled images.

    Attributes:
        origin: where the images came from.
        rows: measures of all fakes together, then of each generator, each against all reals; only what one class can
            tell where there is only one.
        trained_on: names of images that the detector was fitted on; a result that includes them says little.
        audit: of these images, as ``Audit.to_json`` gives it; None where they are of one class.
        skipped: (name, reason) of images that could not be judged.
        provenance: of the detector and the settings.
    """

    origin: str
    rows: Sequence[Mapping[str, Any]]
    trained_on: Sequence[str]
    audit: Mapping[str, Any] | None
    skipped: Sequence[tuple[str, str]]
    provenance: Mapping[str, Any]

    def table(self) -> pd.DataFrame:
        """One row per generator, measures as columns; intervals as ``_low`` and ``_high``."""
        import pandas as pd

        flat = []
        for row in self.rows:
            columns: dict[str, Any] = {}
            for name, value in row.items():
                if isinstance(value, Interval):
                    columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
                else:
                    columns[name] = value
            flat.append(columns)
        return pd.DataFrame(flat)

    @property
    def flags(self) -> list[str]:
        """A sentence for everything that makes the figures doubtful."""
        found = list(self.audit["flags"]) if self.audit else []
        if self.trained_on:
            found.insert(0, f"{len(self.trained_on)} of these samples were trained on, first {self.trained_on[0]}.")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "dna_probe.evaluation/1",
            "origin": self.origin,
            "results": [
                {name: plain(value._asdict() if isinstance(value, Interval) else value) for name, value in row.items()}
                for row in self.rows
            ],
            "trained_on": list(self.trained_on),
            "flags": self.flags,
            "audit": self.audit,
            "skipped": [list(pair) for pair in self.skipped],
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        lines = [f"Evaluation on {self.origin}"]
        for row in self.rows:
            told = f"AUC {row['auc']}, " if "auc" in row else ""
            rates = ", ".join(f"{name} {row[name]}" for name in ("fpr", "tpr") if name in row)
            lines.append(f"  {row['generator']}: {told}{rates}")
        return "\n".join([*lines, *(f"  ! {flag}" for flag in self.flags)])


def evaluate(
    detector: Detector,
    data: Any,
    *,
    equalisation: Equalisation | None = None,
    seed: int = 0,
    options: Options | None = None,
) -> Evaluation:
    """Judge labelled images and measure the verdicts, at the detector's own threshold.

    A detector that was fitted on equalised images equalises these too, and the audit is of what it then sees.

    Args:
        data: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; it may hold one class only. Texts and
            recordings are not audited.
        equalisation: treatment of these images for a detector that has none of its own.

    Raises:
        DataError: no labelled image, or none that can be read; an equalisation of texts or recordings.
    """
    options = options or Options()
    given = read_samples(data)
    given = given.subset(given.labels != UNLABELLED)
    if not len(given):
        raise DataError(f"{given.origin} holds no labelled {noun_of(given.modality)}")
    if given.modality != "image":
        no_views(given, equalisation=equalisation)
    if equalisation is not None and detector.equalisation is None:
        detector = replace(detector, equalisation=equalisation)
    is_image = given.modality == "image"
    images, seen = inspect_set(detector.treated(given), options.workers, options.progress) if is_image else (given, [])
    values, index, failures = detector.unit_values(given, options)
    if not index:
        raise NoReadableImage(given, failures)
    judged = given.subset(np.array(index))
    both = {REAL, FAKE} <= set(images.labels.tolist())
    return Evaluation(
        origin=given.origin,
        rows=_rows(detector, judged, values, seed),
        trained_on=trained_on(detector, given, [one.sha256 for one in seen], images.names if is_image else ()),
        audit=audit_inspected(images, seen, seed=seed).to_json() if both and is_image else None,
        skipped=(*given.skipped, *failures),
        provenance={
            "backbone": detector.backbone.identity(),
            "threshold": detector.threshold,
            "unsure": list(detector.anchor.band_),
            "units": len(detector.units),
            "equalisation": detector.equalisation.to_json() if detector.equalisation else None,
            "fitted": dict(detector.provenance),
            "seed": seed,
            **agreement_of(
                detector.backbone,
                detector.treated(judged),
                detector.units_by_reading,
                options,
                detector.anchor.predict_proba,
            ),
        },
    )


def trained_on(detector: Detector, given: ImageSet, hashes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of the images that the detector was fitted on, as they are or as it treats them."""
    known = set(detector.provenance.get("image_hashes", ()))
    found = {name for name, one in zip(names, hashes, strict=True) if one[:HASH_DIGITS] in known}
    own = zip(given.names, given.images, strict=True)
    found |= {name for name, image in own if content_hash(image)[:HASH_DIGITS] in known}
    return [name for name in given.names if name in found]


def _rows(detector: Detector, judged: ImageSet, values: np.ndarray, seed: int) -> list[dict[str, Any]]:
    labels, made, groups = judged.labels, np.array(judged.generators), np.asarray(judged.groups)
    fakes = list(dict.fromkeys(made[labels == FAKE].tolist()))
    rows = []
    for name in [ALL, *fakes] if len(fakes) > 1 else fakes or [ALL]:
        own = (labels == REAL) | (made == name) | (name == ALL)
        rows.append({"generator": name, **_measures(detector, labels[own], groups[own], values[own], seed)})
    return rows


def _measures(
    detector: Detector, labels: np.ndarray, groups: np.ndarray, values: np.ndarray, seed: int
) -> dict[str, Any]:
    # Ranked by the decision value: probabilities are equal where calibration found no evidence, or near 0 and 1.
    scores, probability = detector.anchor.decision_function(values), detector.anchor.predict_proba(values)[:, 1]
    decided = probability >= detector.threshold
    found: dict[str, Any] = {"real": int((labels == REAL).sum()), "fake": int((labels == FAKE).sum())}
    if found["real"] and found["fake"]:
        weights = bootstrap_weights(labels, groups, seed=seed)
        found |= measure(labels, scores, probability, detector.threshold, detector.anchor.band_)
        drawn = weighted_balanced_accuracy(labels, decided[None], weights)
        found["auc"] = interval(found["auc"], weighted_auc(labels, scores[None], weights))
        found["balanced_accuracy"] = interval(found["balanced_accuracy"], drawn)
    for name, label in (("fpr", REAL), ("tpr", FAKE)):
        own = decided[labels == label]
        if len(own):
            found[name] = rate_interval(int(own.sum()), len(own))
    return found
