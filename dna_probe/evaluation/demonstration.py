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
from dna_probe.evaluation.metrics import auc, auc_interval
from dna_probe.images.sets import ImageSet

if TYPE_CHECKING:
    from dna_probe.collection import Options
    from dna_probe.detector import Detector


def demonstrate(
    detector: Detector, train: ImageSet, test: ImageSet, seed: int = 0, options: Options | None = None
) -> dict[str, Any]:
    """AUC on the test images of the detector, the last-layer probe, random units and a thumbnail probe, as JSON.

    Intervals are bootstraps over groups; for random units the range of 2.5 to 97.5 % over 20 draws.
    """
    groups = np.asarray(test.groups)
    fitted, held = (control_features(detector, images, options) for images in (train, test))
    rows = []

    def add(method: str, scores: np.ndarray, note: str) -> float:
        measured = auc_interval(test.labels, scores, groups, seed=seed)
        rows.append({"method": method, "auc": measured.value, "low": measured.low, "high": measured.high, "note": note})
        return measured.value

    ours = add("detector", detector_scores(detector, held), f"{len(detector.units)} units")
    reading = detector.backbone.layers[-1]
    last = add(
        "last-layer probe",
        last_layer_scores(detector.backbone, fitted, held, seed),
        f"all {reading.width} units of {reading.name}",
    )
    drawn = [auc(test.labels, s) for s in random_unit_scores(detector, fitted, held, seed=seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    rows.append(
        {
            "method": "random units",
            "auc": float(np.mean(drawn)),
            "low": float(low),
            "high": float(high),
            "note": "as many, from the same layers, 20 draws",
        }
    )
    add("thumbnail probe", thumbnail_scores(train, test, seed=seed), "16 x 16 pixels: colour and layout alone")
    beaten = [
        name
        for name, value in (("the last-layer probe", last), ("random units", float(np.mean(drawn))))
        if ours > value
    ]
    verdict = f"The detector is above {' and '.join(beaten)}." if beaten else "The detector beats neither control here."
    if len(beaten) == 1:
        other = "random units" if "the last-layer probe" in beaten else "the last-layer probe"
        verdict = f"The detector is above {beaten[0]}, but not above {other}."
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
        "verdict": verdict,
    }
