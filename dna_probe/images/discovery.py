"""What lies in a folder or file, told by looking at it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dna_probe.errors import DataError
from dna_probe.images.folders import (
    IMAGE_SUFFIXES,
    IMAGES,
    SPLIT_FOLDERS,
    Contents,
    Kind,
    Tree,
    and_list,
    archive_tree,
    folder_tree,
    look_into,
    place_in_folders,
    read_class_folders,
    suffix_hint,
)
from dna_probe.images.groups import natural_key
from dna_probe.images.hugging_face import is_saved_dataset, read_saved_dataset
from dna_probe.images.manifests import read_tables
from dna_probe.images.named_layouts import read_pattern, recognise
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.images.tables import MANIFEST_SUFFIXES, TEXT_SUFFIXES, Table, open_table
from dna_probe.images.webdataset import read_webdataset

# Tables of published sets, with the columns that give them away.
_TABLE_LAYOUTS = {
    "communityforensics": ("image_data", "label", "model_name"),
    "openfake": ("image", "label", "model", "release_date"),
}


def discover(path: Path) -> ImageSet:
    """The labelled images of a folder or file, by the rules in `read_images`; `DataError` where there are none."""
    if path.is_dir():
        return _discover_folder(path)
    suffix = path.suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return _read_tables([open_table(path)], str(path))
    if suffix == ".tar":
        return read_webdataset([path])
    if suffix == ".zip":
        return read_tree(archive_tree([path]))
    if suffix in IMAGE_SUFFIXES:
        raise DataError(
            f"{path} is one image", "a labelled set is needed here", "give a folder with real/ and fake/, or a manifest"
        )
    raise DataError(
        f"{path} is neither a folder nor a manifest nor an archive",
        "",
        f"they end in {', '.join([*sorted(MANIFEST_SUFFIXES), '.tar', '.zip'])}",
    )


def _discover_folder(root: Path) -> ImageSet:
    if is_saved_dataset(root):
        return read_saved_dataset(root)
    contents = look_into(root)
    tree = folder_tree(root, contents.images)
    if contents.images and _names_classes(tree):
        return note_unread(read_tree(tree), contents)
    tables, refused = _find_tables(root, contents)
    if tables:
        return _read_tables(tables, str(root))
    if contents.tars:
        return read_webdataset(contents.tars, root)
    if contents.zips:
        return read_tree(archive_tree(contents.zips, root))
    if contents.images:
        return read_class_folders(tree)
    if refused:
        raise refused[0]
    raise DataError(f"No images in {root}", suffix_hint())


def read_tree(tree: Tree) -> ImageSet:
    """The images of a tree, by the published benchmark it is, or else by its class folders."""
    pattern, alike = recognise(tree)
    if pattern is not None:
        return read_pattern(tree, pattern)
    return read_class_folders(tree, f", like {and_list(alike)}" if alike else "")


def _names_classes(tree: Tree) -> bool:
    folders = set(tree.folders())
    named = any(place_in_folders((tree.name, *above)) for above in folders)
    return named or recognise(tree)[0] is not None


def note_unread(image_set: ImageSet, contents: Contents) -> ImageSet:
    """Say what else lies in a folder of samples."""
    unread = _count(replace(contents, images=[]))
    if not unread:
        return image_set
    beside = f"beside the {noun_of(image_set.modality)}, not read: {unread}"
    return replace(image_set, layout=f"{image_set.layout}; {beside}")


def _count(contents: Contents) -> str:
    kinds = {"image": contents.images, "table": contents.tables, "tar": contents.tars, "zip": contents.zips}
    counted = [f"{len(files)} {kind}{'s' * (len(files) > 1)}" for kind, files in kinds.items() if files]
    return and_list(counted)


def _find_tables(root: Path, contents: Contents) -> tuple[list[Table], list[DataError]]:
    """The tables of a folder that hold images or, if there are none, that list them; and why others do neither."""
    found: list[Table] = []
    refused: list[DataError] = []
    for file in [*contents.tables, *files_near(root, TEXT_SUFFIXES)]:
        try:
            table = open_table(file, root)
        except DataError as error:
            if file in contents.tables:
                raise
            refused.append(error)
            continue
        if table.cell is not None or {"path", "label"} <= table.columns().keys():
            found.append(table)
        else:
            refused.append(
                DataError(f"{file} has no columns 'path' and 'label'", f"its columns are {', '.join(table.names)}")
            )
    inside = [table for table in found if table.cell is not None]
    return inside or found, refused


def files_near(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files of these suffixes that lie in a folder itself or in its split folders."""
    places = [root, *(folder for folder in sorted(root.iterdir()) if folder.name.lower() in SPLIT_FOLDERS)]
    return [
        file
        for place in places
        if place.is_dir()
        for file in sorted(place.iterdir(), key=natural_key)
        if file.suffix.lower() in suffixes and not file.name.startswith(".")
    ]


def _read_tables(tables: Sequence[Table], origin: str) -> ImageSet:
    known = [name for name, columns in _TABLE_LAYOUTS.items() if all(table.has(*columns) for table in tables)]
    kind = "parquet" if all(table.cell is not None for table in tables) else "manifest"
    return read_tables(tables, origin, known[0] if known else kind)


def find_tables_in(path: Path, suffixes: Iterable[str], inside: bool | None = None) -> list[Table]:
    """The tables a path stands for; `inside` asks for those with images inside (True), or with paths (False)."""
    if path.is_dir():
        tables, refused = _find_tables(path, look_into(path))
    else:
        tables = [open_table(path)] if path.suffix.lower() in MANIFEST_SUFFIXES else []
        refused = []
    fitting = [
        table
        for table in tables
        if Path(table.name).suffix.lower() in suffixes and inside in (None, table.cell is not None)
    ]
    if not fitting:
        raise refused[0] if refused else misfit(path, f"a table of images ({', '.join(sorted(suffixes))})")
    return fitting


def misfit(path: Path, expected: str) -> DataError:
    """The error for a path that does not hold what a layout asks for, with what it does hold."""
    if path.is_dir():
        found = f"a folder with {_count(look_into(path)) or 'nothing known'}"
    else:
        found = f"a {path.suffix or 'nameless'} file"
    return DataError(f"{path} does not lie as asked", f"Expected {expected}, found {found}", "use the layout 'auto'")


def as_tree(path: Path, kind: Kind = IMAGES) -> Tree:
    """The samples of a folder, or in the archives it holds, or in an archive."""
    if not path.is_dir():
        if path.suffix.lower() in (".zip", ".tar"):
            return archive_tree([path], kind=kind)
        raise misfit(path, "a folder, a zip or a tar")
    contents = look_into(path, kind)
    if contents.images:
        return folder_tree(path, contents.images, kind)
    if contents.zips or contents.tars:
        return archive_tree(contents.zips or contents.tars, path, kind)
    raise DataError(f"No {kind.noun} in {path}", suffix_hint(kind))
