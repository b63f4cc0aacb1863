from __future__ import annotations

import csv
import io
import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import DnaProbeError


def predict(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote.")],
    paths: Annotated[list[str], typer.Argument(help="Images (or texts, or recordings), folders or globs.")],
    out: Annotated[Path | None, typer.Option(help="File for the answer; left out, standard output.")] = None,
    csv_: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False,
    weights: shared.Weights = None,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Say of each image, text or recording whether it is real, fake, or unsure."""
    from dna_probe.detector import load, read_manifest
    from dna_probe.images.sets import noun_of
    from dna_probe.samples import read_unlabelled_samples
    from dna_probe.storage import write_atomically

    if json and csv_:
        raise DnaProbeError("--json and --csv exclude each other", fix="Choose one")
    if out is not None and out.exists() and not overwrite:
        raise DnaProbeError(f"{out} exists", fix="Choose another file or pass --overwrite")
    modality = read_manifest(detector)["preprocessing"].get("modality", "image")
    sources = read_unlabelled_samples(paths, modality)
    fitted = load(detector, weights=weights, device=device)
    predictions = fitted.judge(sources, shared.make_options(batch_size, workers, cache, quiet))
    if json or (out is not None and not csv_):
        text = jsonlib.dumps(
            {
                "schema": "dna_probe.predictions/1",
                "detector": {"path": str(detector), "backbone": fitted.backbone.name, "threshold": fitted.threshold},
                "predictions": [p.to_json() for p in predictions],
            },
            indent=1,
        )
    else:
        text = _csv(predictions) if csv_ else ""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (text + "\n").encode())
    elif text:
        typer.echo(text.rstrip("\n"))
    elif not quiet:
        rows = [
            (p.path, "" if p.probability is None else f"{p.probability:.3f}", p.verdict or f"error: {p.error}")
            for p in predictions
        ]
        shared.echo_table(
            f"{len(predictions)} {noun_of(modality)}, threshold {fitted.threshold:.3f}",
            [modality, "p(fake)", "verdict"],
            rows,
        )
    shared.report_skipped([(p.path, p.error) for p in predictions if p.error is not None])


def _csv(predictions) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["path", "probability", "verdict", "threshold", "error"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(p.to_json() for p in predictions)
    return buffer.getvalue()
