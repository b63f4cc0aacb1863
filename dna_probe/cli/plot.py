from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import ArtefactError, unknown_name

WRITERS = {
    "layers.json": "'locate' or 'fit'",
    "scores.json": "'fit'",
    "results.json": "'benchmark'",
    "audit.json": "'audit'",
    "verification.json": "'verify'",
    "stability.json": "'verify --checks stability'",
    "selectivity.json": "'verify --checks selectivity'",
}


def plot(
    figure: Annotated[
        str,
        typer.Argument(
            help="attention-shift, layers, scores, audit, few-shot, generators, robustness, reliability, roc, masking, "
            "stability or units."
        ),
    ],
    run: Annotated[
        Path, typer.Argument(help="Folder that 'locate', 'fit', 'demo', 'audit', 'benchmark' or 'verify' wrote.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .pdf, .svg or .png.")],
    columns: Annotated[int | None, typer.Option(min=1, max=2, help="Width: 1 or 2 columns of a paper.")] = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
) -> None:
    """Draw a figure for a paper from a finished run."""
    from dna_probe import plots

    if figure not in plots.FIGURES:
        raise unknown_name("figure", figure, plots.FIGURES)
    draw, result = plots.FIGURES[figure], plots.read_result(figure, run)
    if result is None:
        raise ArtefactError(
            f"{run} holds nothing to draw {figure} from",
            "The folder has no such result",
            f"Give a folder that {WRITERS[plots.FIGURES[figure].reads]} wrote",
        )
    drawn, _ = draw(result) if columns is None else draw(result, columns=columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save(drawn, out, overwrite)
    if not quiet:
        typer.echo(f"Written to {out}")
