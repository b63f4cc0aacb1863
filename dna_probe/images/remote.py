"""Labelled images in an object store, or wherever else fsspec reads: folders and manifests by their URL."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.discovery import read_tree
from dna_probe.images.folders import Tree, TreeFile, is_image, read_class_folders, suffix_hint
from dna_probe.images.groups import natural_key
from dna_probe.images.manifests import read_tables
from dna_probe.images.named_layouts import PATTERNS, read_pattern
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import RemoteImage, open_filesystem, require_driver
from dna_probe.images.tables import TEXT_SUFFIXES, Table, is_given, open_table

LAYOUTS = ("auto", "folders", "manifest", *PATTERNS)


def read_remote(url: str, layout: str = "auto") -> ImageSet:
    """The labelled images of a folder or manifest (.csv, .tsv, .jsonl, .json) at a URL; see `read_images`.

    A folder is listed, and no image is fetched before it is looked at. The paths of a manifest start at its own folder
    unless they are URLs. Raises `DataError` for an unknown scheme or a missing driver, and where nothing usable is
    found.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout of a URL", layout, LAYOUTS, DataError, "copy the set to a disk to read it by others")
    require_driver(url)
    if layout == "manifest" or PurePosixPath(url).suffix.lower() in TEXT_SUFFIXES:
        return read_tables([_fetch_table(url)], url, "manifest")
    tree = list_tree(url)
    if layout == "auto":
        return read_tree(tree)
    return read_class_folders(tree) if layout == "folders" else read_pattern(tree, PATTERNS[layout])


def list_tree(url: str) -> Tree:
    """The images below a folder at a URL, in natural order. Raises `DataError` where it has none or is out of reach."""
    inner, _, outer = url.partition("::")
    try:
        filesystem, root = open_filesystem(url)
        found = [filesystem.unstrip_protocol(path) for path in filesystem.find(root)]
        start = filesystem.unstrip_protocol(root).rstrip("/")
    except Exception as error:  # drivers raise what their clients do, about credentials for instance
        raise _unreachable(url, error) from error
    files = []
    for place in found:
        path = PurePosixPath(place.removeprefix(start).lstrip("/"))
        if is_image(path.name) and not any(part.startswith(".") or part == "__MACOSX" for part in path.parts[:-1]):
            files.append(TreeFile(RemoteImage(f"{place}::{outer}" if outer else place), path))
    if not files:
        raise DataError(f"No images in {url}", suffix_hint())
    name = PurePosixPath(inner.partition("://")[2]).name or PurePosixPath(outer).stem
    return Tree(url, name, tuple(sorted(files, key=lambda file: natural_key(file.path.as_posix()))))


def _fetch_table(url: str) -> Table:
    """A table of paths, as it lies at the URL."""
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        raise DataError(
            f"{url} is no manifest that can be read by URL", f"those end in {', '.join(sorted(TEXT_SUFFIXES))}"
        )
    try:
        filesystem, path = open_filesystem(url)
        content = filesystem.cat_file(path)
    except Exception as error:
        raise _unreachable(url, error) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"manifest{suffix}"
        file.write_bytes(content)
        try:
            table = open_table(file)
        except DataError as error:
            raise DataError(f"{url} cannot be read as a {suffix[1:]} table", error.why) from None
    # A column of this kind is where paths start, in any spelling.
    column = next(iter(table.columns().get("root", ())), "root")
    own = url.rpartition("/")[0]
    rows = [(number, {**row, column: row[column] if is_given(row.get(column)) else own}) for number, row in table.rows]
    return replace(table, name=url, names=tuple(dict.fromkeys((*table.names, column))), rows=rows)


def _unreachable(url: str, error: Exception) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{url} cannot be read", words[:200], "check the address, and the credentials of this machine")
