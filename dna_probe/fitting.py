"""Fit a detector: locate, score, cut, classify, all on the training images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.anchor import CLASSIFIERS, AnchorClassifier, require_resolvable
from dna_probe.collection import Features, Options, collect_features, require_modality
from dna_probe.detector import Detector
from dna_probe.errors import DataError, DnaProbeError, unknown_name
from dna_probe.images.processed import DEFAULT_VIEWS, process, require_views
from dna_probe.images.reading import content_hash
from dna_probe.images.sampling import draw_shots, require_two_classes
from dna_probe.images.sets import REAL, UNLABELLED, ImageSet, join, noun_of
from dna_probe.images.sources import EncodedImage
from dna_probe.images.views import Equalisation, equalise_set
from dna_probe.layer_rules import require_rule
from dna_probe.location import LayerReport, bounded, collect_layer_features, report_layers
from dna_probe.precision import agreement_of
from dna_probe.probing import folds, small_fits
from dna_probe.samples import as_sources, in_memory, is_single, read_samples, read_unlabelled_samples
from dna_probe.scorers import Sensitivity, require_scorer
from dna_probe.scoring import (
    DEFAULT_KINDS,
    RESAMPLES,
    collect_evidence,
    head_readings,
    readings_of,
    reference_head,
    require_kinds,
    score_features,
)
from dna_probe.sites import Reading
from dna_probe.truncation import UnitSet, needs_resamples, require_cut, truncate

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone


@dataclass(frozen=True)
class DnaSettings:
    """How a detector is fitted, by name; the defaults are those of ``fit`` and of the command line.

    Attributes:
        rule, kinds, scorer, cut, scope, classifier, views: see ``fit``.
        parameters: of the cut, as (name, value).
    """

    rule: str = "transition"
    kinds: tuple[str, ...] = DEFAULT_KINDS
    scorer: str = "whitened"
    cut: str = "cumulative_knee"
    scope: str = "global"
    classifier: str = "whitened"
    views: tuple[str, ...] = DEFAULT_VIEWS
    parameters: tuple[tuple[str, float], ...] = ()

    def check(self) -> None:
        """Raises ``DnaProbeError``, with near matches, for a mistyped name."""
        require_rule(self.rule)
        require_kinds(self.kinds)
        require_scorer(self.scorer)
        require_cut(self.cut, self.scope, dict(self.parameters))
        require_views(self.views)
        if self.classifier not in CLASSIFIERS:
            raise unknown_name("classifier", self.classifier, CLASSIFIERS)


DEFAULTS = DnaSettings()
# Enough of a SHA-256 to recognise an image that was trained on.
HASH_DIGITS = 16


def fit(
    model: Any,
    data: Any,
    shots: int | None = None,
    layers: LayerReport | Sequence[str] | None = None,
    *,
    rule: str = DEFAULTS.rule,
    kinds: Sequence[str] = DEFAULTS.kinds,
    scorer: str = DEFAULTS.scorer,
    cut: str = DEFAULTS.cut,
    scope: str = DEFAULTS.scope,
    classifier: str = DEFAULTS.classifier,
    views: Sequence[str] | None = None,
    reals: Any = None,
    target_fpr: float | None = None,
    equalisation: Equalisation | None = None,
    seed: int = 0,
    options: Options | None = None,
    **cut_parameters: float,
) -> Detector:
    """Locate layers, score their units, cut, and fit the anchor classifier, all on the training images alone.

    Args:
        model: any ``torch.nn.Module``, a backbone name, or a ``Backbone``.
        data: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; for backbones of texts or sounds, texts
            or recordings instead, see ``samples.read_samples``.
        shots: images per class, drawn evenly over generators and groups; None takes all.
        layers: a ``LayerReport`` (``locate_layers(model)`` on the built-in probe set, say) or site names; None
            locates them on the training images.
        rule, kinds, scorer, cut, scope, classifier: names, see ``layer_rules``, ``scoring``, ``truncation`` and
            ``anchor``; ``cut_parameters`` go to the cut.
        views: processed views that join each training image, see ``images.processed``; none with ``()``. None takes
            the default, a blurred view of images, and no view of texts and recordings, of which there are none.
        reals: more real images, beyond the shots: a folder, paths, or images in memory. They need no fakes beside them,
            and tell what real images differ in, which is no evidence of forgery.
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
    parameters = tuple(cut_parameters.items())
    named = DEFAULTS.views if views is None else tuple(views)
    settings = DnaSettings(rule, tuple(kinds), scorer, cut, scope, classifier, named, parameters)
    settings.check()
    anchor = AnchorClassifier(classifier, random_state=seed, target_fpr=target_fpr)
    backbone = open_backbone(model)
    images = read_samples(data)
    images = images.subset(images.labels != UNLABELLED)
    require_modality(backbone, images)
    if images.modality != "image":
        settings = replace(settings, views=no_views(images, views, equalisation))
    require_two_classes(images)
    if equalisation is not None:
        images = equalise_set(images, equalisation)
        require_two_classes(images)
    if shots is not None:
        images = draw_shots(images, shots, seed)
    if reals is not None:
        more = real_images(reals, images.modality)
        images = _join_new(images, more if equalisation is None else equalise_set(more, equalisation))
    if target_fpr is not None:
        require_resolvable(target_fpr, int((images.labels == 0).sum()))
    layer_features: Features | None = None
    if layers is None:
        layer_features = collect_layer_features(backbone, bounded(images, seed), options)
        layers = report_layers(backbone, layer_features, rule=rule, seed=seed)
    names = layers.selected if isinstance(layers, LayerReport) else list(layers)
    readings = readings_of(backbone, names, kinds)
    at = head_readings(backbone, readings, scorer)
    if at and layer_features is None:
        layer_features = collect_features(backbone, bounded(images, seed), at, options=options)
    heads = [reference_head(layer_features, reading, seed) for reading in at if layer_features]
    features, gradients = collect_evidence(backbone, images, readings, heads, scorer, options)
    features, processed = collect_views(backbone, features, settings.views, readings, options)
    labels = features.images.labels
    origin = {"backbone": backbone.identity(), "data": features.images.fingerprint()}
    found = fit_units(features, readings, gradients, anchor, settings, processed, origin, RESAMPLES)
    detector = Detector(
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
            "views": list(settings.views),
            "shots": shots,
            "seed": seed,
            "out_of_fold_auc": found.out_of_fold_auc,
            "versions": versions(),
        },
    )
    judge = detector.anchor.predict_proba
    agreement = agreement_of(backbone, features.images, detector.units_by_reading, options, judge)
    return replace(detector, provenance={**detector.provenance, **agreement})


