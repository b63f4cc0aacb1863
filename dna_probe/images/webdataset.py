"""WebDataset shards: tars in which the files of one sample share a key, the name up to its first dot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.archives import TarMember, list_members
from dna_probe.images.entries import parse_label
from dna_probe.images.folders import (
    NO_CLASS,
    archive_tree,
    is_image,
    place_in_folders,
    read_class_folders,
    shard_name,
    split_of,
)
from dna_probe.images.manifests import read_tables
from dna_probe.images.sets import ImageSet
from dna_probe.images.tables import COLUMNS, Table

_SIDECARS = ("json", "cls", "txt")


def read_webdataset(shards: Sequence[Path], root: Path | None = None) -> ImageSet:
    """The images in tars, read in place, labelled by the files beside them.

    Of a sample's `json` the same fields are used as of a manifest's columns; `cls` holds the label, `txt` the label or
    else the prompt. A sample without a label takes it from the folders in the tar and above it, and from the name of
    the shard (`real-0001.tar`), by the rule for folders; so do all samples of tars that hold nothing but images.
    Samples without an image, label or legible JSON are listed in `skipped`. Raises `DataError` for a damaged tar, an
    unknown label, or where nothing usable is found.
    """
    members: list[list[TarMember]] = [list(list_members(shard)) for shard in shards]  # type: ignore[arg-type]
    if not any(_key(member)[1] in _SIDECARS for shard in members for member in shard):
        return read_class_folders(archive_tree(shards, root))
    origin = str(shards[0] if root is None else root)
    skipped: list[tuple[str, str]] = []
    tables = [_open_shard(shard, root, found, skipped) for shard, found in zip(shards, members, strict=True)]
    if not any(table.rows for table in tables):
        raise DataError(
            f"No labelled images in {origin}",
            f"the first of its samples is left out because it {skipped[0][1]}",
            "put a json with a label, or a cls, beside each image",
        )
    return read_tables(tables, origin, "webdataset", skipped)


def _open_shard(shard: Path, root: Path | None, members: Sequence[TarMember], skipped: list[tuple[str, str]]) -> Table:
    above = (*(shard.relative_to(root).parts[:-1] if root is not None else ()), shard_name(shard))
    samples: dict[str, list[TarMember]] = {}
    for member in members:
        samples.setdefault(_key(member)[0], []).append(member)
    rows: list[tuple[str, dict[str, Any]]] = []
    for key, files in samples.items():
        images = [member for member in files if is_image(PurePosixPath(member.member).name)]
        try:
            row = _describe(files)
        except (OSError, ValueError) as error:
            skipped.append((f"{shard}::{key}", f"has a file beside it that cannot be read ({error})"))
            continue
        if not images:
            skipped.append((f"{shard}::{key}", "has no image"))
        elif "label" not in row:
            place = place_in_folders((*above, *PurePosixPath(key).parts[:-1]))
            if place is None:
                skipped.append((f"{shard}::{key}", f"has no label, and {NO_CLASS}"))
                continue
            row["label"] = place.label
            if not row.keys() & set(COLUMNS["generator"]):
                row["generator"] = place.generator
        rows += [(image.member, row) for image in images]
    by_name = {member.member: member for member in members}
    names = dict.fromkeys(name for _, row in rows for name in row)
    return Table(
        str(shard), tuple(names), rows, shard.parent, cell=by_name.__getitem__, unit="Sample", split=split_of(above)
    )


def _describe(files: Sequence[TarMember]) -> dict[str, Any]:
    """What the files beside an image say of it. Raises `ValueError` where they cannot be understood."""
    row: dict[str, Any] = {}
    for kind in _SIDECARS:
        for member in files:
            if _key(member)[1] == kind:
                text = member.read_bytes().decode("utf-8-sig").strip()
                said = _fields(kind, text)
                row = {**said, **row}
    return row


def _fields(kind: str, text: str) -> dict[str, Any]:
    if kind == "json":
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("the JSON is not an object")
        return {str(name).strip().lower(): value for name, value in said.items() if value is not None}
    return {"label" if kind == "cls" or parse_label(text) is not None else "prompt": text}


def _key(member: TarMember) -> tuple[str, str]:
    """The key of the sample a file belongs to, and what kind of file it is there."""
    folder, slash, name = member.member.rpartition("/")
    stem, _, kind = name.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()
