from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dna_probe.cli import arguments as shared

if TYPE_CHECKING:
    from dna_probe.evaluation.examination import Evaluation


def evaluate(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote.")],
    data: Annotated[str, typer.Argument(help="Labelled images: a folder, an archive, a manifest, or the URL of one.")],
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and evaluation.csv.")] = None,
    layout: shared.LayoutName = "auto",
    modality: shared.Modality = "auto",
    equalise: shared.Equalise = False,
    equalise_to: shared.EqualiseTo = shared.EQUALISE_TO,
    weights: shared.Weights = None,
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
    """Measure a fitted detector on labelled images, at its own threshold.

    A detector that was fitted with --equalise treats these images alike; the option here is for one that was not.
    """
    from dna_probe.detector import load
    from dna_probe.evaluation.examination import evaluate as examine
    from dna_probe.storage import replacing_folder, require_free

    shared.require_local(out)
    if out is not None:
        require_free(out, overwrite)
    options = shared.make_options(batch_size, workers, cache, quiet, engine, precision, compile)
    images = shared.read_set(data, layout, quiet, modality)
    loaded = load(detector, weights=weights, device=device)
    treatment = loaded.equalisation or shared.make_equalisation(equalise, equalise_to)
    if treatment is not None and not quiet:
        typer.echo(f"equalising: {treatment}", err=True)
    found = examine(loaded, images, equalisation=treatment, seed=seed, options=options)
    if out is not None:
        with replacing_folder(out, overwrite) as folder:
            (folder / "evaluation.json").write_text(jsonlib.dumps(found.to_json(), indent=1))
            found.table().to_csv(folder / "evaluation.csv", index=False)
    if json:
        shared.echo_json(found.to_json())
    elif not quiet:
        echo_evaluation(found)
    shared.report_skipped(found.skipped)


def echo_evaluation(found: Evaluation) -> None:
    shared.echo_table(
        f"{found.origin}, threshold {found.provenance['threshold']:.3f}",
        [
            "generator",
            "real",
            "fake",
            "AUC",
            "bal. acc.",
            "FPR",
            "TPR",
            "at 1 / 5 % FPR",
            "ECE",
            "Brier",
            "unsure",
        ],
        [
            (
                row["generator"],
                row["real"],
                row["fake"],
                row.get("auc", ""),
                row.get("balanced_accuracy", ""),
                row.get("fpr", ""),
                row.get("tpr", ""),
                f"{row['tpr_at_1']:.3f} / {row['tpr_at_5']:.3f}" if "tpr_at_1" in row else "",
                row.get("ece", ""),
                row.get("brier", ""),
                _share(row.get("unsure_share")),
            )
            for row in found.rows
        ],
    )
    shared.echo_agreement(found.provenance)
    for flag in found.flags:
        typer.echo(f"! {flag}")


def _share(value: Any) -> str:
    return "" if value is None else f"{value:.0%}"
