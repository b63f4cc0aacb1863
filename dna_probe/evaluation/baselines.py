"""Controls on the same backbone and images as a detector: what its selection must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Features, Options, collect_features
from dna_probe.evaluation.file_features import thumbnail_features
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading
from dna_probe.probing import linear_probe
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone
    from dna_probe.detector import Detector


def control_features(detector: Detector, images: ImageSet, options: Options | None = None) -> Features:
    """What the detector and its controls read of each image, in one pass."""
    readings = {r.name: r for r in (*detector.readings, layer_reading(detector.backbone.layers[-1]))}
    return collect_features(detector.backbone, images, list(readings.values()), options=options)


def detector_scores(detector: Detector, test: Features) -> np.ndarray:
    """Decision values of the detector on features already collected, (n,)."""
    return detector.anchor.decision_function(_pick(test, detector.units_by_reading))


def last_layer_scores(backbone: Backbone, train: Features, test: Features, seed: int = 0) -> np.ndarray:
    """Decision values on the test images of a linear probe on the last layer's default reading, (n,)."""
    name = layer_reading(backbone.layers[-1]).name
    probe = linear_probe(random_state=seed).fit(train.values[name], train.images.labels)
    return probe.decision_function(test.values[name])


def random_unit_scores(
    detector: Detector, train: Features, test: Features, draws: int = 20, seed: int = 0
) -> np.ndarray:
    """Decision values of the detector's classifier on random units, as many per reading as the detector reads,
    (draws, n).

    Same layers, same readings, same number of units of each: only the choice differs.
    """
    from dna_probe.anchor import AnchorClassifier

    rng = np.random.default_rng(seed)
    anchor = AnchorClassifier(detector.anchor.kind, detector.anchor.strength_, random_state=seed)
    rows = []
    for _ in range(draws):
        chosen = {
            reading: rng.choice(reading.width, len(units), replace=False)
            for reading, units in detector.units_by_reading.items()
        }
        rows.append(anchor.fit_decision(_pick(train, chosen), train.images.labels, _pick(test, chosen)))
    return np.stack(rows)


def thumbnail_scores(train: ImageSet, test: ImageSet, side: int = 16, seed: int = 0) -> np.ndarray:
    """Decision values, (n,), of a linear probe on images shrunk to ``side`` pixels: what colour and layout give."""
    probe = linear_probe(random_state=seed).fit(thumbnail_features(train.images, side), train.labels)
    return probe.decision_function(thumbnail_features(test.images, side))


def _pick(features: Features, chosen: Mapping[Reading, Any]) -> np.ndarray:
    return np.concatenate([features.values[reading.name][:, units] for reading, units in chosen.items()], axis=1)
