"""A labelled set of images, texts or recordings: what is where, what it is, and what must stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.reading import Source, content_hash, name_of
from dna_probe.images.sources import is_stored

REAL, FAKE, UNLABELLED = 0, 1, -1
# What the samples of each modality are called.
MODALITIES = {"image": "images", "text": "texts", "audio": "recordings"}
_WORDS = {REAL: "real", FAKE: "fake", UNLABELLED: "unlabelled"}


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their labels (1 fake, 0 real, -1 unlabelled), generators, groups, splits and dates, in one order.

    `generators` is "real" for reals; images of one of `groups` are never put on two sides of a split; `splits` is ""
    where nothing is known, and so is `dates`, the ISO date at which the image's generator was released; `origin` says
    where the set came from, `layout` how it lay there; `skipped` lists (name, reason) of what was left out. All are of
    one `modality`: "image", or "text" or "audio", whose samples stand under `images` just so.
    All but images and labels may be left out: then every image is its own group. Nothing is read from disk here.
    Raises `DataError` where lengths or labels do not fit.
    """

    images: tuple[Source, ...]
    labels: np.ndarray
    generators: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    origin: str = ""
    layout: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    modality: str = "image"

    def __post_init__(self):
        noun = noun_of(self.modality)
        images = tuple(self.images)
        labels = _labels(self.labels)
        count = len(images)
        derived = {
            "generators": lambda: tuple("" if label < 0 else _WORDS[label] for label in labels.tolist()),
            "groups": lambda: tuple(str(position) for position in range(count)),
            "splits": lambda: ("",) * count,
            "dates": lambda: ("",) * count,
        }
        if len(labels) != count:
            raise DataError(f"{count} {noun} but {len(labels)} labels", "", f"give one label for each {_one(noun)}")
        for field, default in derived.items():
            values = tuple(str(value) for value in getattr(self, field)) or default()
            if len(values) != count:
                raise DataError(
                    f"{count} {noun} but {len(values)} {field}", "", f"give one for each {_one(noun)}, or no {field}"
                )
            object.__setattr__(self, field, values)
        object.__setattr__(self, "origin", self.origin or f"{noun} in memory")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "skipped", tuple((str(name), str(reason)) for name, reason in self.skipped))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ImageSet({self.describe()})"

    @property
    def names(self) -> tuple[str, ...]:
        """What each image is called in messages and reports."""
        if self.modality == "image":
            return tuple(name_of(source, position) for position, source in enumerate(self.images))
        noun = noun_of(self.modality)
        return tuple(
            name_of(source, None) if isinstance(source, str | Path) or is_stored(source) else f"{noun}[{position}]"
            for position, source in enumerate(self.images)
        )

    def subset(self, index: Sequence[int] | np.ndarray | slice) -> ImageSet:
        """The images at these positions, in that order; `index` is integers, a boolean mask or a slice."""
        positions = np.arange(len(self))[index if isinstance(index, slice) else _index(index, len(self))]
        return replace(
            self,
            images=tuple(self.images[i] for i in positions),
            labels=self.labels[positions],
            generators=tuple(self.generators[i] for i in positions),
            groups=tuple(self.groups[i] for i in positions),
            splits=tuple(self.splits[i] for i in positions),
            dates=tuple(self.dates[i] for i in positions),
        )

    def of_label(self, label: int) -> ImageSet:
        """The images with this label: 0 real, 1 fake, -1 unlabelled."""
        return self.subset(self.labels == label)

    def of_split(self, *splits: str) -> ImageSet:
        """The images of these splits, "train" for instance; the origin says so."""
        found = self.subset(np.array([split in splits for split in self.splits], dtype=bool))
        return replace(found, origin=f"{self.origin}, split {' and '.join(splits)}")

    def counts(self) -> dict[str, int]:
        """Images per generator, reals first, then as they come."""
        counted = Counter(self.generators)
        return dict(sorted(counted.items(), key=lambda item: item[0] != "real"))

    def describe(self) -> str:
        """One line: where from, what if not images, how many real and fake, of each generator, and skipped."""
        parts = []
        for label, word in _WORDS.items():
            number = int((self.labels == label).sum())
            if number or label != UNLABELLED:
                parts.append(f"{number} {word}")
            if label == FAKE and number:
                made = Counter(g for g, one in zip(self.generators, self.labels, strict=True) if one == FAKE)
                parts[-1] += f" ({', '.join(f'{name} {many}' for name, many in made.items())})"
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        noun = noun_of(self.modality)
        what = "" if self.modality == "image" or self.origin == f"{noun} in memory" else f" ({noun})"
        return f"{self.origin}{what}: {', '.join(parts)}"

    def fingerprint(self) -> str:
        """SHA-256 (hex) over content hashes and labels in order: the same images and labels, wherever they lie.

        Reads every file once; the result is kept.
        """
        kept = self.__dict__.get("_fingerprint")
        if kept is None:
            digest = hashlib.sha256()
            for source, label in zip(self.images, self.labels.tolist(), strict=True):
                digest.update(f"{content_hash(source)} {label}\n".encode())
            kept = self.__dict__["_fingerprint"] = digest.hexdigest()
        return kept


