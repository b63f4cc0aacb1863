"""Controls on the same backbone and images as a detector: what its selection must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.collection import Options, collect_features
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading
from dna_probe.probing import linear_probe
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone
    from dna_probe.detector import Detector


def last_layer_scores(
    backbone: Backbone, train: ImageSet, test: ImageSet, seed: int = 0, options: Options | None = None
) -> np.ndarray:
    """Decision values on the test images of a linear probe on the last layer's default reading, (n,)."""
    reading = layer_reading(backbone.layers[-1])
    fitted = collect_features(backbone, train, [reading], options=options)
    probe = linear_probe(random_state=seed).fit(fitted.values[reading.name], fitted.images.labels)
    return probe.decision_function(collect_features(backbone, test, [reading], options=options).values[reading.name])


def random_unit_scores(
    detector: Detector, train: ImageSet, test: ImageSet, draws: int = 20, seed: int = 0, options: Options | None = None
) -> np.ndarray:
    """Decision values of the detector's classifier on random units, as many per reading as the detector reads, (draws, n).

    Same layers, same readings, same number of units of each: only the choice differs.
    """
    from dna_probe.anchor import AnchorClassifier

    wanted = detector.units_by_reading
    fitted = collect_features(detector.backbone, train, list(wanted), options=options)
    held = collect_features(detector.backbone, test, list(wanted), options=options)
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        chosen = {reading: rng.choice(reading.width, len(units), replace=False) for reading, units in wanted.items()}
        anchor = AnchorClassifier(detector.anchor.kind, detector.anchor.strength_, random_state=seed)
        rows.append(
            anchor.fit_decision(_pick(fitted.values, chosen), fitted.images.labels, _pick(held.values, chosen))
        )
    return np.stack(rows)


def thumbnail_scores(train: ImageSet, test: ImageSet, side: int = 16, seed: int = 0) -> np.ndarray:
    """Decision values of a linear probe on the images shrunk to ``side`` pixels: what colour and layout alone give, (n,)."""
    probe = linear_probe(random_state=seed).fit(_thumbnails(train.images, side), train.labels)
    return probe.decision_function(_thumbnails(test.images, side))


def _pick(values, chosen: dict[Reading, np.ndarray]) -> np.ndarray:
    return np.concatenate([values[reading.name][:, units] for reading, units in chosen.items()], axis=1)


def _thumbnails(images: Sequence, side: int) -> np.ndarray:
    from dna_probe.images.reading import read_image

    return np.stack([np.asarray(read_image(i).resize((side, side)), dtype=np.float64).ravel() for i in images])
