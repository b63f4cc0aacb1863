"""Folders, and the insides of zips and tars, as trees of sample files; and the classes that folder names tell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dna_probe.errors import DataError
from dna_probe.images.archives import TABLE_SUFFIXES, Member, list_members
from dna_probe.images.entries import Entry, assemble
from dna_probe.images.groups import natural_key
from dna_probe.images.reading import name_of
from dna_probe.images.sets import FAKE, REAL, ImageSet, noun_of
from dna_probe.images.sources import RemoteImage

# HEIC is here so that it is named as unreadable where its decoder is missing, not passed over.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
IMAGE_SUFFIXES |= {".avif", ".jp2", ".ppm", ".pgm", ".heic", ".heif"}
CLASS_FOLDERS = {"0_real": REAL, "real": REAL, "reals": REAL, "1_fake": FAKE, "fake": FAKE, "fakes": FAKE}
# "nature" and "ai" are also ordinary words: they count only where no clearer folder lies above or below.
WEAK_CLASS_FOLDERS = {"nature": REAL, "ai": FAKE}
# The class folders that lie inside a generator's folder, rather than hold the generators.
_INNER = frozenset({"0_real", "1_fake", "nature", "ai"})
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NO_CLASS = "lies in no folder that names its class"
_NUMBERING = re.compile(r"([-_.]?\d+)?([-_]of[-_]\d+)?$")


@dataclass(frozen=True)
class Kind:
    """How the files of a modality are told by their suffixes, and their classes by the names of folders.

    Folders of `weak` names count only where none of the `clear` ones lies above or below; those of `inner` names lie
    inside a generator's folder, the others hold the generators. `advice`, `classes` and `pattern` are for messages: how
    to arrange samples, what their class folders are called, and how to name many.
    """

    modality: str
    suffixes: frozenset[str]
    clear: Mapping[str, int]
    weak: Mapping[str, int]
    inner: frozenset[str]
    classes: str
    advice: str
    pattern: str

    @property
    def noun(self) -> str:
        return noun_of(self.modality)


IMAGES = Kind(
    modality="image",
    suffixes=IMAGE_SUFFIXES,
    clear=CLASS_FOLDERS,
    weak=WEAK_CLASS_FOLDERS,
    inner=_INNER,
    classes="real or fake",
    advice="arrange them as real/ and fake/<generator>/, or write a manifest with the columns path and label",
    pattern="photos/*.jpg",
)
TEXTS = Kind(
    modality="text",
    suffixes=frozenset({".txt", ".md"}),
    clear={**CLASS_FOLDERS, **dict.fromkeys(("human", "humans"), REAL), **dict.fromkeys(("machine", "machines"), FAKE)},
    weak={"ai": FAKE, "generated": FAKE},
    inner=frozenset({"0_real", "1_fake"}),
    classes="human or machine, real or fake",
    advice="arrange them as human/ and machine/<generator>/, or write a table with the columns text and label",
    pattern="texts/*.txt",
)
RECORDINGS = Kind(
    modality="audio",
    # The last three are here so that they are named as unreadable, not passed over.
    suffixes=frozenset(
        {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".m4a", ".aac", ".wma"}
    ),
    clear={**CLASS_FOLDERS, "bonafide": REAL, "bona-fide": REAL, "bona_fide": REAL, "spoof": FAKE, "spoofed": FAKE},
    weak={"ai": FAKE, "generated": FAKE},
    inner=frozenset({"0_real", "1_fake"}),
    classes="real or fake, bonafide or spoof",
    advice="arrange them as real/ and fake/<vocoder>/, or write a manifest with the columns path and label",
    pattern="recordings/*.wav",
)
KINDS = {kind.modality: kind for kind in (IMAGES, TEXTS, RECORDINGS)}


@dataclass(frozen=True)
class TreeFile:
    """A sample's file and its path below the root of its tree."""

    source: Path | Member | RemoteImage
    path: PurePosixPath

    @property
    def name(self) -> str:
        return name_of(self.source, None)


