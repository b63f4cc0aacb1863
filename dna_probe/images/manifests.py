"""Manifests: one table that lists a set of images with all that is known of them, written and read back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.archives import MEMBER_SUFFIXES, TABLE_SUFFIXES, Member, find_member, is_inside
from dna_probe.images.entries import Entry, assemble, parse_date, parse_label
from dna_probe.images.folders import SPLIT_FOLDERS, and_list, describe_splits
from dna_probe.images.metadata import image_facts
from dna_probe.images.reading import Source, UnreadableImage, content_hash, name_of, read_image
from dna_probe.images.sets import ImageSet, noun_of, require_images
from dna_probe.images.sources import RemoteImage, StoredImage, is_url, require_driver
from dna_probe.images.tables import Table, is_given, open_table
from dna_probe.images.threads import in_order
from dna_probe.storage import write_atomically

WRITTEN_SUFFIXES = (".csv", ".jsonl", ".parquet")
WRITTEN_COLUMNS = ("path", "label", "generator", "split", "group", "sha256", "width", "height", "format", "quality")
_WORDS = {0: "real", 1: "fake", -1: "unlabelled"}
_NUMBERS = ("width", "height", "quality")
# Schemes of fsspec under which the disk of this machine can be read.
_LOCAL = {"file", "local", "asynclocal", "dir", "reference"}


def read_manifest(path: Path) -> ImageSet:
    """The images a table lists, in its order.

    Columns path and label (0/1 or real/fake) must be there, or images inside instead of paths; generator, group,
    split, prompt (images of one prompt share a group) and release_date may be. A path is relative to the manifest's
    own folder, its root, or to the folder that a column `root` names; `archive.zip::member` names an image inside an
    archive, and `s3://bucket/a.jpg`, or `root` and path together, one in an object store (see `RemoteImage`). Every
    other path must lead to a place below the root, as written or with links followed: a manifest that was made by
    mistake or by a stranger does not reach all files of a machine. A manifest of files elsewhere needs the column
    `root`, which `write_manifest` adds by itself.

    Files that do not exist, and rows said twice, are listed in `skipped`. Raises `DataError` for a damaged table, a
    missing column, an unknown label, a path outside the root, one image under two labels or in two splits or groups,
    or where no file exists.
    """
    return read_tables([open_table(path)], str(path), "manifest")


def read_tables(
    tables: Sequence[Table],
    origin: str,
    title: str,
    skipped: Sequence[tuple[str, str]] = (),
    modality: str = "image",
) -> ImageSet:
    """The images (texts, recordings) that several tables describe, one after the other; see `read_manifest`. `title`
    names the layout."""
    tables = [table for table in tables if table.rows]
    if not tables:
        raise DataError(f"{origin} lists no {noun_of(modality)}")
    found = _Reading()
    for table in tables:
        found.add(table)
    if not found.entries:
        raise DataError(
            f"None of the {len(found.skipped)} files that {origin} lists exists",
            f"the first is {found.skipped[0][0]}",
            "paths are relative to the manifest's own folder, or to the folder that its column 'root' names",
        )
    entries = found.entries
    if any(entry.group for entry in entries):
        entries = [replace(entry, group=entry.group or f"row {n}") for n, entry in enumerate(entries)]
    return assemble(entries, origin, _describe(title, tables, found, modality), [*skipped, *found.skipped], modality)


def changed_images(path: Path, workers: int = 0) -> tuple[tuple[str, str], ...]:
    """(name, reason) of the images of a manifest whose content no longer has the SHA-256 it lists. Reads every file."""
    found = _Reading()
    found.add(open_table(path))
    listed = [entry for entry in found.entries if entry.sha256]
    hashes = in_order(lambda position: content_hash(listed[position].source), len(listed), workers)
    return tuple(
        (name_of(entry.source, None), "its content has changed since the manifest was written")
        for entry, now in zip(listed, hashes, strict=True)
        if entry.sha256 != now
    )


def write_manifest(
    image_set: ImageSet, path: str | Path, workers: int = 0, advance: Callable[[int], None] = lambda step: None
) -> ImageSet:
    """Write a set as a table, .csv, .jsonl or .parquet by the suffix; returns the images that are in it.

    Columns path, label (real, fake or unlabelled), generator, split, group, sha256 (of the encoded image), width and
    height (of the upright image, in pixels), format (Pillow's name), quality (the nearest libjpeg quality of a JPEG),
    and release_date where any is known. Paths are relative to the manifest's folder where all images lie below it;
    otherwise to the folder they have in common, which a column `root` then names. `read_manifest` gives back the same
    images, labels, generators, splits, groups and dates.

    Every image is read in full, in `workers` threads. Those that cannot be read, and those whose very content is
    listed as real and as fake, are left out and told in `skipped` of the set returned. `advance` is called with the
    number of images done. Raises `DataError` for another suffix, for texts and recordings, for images that lie in no
    file, and where no image is left.
    """
    path = Path(path)
    require_manifest_name(path)
    require_images(image_set, "A manifest")
    files = [_file_of(source, position) for position, source in enumerate(image_set.images)]
    facts: list[dict[str, Any] | UnreadableImage] = []
    for fact in in_order(lambda position: _facts(image_set.images[position]), len(image_set), workers):
        facts.append(fact)
        advance(1)
    reasons = _reasons(image_set, facts)
    kept = [position for position, reason in enumerate(reasons) if not reason]
    names = image_set.names
    skipped = [(names[position], reason) for position, reason in enumerate(reasons) if reason]
    if not kept:
        raise DataError(
            f"None of the {len(image_set)} images of {image_set.origin} can be listed",
            f"the first is {skipped[0][0]}: {skipped[0][1]}" if skipped else "it is empty",
        )
    own = os.path.abspath(path.parent)
    root = _root([files[position][0] for position in kept], own)
    rows = [_row(image_set, position, files[position], facts[position], root) for position in kept]
    if root != own:
        rows = [row | {"root": root} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _encode(rows, path.suffix.lower()))
    return replace(image_set.subset(kept), skipped=image_set.skipped + tuple(skipped))


def require_manifest_name(path: Path) -> None:
    """Raise `DataError` unless a manifest can be written under this name."""
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise DataError(f"{path} is no name for a manifest", "", f"let it end in {', '.join(WRITTEN_SUFFIXES)}")


@dataclass
class _Reading:
    """What has been read of some tables, and where each image was first listed."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    strange_dates: list[str] = field(default_factory=list)
    known: dict[str, tuple[str, Entry]] = field(default_factory=dict)
    hashes: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, table: Table) -> None:
        columns = table.columns()
        _require(table, columns)
        for number, row in table.rows:
            where = f"{table.unit} {number} of {table.name}"
            said = {kind: _first(row, names) for kind, names in columns.items()}
            entry = self._entry(table, number, said, where)
            name, key = name_of(entry.source, None), _key(entry.source)
            if self._is_repeated(entry, key, where):
                self.skipped.append((name, f"listed twice ({self.known[key][0]} and {where})"))
            elif isinstance(entry.source, Path) and not os.path.exists(entry.source):
                self.skipped.append((name, f"no such file (row {number} of {Path(table.name).name})"))
            else:
                self.entries.append(entry)

    def _entry(self, table: Table, number: Any, said: dict[str, Any], where: str) -> Entry:
        label = _label(table, said, where)
        split = _text(said.get("split")) or table.split
        date = parse_date(said.get("date"))
        if date is None:
            self.strange_dates.append(str(said["date"]))
        source: Source
        if table.cell is None:
            source, path = _locate(said.get("path"), said.get("root"), table, where)
        else:
            source, path = table.cell(number), PurePosixPath(f"{PurePosixPath(table.name).name}::{number}")
        # Beside a column of generators, which may be empty here and there, a type tells their sort.
        maker = _text(said.get("generator")) or (_text(said.get("kind")) if "generator" in said else "")
        return Entry(
            source=source,
            path=path,
            label=label,
            generator=maker or (table.place.generator if table.place else ""),
            split=SPLIT_FOLDERS.get(split.lower(), split),
            # Rows with an image inside have no file name that could tell their group.
            group=_text(said.get("group"))
            or _prompt_group(said.get("prompt"))
            or ("" if table.cell is None else str(path)),
            date=date or "",
            # Beside an image inside, the hash may well be that of the file it was made from.
            sha256=_text(said.get("sha256")).lower() if table.cell is None else "",
        )

    def _is_repeated(self, entry: Entry, key: str, where: str) -> bool:
        first, before = self.known.setdefault(key, (where, entry))
        if before is not entry:
            for what in ("label", "generator", "split", "group"):
                one, other = getattr(before, what), getattr(entry, what)
                if one != other:
                    words = (_WORDS[one], _WORDS[other]) if what == "label" else (repr(one), repr(other))
                    raise DataError(f"{key} is listed as {words[0]} and as {words[1]}", f"({first} and {where})")
            return True
        if entry.sha256:
            first, label = self.hashes.setdefault(entry.sha256, (where, entry.label))
            if label != entry.label:
                raise DataError(
                    f"The same image is listed as {_WORDS[label]} and as {_WORDS[entry.label]}",
                    f"{first} and {where} have one sha256",
                    "keep the row that is right",
                )
        return False


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    """What a row says in the first of these columns in which it says anything."""
    return next((row[name] for name in names if is_given(row.get(name))), row.get(names[0]))


