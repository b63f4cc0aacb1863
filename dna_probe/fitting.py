"""Fit a detector: locate, score, cut, classify, all on the training images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_probe.anchor import AnchorClassifier, require_resolvable
from dna_probe.collection import Features, Gradients, Options, collect_features
from dna_probe.detector import Detector
from dna_probe.errors import DnaProbeError
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import content_hash
from dna_probe.images.sampling import draw_shots, require_two_classes
from dna_probe.images.sets import UNLABELLED
from dna_probe.images.views import Equalisation, equalise_set
from dna_probe.layer_rules import require_rule
from dna_probe.location import LayerReport, bounded, collect_layer_features, layer_reading, report_layers
from dna_probe.probing import folds, small_fits
from dna_probe.scoring import (
    DEFAULT_KINDS,
    RESAMPLES,
    SCORERS,
    collect_evidence,
    readings_of,
    reference_head,
    require_scorer,
    score_features,
)
from dna_probe.sites import Reading
from dna_probe.truncation import UnitSet, require_cut, truncate

# Enough of a SHA-256 to recognise an image that was trained on.
HASH_DIGITS = 16


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
    target_fpr: float | None = None,
    equalisation: Equalisation | None = None,
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
        target_fpr: false positive rate that the threshold is set for; None puts it at a probability of one half.
        equalisation: treatment that takes size, codec and quality out of the images before anything looks at them;
            the detector stores it and treats new images alike.

    The threshold and the calibration rest on cross-fitted scores: in each fold the units are scored and cut again
    without the fold's images, so that the selection is not judged on the images it was made on.

    Raises:
        DataError: no folder, one class only, fewer images than shots or than ``target_fpr`` needs, nothing readable.
        DnaProbeError: a mistyped name, no layer taken, no unit left.
        NumericalError: an activation, gradient or score is not finite.
    """
    from dna_probe.backbones import open_backbone

    # Names first: a slip must not cost the forward passes.
    require_rule(rule)
    require_scorer(scorer)
    require_cut(cut, scope)
    anchor = AnchorClassifier(classifier, random_state=seed, target_fpr=target_fpr)
    backbone = open_backbone(model)
    images = read_images(data)
    images = images.subset(images.labels != UNLABELLED)
    require_two_classes(images)
    if equalisation is not None:
        images = equalise_set(images, equalisation)
        require_two_classes(images)
    if shots is not None:
        images = draw_shots(images, shots, seed)
    if target_fpr is not None:
        require_resolvable(target_fpr, int((images.labels == 0).sum()))
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
    labels = features.images.labels
    origin = {"backbone": backbone.identity(), "data": features.images.fingerprint()}
    found = fit_units(features, readings, gradients, anchor, scorer, cut, scope, origin, RESAMPLES, cut_parameters)
    return Detector(
        backbone=backbone,
        units=tuple(found.unit_set.units),
        anchor=found.anchor,
        layers=layers if isinstance(layers, LayerReport) else None,
        scores=found.unit_set.scores,
        unit_set=found.unit_set,
        equalisation=equalisation,
        skipped=features.images.skipped,
        provenance={
            "data": origin["data"],
            "origin": images.origin,
            "images": {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())},
            "image_hashes": sorted({content_hash(image)[:HASH_DIGITS] for image in features.images.images}),
            "layers": names,
            "rule": layers.rule if isinstance(layers, LayerReport) else "named",
            "kinds": list(kinds),
            "scorer": scorer,
            "classifier": classifier,
            "shots": shots,
            "seed": seed,
            "out_of_fold_auc": found.out_of_fold_auc,
            "versions": versions(),
        },
    )


@dataclass(frozen=True)
class FittedUnits:
    """The units left of some readings, and the classifier on them.

    Attributes:
        anchor: fitted on the units of ``unit_set``.
        unit_set: the units, with the scores that they were cut from.
        out_of_fold_auc: AUC of the cross-fitted scores of the training images; None where they could not be made.
    """

    anchor: AnchorClassifier
    unit_set: UnitSet
    out_of_fold_auc: float | None


def fit_units(
    features: Features,
    readings: Sequence[Reading],
    gradients: Gradients | None,
    anchor: AnchorClassifier,
    scorer: str = "triadic",
    cut: str = "knee",
    scope: str = "global",
    provenance: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    cut_parameters: Mapping[str, float] | None = None,
) -> FittedUnits:
    """The part of ``fit`` behind the forward passes: score, cut, and fit the classifier given, on features at hand.

    Args:
        resamples: draws for the spread of the knee; none of them changes the units.

    Raises:
        DnaProbeError: no unit left. NumericalError: a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    seed = anchor.random_state
    scores = score_features(features, readings, scorer, gradients, seed, provenance, resamples)
    unit_set = truncate(scores, cut, scope, **(cut_parameters or {}))
    if not len(unit_set):
        raise DnaProbeError(f"No unit is left: {unit_set.reason}", fix="Use another cut, for example 'fraction'")
    values, labels, groups = features.of(readings), features.images.labels, features.images.groups
    with small_fits():
        anchor.strength = anchor.choose_strength(values[:, unit_set.mask], labels, groups)
        cross_fitted = _cross_fit(features, readings, gradients, anchor, unit_set)
        anchor.fit(values[:, unit_set.mask], labels, groups, cross_fitted)
    auc = None if cross_fitted is None else float(roc_auc_score(labels, cross_fitted))
    return FittedUnits(anchor, unit_set, auc)


def _cross_fit(
    features: Features,
    readings: Sequence[Reading],
    gradients: Gradients | None,
    anchor: AnchorClassifier,
    unit_set: UnitSet,
) -> np.ndarray | None:
    """Decision values of each training image from units and a classifier chosen without its group, (n,)."""
    images, values, seed = features.images, features.of(readings), anchor.random_state
    scorer = unit_set.scores.scorer
    scores = np.zeros(len(images))
    pairs = folds(images.labels, images.groups, seed=seed)
    for train, test in pairs:
        part = features.subset(train)
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