@dataclass(frozen=True)
class Tree:
    """Files of one kind in natural order below a root: a folder on disk (`folder`), or archives read in place."""

    origin: str
    name: str
    files: tuple[TreeFile, ...]
    folder: Path | None = None
    kind: Kind = IMAGES

    def folders(self) -> list[tuple[str, ...]]:
        """The names of the folders above each file, outermost first."""
        return [file.path.parts[:-1] for file in self.files]


@dataclass(frozen=True)
class Contents:
    """The files of interest below a folder, each sort in natural order; `images` are those of the kind looked for."""

    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    tars: list[Path] = field(default_factory=list)
    zips: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """What the folders above one image say about it."""

    label: int
    generator: str
    split: str
    context: str = ""
    group: str = ""


def folder_tree(root: Path, images: Iterable[Path], kind: Kind = IMAGES) -> Tree:
    files = tuple(TreeFile(image, PurePosixPath(image.relative_to(root).as_posix())) for image in images)
    return Tree(str(root), root.resolve().name, files, root, kind)


def archive_tree(archives: Sequence[Path], root: Path | None = None, kind: Kind = IMAGES) -> Tree:
    """The samples inside zips or plain tars, under the folders above and the name of their archive, which may name the
    class or the split as a folder does. Raises `DataError` where one is damaged, or none holds a sample."""
    files = []
    for archive in archives:
        above = () if root is None else (*archive.relative_to(root).parts[:-1], shard_name(archive))
        for member in list_members(archive):
            parts = [part for part in member.member.replace("\\", "/").split("/") if part not in ("", ".", "..")]
            if parts and is_sample(parts[-1], kind):
                files.append(TreeFile(member, PurePosixPath(*above, *parts)))
    origin = archives[0] if root is None else root
    if not files:
        raise DataError(f"No {kind.noun} in {origin}", suffix_hint(kind))
    # The name of an archive given by itself counts like the name of a folder given.
    name = shard_name(archives[0]) if root is None else root.resolve().name
    return Tree(str(origin), name, tuple(sorted(files, key=lambda file: natural_key(file.path.as_posix()))), kind=kind)


def shard_name(path: Path) -> str:
    """A file's stem without what numbers it: `train-00000-of-00003.parquet` gives `train`."""
    return _NUMBERING.sub("", path.stem) or path.stem


def look_into(root: Path, kind: Kind = IMAGES) -> Contents:
    """The samples, tables and archives below a folder; see `walk`."""
    found = Contents()
    kinds = {
        **dict.fromkeys(kind.suffixes, found.images),
        **dict.fromkeys(TABLE_SUFFIXES, found.tables),
        ".tar": found.tars,
        ".zip": found.zips,
    }
    for file in walk(root):
        files = kinds.get(file.suffix.lower())
        if files is not None:
            files.append(file)
    for files in (found.images, found.tables, found.tars, found.zips):
        files.sort(key=natural_key)
    return found


def is_image(name: str) -> bool:
    return is_sample(name, IMAGES)


def is_sample(name: str, kind: Kind) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in kind.suffixes


def suffix_hint(kind: Kind = IMAGES) -> str:
    return f"looked for {', '.join(sorted(suffix[1:] for suffix in kind.suffixes))}"


def read_class_folders(tree: Tree, likeness: str = "") -> ImageSet:
    """The set that a tree's folder names tell, by the rule in `read_images`. Raises `DataError` where they tell none.

    `likeness` is added to the description of what was found.
    """
    parts = tree.folders()
    # The folder given may itself be a class folder; its name counts only if no folder inside names a class.
    if all(_class_folder(folders, tree.kind) is None for folders in parts):
        parts = [(tree.name, *folders) for folders in parts]
    entries: list[Entry] = []
    skipped: list[tuple[str, str]] = []
    for file, folders in zip(tree.files, parts, strict=True):
        place = place_in_folders(folders, tree.kind)
        if place is None:
            skipped.append((file.name, NO_CLASS))
        else:
            entries.append(entry_at(tree, file, place))
    if not entries:
        raise DataError(
            f"No class folders in {tree.origin}",
            f"it holds {len(tree.files)} {tree.kind.noun}, but none lies below a folder named {tree.kind.classes}",
            tree.kind.advice,
        )
    found = _describe(parts, entries, tree.kind) + likeness
    return assemble(entries, tree.origin, found, skipped, tree.kind.modality)


