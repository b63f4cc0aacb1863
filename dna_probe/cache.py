"""Rows of features on disk, so that a second run on the same images needs no forward pass.

A cache folder holds one sub-folder per key (weights and preprocessing) with shards and ``about.json``, which says what
the key stands for. A shard is named by the SHA-256 of its bytes and written beside that name and renamed, so a killed
run or a second process never leaves half a shard, and two that compute the same write the same file. It is checked
before its first use; one that is damaged is passed over with a warning and its images are computed again. Where
nothing can be written any more, a full disk for instance, the run goes on without adding to the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.storage import write_atomically

KEY = re.compile(r"[0-9a-f]{32}")
# Names of 32 digits are of shards from before there was a checksum.
SHARD = re.compile(r"([0-9a-f]{64}|[0-9a-f]{32})\.safetensors")
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")
ABOUT = "about.json"
# A younger file may be one that another process is writing.
PARTIAL_AGE = 3600.0
UNKNOWN = "unknown"


class CacheWarning(UserWarning):
    """Something in the cache could not be read or written; the results are what they would be without it."""


def digest(*parts: object) -> str:
    """SHA-256 over the JSON of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(eq=False)
class _Shard:
    """A shard as its header says it is; ``sound`` is None until its bytes were checked."""

    path: Path
    stamp: tuple[int, int]
    images: Sequence[str] = ()
    names: frozenset[str] = frozenset()
    sound: bool | None = None


class RowCache:
    """Rows of named arrays by the content hash of an image; an image's arrays may lie in several shards.

    Args:
        folder: the cache folder, made where it is missing.
        key: digest of all that the rows depend on besides the image and the names of the arrays.
        about: the same in words, for people who look in: see ``CacheFolder``.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, key: str, about: Mapping[str, Any] | None = None):
        self.folder = Path(folder) / key[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"The cache folder {folder} cannot be written", error.strerror or str(error), "Give another --cache"
            ) from error
        self._shards: dict[str, _Shard] = {}
        self._places: dict[str, list[tuple[_Shard, int]]] = {}
        for path in _old_partials(self.folder):
            with suppress(OSError):
                path.unlink()
        self._use(about)

    @classmethod
    def open(cls, folder: str | Path, key: str, about: Mapping[str, Any] | None = None) -> RowCache:
        """The cache of this folder and key; opened again in one process, it reads only the shards that are new."""
        place = (Path(folder).resolve(), key)
        known = _OPEN.get(place)
        if known is None or not known.folder.is_dir():
            known = _OPEN[place] = cls(*place, about)
        else:
            known._use(about)
        return known

    def _use(self, about: Mapping[str, Any] | None) -> None:
        # The time of the folder is that of its last use.
        with suppress(OSError):
            os.utime(self.folder)
        self._writing = True
        if about is not None and _read_about(self.folder) is None:
            self._write(ABOUT, json.dumps(about, indent=1, sort_keys=True).encode())
        self.refresh()

    def refresh(self) -> None:
        """Index the shards that were written since, and forget those that were removed or changed."""
        stamps = _stamps(self.folder)
        kept = {name: shard for name, shard in self._shards.items() if stamps.get(name) == shard.stamp}
        new = [_open_shard(self.folder / name, stamps[name]) for name in sorted(stamps.keys() - kept)]
        if len(kept) < len(self._shards):
            self._places = {}
            new = [*kept.values(), *new]
        self._shards = kept
        for shard in new:
            self._index(shard)

    def has(self, image: str, names: Iterable[str]) -> bool:
        """Whether sound shards hold all of these arrays of the image."""
        missing = set(names)
        for shard, _ in self._places.get(image, ()):
            if not missing.isdisjoint(shard.names) and _is_sound(shard):
                missing -= shard.names
        return not missing

    def rows(self, images: Sequence[str], names: Iterable[str]) -> dict[str, np.ndarray]:
        """The named arrays of the images, in that order, (len(images), ...).

        Raises:
            DataError: a shard is gone, though ``has`` has seen it.
            KeyError: ``has`` would have said no.
        """
        from safetensors import SafetensorError, safe_open

        names = list(names)
        found: dict[str, np.ndarray] = {}
        for (shard, held), (positions, rows) in self._plan(images, names).items():
            try:
                with safe_open(shard.path, framework="numpy") as file:
                    for name in held:
                        values = file.get_tensor(name)
                        if name not in found:
                            found[name] = np.empty((len(images), *values.shape[1:]), values.dtype)
                        found[name][positions] = values[rows]
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"{shard.path} was removed or changed while it was in use",
                    str(error),
                    "Run again: what was computed is kept",
                ) from error
        return {name: found[name] for name in names}

    def _plan(
        self, images: Sequence[str], names: Sequence[str]
    ) -> dict[tuple[_Shard, frozenset[str]], tuple[list[int], list[int]]]:
        """(shard, the arrays to take from it) -> positions of images and their rows in the shard."""
        plan: dict[tuple[_Shard, frozenset[str]], tuple[list[int], list[int]]] = {}
        wanted = frozenset(names)
        for position, image in enumerate(images):
            missing = wanted
            # What was once computed for this very question, else what was there first: a run that goes on is told what
            # it knew when it was cut off. Other passes, with or without fused attention, may differ in the last bits.
            for shard, row in sorted(self._places.get(image, ()), key=lambda place: place[0].names != wanted):
                held = missing & shard.names
                if held and _is_sound(shard):
                    positions, rows = plan.setdefault((shard, held), ([], []))
                    positions.append(position)
                    rows.append(row)
                    missing -= held
            if missing:
                raise KeyError(image, sorted(missing))
        return plan

    def add(self, images: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard. ``arrays`` have a row per image.

        Where it cannot be written, a ``CacheWarning`` says so once, and nothing more is written from then on.
        """
        from safetensors.numpy import save

        if not images or not self._writing:
            return
        contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        # One entry alone, since the order of several would be another each time, and the name with it.
        content = save(contiguous, metadata={"images": json.dumps(list(images))})
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        known = self._shards.get(name)
        if known is not None and known.sound is not False:
            return
        stamp = self._write(name, content)
        if stamp is not None:
            self._index(_Shard(self.folder / name, stamp, list(images), frozenset(arrays), sound=True))

    def _write(self, name: str, content: bytes) -> tuple[int, int] | None:
        try:
            # Another process may have pruned it.
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, content)
            return _stamp((self.folder / name).stat())
        except (DataError, OSError) as error:
            self._writing = False
            why = error.why if isinstance(error, DataError) else error.strerror
            warnings.warn(
                f"The cache {self.folder} cannot be written ({why}): the run goes on without adding to it, and what "
                "it holds is kept",
                CacheWarning,
                stacklevel=3,
            )
            return None

    def _index(self, shard: _Shard) -> None:
        self._shards[shard.path.name] = shard
        for row, image in enumerate(shard.images):
            places = self._places.setdefault(image, [])
            places.append((shard, row))
            places.sort(key=lambda place: (place[0].stamp, place[0].path.name))


