from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def locate(
    data: Annotated[
        str | None, typer.Argument(help="Folder, table or URL of one; left out, the built-in probe set of images.")
    ] = None,
    backbone: shared.BackboneName = "nano",
    rule: shared.Rule = "transition",
    out: Annotated[Path | None, typer.Option(help="Folder for layers.json, layers.csv and the figures.")] = None,
    layout: shared.LayoutName = "auto",
    modality: shared.Modality = "auto",
    weights: shared.Weights = None,
    random_weights: shared.RandomWeights = False,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    engine: shared.Engine = "local",
    precision: shared.Precision = "float32",
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Find the layers where attention turns local and real and fake come apart."""
    from dna_probe.images.probe_set import probe_set
    from dna_probe.images.sets import noun_of
    from dna_probe.layer_rules import require_rule
    from dna_probe.location import locate_layers
    from dna_probe.storage import replacing_folder, require_free

    require_rule(rule)
    shared.require_local(out)
    if out is not None:
        require_free(out, overwrite)
    options = shared.make_options(batch_size, workers, cache, quiet, engine, precision)
    images = probe_set() if data is None else shared.read_set(data, layout, quiet, modality)
    model = shared.make_backbone(backbone, weights, device, random_weights)
    report = locate_layers(model, images, rule=rule, seed=seed, options=options)
    if out is not None:
        with replacing_folder(out, overwrite) as folder:
            write_report(report, folder)
    if json:
        shared.echo_json(report.to_json())
    elif not quiet:
        echo_layers(report, noun_of(images.modality))
    shared.report_skipped(report.skipped)


def write_report(report, folder: Path) -> None:
    """layers.json, layers.csv and both figures."""
    from dna_probe import plots

    (folder / "layers.json").write_text(jsonlib.dumps(report.to_json()))
    report.table().to_csv(folder / "layers.csv", index=False)
    plots.save(plots.attention_shift(report)[0], folder / "attention_shift.pdf")
    plots.save(plots.layers(report)[0], folder / "layers.pdf")


def echo_layers(report, noun: str = "images") -> None:
    counts = report.provenance["images"]
    curves = ("cosine_shift", "normalised_shift", "probe_auc", "attention_js", "spread")
    rows = [
        [
            ("* " if report.taken[i] else "  ") + name,
            *(f"{report.curves[c].value[i]:.4f}" for c in curves),
            report.reasons[i],
        ]
        for i, name in enumerate(report.layers)
    ]
    title = (
        f"{report.provenance['backbone']['name']}, {counts['real']} real and {counts['fake']} fake {noun}; "
        f"rule '{report.rule}' takes {len(report.selected)} of {len(report.layers)} layers (*)"
    )
    shared.echo_table(title, ["layer", *curves, "why"], rows)
    shared.echo_agreement(report.provenance)
