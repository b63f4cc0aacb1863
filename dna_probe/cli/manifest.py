from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import DnaProbeError

if TYPE_CHECKING:
    from dna_probe.images.sets import ImageSet

SCHEMA = "dna_probe.manifest/1"


def manifest(
    data: Annotated[Path, typer.Argument(help="Folder, manifest or archive.")],
    out: Annotated[Path, typer.Option(help="File to write: .csv, .jsonl or .parquet.")],
    layout: shared.LayoutName = "auto",
    join_duplicates: Annotated[
        bool, typer.Option("--join-duplicates/--no-join-duplicates", help="Put near-duplicates into one group.")
    ] = True,
    workers: shared.Workers = 2,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """List a set of images in one table, with what is known of each and what must stay together."""
    from dna_probe.images.duplicates import find_near_duplicates, join_groups, straddling_groups
    from dna_probe.images.manifests import changed_images, require_manifest_name, write_manifest
    from dna_probe.images.tables import MANIFEST_SUFFIXES
    from dna_probe.shards import progress_bar

    require_manifest_name(out)
    if out.is_dir():
        raise DnaProbeError(f"{out} is a folder", fix="Give the name of a file in it")
    if out.exists() and not overwrite:
        raise DnaProbeError(f"{out} exists", fix="Choose another file or pass --overwrite")
    images = shared.read_set(data, layout, quiet, images_for="A manifest")
    if data.is_file() and data.suffix.lower() in MANIFEST_SUFFIXES:
        for name, reason in changed_images(data, workers):
            typer.echo(f"note: {name}: {reason}", err=True)
    duplicates: tuple[tuple[int, ...], ...] = ()
    if join_duplicates:
        with progress_bar(len(images), not quiet) as advance:
            duplicates = find_near_duplicates(images, workers=workers, advance=advance)
        images = join_groups(images, duplicates)
    with progress_bar(len(images), not quiet) as advance:
        written = write_manifest(images, out, workers, advance)
    straddling = straddling_groups(written)
    for warning in warnings(written, straddling) if not quiet else ():
        typer.echo(f"warning: {warning}", err=True)
    if json:
        names = images.names
        shared.echo_json(
            {
                "schema": SCHEMA,
                "manifest": str(out),
                "layout": images.layout,
                "images": len(written),
                "generators": written.counts(),
                "splits": counts_by_split(written),
                "groups": len(set(written.groups)),
                "near_duplicates": [[names[position] for position in same] for same in duplicates],
                "groups_in_several_splits": list(straddling),
                "skipped": [{"path": name, "error": reason} for name, reason in written.skipped],
            }
        )
    elif not quiet:
        echo_manifest(written, out, len(duplicates))
    shared.report_skipped(written.skipped)


def counts_by_split(images: ImageSet) -> dict[str, dict[str, int]]:
    """How many real and fake images each split holds; "" stands for no split."""
    counted: dict[str, dict[str, int]] = {}
    for split, label in zip(images.splits, images.labels.tolist(), strict=True):
        words = counted.setdefault(split, {"real": 0, "fake": 0})
        if label >= 0:
            words["fake" if label else "real"] += 1
    return counted


def warnings(images: ImageSet, straddling: Sequence[str]) -> Iterator[str]:
    """What of the splits would spoil a result measured on them."""
    for split, words in counts_by_split(images).items():
        if split and 0 in words.values():
            yield f"split {split!r} holds {words['real']} real and {words['fake']} fake images; using it needs both"
    if straddling:
        count = len(straddling)
        yield f"groups that belong together lie in more than one split: {count}, the first is {straddling[0]!r}"


def echo_manifest(images: ImageSet, out: Path, duplicates: int) -> None:
    counted = Counter(zip(images.splits, images.generators, strict=True))
    typer.echo(
        f"{out}: {len(images)} images in {len(set(images.groups))} groups, sets of near-duplicates: {duplicates}"
    )
    rows = [(split or "-", generator, count) for (split, generator), count in counted.items()]
    shared.echo_table("", ["split", "generator", "images"], rows)
