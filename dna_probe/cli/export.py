from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def export(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote.")],
    out: Annotated[Path, typer.Option(help="File to write, ending in .onnx or .pt2.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", help="onnx, or torch-export; left out, what the suffix of --out says."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights of 8 bits: smaller, and the probabilities move.")
    ] = False,
    agree: Annotated[
        list[str] | None,
        typer.Option(help="Images, folder or glob on which the file is compared with the detector; may be repeated."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a probability for which the file is kept.")
    ] = 1e-4,
    weights: shared.Weights = None,
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Write a detector of images to one file that runs without this package, and compare it with the detector."""
    from dna_probe.detector import load
    from dna_probe.exporting import export as write
    from dna_probe.exporting import require_writable
    from dna_probe.samples import read_unlabelled_samples

    # Before the detector is opened, which takes seconds.
    require_writable(out, format_, int8, overwrite)
    images = read_unlabelled_samples(agree, "image") if agree else None
    report = write(
        load(detector, weights=weights, device="cpu"),
        out,
        format_,
        int8=int8,
        agree=images,
        tolerance=tolerance,
        overwrite=overwrite,
        options=shared.make_options(batch_size, workers, None, quiet),
    )
    if json:
        shared.echo_json(report.to_json())
    elif not quiet:
        found = report.agreement
        shared.echo_table(
            f"{report.path}: {report.format}, {report.precision}, {report.size / 1e6:.1f} MB",
            ["compared with the detector", ""],
            [
                ("images", f"{found.images} of {found.origin}"),
                ("equal verdicts", f"{found.equal_verdicts:.1%}"),
                ("largest difference of a probability", f"{found.max_difference:.1e}"),
                ("mean difference", f"{found.mean_difference:.1e}"),
            ],
        )
