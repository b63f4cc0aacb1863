"""A fitted detector on held-out images, beside its controls: what ``dna-probe demo`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Features, Options, collect_features
from dna_probe.evaluation.file_features import thumbnail_features
from dna_probe.evaluation.methods import Dna, LastLinear, Method, RandomUnits, Thumbnail
from dna_probe.evaluation.metrics import Difference, Interval, auc, auc_difference, auc_interval
from dna_probe.evaluation.training import Located, Training, View, locator
from dna_probe.fitting import DnaSettings, FittedUnits, collect_views
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading

if TYPE_CHECKING:
    from dna_probe.detector import Detector
    from dna_probe.truncation import UnitSet


def demonstrate(
    detector: Detector, train: ImageSet, test: ImageSet, seed: int = 0, options: Options | None = None
) -> dict[str, Any]:
    """AUC on the test images of the detector, the last-layer probe, random units and a thumbnail probe, as JSON.

    Intervals are bootstraps over groups (photographs); for random units the range of 2.5 to 97.5 % over 20 draws.
    """
    fitted, held = training_of(detector, train, seed, options), _features(detector, test, options)
    view, test = _view(detector, held), held.images
    groups = np.asarray(test.groups)

    def scores(method: Method) -> np.ndarray:
        return method.fit(fitted).judge(view).scores

    (ours,), (last,), (small,) = scores(Dna()), scores(LastLinear()), scores(Thumbnail())
    reading = layer_reading(detector.backbone.layers[-1])
    drawn = [auc(test.labels, one) for one in scores(RandomUnits())]
    low, high = (float(value) for value in np.percentile(drawn, [2.5, 97.5]))
    rows = [
        _row("detector", auc_interval(test.labels, ours, groups, seed=seed), f"{len(detector.units)} units"),
        _row(
            "last-layer probe",
            auc_interval(test.labels, last, groups, seed=seed),
            f"all {reading.width} units of {reading.site.name}",
        ),
        _row(
            "random units",
            Interval(float(np.mean(drawn)), low, high),
            "as many, from the same layers, 20 draws and their range",
        ),
        _row(
            "thumbnail probe",
            auc_interval(test.labels, small, groups, seed=seed),
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


def training_of(detector: Detector, images: ImageSet, seed: int = 0, options: Options | None = None) -> Training:
    """The images that a detector was fitted on, as methods of a benchmark see them: its own views, readings and units,
    so that a control differs from it in the choice of units alone."""
    units, views = _scored(detector), tuple(detector.provenance["views"])
    features = _features(detector, images, options)
    features, processed = collect_views(detector.backbone, features, views, units.scores.readings, options)
    settings = DnaSettings(views=views)
    return Training(
        images=features.images,
        view=_view(detector, features),
        settings=settings,
        processed={name: View.join(part.values, ()) for name, part in zip(settings.views, processed, strict=True)},
        located={locator(settings): Located(units.scores.readings, None)},
        found=FittedUnits(detector.anchor, units, None),
        seed=seed,
    )


def _features(detector: Detector, images: ImageSet, options: Options | None) -> Features:
    """Every reading that was scored, and the last layer, of the images that can be read."""
    last = layer_reading(detector.backbone.layers[-1])
    readings = {reading.name: reading for reading in (*_scored(detector).scores.readings, last)}
    return collect_features(detector.backbone, images, list(readings.values()), options=options)


def _scored(detector: Detector) -> UnitSet:
    """The units with the scores that they were cut from, which every fitted detector has."""
    assert detector.unit_set is not None
    return detector.unit_set


def _view(detector: Detector, features: Features) -> View:
    last = layer_reading(detector.backbone.layers[-1])
    tables = {"thumbnail": thumbnail_features(features.images.images)}
    return View.join(features.values, (last.name,), tables)


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
