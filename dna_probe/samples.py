"""Labelled images, texts or recordings however they lie, by one pair of functions."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_probe.audio.reading import encode_audio, from_pair
from dna_probe.content import StoredSample
from dna_probe.errors import DataError, UnreadableSample, unknown_name
from dna_probe.images.archives import MEMBER_SUFFIXES, DamagedTable
from dna_probe.images.discovery import as_tree, files_near, misfit, note_unread
from dna_probe.images.entries import parse_label
from dna_probe.images.folders import (
    KINDS,
    TEXTS,
    Contents,
    Kind,
    look_into,
    place_in_folders,
    read_class_folders,
)
from dna_probe.images.groups import natural_key
from dna_probe.images.layouts import from_memory, read_images, read_unlabelled
from dna_probe.images.manifests import read_tables
from dna_probe.images.sets import FAKE, REAL, ImageSet, not_of_images, noun_of, require_images
from dna_probe.images.sources import StoredImage, is_stored
from dna_probe.images.tables import MANIFEST_SUFFIXES, TEXT_SUFFIXES, Table, open_table
from dna_probe.modality import guess_modality as guess_modality
from dna_probe.texts.tables import list_texts, open_texts, read_text_tables

LAYOUTS = ("auto", "folders", "manifest")


def read_samples(data: Any, layout: str = "auto", modality: str = "auto") -> ImageSet:
    """The labelled samples of a folder, table, archive or tuple; an `ImageSet` is returned as it is.

    `modality` is "image", "text" or "audio", or "auto", see `guess_modality`. Images are read by `read_images` with its
    layouts. Texts and recordings lie in one of `LAYOUTS`:

    "folders": as for images, any folder above a file may name its class: real and fake, for texts also human and
    machine (or ai, generated), for recordings bonafide and spoof. The folder below names the generator. Files are
    .txt and .md, or .wav, .flac, .mp3, .ogg and others, see `KINDS`, also inside a zip or tar. Files of several makers
    whose names are equal but for words of the maker's own share a group, see `find_groups`.

    "manifest": a .csv, .tsv, .jsonl, .json or .parquet file, or a folder of such, with a text in each row, see
    `read_text_tables`, or with paths, see `read_manifest`. Of several, damaged ones are listed in `skipped`.

    Tuple: (samples, labels) or (samples, labels, groups), see `as_sources`; labels 0/1, "real"/"fake", "human"/"ai".

    No file of a sample is opened here, so damaged ones are found at reading, each with its reason. Raises `DataError`
    where nothing usable is found, where samples do not lie as the layout says, or a set is of another modality.
    """
    if isinstance(data, tuple) and data and isinstance(data[0], Iterator):
        data = (list(data[0]), *data[1:])
    chosen = guess_modality(data) if modality == "auto" else modality
    noun = noun_of(chosen)
    if isinstance(data, ImageSet):
        if data.modality != chosen:
            raise DataError(f"{data.origin} holds {noun_of(data.modality)}, not {noun}")
        return data
    if chosen == "image":
        return read_images(data, layout)
    if layout not in LAYOUTS:
        raise unknown_name(
            "layout", layout, LAYOUTS, DataError, f"the other layouts are those of images, not of {noun}"
        )
    if isinstance(data, str | os.PathLike):
        if not os.path.exists(data):
            raise DataError(f"No such folder or table: {data}", "", "check the spelling, or give an absolute path")
        return _read_path(Path(data), layout, KINDS[chosen])
    if isinstance(data, tuple):
        return from_memory((as_sources(data[0], chosen), *data[1:]), chosen)
    raise DataError(
        f"A {type(data).__name__} is no {chosen} set", "", f"give a folder, a table, or the tuple ({noun}, labels)"
    )


def read_images_for(what: str, data: Any, layout: str = "auto") -> ImageSet:
    """`read_images` for what there is of images alone, named by `what`.

    Raises `DataError` as that does, and where the data are texts or recordings.
    """
    if layout == "auto" and not isinstance(data, ImageSet):
        found = guess_modality(data)
        if found != "image":
            raise not_of_images(what, data if isinstance(data, str | os.PathLike) else "what was given", found)
    images = read_images(data, layout)
    require_images(images, what)
    return images


def read_unlabelled_samples(paths: Any, modality: str) -> list[Path | StoredImage]:
    """The samples to look at, in the order given: files, folders, globs and zips, as `read_unlabelled` finds them.

    A table of texts stands for the texts in it, also where a pattern names it, or where it lies in a folder that
    `read_samples` would read by its tables. Raises `DataError`, naming the path, where one yields nothing.
    """
    noun_of(modality)
    kind = KINDS[modality]
    if modality != "text":
        return list(read_unlabelled(paths, kind))
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: list[Path | StoredImage] = []
    for path in given:
        tables = _text_tables(Path(path))
        found += [text for table in tables for text in list_texts(table)] if tables else read_unlabelled(path, kind)
    return found or list(read_unlabelled([], kind))


def in_memory(samples: Iterable[Any], modality: str) -> bool:
    """Whether strings among these are texts themselves, not places where samples lie."""
    return modality == "text" and not any(
        isinstance(one, os.PathLike) or os.path.exists(one) or _names_file(one) for one in samples
    )


def is_table(path: str | Path) -> bool:
    return os.path.splitext(path)[1].lower() in MANIFEST_SUFFIXES and os.path.isfile(path)


def is_single(samples: Any, modality: str) -> bool:
    """Whether this is one sample and not several: anything but a list or a tuple, and a recording (samples, rate)."""
    if modality == "audio" and isinstance(samples, tuple) and len(samples) == 2:
        return isinstance(samples[1], int | float | np.number)
    return not isinstance(samples, list | tuple)


def as_sources(samples: Iterable[Any], modality: str, first: int = 0) -> tuple[Any, ...]:
    """Samples in memory as sources that have a name and a content hash, and that a set of this modality may hold.

    What has no name of its own goes by its position, counted from `first`. A string is a text, unless it is the name of
    an existing .txt or .md file or a single word that ends so, or else the path of an image or a recording. Recordings
    (samples, rate) are kept as the bytes of a sound file; arrays have the rate of the backbone already.
    """
    noun = noun_of(modality)
    if isinstance(samples, str | os.PathLike):
        raise DataError(f"A list of {noun} is needed, not the single one {str(samples)[:60]!r}")
    convert = {"image": _image, "text": _text, "audio": _recording}[modality]
    return tuple(convert(sample, f"{noun}[{position}]") for position, sample in enumerate(samples, first))


def _image(sample: Any, name: str) -> Any:
    return Path(sample) if isinstance(sample, str) else sample


def _text(sample: Any, name: str) -> Any:
    if isinstance(sample, str):
        if _names_file(sample):
            return Path(sample)
        return StoredSample(name, sample.encode("utf-8", "replace"), "text")
    if isinstance(sample, os.PathLike) or is_stored(sample):
        return sample
    raise DataError(f"{name} is a {type(sample).__name__}", "", "give texts as strings, and files as Path")


def _recording(sample: Any, name: str) -> Any:
    if isinstance(sample, str):
        return Path(sample)
    if not isinstance(sample, tuple):
        return sample
    try:
        return StoredSample(name, encode_audio(*from_pair(sample, name)), "audio")
    except UnreadableSample as error:
        raise DataError(f"{name} cannot be used", error.reason) from None


def _names_file(text: str) -> bool:
    """Whether a string among texts is the name of a file or table of texts, or a pattern for such."""
    if os.path.splitext(text)[1].lower() not in TEXTS.suffixes | MANIFEST_SUFFIXES or "\n" in text:
        return False
    return len(text.split()) == 1 or "*" in text or os.path.isfile(text)


def _read_path(path: Path, layout: str, kind: Kind) -> ImageSet:
    given_table = is_table(path)
    contents = look_into(path, kind) if path.is_dir() else Contents()
    beside = _tables_in(path, contents) if path.is_dir() else []
    # Where there is nothing else, the tables say best why they cannot be used.
    only_tables = beside and not (contents.images or contents.zips or contents.tars)
    if layout == "manifest" or (layout == "auto" and (given_table or only_tables)):
        files = [path] if given_table else beside
        if not files:
            raise misfit(path, f"a table of {kind.noun} ({', '.join(sorted(MANIFEST_SUFFIXES))})")
        tables, damaged = _fitting(files, path, kind)
        return _read_tables(tables or [_open_table(file, path, kind) for file in files], path, kind, damaged)
    if layout == "auto" and not _names_classes(path, contents.images, kind):
        tables, damaged = _fitting(beside, path, kind)
        if tables:
            return _read_tables(tables, path, kind, damaged)
    if contents.images:
        return note_unread(read_class_folders(as_tree(path, kind)), replace(contents, tables=beside))
    if path.is_dir() or path.suffix.lower() in MEMBER_SUFFIXES or layout == "folders":
        return read_class_folders(as_tree(path, kind))
    raise DataError(
        f"{path} is no labelled set of {kind.noun}",
        "",
        f"give a folder, a zip or tar of one, or a table ({', '.join(sorted(MANIFEST_SUFFIXES))})",
    )


def _tables_in(folder: Path, contents: Contents) -> list[Path]:
    return [*contents.tables, *files_near(folder, TEXT_SUFFIXES)]


def _text_tables(path: Path) -> list[Path]:
    """The tables of texts that a path stands for: itself, those that match it, or those in a folder."""
    if os.path.isdir(path):
        contents = look_into(path, TEXTS)
        if _names_classes(path, contents.images, TEXTS):
            return []
        return [file for file in _tables_in(path, contents) if _holds_texts(file, path)]
    if is_table(path):
        return [path]
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        return []
    hits = sorted(glob.glob(os.path.expanduser(path), recursive=True), key=natural_key)
    return [Path(hit) for hit in hits if os.path.isfile(hit)]


def _holds_texts(file: Path, root: Path) -> bool:
    """Raises `DataError` where it cannot be known."""
    try:
        return "text" in open_texts(file, root).columns()
    except DamagedTable:
        raise
    except DataError:
        return False


def _names_classes(root: Path, files: Iterable[Path], kind: Kind) -> bool:
    folders = {file.relative_to(root).parts[:-1] for file in files}
    return any(place_in_folders((root.resolve().name, *above), kind) for above in folders)


def _open_table(file: Path, root: Path, kind: Kind) -> Table:
    """A table with the columns of texts if there is a text in each row, else with those of a manifest."""
    above = root if root.is_dir() else None
    if kind is TEXTS:
        table = open_texts(file, above)
        if "text" in table.columns():
            return table
    return open_table(file, above)


def _fitting(files: Iterable[Path], root: Path, kind: Kind) -> tuple[list[Table], list[tuple[str, str]]]:
    """The tables that list samples with labels, others may lie in a folder for other ends; and damaged ones, with the
    reason."""
    found = []
    damaged = []
    for file in files:
        try:
            table = _open_table(file, root, kind)
        except DamagedTable as error:
            damaged.append((str(file), f"damaged: {error.why or error.what}"))
            continue
        except DataError:
            continue
        columns = table.columns()
        if "label" in columns and ("text" in columns or "path" in columns or table.cell is not None):
            found.append(table)
    return found, damaged


def _read_tables(tables: Sequence[Table], path: Path, kind: Kind, damaged: Sequence[tuple[str, str]] = ()) -> ImageSet:
    texts = [table for table in tables if "text" in table.columns()]
    if texts:
        found = read_text_tables(texts, str(path))
        return replace(found, skipped=(*found.skipped, *damaged))
    if kind is TEXTS and not any("path" in table.columns() for table in tables):
        # Which says what tables of texts need.
        return read_text_tables(tables, str(path))
    return read_tables([_spell_out(table, kind) for table in tables], str(path), "manifest", damaged, kind.modality)


def _spell_out(table: Table, kind: Kind) -> Table:
    """A manifest with its labels in the words that those of images use."""
    names = table.columns().get("label", ())
    words = {REAL: "real", FAKE: "fake"}

    def spell(row: dict[str, Any]) -> dict[str, Any]:
        labels = {name: parse_label(row[name], kind.modality) for name in names if isinstance(row.get(name), str)}
        return row | {name: words[label] for name, label in labels.items() if label in words}

    classes = tuple(words.get(parse_label(name, kind.modality), name) for name in table.label_names)  # type: ignore[arg-type]
    return replace(table, rows=[(number, spell(row)) for number, row in table.rows], label_names=classes)