_OPEN: dict[tuple[Path, str], RowCache] = {}


@dataclass(frozen=True)
class Fault:
    """A damaged shard and what is wrong with it."""

    path: Path
    reason: str


@dataclass(frozen=True)
class CacheFolder:
    """What the cache holds under one key.

    Attributes:
        about: ``backbone``, ``weight_hash``, ``preprocessing``, ``precision`` and ``compiled``; nothing where the
            folder does not say it.
        images: different images (or sets of them, for gradients) of which it holds something.
        readings: different arrays.
        shards: its files, the one written first ahead.
        size: bytes of the shards.
        last_use: seconds since 1970.
    """

    path: Path
    about: Mapping[str, Any] = field(repr=False)
    images: int
    readings: int
    shards: tuple[Path, ...] = field(repr=False)
    size: int
    last_use: float

    @property
    def backbone(self) -> str:
        return str(self.about.get("backbone") or UNKNOWN)


@dataclass(frozen=True)
class Pruned:
    """What was removed (or would be): files, each with the reason, and their bytes."""

    removed: tuple[tuple[Path, str], ...]
    size: int


def list_cache(folder: str | Path) -> list[CacheFolder]:
    """What a cache folder holds, by key, the one used last ahead.

    Raises:
        DataError: no such folder.
    """
    return sorted(map(_look_into, _key_folders(Path(folder))), key=lambda found: -found.last_use)


def verify_cache(folder: str | Path) -> tuple[int, list[Fault]]:
    """Read every shard: how many there are, and those that are damaged.

    Raises:
        DataError: no such folder.
    """
    shards = [path / name for path in _key_folders(Path(folder)) for name in sorted(_stamps(path))]
    faults = [Fault(path, reason) for path in shards if (reason := _fault(path))]
    return len(shards), faults


