"""Labelled images however they lie: published benchmarks, folders, tables, archives, datasets, lists in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.archives import MEMBER_SUFFIXES, TABLE_SUFFIXES
from dna_probe.images.discovery import as_tree, discover, find_tables_in, misfit, read_tree
from dna_probe.images.entries import parse_label
from dna_probe.images.folders import IMAGES, Kind, archive_tree, is_sample, look_into, read_class_folders, suffix_hint
from dna_probe.images.groups import find_groups, natural_key
from dna_probe.images.hugging_face import is_dataset, is_saved_dataset, read_dataset, read_saved_dataset
from dna_probe.images.manifests import read_tables
from dna_probe.images.named_layouts import PATTERNS, FolderPattern, read_pattern
from dna_probe.images.remote import read_remote
from dna_probe.images.sampling import draw_shots as draw_shots
from dna_probe.images.sampling import require_two_classes as require_two_classes
from dna_probe.images.sampling import split_by_group as split_by_group
from dna_probe.images.sets import UNLABELLED, ImageSet, noun_of
from dna_probe.images.sources import StoredImage, is_url
from dna_probe.images.tables import MANIFEST_SUFFIXES
from dna_probe.images.webdataset import read_webdataset


@dataclass(frozen=True)
class Layout:
    """One way in which labelled images lie; `read` takes a path and raises `DataError` where they lie otherwise."""

    name: str
    description: str
    read: Callable[[Path], ImageSet]


def read_images(data: Any, layout: str = "auto") -> ImageSet:
    """The labelled images of a folder, manifest, archive, dataset or tuple; an `ImageSet` is returned as it is.

    `layout` is one of `LAYOUTS`, or "auto", which tells by what is there; what was found is said in the set's `layout`.

    Folder: the published benchmarks in `PATTERNS` are told by their folder names. Otherwise any ancestor of an image,
    at any depth and in any case, may name its class: `real`, `reals`, `0_real`, `nature`, or `fake`, `fakes`, `1_fake`,
    `ai`; where several do, the innermost counts. The generator of a fake is the folder below `fake`, or the folder
    above `1_fake` or `ai` (the outermost one that is not a split). Folders named train, val or test give the split.
    Images that share a prompt or a source by their file stems share a group, see `find_groups`. Images under no class
    folder are listed in `skipped`. Order is the natural order of the paths. A folder that names no class may hold a
    manifest, parquet tables with images inside, WebDataset shards (.tar) or zips instead, or be one that Hugging Face's
    `save_to_disk` wrote.

    Manifest (.csv, .tsv, .jsonl, .json, .parquet): see `read_manifest`. Archives: a .zip is read like a folder, a .tar
    as `read_webdataset` does; nothing is unpacked. Dataset: a Hugging Face `Dataset` or `DatasetDict`. A folder or
    manifest in an object store by its URL, such as s3://bucket/set: see `read_remote`.

    Tuple: (images, labels) or (images, labels, groups); labels 0/1 or "real"/"fake".

    No image is opened here, so damaged ones are found at reading, each with its reason. Raises `DataError` where
    nothing usable is found, or where images do not lie as the layout named says.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise unknown_name("layout", layout, ["auto", *LAYOUTS], DataError)
    if isinstance(data, ImageSet):
        return data
    if is_url(data):
        if not data.startswith("file://"):
            return read_remote(data, layout)
        data = data.removeprefix("file://")
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if not os.path.exists(path):
            raise DataError(f"No such folder or manifest: {path}", "", "check the spelling, or give an absolute path")
        return discover(path) if layout == "auto" else LAYOUTS[layout].read(path)
    if is_dataset(data) and layout in ("auto", "datasets"):
        return read_dataset(data)
    if layout != "auto":
        raise DataError(f"A {type(data).__name__} has no layout {layout!r}", "", "give a folder or file, or no layout")
    if isinstance(data, tuple):
        return from_memory(data)
    raise DataError(
        f"A {type(data).__name__} is no image set",
        "",
        "give a folder, a manifest file, or the tuple (images, labels)",
    )


