"""Tables that describe samples, row by row: CSV, TSV, JSON, JSON lines, parquet, Arrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.archives import (
    TABLE_SUFFIXES,
    DamagedTable,
    TableCell,
    image_column,
    read_columns,
    read_schema,
)
from dna_probe.images.folders import Place, place_in_folders, shard_name, split_of
from dna_probe.images.reading import Source

TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".json"})
MANIFEST_SUFFIXES = TEXT_SUFFIXES | TABLE_SUFFIXES
# The names under which published tables keep the same things, in lower case.
COLUMNS = {
    "path": ("path", "image_path", "file", "filename", "file_name", "image", "image_data"),
    "label": ("label", "class", "target"),
    "generator": ("generator", "model_name", "model"),
    "kind": ("type",),
    "group": ("group",),
    "prompt": ("prompt",),
    "split": ("split",),
    "date": ("release_date",),
    "sha256": ("sha256",),
    "root": ("root",),
}

Row = tuple[int | str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """Rows that describe images, each with its number or key (a `unit`, counted as a person would look it up).

    Where the images are inside, `cell` gives the one of a row, and `image_column` is where they were found; else a
    column holds their paths, relative to `folder`. `place` and `split` are what the table's own name says for rows that
    do not say it themselves; `label_names` what the numbers 0, 1, ... in its label column stand for.
    """

    name: str
    names: tuple[str, ...]
    rows: Sequence[Row]
    folder: Path
    cell: Callable[[Any], Source] | None = None
    image_column: str = ""
    unit: str = "Row"
    place: Place | None = None
    split: str = ""
    label_names: tuple[str, ...] = ()
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: COLUMNS)

    def columns(self) -> dict[str, tuple[str, ...]]:
        """For each kind of thing in `kinds` the columns that may hold it here, where there are any."""
        present: dict[str, str] = {}
        for name in self.names:
            if name != self.image_column:
                present.setdefault(name.strip().lower(), name)
        found = {
            kind: tuple(present[alias] for alias in aliases if alias in present) for kind, aliases in self.kinds.items()
        }
        return {kind: names for kind, names in found.items() if names}

    def column_names(self) -> list[str]:
        """The names of all columns in `columns`, each once."""
        return list(dict.fromkeys(name for names in self.columns().values() for name in names))

    def has(self, *names: str) -> bool:
        """Whether there are columns of these very names, in any case."""
        return {name.lower() for name in names} <= {name.strip().lower() for name in self.names}


def open_table(
    path: Path,
    root: Path | None = None,
    kinds: Mapping[str, tuple[str, ...]] = COLUMNS,
    first: int | None = None,
) -> Table:
    """The rows of a table, images inside left where they are. Raises `DataError` where it is damaged.

    `root` is the folder in which it was found, whose folder names may say what the table does not. `kinds` are the
    things looked for and the names of their columns. `first` is how many rows of a text file are read (None: all).
    """
    folders = path.relative_to(root).parts[:-1] if root is not None else ()
    parts = (*folders, shard_name(path))
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _open_columnar(path, parts, kinds)
    read = islice(_text_rows(path), first)
    rows = [(number, row) for number, row in read if any(is_given(value) for value in row.values())]
    names = dict.fromkeys(str(name) for _, row in rows for name in row)
    return Table(str(path), tuple(names), rows, path.parent, split=split_of(parts), kinds=kinds)


def label_names(schema: Any, columns: tuple[str, ...] | None) -> tuple[str, ...]:
    """What Hugging Face wrote into a schema about the classes in the first of some columns; () where it did not."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[columns[0]]["names"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return ()


def is_given(value: object) -> bool:
    return value is not None and value != "" and value != []


def _open_columnar(path: Path, parts: tuple[str, ...], kinds: Mapping[str, tuple[str, ...]]) -> Table:
    schema = read_schema(path)
    image = image_column(schema)
    table = Table(
        name=str(path),
        names=tuple(schema.names),
        rows=(),
        folder=path.parent,
        cell=None if image is None else lambda row: TableCell(path, row, image),
        image_column=image or "",
        place=None if image is None else place_in_folders(parts),
        split=split_of(parts),
        kinds=kinds,
    )
    rows = list(enumerate(read_columns(path, table.column_names())))
    if image is None:
        # As in a text file, an empty row lists nothing.
        rows = [(number, row) for number, row in rows if any(is_given(value) for value in row.values())]
    return replace(table, rows=rows, label_names=label_names(schema, table.columns().get("label")))


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, counted as an editor counts lines where the file has lines."""
    kind = path.suffix.lower()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if kind in (".csv", ".tsv"):
                yield from _csv_rows(csv.DictReader(file, delimiter=_delimiter(file, kind), strict=True), path)
            elif kind == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, _record(_parsed(line, path, number), path, number)
            else:
                table = json.load(file)
                table = table.get("images") if isinstance(table, dict) else table
                if not isinstance(table, list):
                    raise DataError(f"{path} is no manifest", "a JSON manifest is a list of objects")
                for number, record in enumerate(table, start=1):
                    yield number, _record(record, path, number)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(path, str(error)) from None


def _csv_rows(reader: csv.DictReader, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for row in reader:
            # Spreadsheets end rows in empty cells.
            if any(row.pop(None, ())):  # type: ignore[call-overload]
                raise DamagedTable(
                    f"Row {reader.line_num} of {path} has more cells than the header",
                    "",
                    "put cells that hold the delimiter into quotation marks",
                )
            yield reader.line_num, row
    except csv.Error as error:
        # Of the row that a stray quotation mark opens, the first line.
        raise _damaged(path, f"row {reader.line_num + 1}: {error}") from None


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {number}: {error.msg}, at column {error.colno}") from None


def _damaged(path: Path, why: str) -> DamagedTable:
    return DamagedTable(f"{path} cannot be read as a {path.suffix.lower()[1:]} table", why)


def _record(record: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"Row {number} of {path} is not an object", "", 'write {"path": ..., "label": ...}')
    return record


def _delimiter(file: Any, kind: str) -> str:
    header = file.readline()
    file.seek(0)
    return "\t" if kind == ".tsv" else max(",;\t", key=header.count)
