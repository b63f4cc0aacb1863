"""Rows of features on disk, so that a second run on the same images needs no forward pass.

A cache folder holds one sub-folder per key (weights and preprocessing) with shards ``*.safetensors``. A shard is
written beside its name and renamed, so a killed run or a second process never leaves half a shard; a damaged one is
passed over and its images are computed again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dna_probe.errors import DataError
from dna_probe.storage import write_atomically


def digest(*parts: object) -> str:
    """SHA-256 over the JSON of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class RowCache:
    """Rows of named arrays by the content hash of an image; an image's arrays may lie in several shards."""

    def __init__(self, folder: str | Path, key: str):
        self.folder = Path(folder) / key[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"The cache folder {folder} cannot be written", error.strerror or str(error), "Give another --cache"
            ) from error
        self._place: dict[tuple[str, str], tuple[Path, int]] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self.refresh()

    @classmethod
    def open(cls, folder: str | Path, key: str) -> RowCache:
        """The cache of this folder and key; opened again in one process, it reads only the shards that are new."""
        place = (Path(folder).resolve(), key)
        known = _OPEN.get(place)
        if known is None or not known.folder.is_dir():
            known = _OPEN[place] = cls(*place)
        else:
            known.refresh()
        return known

    def refresh(self) -> None:
        """Index the shards that were written since, and forget those that were removed or changed."""
        stamps = {
            shard: (shard.stat().st_mtime_ns, shard.stat().st_size) for shard in self.folder.glob("*.safetensors")
        }
        if any(stamps.get(shard) != stamp for shard, stamp in self._seen.items()):
            self._place, self._seen = {}, {}
        for shard in sorted(set(stamps) - set(self._seen)):
            self._seen[shard] = stamps[shard]
            self._index(shard, *_contents(shard))

    def has(self, image: str, names: Iterable[str]) -> bool:
        return all((image, name) in self._place for name in names)

    def rows(self, images: Sequence[str], names: Iterable[str]) -> dict[str, np.ndarray]:
        """The named arrays of the images, in that order, (len(images), ...)."""
        from safetensors.numpy import load_file

        loaded: dict[Path, dict[str, np.ndarray]] = {}

        def row(image: str, name: str) -> np.ndarray:
            shard, position = self._place[image, name]
            if shard not in loaded:
                loaded[shard] = load_file(shard)
            return loaded[shard][name][position]

        return {name: np.stack([row(image, name) for image in images]) for name in names}

    def add(self, images: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard. ``arrays`` have a row per image."""
        from safetensors.numpy import save

        if not images:
            return
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        write_atomically(shard, save(contiguous, metadata={"images": json.dumps(list(images))}))
        self._seen[shard] = (shard.stat().st_mtime_ns, shard.stat().st_size)
        self._index(shard, list(images), list(arrays))

    def _index(self, shard: Path, images: list[str], names: list[str]) -> None:
        for row, image in enumerate(images):
            for name in names:
                self._place[image, name] = (shard, row)


_OPEN: dict[tuple[Path, str], RowCache] = {}


def _contents(shard: Path) -> tuple[list[str], list[str]]:
    """Images and array names of a shard; nothing where it is damaged, so that its images are computed again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get("images", "[]")), list(file.keys())
    except (SafetensorError, OSError, ValueError):
        return [], []