@dataclass(frozen=True)
class ArchivedSample:
    """A member of a zip or tar under the name it would have if its archive were a folder: `archive.zip/a/b.jpg`."""

    source: Path | StoredImage
    name: str

    def read_bytes(self) -> bytes:
        return self.source.read_bytes()


def read_unlabelled(paths: Any, kind: Kind = IMAGES) -> list[Path | StoredImage]:
    """The files to look at, in the order given: files, folders (their images, recursively, naturally sorted), globs,
    zips and plain tars (read in place, like folders; patterns take them where they end in the suffix, as `*.zip`).

    Of folders, archives and globs only files with a suffix of the kind are taken; a file named outright is always
    taken, so that it is reported if it cannot be read. Raises `DataError`, naming the path, where one of them yields
    nothing, or is a damaged archive.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: list[Path | StoredImage] = []
    for given in paths:
        path = Path(given)
        files: Sequence[Path | StoredImage]
        if os.path.isdir(path):
            files = look_into(path, kind).images
            if not files:
                raise DataError(f"No {kind.noun} in {path}", suffix_hint(kind))
        elif _is_archive(path):
            files = _inside(path, kind)
        elif os.path.exists(path):
            files = [path]
        elif glob.has_magic(str(given)):
            hits = sorted(glob.glob(os.path.expanduser(str(given)), recursive=True), key=natural_key)
            files = []
            for hit in map(Path, hits):
                # A pattern that ends in ** also names every folder, whose files it names as well.
                if hit.is_file() and is_sample(hit.name, kind):
                    files.append(hit)
                elif _is_archive(hit) and str(given).lower().endswith(hit.suffix.lower()):
                    files.extend(_inside(hit, kind))
                elif hit.is_dir() and not str(given).endswith("**"):
                    files.extend(look_into(hit, kind).images)
            if not files:
                raise DataError(f"No {kind.noun} match {given}", suffix_hint(kind))
        else:
            raise DataError(f"No such file or folder: {given}")
        found.extend(files)
    if not found:
        raise DataError(f"No {kind.noun} were given", "", f"name files, folders or patterns such as '{kind.pattern}'")
    return found


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in MEMBER_SUFFIXES and os.path.isfile(path)


def _inside(archive: Path, kind: Kind) -> list[ArchivedSample]:
    files = archive_tree([archive], kind=kind).files
    return [ArchivedSample(file.source, f"{archive}/{file.path}") for file in files]


def _read_pattern(pattern: FolderPattern) -> Callable[[Path], ImageSet]:
    return lambda path: read_pattern(as_tree(path), pattern)


def _read_columns(name: str, *needed: str) -> Callable[[Path], ImageSet]:
    def read(path: Path) -> ImageSet:
        tables = find_tables_in(path, MANIFEST_SUFFIXES)
        for table in tables:
            if not table.has(*needed):
                raise DataError(
                    f"{table.name} is not arranged as {name}",
                    f"Expected the columns {', '.join(needed)}, found {', '.join(table.names)}",
                    "choose the layout it has, or 'auto'",
                )
        return read_tables(tables, str(path), name)

    return read


def _read_aigcdetect(path: Path) -> ImageSet:
    contents = look_into(path) if path.is_dir() else None
    if path.suffix.lower() == ".parquet" or (contents is not None and contents.tables and not contents.images):
        return _read_columns("aigcdetect", "image", "label", "generator")(path)
    return read_pattern(as_tree(path), PATTERNS["aigcdetect"])


def _read_hifi_gen(path: Path) -> ImageSet:
    found = discover(path)
    return replace(found, layout=f"hifi-gen, whose layout is not documented; discovered: {found.layout}")


def _read_archives(suffix: str, read: Callable[[list[Path], Path | None], ImageSet]) -> Callable[[Path], ImageSet]:
    def read_them(path: Path) -> ImageSet:
        if path.is_dir():
            contents = look_into(path)
            archives = contents.zips if suffix == ".zip" else contents.tars
            if archives:
                return read(archives, path)
        elif path.suffix.lower() == suffix:
            return read([path], None)
        raise misfit(path, f"{suffix} files")

    return read_them


def _read_saved(path: Path) -> ImageSet:
    if not path.is_dir() or not is_saved_dataset(path):
        raise misfit(path, "a Dataset or DatasetDict, or a folder that its save_to_disk wrote")
    return read_saved_dataset(path)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *(Layout(name, pattern.description, _read_pattern(pattern)) for name, pattern in PATTERNS.items()),
        Layout("aigcdetect", PATTERNS["aigcdetect"].description, _read_aigcdetect),
        Layout(
            "communityforensics",
            "CommunityForensics: parquet with image_data, label and model_name",
            _read_columns("communityforensics", "image_data", "label", "model_name"),
        ),
        Layout(
            "openfake",
            "OpenFake: parquet or CSV with image, label, model and release_date",
            _read_columns("openfake", "image", "label", "model"),
        ),
        Layout("hifi-gen", "HIFI-Gen: not documented, so discovered as by 'auto'", _read_hifi_gen),
        Layout(
            "folders",
            "Folders named real and fake, or alike, at any depth",
            lambda path: read_class_folders(as_tree(path)),
        ),
        Layout(
            "manifest",
            "A table of paths and labels: CSV, TSV, JSON, JSON lines or parquet",
            lambda path: read_tables(find_tables_in(path, MANIFEST_SUFFIXES, inside=False), str(path), "manifest"),
        ),
        Layout(
            "parquet",
            "Parquet or Arrow tables with the images inside",
            lambda path: read_tables(find_tables_in(path, TABLE_SUFFIXES, inside=True), str(path), "parquet"),
        ),
        Layout(
            "webdataset", "WebDataset shards: tars with json, cls or txt files", _read_archives(".tar", read_webdataset)
        ),
        Layout(
            "zip",
            "Zips read in place, like folders",
            _read_archives(".zip", lambda archives, root: read_tree(archive_tree(archives, root))),
        ),
        Layout("datasets", "Hugging Face datasets: objects, and folders that save_to_disk wrote", _read_saved),
    )
}


def from_memory(data: tuple, modality: str = "image") -> ImageSet:
    """The set of (images, labels) or (images, labels, groups); texts and recordings may stand for images."""
    noun = noun_of(modality)
    if len(data) not in (2, 3):
        raise DataError(
            f"A tuple of {len(data)} is no {modality} set", "", f"give ({noun}, labels) or ({noun}, labels, groups)"
        )
    images = _as_images(data[0])
    labels = data[1]
    if not hasattr(labels, "detach"):
        given = list(labels)
        labels = [parse_label(label, modality) if isinstance(label, str) else label for label in given]
        unknown = [one for one, label in zip(given, labels, strict=True) if label is None]
        if unknown:
            raise DataError(f"Unknown label {str(unknown[0])!r}", "", "labels are 0 or 1, real or fake")
    groups = tuple(str(group) for group in data[2]) if len(data) == 3 else None
    made = ImageSet(images=images, labels=labels, groups=groups or (), modality=modality)
    if not len(made):
        raise DataError(f"No {noun} were given")
    if groups is None and all(isinstance(image, Path) for image in images):
        where = [
            str(image.parent) if label == UNLABELLED else "" for image, label in zip(images, made.labels, strict=True)
        ]
        found = find_groups(list(images), made.labels.tolist(), list(made.generators), where, modality)
        made = replace(made, groups=found)
    return made


def _as_images(images: Iterable[Any]) -> tuple:
    if isinstance(images, str | os.PathLike):
        raise DataError(f"(images, labels) needs a list of images, not the single path {images}")
    return tuple(Path(image) if isinstance(image, str) else image for image in images)
