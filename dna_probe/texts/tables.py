"""Tables with a text in each row: CSV, TSV, JSON, JSON lines, parquet, Arrow."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dna_probe.content import StoredSample
from dna_probe.errors import DataError
from dna_probe.images.entries import Entry, assemble, parse_date, parse_label
from dna_probe.images.folders import SPLIT_FOLDERS, and_list, describe_splits
from dna_probe.images.sets import FAKE, REAL, ImageSet
from dna_probe.images.tables import COLUMNS, Table, is_given, open_table
from dna_probe.texts.reading import MAX_BYTES

TEXT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    **{kind: COLUMNS[kind] for kind in ("label", "generator", "group", "prompt", "split", "date")},
    "title": ("title",),
}
# What tells which texts belong together, the surest first.
_GROUPS = ("group", "prompt", "title")
_WORDS = {REAL: "human", FAKE: "machine", -1: "unlabelled"}


def open_texts(
    path: Path,
    root: Path | None = None,
    kinds: Mapping[str, tuple[str, ...]] = TEXT_COLUMNS,
    first: int | None = None,
) -> Table:
    """`open_table` for tables whose cells may hold as much as a text may."""
    limit = csv.field_size_limit(MAX_BYTES)
    try:
        return open_table(path, root, kinds, first)
    finally:
        csv.field_size_limit(limit)


def list_texts(path: Path) -> list[StoredSample]:
    """The texts of a table's column `text`, by the names `table.csv:12`, without the rows that hold none.

    Raises `DataError` where there is no such column, or no text in it.
    """
    table = open_texts(path)
    column = _require(table, "text")["text"]
    found = [_stored(table, number, text) for number, row in table.rows if (text := _text(row, column))]
    if not found:
        raise DataError(f"No texts in {path}", "its column 'text' is empty")
    return found


def read_text_tables(tables: Sequence[Table], origin: str) -> ImageSet:
    """The texts of tables that `open_texts` opened, in their order, by the names `table.csv:12`.

    Columns text and label (0/1, human/machine, real/fake, ai, generated) must be there; generator, split, release_date
    may be, and group, prompt or title, which texts that belong together share. Rows without a text, and texts that are
    there twice, are listed in `skipped`. Raises `DataError` for a missing column, an unknown label, one text under two
    labels, or where no text is left.
    """
    entries: list[Entry] = []
    skipped: list[tuple[str, str]] = []
    known: dict[bytes, tuple[str, int]] = {}
    for table in tables:
        columns = _require(table, "text", "label")
        for number, row in table.rows:
            text = _text(row, columns["text"])
            if not text:
                skipped.append((_name(table, number), "has no text"))
                continue
            entry = _entry(table, number, row, columns, text)
            where = f"{table.unit} {number} of {table.name}"
            key = hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()
            before, label = known.setdefault(key, (where, entry.label))
            if label != entry.label:
                raise DataError(
                    f"One text is listed as {_WORDS[label]} and as {_WORDS[entry.label]}",
                    f"({before} and {where})",
                    "keep the row that is right",
                )
            if before != where:
                skipped.append((_name(table, number), f"listed twice ({before} and {where})"))
            else:
                entries.append(entry)
    if not entries:
        raise DataError(f"No texts in {origin}", "no row of it holds a text")
    return assemble(entries, origin, _describe(tables, entries), skipped, "text")


def _require(table: Table, *needed: str) -> dict[str, tuple[str, ...]]:
    columns = table.columns()
    for wanted in needed:
        if wanted not in columns:
            raise DataError(
                f"{table.name} has no column {wanted!r}",
                f"its columns are {', '.join(table.names)}",
                "text and label are needed; generator, group and split are optional",
            )
    return columns


def _entry(table: Table, number: Any, row: dict[str, Any], columns: dict[str, tuple[str, ...]], text: str) -> Entry:
    said = {kind: _first(row, names) for kind, names in columns.items()}
    value = said["label"]
    named = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(table.label_names)
    label = parse_label(table.label_names[value] if named else value, "text")  # type: ignore[index]
    if label is None:
        where = f"{table.unit} {number} of {table.name}"
        raise DataError(f"{where} has the unknown label {value!r}", "", "labels are 0, real or human, 1, fake or ai")
    # A row says nothing by its number, so a text without a group is its own.
    path = PurePosixPath(_name(table, number))
    split = str(said.get("split") or table.split).strip()
    return Entry(
        source=_stored(table, number, text),
        path=path,
        label=label,
        generator=str(said.get("generator") or "").strip(),
        split=SPLIT_FOLDERS.get(split.lower(), split),
        group=next((_group(kind, said[kind]) for kind in _GROUPS if said.get(kind) is not None), str(path)),
        date=parse_date(said.get("date")) or "",
    )


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    """What a row says in the first of these columns in which it says anything, else None."""
    return next((row[name] for name in names if is_given(row.get(name)) and str(row[name]).strip()), None)


def _group(kind: str, value: Any) -> str:
    return str(value).strip() if kind == "group" else " ".join(str(value).casefold().split())


def _text(row: dict[str, Any], names: Sequence[str]) -> str:
    value = _first(row, names)
    return value if isinstance(value, str) else ""


def _name(table: Table, number: Any) -> str:
    return f"{table.name}:{number}"


def _stored(table: Table, number: Any, text: str) -> StoredSample:
    return StoredSample(_name(table, number), text.encode("utf-8", "replace"), "text")


def _describe(tables: Sequence[Table], entries: Sequence[Entry]) -> str:
    """For instance: table: text in 'text', label in 'label', generator in 'model', group in 'title', no splits."""
    parts = [f"{len(tables)} files"] if len(tables) > 1 else []
    found: dict[str, dict[str, None]] = {}
    for table in tables:
        for kind, names in table.columns().items():
            found.setdefault("group" if kind in _GROUPS else kind, {}).update(dict.fromkeys(names))
    parts += [f"{kind} in {and_list(repr(name) for name in names)}" for kind, names in found.items()]
    return f"table: {', '.join([*parts, describe_splits(entry.split for entry in entries)])}"
