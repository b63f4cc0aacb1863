"""Fit a detector: locate, score, cut, classify, all on the training images alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dna_probe.anchor import AnchorClassifier
from dna_probe.collection import Features, Gradients, Options, collect_features
from dna_probe.detector import Detector
from dna_probe.errors import DnaProbeError
from dna_probe.images.layouts import read_images
from dna_probe.images.sampling import draw_shots, require_two_classes
from dna_probe.layer_rules import require_rule
from dna_probe.location import LayerReport, bounded, collect_layer_features, layer_reading, report_layers
from dna_probe.probing import folds, small_fits
from dna_probe.scoring import (
    DEFAULT_KINDS,
    SCORERS,
    collect_evidence,
    readings_of,
    reference_head,
    require_scorer,
    score_features,
)
from dna_probe.sites import Reading
from dna_probe.truncation import UnitSet, require_cut, truncate


def fit(
    model: Any,
    data: Any,
    shots: int | None = None,
    layers: LayerReport | Sequence[str] | None = None,
    *,
    rule: str = "transition",
    kinds: Sequence[str] = DEFAULT_KINDS,
    scorer: str = "triadic",
    cut: str = "knee",
    scope: str = "global",
    classifier: str = "logistic",
    seed: int = 0,
    options: Options | None = None,
    **cut_parameters: float,
) -> Detector:
    """Locate layers, score their units, cut, and fit the anchor classifier, all on the training images alone.

    Args:
        model: any ``torch.nn.Module``, a backbone name, or a ``Backbone``.
        data: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``.
        shots: images per class, drawn evenly over generators and groups; None takes all.
        layers: a ``LayerReport`` (``locate_layers(model)`` on the built-in probe set, say) or site names; None
            locates them on the training images.
        rule, kinds, scorer, cut, scope, classifier: names, see ``layer_rules``, ``scoring``, ``truncation`` and
            ``anchor``; ``cut_parameters`` go to the cut.

    The threshold and the calibration rest on cross-fitted scores: in each fold the units are scored and cut again
    without the fold's images, so that the selection is not judged on the images it was made on.

    Raises:
        DataError: no folder, one class only, fewer images than shots, nothing readable.
        DnaProbeError: a mistyped name, no layer taken, no unit left.
        NumericalError: an activation, gradient or score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    from dna_probe.backbones import open_backbone

    # Names first: a slip must not cost the forward passes.
    require_rule(rule)
    require_scorer(scorer)
    require_cut(cut, scope)
    anchor = AnchorClassifier(classifier, random_state=seed)
    backbone = open_backbone(model)
    images = read_images(data)
    require_two_classes(images)
    if shots is not None:
        images = draw_shots(images, shots, seed)
    last = layer_reading(backbone.layers[-1])
    if layers is None:
        layer_features = collect_layer_features(backbone, bounded(images, seed), options)
        layers = report_layers(backbone, layer_features, rule=rule, seed=seed)
    elif SCORERS[scorer].needs_gradients:
        layer_features = collect_features(backbone, bounded(images, seed), [last], options=options)
    names = layers.selected if isinstance(layers, LayerReport) else list(layers)
    readings = readings_of(backbone, names, kinds)
    head = reference_head(layer_features, last, seed) if SCORERS[scorer].needs_gradients else None
    features, gradients = collect_evidence(backbone, images, readings, head, options)
    origin = {"backbone": backbone.identity(), "data": features.images.fingerprint()}
    scores = score_features(features, readings, scorer, gradients, seed, origin)
    unit_set = truncate(scores, cut, scope, **cut_parameters)
    if not len(unit_set):
        raise DnaProbeError(f"No unit is left: {unit_set.reason}", fix="Use another cut, for example 'fraction'")
    values, labels, groups = features.of(readings), features.images.labels, features.images.groups
    with small_fits():
        anchor.strength = anchor.choose_strength(values[:, unit_set.mask], labels, groups)
        cross_fitted = _cross_fit(features, readings, scorer, gradients, anchor, unit_set, seed)
        anchor.fit(values[:, unit_set.mask], labels, groups, cross_fitted)
    return Detector(
        backbone=backbone,
        units=tuple(unit_set.units),
        anchor=anchor,
        layers=layers if isinstance(layers, LayerReport) else None,
        scores=scores,
        unit_set=unit_set,
        skipped=features.images.skipped,
        provenance={
            "data": origin["data"],
            "origin": images.origin,
            "images": {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())},
            "layers": names,
            "rule": layers.rule if isinstance(layers, LayerReport) else "named",
            "kinds": list(kinds),
            "scorer": scorer,
            "classifier": classifier,
            "shots": shots,
            "seed": seed,
            "out_of_fold_auc": None if cross_fitted is None else float(roc_auc_score(labels, cross_fitted)),
            "versions": versions(),
        },
    )


def _cross_fit(
    features: Features,
    readings: Sequence[Reading],
    scorer: str,
    gradients: Gradients | None,
    anchor: AnchorClassifier,
    unit_set: UnitSet,
    seed: int,
) -> np.ndarray | None:
    """Decision values of each training image from units and a classifier chosen without its group, (n,)."""
    images, values = features.images, features.of(readings)
    scores = np.zeros(len(images))
    pairs = folds(images.labels, images.groups, seed=seed)
    for train, test in pairs:
        part = Features(images.subset(train), {n: v[train] for n, v in features.values.items()}, {})
        mask = truncate(
            score_features(part, readings, scorer, gradients, seed, resamples=0),
            unit_set.cut,
            unit_set.scope,
            **unit_set.parameters,
        ).mask
        # A fold in which nothing passes the cut is read through the units of the whole set.
        mask = mask if mask.any() else unit_set.mask
        fitted = AnchorClassifier(anchor.kind, anchor.strength, random_state=seed)
        scores[test] = fitted.fit_decision(values[train][:, mask], images.labels[train], values[test][:, mask])
    return scores if pairs else None


def versions() -> dict[str, str]:
    from importlib.metadata import version

    from dna_probe import __version__

    others = {name: version(name) for name in ("torch", "timm", "scikit-learn", "numpy", "kneed", "pillow")}
    return {"dna-probe": __version__, **others}
