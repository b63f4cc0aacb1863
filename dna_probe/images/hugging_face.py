"""Hugging Face `datasets`: objects in memory, and the folders that `save_to_disk` writes. Neither needs the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.archives import encoded_bytes, image_column
from dna_probe.images.manifests import read_tables
from dna_probe.images.sets import ImageSet
from dna_probe.images.tables import Table, label_names, open_table

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


@dataclass(frozen=True)
class DatasetRow:
    """One row of a dataset in memory; its image is taken out, still encoded, when it is read."""

    dataset: Any = field(repr=False)
    row: int
    column: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.title}::{self.row}"

    def read_bytes(self) -> bytes:
        """The encoded image. Raises `OSError` where the row holds none."""
        return encoded_bytes(self.dataset[self.row].column(self.column)[0].as_py(), None)


def is_dataset(data: object) -> bool:
    """Whether something is a `Dataset` or `DatasetDict`, streaming or not; the library is not imported."""
    return type(data).__module__.partition(".")[0] == "datasets"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / _SPLITS).is_file() or all((folder / name).is_file() for name in (_STATE, _INFO))


def read_dataset(data: Any) -> ImageSet:
    """The images of a `Dataset`, or of all splits of a `DatasetDict`; columns as in a manifest, class names included.

    Images stay encoded and where they are; those that the dataset keeps as files become paths. Raises `DataError` for
    a streaming dataset, whose rows cannot be gone back to, and for missing columns and unknown labels.
    """
    parts = data if isinstance(data, Mapping) else {str(getattr(data, "split", None) or ""): data}
    tables = [_table(part, split) for split, part in parts.items()]
    origin = f"a {type(data).__name__} of {sum(len(table.rows) for table in tables)} rows"
    return read_tables(tables, origin, "datasets")


def read_saved_dataset(folder: Path) -> ImageSet:
    """The images of a folder that `save_to_disk` wrote, read in place. Raises `DataError` where it is damaged."""
    tables = []
    for part, split in _saved_parts(folder):
        state = _load(part / _STATE)
        for file in state.get("_data_files") or []:
            if not isinstance(file, dict) or "filename" not in file:
                raise DataError(f"{part / _STATE} is not what save_to_disk writes", "", "save the dataset again")
            table = open_table(part / str(file["filename"]))
            tables.append(replace(table, split=split or str(state.get("_split") or "")))
    return read_tables(tables, str(folder), "datasets")


def _saved_parts(folder: Path) -> list[tuple[Path, str]]:
    if (folder / _SPLITS).is_file():
        return [(folder / str(split), str(split)) for split in _load(folder / _SPLITS).get("splits", [])]
    return [(folder, "")]


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", str(error), "save the dataset again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is not what save_to_disk writes", "", "save the dataset again")
    return found


def _table(dataset: Any, split: str) -> Table:
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and hasattr(dataset, "with_format")):
        raise DataError(
            f"A {type(dataset).__name__} cannot be read",
            "its rows come one after the other, and images are read more than once",
            "load it without streaming, or save some of it with save_to_disk",
        )
    title = split or "dataset"
    schema = dataset.features.arrow_schema
    image = image_column(schema)
    raw = dataset.with_format("arrow")
    table = Table(title, tuple(schema.names), (), Path("/"), image_column=image or "", split=split)
    wanted = table.column_names()
    rows = raw.select_columns(wanted)[:].to_pylist() if wanted else [{}] * len(dataset)
    names = label_names(schema, table.columns().get("label"))
    if image is None:
        return replace(table, rows=list(enumerate(rows)), label_names=names)
    encoded = raw.select_columns([image])
    first = encoded[0].column(image)[0].as_py() if rows else None
    if isinstance(first, dict) and first.get("bytes") is None and first.get("path"):
        paths = encoded[:].column(image).to_pylist()
        rows = [{**row, "path": cell["path"]} for row, cell in zip(rows, paths, strict=True)]
        listed = ("path", *(name for name in table.names if name != image))
        return replace(table, rows=list(enumerate(rows)), names=listed, image_column="", label_names=names)
    return replace(
        table,
        rows=list(enumerate(rows)),
        cell=lambda row: DatasetRow(encoded, row, image, title),
        label_names=names,
    )
