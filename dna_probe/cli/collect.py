from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dna_probe.cli import arguments as shared

if TYPE_CHECKING:
    from dna_probe.activations import Activations

SCHEMA = "dna_probe.collect/1"


def collect(
    data: Annotated[str, typer.Argument(help="Folder or table of images, texts or recordings, or its URL.")],
    sites: Annotated[
        str, typer.Option(help="Site names or shell globs, by comma, such as 'blocks.*.hook_resid_post'.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.")],
    backbone: shared.BackboneName = "nano",
    dtype: Annotated[str, typer.Option(help="Type to store: float32, float16 or bfloat16.")] = "float32",
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in one file; left out, as many as make up 256 MB.")
    ] = None,
    layout: shared.LayoutName = "auto",
    modality: shared.Modality = "auto",
    weights: shared.Weights = None,
    random_weights: shared.RandomWeights = False,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Store raw activations, all tokens, after saying how much disk they take.

    A run that was interrupted goes on where it stopped when the same command is given again.
    """
    from dna_probe.activation_shards import collect_activations
    from dna_probe.storage import require_free

    shared.require_local(out)
    require_free(out, overwrite)
    images = shared.read_set(data, layout, quiet, modality)
    try:
        found = collect_activations(
            shared.make_backbone(backbone, weights, device, random_weights),
            images,
            shared.names(sites),
            out,
            shard_size,
            dtype,
            shared.make_options(batch_size, workers, None, quiet),
            overwrite=overwrite,
            say=lambda told: None if quiet else typer.echo(told, err=True),
        )
    except KeyboardInterrupt:
        typer.echo("dna-probe: interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(1) from None
    if json:
        shared.echo_json(summary(found))
    elif not quiet:
        echo_activations(found)
        typer.echo(f"Written to {out}")
    shared.report_skipped(found.skipped)


def summary(found: Activations) -> dict:
    """What was stored, in the stable JSON form."""
    return {
        "schema": SCHEMA,
        "activations": str(found.folder),
        "backbone": found.manifest["backbone"]["name"],
        "images": len(found),
        "dtype": found.manifest["dtype"],
        "sites": {name: list(shape) for name, shape in found.sites.items()},
        "shards": len(found.manifest["shards"]),
        "bytes": found.size,
        "skipped": [{"path": name, "error": reason} for name, reason in found.skipped],
    }


def echo_activations(found: Activations) -> None:
    from rich.filesize import decimal

    from dna_probe.activation_shards import DTYPES

    item = DTYPES[found.manifest["dtype"]]
    rows = []
    for name, shape in found.sites.items():
        known = [length for length in shape if length is not None]
        size = decimal(math.prod(known) * item) if len(known) == len(shape) else "varies"
        rows.append((name, " x ".join("?" if length is None else str(length) for length in shape), size))
    typer.echo(repr(found))
    shared.echo_table("", ["site", "shape", "of one sample"], rows)
