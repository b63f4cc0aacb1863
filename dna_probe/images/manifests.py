"""Tables that list labelled images: CSV, TSV, JSON, JSON lines, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.groups import find_groups
from dna_probe.images.sets import FAKE, REAL, ImageSet

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".json", ".parquet"})
# The names under which published tables keep the same things.
_COLUMNS = {
    "path": ("path", "image_path", "file", "filename", "file_name", "image", "image_data"),
    "label": ("label", "class", "target"),
    "generator": ("generator", "model_name", "model"),
    "group": ("group",),
    "split": ("split",),
}
_LABELS = {
    **dict.fromkeys(("0", "0.0", "real", "reals", "0_real", "nature", "false"), REAL),
    **dict.fromkeys(("1", "1.0", "fake", "fakes", "1_fake", "ai", "true"), FAKE),
}


def parse_label(value: object) -> int | None:
    """0 for real, 1 for fake, however it is written; None for anything else."""
    return _LABELS.get(str(value).strip().lower())


def read_manifest(path: Path) -> ImageSet:
    """The images a manifest lists, in its order; their paths are relative to the manifest's folder.

    Columns path and label (0/1 or real/fake) must be there; generator, group and split may be. A parquet column may
    hold encoded images in place of paths. Files that do not exist are listed in `skipped`. Raises `DataError` for a
    damaged table, a missing column, an unknown label, one image under two labels, or where no file exists.
    """
    rows = [(number, row) for number, row in _rows(path) if any(_given(value) for value in row.values())]
    if not rows:
        raise DataError(f"{path} lists no images")
    columns = _columns(path, rows)
    images: list[Any] = []
    labels: list[int] = []
    generators: list[str] = []
    groups: list[str] = []
    splits: list[str] = []
    skipped: list[tuple[str, str]] = []
    known: dict[str, tuple[int, int]] = {}
    for number, row in rows:
        source = _source(row.get(columns["path"]), path)
        if source is None:
            raise DataError(f"Row {number} of {path} has no path")
        label = parse_label(row.get(columns["label"]))
        if label is None:
            raise DataError(
                f"Row {number} of {path} has the unknown label {row.get(columns['label'])!r}",
                "",
                "labels are 0 or real, 1 or fake",
            )
        if isinstance(source, Path):
            first, before = known.setdefault(str(source), (number, label))
            if before != label:
                raise DataError(f"{path} lists {source} as real and as fake (rows {first} and {number})")
            if not source.exists():
                skipped.append((str(source), f"no such file (row {number} of {path.name})"))
                continue
        images.append(source)
        labels.append(label)
        generators.append("real" if label == REAL else _text(row, columns.get("generator")) or "fake")
        groups.append(_text(row, columns.get("group")))
        splits.append(_text(row, columns.get("split")))
    if not images:
        raise DataError(
            f"None of the {len(skipped)} files that {path} lists exists",
            f"the first is {skipped[0][0]}",
            "paths are relative to the manifest's own folder",
        )
    return ImageSet(
        images=tuple(images),
        labels=labels,  # type: ignore[arg-type]
        generators=tuple(generators),
        groups=_fill(groups, images, labels, generators),
        splits=tuple(splits),
        origin=str(path),
        skipped=tuple(skipped),
    )


def _fill(groups: list[str], images: list[Any], labels: list[int], generators: list[str]) -> tuple[str, ...]:
    """Groups as given; where the table has none, told from the file names."""
    if any(groups):
        return tuple(group or f"row {position}" for position, group in enumerate(groups))
    if not all(isinstance(image, Path) for image in images):
        return ()
    return find_groups(images, labels, generators, [""] * len(images))


def _columns(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> dict[str, str]:
    present: dict[str, str] = {}
    for _, row in rows:
        for name in row:
            present.setdefault(str(name).strip().lower(), name)
    found = {}
    for wanted, aliases in _COLUMNS.items():
        match = next((present[alias] for alias in aliases if alias in present), None)
        if match is not None:
            found[wanted] = match
    for wanted in ("path", "label"):
        if wanted not in found:
            raise DataError(
                f"{path} has no column {wanted!r}",
                f"its columns are {', '.join(map(str, present.values()))}",
                "path and label are needed; generator, group and split are optional",
            )
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, counted as an editor counts lines where the file has lines."""
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from enumerate(_parquet(path), start=1)
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            if kind in (".csv", ".tsv"):
                reader = csv.DictReader(file, delimiter=_delimiter(file, kind), restkey="")
                for row in reader:
                    yield reader.line_num, row
            elif kind == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, _record(json.loads(line), path, number)
            else:
                table = json.load(file)
                table = table.get("images") if isinstance(table, dict) else table
                if not isinstance(table, list):
                    raise DataError(f"{path} is no manifest", "a JSON manifest is a list of objects")
                for number, record in enumerate(table, start=1):
                    yield number, _record(record, path, number)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a {kind[1:]} table", str(error)) from None


def _record(record: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"Row {number} of {path} is not an object", "", 'write {"path": ..., "label": ...}')
    return record


def _delimiter(file: Any, kind: str) -> str:
    header = file.readline()
    file.seek(0)
    return "\t" if kind == ".tsv" else max(",;\t", key=header.count)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(
            f"{path} is a parquet file", "reading it needs pyarrow", "pip install 'dna-probe[parquet]', or write a CSV"
        ) from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a parquet table", " ".join(str(error).split())) from None


def _given(value: object) -> bool:
    return value is not None and value != "" and value != []


def _text(row: dict[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return str(value).strip() if _given(value) else ""


def _source(value: Any, manifest: Path) -> Path | bytes | None:
    if isinstance(value, dict):
        # Hugging Face's datasets keep an image as {"bytes": ..., "path": ...}.
        value = value.get("bytes") or value.get("path")
    if not _given(value):
        return None
    if isinstance(value, bytes):
        return value
    return manifest.parent / str(value).strip()
