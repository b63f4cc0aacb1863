from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def compare(
    first: Annotated[Path, typer.Argument(help="Folder that 'benchmark' wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one; differences are this one minus the first.")],
    seed: shared.Seed = 0,
    json: shared.Json = False,
) -> None:
    """Put two benchmarks side by side, with paired tests where they tested the same images."""
    from dna_probe.evaluation.comparison import compare as compare_runs

    found = compare_runs(first, second, seed)
    if json:
        shared.echo_json(found.to_json())
        return
    shared.echo_table(
        f"AUC in {found.runs[0]} and {found.runs[1]}",
        ["N", "method", "tested on", "first", "second", "change", "95 %", "p"],
        [
            (
                row["shots"],
                row["method"],
                "seen" if row["seen"] else "unseen",
                row["first"],
                row["second"],
                f"{row['change']:+.3f}",
                f"{row['low']:+.3f} to {row['high']:+.3f}" if row["paired"] else "not paired",
                f"{row['p']:.3f}" if row["paired"] else "",
            )
            for row in found.rows
        ],
    )
    for note in found.notes:
        typer.echo(f"! {note}")