def _require(table: Table, columns: dict[str, tuple[str, ...]]) -> None:
    needed = [("path", table.cell is not None), ("label", table.place is not None)]
    for wanted, spared in needed:
        if wanted not in columns and not spared:
            raise DataError(
                f"{table.name} has no column {wanted!r}",
                f"its columns are {', '.join(table.names)}",
                "path and label are needed; generator, group and split are optional",
            )


def _label(table: Table, said: dict[str, Any], where: str) -> int:
    value = said.get("label")
    if not is_given(value) and table.place is not None:
        return table.place.label
    named = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(table.label_names)
    label = parse_label(table.label_names[value] if named else value)  # type: ignore[index]
    if label is None:
        known = f"its classes are called {and_list(table.label_names)}" if table.label_names else ""
        raise DataError(f"{where} has the unknown label {value!r}", known, "labels are 0 or real, 1 or fake")
    return label


def _locate(value: Any, root: Any, table: Table, where: str) -> tuple[Path | Member | RemoteImage, PurePosixPath]:
    """The file or archived image that a table names, and its path below the folder the table's paths start from."""
    value = value.get("path") if isinstance(value, dict) else value
    text = str(value) if is_given(value) else ""
    if not text.strip():
        raise DataError(f"{where} has no path")
    text, root = (
        given.strip().removeprefix("file://") if is_url(given.strip()) else given for given in (text, _text(root))
    )
    if is_url(text) or is_url(root):
        return _locate_remote(text, root, where)
    folder = table.folder / root
    # Blanks around a path are a habit of those who write tables by hand, but may also be part of a name.
    text = text if os.path.exists(folder / text) else text.strip()
    path = PurePosixPath(os.path.basename(os.path.abspath(folder)), text)
    file, mark, member = text.partition("::")
    archived = mark and Path(file).suffix.lower() in MEMBER_SUFFIXES | TABLE_SUFFIXES
    _require_inside(folder / (file if archived else text), folder, where, text)
    if archived and os.path.isfile(folder / file):
        return find_member(folder / file, member) or folder / text, path
    return folder / text, path