def join(sets: Iterable[ImageSet], origin: str | None = None) -> ImageSet:
    """One set after the other. Groups keep their names, so equal names stay together across sets.

    Raises `DataError` where they are not of one modality.
    """
    sets = list(sets)
    kinds = list(dict.fromkeys(one.modality for one in sets)) or ["image"]
    if len(kinds) > 1:
        nouns = " and ".join(noun_of(kind) for kind in kinds)
        raise DataError(f"{nouns} cannot be one set".capitalize(), "a backbone reads one modality", "use them apart")
    return ImageSet(
        images=tuple(image for one in sets for image in one.images),
        labels=np.concatenate([one.labels for one in sets]) if sets else np.zeros(0, np.int64),
        generators=tuple(name for one in sets for name in one.generators),
        groups=tuple(name for one in sets for name in one.groups),
        splits=tuple(name for one in sets for name in one.splits),
        dates=tuple(date for one in sets for date in one.dates),
        origin=origin or " + ".join(dict.fromkeys(one.origin for one in sets)),
        skipped=tuple(entry for one in sets for entry in one.skipped),
        modality=kinds[0],
    )


def require_images(samples: ImageSet, what: str) -> None:
    """Raises `DataError` unless the set is of images, of which alone there is what is named."""
    if samples.modality != "image":
        raise not_of_images(what, samples.origin, samples.modality)


def not_of_images(what: str, where: Any, modality: str) -> DataError:
    return DataError(f"{what} is of images, and {where} holds {noun_of(modality)}")


def noun_of(modality: str) -> str:
    """What the samples of a modality are called: "images", "texts" or "recordings"."""
    if modality not in MODALITIES:
        raise unknown_name("modality", str(modality), MODALITIES, DataError)
    return MODALITIES[modality]


def _one(noun: str) -> str:
    return noun.removesuffix("s")


def _labels(given: Any) -> np.ndarray:
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    values = np.asarray(given)
    if values.ndim != 1:
        raise DataError(f"Labels must be a flat list, not of shape {values.shape}")
    if values.size == 0:
        values = values.astype(np.int64)
    if values.dtype.kind not in "biuf" or not np.isin(values, list(_WORDS)).all():
        strange = [value for value in values.tolist() if value not in _WORDS]
        raise DataError(
            f"Unknown label {strange[0]!r}", "labels are 1 for fake, 0 for real, -1 for unknown", "recode the labels"
        )
    labels = values.astype(np.int64)
    labels.setflags(write=False)
    return labels


def _index(index: Any, count: int) -> np.ndarray:
    index = np.asarray(index)
    if index.dtype == bool and index.shape != (count,):
        raise DataError(f"A mask of {index.size} for a set of {count}")
    return index if index.size else index.astype(np.int64)
