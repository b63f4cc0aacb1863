"""Raw activations on disk: every token of the named sites, in shards with a manifest.

``dna_probe.activation_shards`` writes them. Each shard is a safetensors file with one tensor per site, (rows, ...) as
the site gives it; where samples differ in shape, as texts do, there is one more tensor, ``site/1``, ``site/2`` and so
on, each time the shape changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import ArtefactError, DataError, SiteError, unknown_name
from dna_probe.images.sets import noun_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

SCHEMA = 1
MANIFEST = "manifest.json"
# What ends the name of the hidden folder that a run works in.
PARTIAL = ".partial"


@dataclass(frozen=True, eq=False)
class Activations:
    """Raw activations that ``collect_activations`` wrote; tensors are mapped from the files, not read into memory.

    A shard is compared with its SHA-256 before its first tensor is given out, which reads it once.

    Attributes:
        folder: where they are.
        manifest: what ``manifest.json`` says.
    """

    folder: Path
    manifest: Mapping[str, Any]
    _checked: set[str] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        return int(self.manifest["images"])

    @property
    def images(self) -> list[Mapping[str, Any]]:
        """``name``, ``sha256``, ``label`` and ``generator`` of each image, in the order of the rows."""
        return [image for shard in self.manifest["shards"] for image in shard["images"]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(image["name"] for image in self.images)

    @property
    def labels(self) -> np.ndarray:
        """1 fake, 0 real, -1 unlabelled, (n,)."""
        return np.array([image["label"] for image in self.images], dtype=int)

    @property
    def sites(self) -> dict[str, tuple[int | None, ...]]:
        """Site name -> shape of one sample's activation, None along axes in which samples differ."""
        return {name: tuple(site["shape"]) for name, site in self.manifest["sites"].items()}

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of each image that could not be read."""
        return tuple((name, reason) for name, reason in self.manifest["skipped"])

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self.manifest["shards"])

    def of(self, site: str) -> Iterator[Tensor]:
        """The site's activations shard by shard, (rows, ...) in the stored type; their rows in order are ``names``.

        Raises:
            SiteError: it was not collected. ArtefactError: a shard is damaged.
        """
        if site not in self.sites:
            raise unknown_name("site in these activations", site, self.sites, SiteError)
        for shard in self.manifest["shards"]:
            with self._opened(shard) as file:
                yield from (file.get_tensor(tensor_key(site, block)) for block in range(len(shard["blocks"])))

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        """Site name -> the activation of one image, by the image's name.

        Raises:
            DataError: no such image. ArtefactError: the shard is damaged.
        """
        for shard in self.manifest["shards"]:
            for row, image in enumerate(shard["images"]):
                if image["name"] == name:
                    ends = np.cumsum(shard["blocks"])
                    block = int(np.searchsorted(ends, row, side="right"))
                    with self._opened(shard) as file:
                        return {
                            site: file.get_tensor(tensor_key(site, block))[row - ends[block]] for site in self.sites
                        }
        raise unknown_name("image in these activations", name, self.names, DataError)

    def table(self) -> pd.DataFrame:
        """One row per image: name, label, generator, sha256, and the shard it lies in."""
        import pandas as pd

        shards = self.manifest["shards"]
        return pd.DataFrame([{**image, "shard": shard["file"]} for shard in shards for image in shard["images"]])

    def to_json(self) -> dict[str, Any]:
        return dict(self.manifest)

    def __repr__(self) -> str:
        from rich.filesize import decimal

        noun = noun_of(self.manifest["modality"])
        return (
            f"Activations of {len(self)} {noun} at {len(self.sites)} sites of {self.manifest['backbone']['name']}, "
            f"{self.manifest['dtype']}, {decimal(self.size)} in {len(self.manifest['shards'])} shards"
        )

    @contextmanager
    def _opened(self, shard: Mapping[str, Any]) -> Iterator[Any]:
        from safetensors import safe_open

        file = shard["file"]
        if file not in self._checked and not is_whole(self.folder, shard):
            raise ArtefactError(
                f"{self.folder / file} is damaged or missing",
                f"Its SHA-256 is not the one in {MANIFEST}",
                "Copy or collect it again",
            )
        self._checked.add(file)
        with safe_open(self.folder / file, framework="pt") as opened:
            yield opened


def open_activations(folder: str | Path) -> Activations:
    """Activations that ``collect_activations`` wrote; nothing but the manifest is read yet.

    Raises:
        ArtefactError: none there, cut off before their end, damaged, or of a newer schema.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        unfinished = any(folder.parent.glob(f".{escape(folder.name)}.*{PARTIAL}"))
        raise ArtefactError(
            f"There are no activations in {folder}",
            "A run that was to write them was cut off" if unfinished else error.strerror or str(error),
            "Start it again with the same options" if unfinished else "Give the folder that 'collect' wrote",
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{folder / MANIFEST} is damaged", str(error), "Copy or collect it again") from error
    kind, _, version = str(manifest.get("schema", "") if isinstance(manifest, dict) else "").partition("/")
    if kind != "dna_probe.activations" or not version.isdigit():
        raise ArtefactError(
            f"{folder} holds no activations", "Its manifest has another schema", "Give the folder that 'collect' wrote"
        )
    if int(version) > SCHEMA:
        raise ArtefactError(
            f"{folder} was written by a newer dna_probe",
            f"Its schema is {version}, this version reads up to {SCHEMA}",
            "Upgrade dna-probe",
        )
    return Activations(folder, manifest)


def tensor_key(site: str, block: int) -> str:
    """What the tensor of a site is called in a shard, by the number of its block of samples of one shape."""
    return f"{site}/{block}" if block else site


def is_whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether the file of a shard is the one that was written."""
    try:
        with open(folder / shard["file"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    except OSError:
        return False
