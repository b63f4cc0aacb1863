"""Rows of features on disk, so that a second run on the same images needs no forward pass.

A cache folder holds one sub-folder per key (weights, preprocessing and readings) with shards ``*.safetensors``. A shard is
written beside its name and renamed, so a killed run or a second process never leaves half a shard; a damaged one is passed
over and its images are computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dna_probe.errors import DataError


def digest(*parts: object) -> str:
    """SHA-256 over the JSON of the parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class RowCache:
    """Maps the content hash of an image to one row of each named array."""

    def __init__(self, folder: str | Path, key: str):
        self.folder = Path(folder) / key[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"The cache folder {folder} cannot be written", error.strerror or str(error), "Give another --cache"
            ) from error
        self._place: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            for row, image in enumerate(_hashes(shard)):
                self._place[image] = (shard, row)

    def __contains__(self, image: str) -> bool:
        return image in self._place

    def rows(self, images: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays of the images asked for, in that order, (len(images), ...)."""
        from safetensors.numpy import load_file

        shards: dict[Path, dict[str, np.ndarray]] = {}
        for image in images:
            shard, _ = self._place[image]
            if shard not in shards:
                shards[shard] = load_file(shard)
        names = next(iter(shards.values())).keys() if shards else ()
        return {name: np.stack([shards[self._place[i][0]][name][self._place[i][1]] for i in images]) for name in names}

    def add(self, images: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard. ``arrays`` have a row per image."""
        from safetensors.numpy import save

        if not images:
            return
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        write_atomically(shard, save(contiguous, metadata={"images": json.dumps(list(images))}))
        for row, image in enumerate(images):
            self._place[image] = (shard, row)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a reader sees the old content or the new, never a part.

    Raises:
        DataError: the disk is full or the folder cannot be written; what was there is kept.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written", error.strerror or str(error), "Free some space or choose another folder"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _hashes(shard: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get("images", "[]"))
    except (SafetensorError, OSError, ValueError):
        return []