def prune_cache(
    folder: str | Path,
    *,
    older_than: float | None = None,
    larger_than: int | None = None,
    damaged: bool = False,
    backbone: str | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove shards, and always what killed runs left half written more than an hour ago.

    Args:
        older_than: seconds; all that no run has opened since.
        larger_than: bytes; what was used least recently, and within one key written first, until no more is left.
        damaged: shards that are not what was written; every shard is read.
        backbone: what is kept of this backbone alone is looked at; without another criterion all of it goes.
        dry_run: say what would be removed and remove nothing.

    Raises:
        DataError: no such folder, or nothing of this backbone in it.
    """
    found = list_cache(folder)
    partials = [path for key in found for path in _old_partials(key.path)]
    if backbone is not None:
        known = {key.backbone for key in found}
        if backbone not in known:
            raise unknown_name("backbone in this cache", backbone, sorted(known), DataError)
        found = [key for key in found if key.backbone == backbone]
    doomed = dict.fromkeys(partials, "left half written by a run that was cut off")
    if backbone is not None and older_than is None and larger_than is None and not damaged:
        doomed |= {shard: f"of {backbone}" for key in found for shard in key.shards}
    if older_than is not None:
        limit = time.time() - older_than
        doomed |= {shard: "not used for so long" for key in found if key.last_use < limit for shard in key.shards}
    if damaged:
        doomed |= {shard: reason for key in found for shard in key.shards if (reason := _fault(shard))}
    if larger_than is not None:
        left = [shard for key in reversed(found) for shard in key.shards if shard not in doomed]
        excess = sum(map(_size, left)) - larger_than
        for shard in left:
            if excess <= 0:
                break
            doomed[shard], excess = "least recently used", excess - _size(shard)
    size = sum(map(_size, doomed))
    if not dry_run:
        _remove(doomed)
    return Pruned(tuple(doomed.items()), size)


def _key_folders(folder: Path) -> list[Path]:
    """Sub-folders that are named like a key; nothing else in the folder is ever looked at."""
    try:
        return sorted(path for path in folder.iterdir() if KEY.fullmatch(path.name) and path.is_dir())
    except OSError as error:
        raise DataError(
            f"There is no cache in {folder}", error.strerror or str(error), "Give the folder that runs had as --cache"
        ) from error


def _look_into(path: Path) -> CacheFolder:
    last_use = 0.0
    with suppress(FileNotFoundError):
        last_use = path.stat().st_mtime
    stamps = _stamps(path)
    names = sorted(stamps, key=lambda name: (stamps[name], name))
    shards = [_open_shard(path / name, stamps[name], quiet=True) for name in names]
    return CacheFolder(
        path,
        about=_read_about(path) or {},
        images=len({image for shard in shards for image in shard.images}),
        readings=len({name for shard in shards for name in shard.names}),
        shards=tuple(shard.path for shard in shards),
        size=sum(size for _, size in stamps.values()),
        last_use=last_use,
    )


def _remove(paths: Iterable[Path]) -> None:
    """Remove files, and the folders of keys that hold nothing more; another process may be doing the same.

    Raises:
        DataError: a folder cannot be written.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    for folder, files in by_folder.items():
        try:
            with suppress(FileNotFoundError):
                before = folder.stat()
                for path in files:
                    path.unlink(missing_ok=True)
                if {path.name for path in folder.iterdir()} <= {ABOUT}:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    # Removing is no use.
                    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
        except OSError as error:
            raise DataError(
                f"Nothing can be removed from {folder}", error.strerror or str(error), "Run it as who owns the cache"
            ) from error


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Time of writing and size of every shard."""
    return {entry.name: _stamp(entry.stat()) for entry in _entries(folder, SHARD)}


def _stamp(properties: os.stat_result) -> tuple[int, int]:
    return properties.st_mtime_ns, properties.st_size


def _old_partials(folder: Path) -> list[Path]:
    limit = time.time() - PARTIAL_AGE
    return [Path(entry.path) for entry in _entries(folder, PARTIAL) if entry.stat().st_mtime < limit]


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """Files of a name, with their properties, that are still there."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    entry.stat()
                    yield entry


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _read_about(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        about = json.loads((folder / ABOUT).read_bytes())
        return about if isinstance(about, dict) else None
    return None


def _open_shard(path: Path, stamp: tuple[int, int], quiet: bool = False) -> _Shard:
    """The shard by its header; without images, where that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            images = json.loads((file.metadata() or {}).get("images", "[]"))
            return _Shard(path, stamp, list(map(str, images)), frozenset(file.keys()))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        if not quiet and path.exists():
            _warn_damaged(path, str(error))
        return _Shard(path, stamp, sound=False)


def _is_sound(shard: _Shard) -> bool:
    """Whether the bytes are those that were written; read once in a process."""
    if shard.sound is None:
        reason = _fault(shard.path)
        shard.sound = not reason
        if reason and shard.path.exists():
            _warn_damaged(shard.path, reason)
    return shard.sound


def _fault(path: Path) -> str:
    """What is wrong with a shard, or nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            if len(path.stem) == 64 and hashlib.file_digest(file, "sha256").hexdigest() != path.stem:
                return "its SHA-256 is not the one in its name"
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return str(error)


def _warn_damaged(path: Path, reason: str) -> None:
    warnings.warn(
        f"{path} is damaged ({reason}): its images are computed again. 'dna-probe cache prune --damaged' removes it",
        CacheWarning,
        stacklevel=3,
    )
