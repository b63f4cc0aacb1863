from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dna_probe.cli import arguments as shared


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder (real/, fake/<generator>/) or table of training images, texts or recordings, or its URL."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the detector.")],
    backbone: shared.BackboneName = "nano",
    shots: Annotated[int | None, typer.Option(min=1, help="Samples per class; left out, all.")] = None,
    rule: shared.Rule = "transition",
    layer: Annotated[
        list[str] | None, typer.Option(help="Site name of a layer, in place of a rule; repeatable.")
    ] = None,
    kinds: shared.Kinds = "cls,mean",
    scorer: shared.Scorer = "whitened",
    cut: shared.Cut = "cumulative_knee",
    fraction: shared.Fraction = None,
    scope: Annotated[str, typer.Option(help="Cut one ranking of all units (global) or one per layer.")] = "global",
    classifier: shared.Classifier = "whitened",
    views: Annotated[
        str | None,
        typer.Option(
            help="Processed views of each training image, by comma: blur, resize, jpeg, webp, noise, crop; '' for "
            "none. Left out, blur; of texts and recordings there are none."
        ),
    ] = None,
    reals: Annotated[
        list[Path] | None, typer.Option(help="More real samples, beyond the shots: folder, file or glob; repeatable.")
    ] = None,
    target_fpr: shared.TargetFpr = None,
    layout: shared.LayoutName = "auto",
    modality: shared.Modality = "auto",
    equalise: shared.Equalise = False,
    equalise_to: shared.EqualiseTo = shared.EQUALISE_TO,
    weights: shared.Weights = None,
    random_weights: shared.RandomWeights = False,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    engine: shared.Engine = "local",
    precision: shared.Precision = "float32",
    compile: shared.Compile = False,
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Fit a few-shot detector on the units that respond to forgery."""
    from dna_probe.fitting import fit as fit_detector
    from dna_probe.fitting import real_images
    from dna_probe.images.views import equalise_set
    from dna_probe.storage import require_free

    shared.require_local(out)
    require_free(out, overwrite)
    options = shared.make_options(batch_size, workers, cache, quiet, engine, precision, compile)
    images = shared.read_set(data, layout, quiet, modality)
    treatment = shared.make_equalisation(equalise, equalise_to)
    more = real_images(reals, images.modality) if reals else None
    if treatment is not None and images.modality == "image":
        images = shared.equalise(images, treatment, workers, quiet)
        more = more and equalise_set(more, treatment, workers)
    model = shared.make_backbone(backbone, weights, device, random_weights)
    parameters: dict[str, Any] = {} if fraction is None else {"fraction": fraction}
    detector = fit_detector(
        model,
        images,
        shots,
        layer or None,
        rule=rule,
        kinds=shared.names(kinds),
        scorer=scorer,
        cut=cut,
        scope=scope,
        classifier=classifier,
        views=None if views is None else shared.names(views),
        reals=more,
        target_fpr=target_fpr,
        equalisation=treatment if images.modality != "image" else None,
        seed=seed,
        options=options,
        **parameters,
    )
    detector = replace(detector, equalisation=treatment)
    detector.save(out, overwrite)
    if json:
        shared.echo_json(summary(detector))
    elif not quiet:
        echo_detector(detector)
        typer.echo(f"Written to {out}")
    shared.report_skipped(detector.skipped)


def summary(detector) -> dict:
    """What was fitted, in the stable JSON form."""
    return {
        "schema": "dna_probe.fit/1",
        "backbone": detector.backbone.name,
        "layers": detector.provenance["layers"],
        "units": list(detector.units),
        "units_scored": len(detector.unit_set.mask),
        "cut": detector.unit_set.to_json() | {"units": len(detector.units)},
        "threshold": detector.threshold,
        "unsure": list(detector.anchor.band_),
        "calibrated": detector.anchor.calibrated_,
        "out_of_fold_auc": detector.out_of_fold_auc,
        "provenance": dict(detector.provenance),
    }


def echo_detector(detector) -> None:
    from dna_probe.images.sets import noun_of

    counts, noun = detector.provenance["images"], noun_of(detector.backbone.preprocessing.modality)
    low, high = detector.anchor.band_
    auc = detector.out_of_fold_auc
    rows = [
        ("trained on", f"{counts['real']} real and {counts['fake']} fake {noun}"),
        ("layers", ", ".join(detector.provenance["layers"])),
        ("units", f"{len(detector.units)} of {len(detector.unit_set.mask)}: {detector.unit_set.reason}"),
        ("classifier", f"{detector.anchor.kind}, C = {detector.anchor.strength_:g}"),
        ("threshold", f"{detector.threshold:.3f}, unsure between {low:.3f} and {high:.3f}"),
        (
            "AUC, cross-fitted",
            f"too few {noun} to cross-fit" if auc is None else f"{auc:.3f} on the training generators only",
        ),
        ("forward pass", f"stops after layer {detector.deepest_layer + 1} of {detector.backbone.depth}"),
    ]
    shared.echo_table(f"Detector on {detector.backbone.name}", ["", ""], rows)
    shared.echo_agreement(detector.provenance)
