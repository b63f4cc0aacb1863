"""A fitted detector on held-out images, beside its controls: what ``dna-probe demo`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.evaluation.baselines import (
    control_features,
    detector_scores,
    last_layer_scores,
    random_unit_scores,
    thumbnail_scores,
)
from dna_probe.evaluation.metrics import Difference, Interval, auc, auc_difference, auc_interval
from dna_probe.images.sets import ImageSet

if TYPE_CHECKING:
    from dna_probe.collection import Options
    from dna_probe.detector import Detector


def demonstrate(
    detector: Detector, train: ImageSet, test: ImageSet, seed: int = 0, options: Options | None = None
) -> dict[str, Any]:
    """AUC on the test images of the detector, the last-layer probe, random units and a thumbnail probe, as JSON.

    Intervals are bootstraps over groups (photographs); for random units the range of 2.5 to 97.5 % over 20 draws.
    """
    groups = np.asarray(test.groups)
    fitted, held = (control_features(detector, images, options) for images in (train, test))
    reading = detector.backbone.layers[-1]
    ours = detector_scores(detector, held)
    last = last_layer_scores(detector.backbone, fitted, held, seed)
    drawn = [auc(test.labels, scores) for scores in random_unit_scores(detector, fitted, held, seed=seed)]
    low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    rows = [
        _row("detector", auc_interval(test.labels, ours, groups, seed=seed), f"{len(detector.units)} units"),
        _row(
            "last-layer probe",
            auc_interval(test.labels, last, groups, seed=seed),
            f"all {reading.width} units of {reading.name}",
        ),
        _row(
            "random units",
            Interval(float(np.mean(drawn)), low, high),
            "as many, from the same layers, 20 draws and their range",
        ),
        _row(
            "thumbnail probe",
            auc_interval(test.labels, thumbnail_scores(train, test, seed=seed), groups, seed=seed),
            "16 x 16 pixels: colour and layout alone",
        ),
    ]
    difference = auc_difference(test.labels, ours, last, groups, seed=seed)
    against_random = float(np.mean(auc(test.labels, ours) > np.array(drawn)))
    return {
        "schema": "dna_probe.demo/1",
        "test": {
            "real": int((test.labels == 0).sum()),
            "fake": int((test.labels == 1).sum()),
            "photographs": len(set(test.groups)),
        },
        "selected": detector.layers.selected if detector.layers else [],
        "units": list(detector.units),
        "results": rows,
        "difference_to_last_layer": {**difference._asdict()},
        "share_of_random_draws_beaten": against_random,
        "verdict": _verdict(difference, against_random),
    }


def _row(method: str, measured: Interval, note: str) -> dict[str, Any]:
    return {"method": method, "auc": measured.value, "low": measured.low, "high": measured.high, "note": note}


def _verdict(difference: Difference, against_random: float) -> str:
    told = f"{difference.value:+.3f} AUC, 95 % {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.low > 0:
        first = f"The detector beats the last-layer probe ({told})"
    elif difference.high < 0:
        first = f"The last-layer probe beats the detector ({told})"
    else:
        first = f"The detector and the last-layer probe cannot be told apart here ({told})"
    return f"{first}; it beats {against_random:.0%} of the random draws."