def entry_at(tree: Tree, file: TreeFile, place: Place) -> Entry:
    """The entry of a file. Its path starts with the root's name, so that two sets do not share groups by accident."""
    return Entry(
        source=file.source,
        path=PurePosixPath(tree.name, file.path),
        label=place.label,
        generator=place.generator,
        split=place.split,
        group=place.group,
        context=place.context,
    )


def place_in_folders(folders: tuple[str, ...], kind: Kind = IMAGES) -> Place | None:
    """What folder names, outermost first, say by the rule in `read_images`; None where none names a class."""
    at = _class_folder(folders, kind)
    if at is None:
        return None
    name = folders[at].lower()
    label = {**kind.clear, **kind.weak}[name]
    above, below = _between_splits(folders[:at]), [p for p in folders[at + 1 :] if p.lower() not in SPLIT_FOLDERS]
    generator = "real"
    used: str | None = None
    if label == FAKE:
        # real/ and fake/ hold the generators; 0_real/1_fake and nature/ai lie inside one.
        first, second = (above, below) if name in kind.inner else (below, above)
        used = generator = next(iter([*first[:1], *second[:1]]), "fake")
    elif name in kind.inner and above:
        used = above[0]
    # What is left (subject, variant, split) tells files of the same name apart.
    rest = [part for part in (*above, *below) if part != used]
    split = split_of(folders)
    return Place(label, generator, split, "/".join([split, *rest]).strip("/"))


def split_of(folders: Iterable[str]) -> str:
    """train, val or test where a folder is named so, else ""."""
    return next((SPLIT_FOLDERS[part.lower()] for part in folders if part.lower() in SPLIT_FOLDERS), "")


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder; links are followed once, hidden folders and files passed over."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _class_folder(folders: tuple[str, ...], kind: Kind) -> int | None:
    """The position of the folder that names the class: the innermost clear one, else the innermost weak one."""
    for names in (kind.clear, kind.weak):
        for position in reversed(range(len(folders))):
            if folders[position].lower() in names:
                return position
    return None


def _between_splits(folders: tuple[str, ...]) -> list[str]:
    """The folders after the last split folder if there are any, else those before it."""
    marks = [position for position, part in enumerate(folders) if part.lower() in SPLIT_FOLDERS]
    if not marks:
        return list(folders)
    after = list(folders[marks[-1] + 1 :])
    return after or [part for part in folders if part.lower() not in SPLIT_FOLDERS]


def _describe(parts: Sequence[tuple[str, ...]], entries: Sequence[Entry], kind: Kind) -> str:
    """For instance: folders: class folders 'ai' and 'nature', generator above them, splits train and val."""
    markers: set[str] = set()
    sides: dict[str, None] = {}
    makers = {entry.generator for entry in entries if entry.label == FAKE}
    for folders in parts:
        at = _class_folder(folders, kind)
        if at is not None:
            markers.add(folders[at])
            sides.update({"above": None} if makers & set(folders[:at]) else {})
            sides.update({"below": None} if makers & set(folders[at + 1 :]) else {})
    found = [f"class folders {and_list(repr(name) for name in sorted(markers))}"]
    if sides:
        found.append(f"generator {and_list(sides)} them")
    return f"folders: {', '.join([*found, describe_splits(entry.split for entry in entries)])}"


def describe_splits(splits: Iterable[str]) -> str:
    known = [split for split in dict.fromkeys(splits) if split]
    return f"splits {and_list(known)}" if known else "no splits"


def and_list(words: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last