def _locate_remote(text: str, root: str, where: str) -> tuple[RemoteImage, PurePosixPath]:
    url = text if is_url(text) else f"{root.rstrip('/')}/{text}"
    # A table must not reach the files of this machine by another name; see `_require_inside`.
    if not is_url(url.rpartition("::")[2]) or {part.partition("://")[0].lower() for part in url.split("::")} & _LOCAL:
        raise DataError(
            f"{where} names a file of this machine by a URL: {url}",
            "A manifest names those by path",
            "write the path, or archive.zip::member",
        )
    path = PurePosixPath(url.partition("::")[0].partition("://")[2])
    if ".." in path.parts:
        raise DataError(f"{where} leads outside its root: {text}", "", "name the place itself")
    require_driver(url)
    return RemoteImage(url), path


def _require_inside(file: Path, folder: Path, where: str, text: str) -> None:
    if (os.path.isabs(text) or ".." in text) and not is_inside(file, folder):
        raise DataError(
            f"{where} leads outside its root: {text}",
            f"{os.path.abspath(file)} does not lie below {os.path.abspath(folder)}",
            "keep the manifest above its images, or name a folder above them in a column 'root'",
        )


def _text(value: object) -> str:
    return str(value).strip() if is_given(value) else ""


def _prompt_group(prompt: object) -> str:
    """Images made from one prompt share it; the text itself would be long to list."""
    text = " ".join(_text(prompt).casefold().split())
    return f"prompt {hashlib.sha256(text.encode()).hexdigest()[:12]}" if text else ""


