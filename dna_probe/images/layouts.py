"""Where labelled images lie on disk: folders that name the class, manifests, or lists in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dna_probe.errors import DataError
from dna_probe.images.groups import find_groups, natural_key
from dna_probe.images.manifests import MANIFEST_SUFFIXES, parse_label, read_manifest
from dna_probe.images.sampling import draw_shots as draw_shots
from dna_probe.images.sampling import require_two_classes as require_two_classes
from dna_probe.images.sampling import split_by_group as split_by_group
from dna_probe.images.sets import FAKE, REAL, UNLABELLED, ImageSet

# HEIC is here so that it is named as unreadable where its decoder is missing, not passed over.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
IMAGE_SUFFIXES |= {".avif", ".jp2", ".ppm", ".pgm", ".heic", ".heif"}
CLASS_FOLDERS = {"0_real": REAL, "real": REAL, "reals": REAL, "1_fake": FAKE, "fake": FAKE, "fakes": FAKE}
# "nature" and "ai" are also ordinary words: they count only where no clearer folder lies above or below.
WEAK_CLASS_FOLDERS = {"nature": REAL, "ai": FAKE}
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read_images(data: Any) -> ImageSet:
    """The labelled images of a folder, a manifest file, a tuple in memory, or an `ImageSet` (returned as it is).

    Folder: any ancestor of an image, at any depth and in any case, may name its class: `real`, `reals`, `0_real`,
    `nature`, or `fake`, `fakes`, `1_fake`, `ai`; where several do, the innermost counts. The generator of a fake is the
    folder below `fake`, or the folder above `1_fake` or `ai` (the outermost one that is not a split). Folders named
    train, val or test give the split. Images that share a prompt or a source by their file stems share a group, see
    `find_groups`. Images under no class folder are listed in `skipped`. Order is the natural order of the paths.

    Manifest (.csv, .tsv, .jsonl, .json, .parquet): columns path and label, and if there generator, group and split;
    paths are relative to the manifest.

    Tuple: (images, labels) or (images, labels, groups); labels 0/1 or "real"/"fake".

    No image is opened here, so damaged ones are found at reading, each with its reason. Raises `DataError` where
    nothing usable is found.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, tuple):
        return _from_memory(data)
    if not isinstance(data, str | os.PathLike):
        raise DataError(
            f"A {type(data).__name__} is no image set",
            "",
            "give a folder, a manifest file, or the tuple (images, labels)",
        )
    path = Path(data)
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise DataError(f"No such folder or manifest: {path}", "", "check the spelling, or give an absolute path")
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return read_manifest(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(
            f"{path} is one image", "a labelled set is needed here", "give a folder with real/ and fake/, or a manifest"
        )
    raise DataError(
        f"{path} is neither a folder nor a manifest", "", f"manifests end in {', '.join(sorted(MANIFEST_SUFFIXES))}"
    )


def read_unlabelled(paths: Any) -> list[Path]:
    """The files to look at, in the order given: files, folders (their images, recursively, naturally sorted), globs.

    Of folders and globs only files with an image suffix are taken; a file named outright is always taken, so that it is
    reported if it cannot be read. Raises `DataError`, naming the path, where one of them yields nothing.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = list(_walk(path))
            if not files:
                raise DataError(f"No images in {path}", _suffix_hint())
        elif path.exists():
            files = [path]
        elif glob.has_magic(str(given)):
            hits = sorted(glob.glob(os.path.expanduser(str(given)), recursive=True), key=natural_key)
            files = []
            for hit in map(Path, hits):
                # A pattern that ends in ** also names every folder, whose files it names as well.
                if hit.is_file() and _is_image(hit.name):
                    files.append(hit)
                elif hit.is_dir() and not str(given).endswith("**"):
                    files.extend(_walk(hit))
            if not files:
                raise DataError(f"No images match {given}", _suffix_hint())
        else:
            raise DataError(f"No such file or folder: {given}")
        found.extend(files)
    if not found:
        raise DataError("No images were given", "", "name files, folders or patterns such as 'photos/*.jpg'")
    return found


@dataclass(frozen=True)
class _Place:
    """What the folders above one image say about it."""

    label: int
    generator: str
    split: str
    context: str


def _from_folder(root: Path) -> ImageSet:
    files = list(_walk(root))
    if not files:
        raise DataError(f"No images in {root}", _suffix_hint())
    parts = [file.relative_to(root).parts[:-1] for file in files]
    # The folder given may itself be a class folder; its name counts only if no folder inside names a class.
    if all(_class_folder(folders) is None for folders in parts):
        parts = [(root.resolve().name, *folders) for folders in parts]
    kept: list[Path] = []
    places: list[_Place] = []
    skipped: list[tuple[str, str]] = []
    for file, folders in zip(files, parts, strict=True):
        place = _place(folders)
        if place is None:
            skipped.append((str(file), "lies in no folder that names its class"))
        else:
            kept.append(file)
            places.append(place)
    if not kept:
        raise DataError(
            f"No class folders in {root}",
            f"it holds {len(files)} images, but none lies below a folder named real or fake",
            "arrange them as real/ and fake/<generator>/, or write a manifest with the columns path and label",
        )
    labels = [place.label for place in places]
    generators = [place.generator for place in places]
    return ImageSet(
        images=tuple(kept),
        labels=labels,  # type: ignore[arg-type]
        generators=tuple(generators),
        groups=find_groups(kept, labels, generators, [place.context for place in places]),
        splits=tuple(place.split for place in places),
        origin=str(root),
        skipped=tuple(skipped),
    )


def _class_folder(folders: tuple[str, ...]) -> int | None:
    """The position of the folder that names the class: the innermost clear one, else the innermost weak one."""
    for names in (CLASS_FOLDERS, WEAK_CLASS_FOLDERS):
        for position in reversed(range(len(folders))):
            if folders[position].lower() in names:
                return position
    return None


def _place(folders: tuple[str, ...]) -> _Place | None:
    at = _class_folder(folders)
    if at is None:
        return None
    name = folders[at].lower()
    label = {**CLASS_FOLDERS, **WEAK_CLASS_FOLDERS}[name]
    split = next((SPLIT_FOLDERS[part.lower()] for part in folders if part.lower() in SPLIT_FOLDERS), "")
    above, below = _between_splits(folders[:at]), [p for p in folders[at + 1 :] if p.lower() not in SPLIT_FOLDERS]
    generator = "real"
    used: str | None = None
    if label == FAKE:
        # real/ and fake/ hold the generators; 0_real/1_fake and nature/ai lie inside one.
        first, second = (above, below) if name in ("1_fake", "ai") else (below, above)
        used = generator = next(iter([*first[:1], *second[:1]]), "fake")
    elif name in ("0_real", "nature") and above:
        used = above[0]
    # What is left (subject, variant, split) tells files of the same name apart.
    rest = [part for part in (*above, *below) if part != used]
    return _Place(label, generator, split, "/".join([split, *rest]).strip("/"))


def _between_splits(folders: tuple[str, ...]) -> list[str]:
    """The folders after the last split folder if there are any, else those before it."""
    marks = [position for position, part in enumerate(folders) if part.lower() in SPLIT_FOLDERS]
    if not marks:
        return list(folders)
    after = list(folders[marks[-1] + 1 :])
    return after or [part for part in folders if part.lower() not in SPLIT_FOLDERS]


def _walk(root: Path) -> Iterator[Path]:
    """Image files below a folder in natural order; links are followed once, hidden folders and files passed over."""
    seen: set[str] = set()
    files: list[Path] = []
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__MACOSX"]
        files.extend(Path(folder, name) for name in names if _is_image(name))
    return iter(sorted(files, key=natural_key))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _suffix_hint() -> str:
    return f"looked for {', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))}"


def _from_memory(data: tuple) -> ImageSet:
    if len(data) not in (2, 3):
        raise DataError(
            f"A tuple of {len(data)} is no image set", "", "give (images, labels) or (images, labels, groups)"
        )
    images = _as_images(data[0])
    labels = data[1]
    if not hasattr(labels, "detach"):
        labels = [parse_label(label) if isinstance(label, str) else label for label in labels]
        for position, label in enumerate(labels):
            if label is None:
                raise DataError(f"Unknown label {data[1][position]!r}", "", "labels are 0 or 1, real or fake")
    groups = tuple(str(group) for group in data[2]) if len(data) == 3 else None
    made = ImageSet(images=images, labels=labels, groups=groups or ())
    if not len(made):
        raise DataError("No images were given")
    if groups is None and all(isinstance(image, Path) for image in images):
        where = [
            str(image.parent) if label == UNLABELLED else "" for image, label in zip(images, made.labels, strict=True)
        ]
        found = find_groups(list(images), made.labels.tolist(), list(made.generators), where)
        made = ImageSet(images=images, labels=made.labels, groups=found)
    return made


def _as_images(images: Iterable[Any]) -> tuple:
    if isinstance(images, str | os.PathLike):
        raise DataError(f"(images, labels) needs a list of images, not the single path {images}")
    return tuple(Path(image) if isinstance(image, str) else image for image in images)