def no_views(
    samples: ImageSet, views: Sequence[str] | None = None, equalisation: Equalisation | None = None
) -> tuple[str, ...]:
    """Raises ``DataError`` where views or an equalisation were asked for, of which texts and recordings have none."""
    for asked, what in ((views, f"Views ({', '.join(views or ())})"), (equalisation, "Equalising")):
        if asked:
            raise DataError(
                f"{what} cannot be had of {noun_of(samples.modality)}",
                "It is a treatment of pixels",
                "Leave it out",
            )
    return ()


def real_images(given: Any, modality: str = "image") -> ImageSet:
    """Samples taken as real: a folder, files, globs, or samples in memory, each a group of its own; of a labelled set
    the real ones. A string alone is a place where they lie, also for texts; those in a list may be texts.

    Raises:
        DataError: nothing there.
    """
    if isinstance(given, ImageSet):
        if (given.labels != UNLABELLED).any():
            return given.of_label(REAL)
        return replace(given, labels=np.full(len(given), REAL), generators=("real",) * len(given))
    single = is_single(given, modality)
    listed = [given] if single else list(given)
    if all(isinstance(one, str | Path) for one in listed) and (single or not in_memory(listed, modality)):
        listed = list(read_unlabelled_samples(listed, modality))
    listed = list(as_sources(listed, modality))
    groups = tuple(f"real images/{position}" for position in range(len(listed)))
    labels = np.full(len(listed), REAL)
    return ImageSet(tuple(listed), labels, groups=groups, origin="more real samples", modality=modality)


def _join_new(images: ImageSet, more: ImageSet) -> ImageSet:
    """The images and those of ``more`` that are not among them: a copy under another group would lie in two folds."""
    known = {content_hash(image) for image in images.images}
    new = np.array([content_hash(image) not in known for image in more.images], dtype=bool)
    return join([images, more.subset(new)], images.origin)