def _describe(title: str, tables: Sequence[Table], found: _Reading, modality: str) -> str:
    """For instance: parquet: 3 files, images in 'image', label in 'label', generator in 'model', no splits."""
    parts = [f"{len(tables)} files"] if len(tables) > 1 else []
    images = dict.fromkeys(table.image_column for table in tables if table.image_column)
    parts += [f"{noun_of(modality)} in {and_list(repr(name) for name in images)}"] if images else []
    columns: dict[str, dict[str, None]] = {}
    for table in tables:
        for kind, names in table.columns().items():
            if kind not in ("root", "sha256") and not (kind == "path" and table.cell is not None):
                columns.setdefault(kind, {}).update(dict.fromkeys(names))
    parts += [
        f"{'release date' if kind == 'date' else kind} in {and_list(repr(name) for name in names)}"
        for kind, names in columns.items()
    ]
    if "label" not in columns:
        parts.append("label by the names of folders and files")
    parts.append(describe_splits(entry.split for entry in found.entries))
    if found.strange_dates:
        parts.append(
            f"release dates not understood: {len(found.strange_dates)} (the first is {found.strange_dates[0]})"
        )
    return f"{title}: {', '.join(parts)}"


def _file_of(source: Source, position: int) -> tuple[Path, str]:
    """The file an image lies in, and how it is named inside that file."""
    if isinstance(source, str | Path):
        return Path(source), ""
    if isinstance(source, Member):
        return source.archive, source.name[len(str(source.archive)) :]
    raise DataError(
        f"{name_of(source, position)} lies in no file",
        "a manifest lists files and images inside archives, not images in memory",
        "save the images first",
    )


def _facts(source: Source) -> dict[str, Any] | UnreadableImage:
    """`image_facts` and the SHA-256 of an image that can be read to its end, else why it cannot."""
    name = name_of(source, None)
    try:
        if isinstance(source, str | Path) and not os.path.isfile(source):
            read_image(source, name=name)
        content = (source if isinstance(source, StoredImage) else Path(source)).read_bytes()  # type: ignore[arg-type]
        read_image(content, name=name)
        return image_facts(content, name=name) | {"sha256": hashlib.sha256(content).hexdigest()}
    except UnreadableImage as error:
        return error
    except OSError as error:
        return UnreadableImage(name, f"cannot be opened ({error.strerror or error})")


def _row(image_set: ImageSet, position: int, file: tuple[Path, str], facts: Any, root: str) -> dict[str, Any]:
    place, member = file
    said = {
        **facts,
        "path": PurePosixPath(os.path.relpath(os.path.abspath(place), root)).as_posix() + member,
        "label": _WORDS[int(image_set.labels[position])],
        "generator": image_set.generators[position],
        "split": image_set.splits[position],
        "group": image_set.groups[position],
    }
    row = {column: said[column] for column in WRITTEN_COLUMNS}
    return row | {"release_date": image_set.dates[position]} if any(image_set.dates) else row


def _reasons(image_set: ImageSet, facts: Sequence[dict[str, Any] | UnreadableImage]) -> list[str]:
    """Why an image cannot be listed, "" where it can."""
    labels: dict[str, set[int]] = {}
    for fact, label in zip(facts, image_set.labels.tolist(), strict=True):
        if isinstance(fact, dict):
            labels.setdefault(fact["sha256"], set()).add(label)
    seen: set[str] = set()
    reasons = []
    for source, name, fact in zip(image_set.images, image_set.names, facts, strict=True):
        place = _key(source)
        if isinstance(fact, UnreadableImage):
            reasons.append(fact.reason)
        elif len(labels[fact["sha256"]]) > 1:
            words = and_list(_WORDS[label] for label in sorted(labels[fact["sha256"]]))
            reasons.append(f"the very same image is there as {words}, so its label is not known")
        elif place in seen:
            reasons.append("the same file is there twice")
        elif not _is_unicode(name):
            reasons.append("its name is not valid Unicode, which a table cannot hold")
        else:
            reasons.append("")
        seen.add(place)
    return reasons


def _key(source: Source) -> str:
    """One text for an image, however its path is written."""
    name = name_of(source, None)
    return os.path.normpath(name) if isinstance(source, str | Path) else name


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _root(files: Sequence[Path], own: str) -> str:
    """The manifest's own folder where all files lie below it, else the folder they have in common."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    if all(Path(folder).is_relative_to(own) for folder in folders):
        return own
    return os.path.commonpath(folders)


def _encode(rows: list[dict[str, Any]], suffix: str) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.schema([(name, pa.int64() if name in _NUMBERS else pa.string()) for name in rows[0]])
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()