def collect_views(
    backbone: Backbone,
    features: Features,
    views: Sequence[str],
    readings: Sequence[Reading],
    options: Options | None = None,
) -> tuple[Features, list[Features]]:
    """Features of the images under each view, and those of the images as they are; of all that every view can show."""
    images = features.images
    marked = replace(images, groups=tuple(str(position) for position in range(len(images))))
    seen = [
        collect_features(backbone, process(marked, view, backbone.preprocessing), readings, options=options)
        for view in views
    ]
    positions = [np.array([int(group) for group in part.images.groups], dtype=int) for part in seen]
    common = reduce(np.intersect1d, positions, np.arange(len(images)))
    kept = features.subset(common)
    failed = dict(entry for part in seen for entry in part.images.skipped)
    kept = replace(kept, images=replace(kept.images, skipped=(*images.skipped, *failed.items())))
    return kept, [part.subset(np.isin(own, common)) for part, own in zip(seen, positions, strict=True)]


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


def stack(features: Features, processed: Sequence[Features]) -> Features:
    """Features of images, then of each view of them, as one set, in which the views of an image share its name."""
    images, times = features.images, 1 + len(processed)
    # By name alone: images in memory are called by their place, which changes in a subset.
    named = replace(images, images=tuple(EncodedImage(name, b"") for name in images.names))
    rows = named.subset(np.tile(np.arange(len(images)), times))
    values = [part.values for part in (features, *processed)]
    common = set(values[0]).intersection(*values)
    return Features(rows, {name: np.concatenate([part[name] for part in values]) for name in common}, {})


def fit_units(
    features: Features,
    readings: Sequence[Reading],
    sensitivity: Sensitivity | None,
    anchor: AnchorClassifier,
    settings: DnaSettings = DEFAULTS,
    processed: Sequence[Features] = (),
    provenance: Mapping[str, Any] | None = None,
    resamples: int = 0,
    calibrate: bool = True,
) -> FittedUnits:
    """The part of ``fit`` behind the forward passes: score, cut, and fit the classifier given, on features at hand.

    Args:
        processed: the same images under each view.
        resamples: draws for the spread of the knee; but for the cut ``stable``, none of them changes the units.
        calibrate: cross-fit the training images for probabilities and a threshold; most of the time goes there.

    Raises:
        DnaProbeError: no unit left. NumericalError: a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    rows, seed = stack(features, processed), anchor.random_state
    counted = np.arange(len(rows.images)) < len(features.images)
    values, labels, groups = rows.of(readings), rows.images.labels, rows.images.groups
    with small_fits():
        unit_set = choose_units(rows, readings, sensitivity, settings, seed, resamples, provenance)
        if not len(unit_set):
            raise DnaProbeError(f"No unit is left: {unit_set.reason}", fix="Use another cut, for example 'fraction'")
        anchor.widths = unit_set.widths
        anchor.strength = anchor.choose_strength(values[:, unit_set.mask], labels, groups)
        # Of one group there are no folds.
        groups = groups if calibrate else ("all",) * len(labels)
        pairs = folds(labels, groups, seed=seed)
        crossed = np.zeros(len(labels))
        for train, test in pairs:
            found = choose_units(rows.subset(train), readings, sensitivity, settings, seed)
            # A fold in which nothing passes the cut is read through the units of the whole set.
            found = found if len(found) else unit_set
            fitted = AnchorClassifier(anchor.kind, anchor.strength, random_state=seed, widths=found.widths)
            inside, outside = values[train][:, found.mask], values[test][:, found.mask]
            crossed[test] = fitted.fit_decision(inside, labels[train], outside)
        anchor.fit(values[:, unit_set.mask], labels, groups, crossed if pairs else None, counted)
    auc = float(roc_auc_score(labels[counted], crossed[counted])) if pairs else None
    return FittedUnits(anchor, unit_set, auc)


def choose_units(
    rows: Features,
    readings: Sequence[Reading],
    sensitivity: Sensitivity | None,
    settings: DnaSettings,
    seed: int = 0,
    resamples: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> UnitSet:
    """Score and cut; there may be no unit left.

    Args:
        rows: of images and their views, see ``stack``.
    """
    if needs_resamples(settings.cut):
        resamples = max(resamples, RESAMPLES)
    scores = score_features(rows, readings, settings.scorer, sensitivity, seed, provenance, resamples)
    return truncate(scores, settings.cut, settings.scope, **dict(settings.parameters))


def versions() -> dict[str, str]:
    from importlib.metadata import version

    from dna_probe import __version__

    others = {name: version(name) for name in ("torch", "timm", "scikit-learn", "numpy", "kneed", "pillow")}
    return {"dna-probe": __version__, **others}
