"""Raw activations on disk: every token of the named sites, in shards with a manifest.

``collect_activations`` works in a hidden folder beside the one asked for and renames it at the end. A shard covers a
fixed run of the images and is written whole or not at all; a run that was cut off keeps the whole ones when it is
started again, and ends with the same bytes as one that was not. Each shard is a safetensors file with one tensor per
site, (rows, ...) as the site gives it; where samples differ in shape, as texts do, there is one more tensor,
``site/1``, ``site/2`` and so on, each time the shape changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.batches import load_batches
from dna_probe.cache import digest
from dna_probe.collection import NoReadableImage, Options, progress_bar, require_modality
from dna_probe.errors import ArtefactError, DataError, SiteError, UnreadableSample, unknown_name
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.moments import require_finite
from dna_probe.storage import require_free, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

SCHEMA = 1
# Bytes of a number of each type.
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Where no shard size is given, shards are about as large; one is held in memory, twice while it is written.
SHARD_BYTES = 256_000_000
# Samples of unequal shape that the size of all is estimated by.
LOOKED_AT = 16
MANIFEST = "manifest.json"
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
                yield from (file.get_tensor(_key(site, block)) for block in range(len(shard["blocks"])))

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
                        return {site: file.get_tensor(_key(site, block))[row - ends[block]] for site in self.sites}
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
        if file not in self._checked and not _is_whole(self.folder, shard):
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


def collect_activations(
    backbone: Backbone,
    images: ImageSet,
    sites: str | Iterable[str],
    out: str | Path,
    shard_size: int | None = None,
    dtype: str = "float32",
    options: Options | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], object] = str,
) -> Activations:
    """Write what the named sites give for every image, all tokens, into a new folder.

    The same call after an interruption goes on where it stopped, and ends with the same bytes as if it had run through.

    Args:
        sites: names or shell globs, such as ``blocks.*.hook_resid_post``.
        shard_size: images in one file; None takes as many as make up about 256 MB.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        options: the feature cache is not used.
        overwrite: replace ``out``, if it is there, once all is written.
        say: told how much disk it will take, before anything runs.

    Raises:
        DataError: less disk than that is free, it ran full (what was written is kept, for the next try), no image
            could be read, values too large for the type, or another process is at it.
        SiteError: no such site.
        ArtefactError: ``out`` is not empty and ``overwrite`` is not set.
        NumericalError: an activation is not finite.
    """
    import torch

    options, out = options or Options(), Path(out)
    require_modality(backbone, images)
    names = match_sites(backbone, sites)
    if shard_size is not None and shard_size < 1:
        raise DataError(f"A shard cannot hold {shard_size} images", "", "Give 1 or more, or leave it out")
    require_free(out, overwrite)
    needed = estimate_size(backbone, images, names, dtype)
    rows = shard_size or max(1, SHARD_BYTES * len(images) // needed)
    head = {
        "schema": f"dna_probe.activations/{SCHEMA}",
        "backbone": backbone.identity(),
        "preprocessing": backbone.preprocessing.to_json(),
        "modality": images.modality,
        "dtype": dtype,
        "shard_size": rows,
        "data": images.fingerprint(),
        "origin": images.origin,
    }
    # Batches of another size, or another device, may give other last bits.
    how = options.batch_size, backbone.device.type
    key = digest(head, names, images.names, images.generators, images.skipped, how)
    with _locked(out.with_name(f".{out.name}.{key[:16]}{PARTIAL}"), out) as folder:
        # With a manifest, an earlier run was cut off when all was done but the name.
        if not (folder / MANIFEST).exists():
            work = _Work(backbone, images, names, getattr(torch, dtype), options)
            _write_manifest(folder, head, work, _collect_parts(work, folder, rows, needed, say))
        _publish(folder, out, overwrite)
    return open_activations(out)


def _collect_parts(
    work: _Work, folder: Path, rows: int, needed: int, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Write the shards that are not there yet; what the manifest says of all of them, in order."""
    starts = range(0, len(work.images), rows)
    done = {start: part for start in starts if (part := _finished(folder, start // rows)) is not None}
    kept = sum(part["bytes"] for part in done.values())
    _require_space(folder, max(0, needed - kept), kept, say)
    noun = noun_of(work.images.modality)
    with progress_bar(len(work.images), work.options.progress, noun) as advance, work.running() as run:
        for start in starts:
            stop = min(start + rows, len(work.images))
            if start not in done:
                done[start] = _store(folder, start // rows, *work.shard(run, start, stop))
            advance(stop - start)
    parts = [done[start] for start in starts]
    if not any(part["images"] for part in parts):
        shutil.rmtree(folder)
        raise NoReadableImage(work.images, [pair for part in parts for pair in part["skipped"]])
    return parts


def match_sites(backbone: Backbone, patterns: str | Iterable[str]) -> list[str]:
    """Sites by names or shell globs, in the order in which they fire.

    Raises:
        SiteError: one of them matches nothing.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise SiteError("No sites were asked for", fix=f"Name at least one, for example {backbone.layers[-1].name}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in backbone.sites):
            raise unknown_name("site", pattern, backbone.sites, SiteError)
    return [name for name in backbone.sites if any(fnmatchcase(name, pattern) for pattern in patterns)]


def estimate_size(backbone: Backbone, images: ImageSet, sites: Iterable[str], dtype: str = "float32") -> int:
    """Bytes that the activations of the sites take: exact for images, for texts and recordings from 16 of them.

    Raises:
        DataError: unknown type. SiteError: unknown site.
    """
    if dtype not in DTYPES:
        raise unknown_name("type", dtype, DTYPES, DataError)
    sites = list(sites)
    if images.modality == "image":
        samples = [backbone.preprocessing.trial(1)]
    else:
        samples = list(_some_samples(backbone, images)) or [backbone.preprocessing.trial(1)]
    numbers = [sum(found.numel() for found in backbone.capture(sample, sites).values()) for sample in samples]
    return max(1, round(len(images) * DTYPES[dtype] * sum(numbers) / len(numbers)))


def _some_samples(backbone: Backbone, images: ImageSet) -> Iterator[np.ndarray]:
    names = images.names
    for position in np.unique(np.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).astype(int)):
        with suppress(UnreadableSample):
            yield backbone.preprocessing.load(images.images[position], names[position])[None]


@dataclass(eq=False)
class _Work:
    """What makes the shards of one run."""

    backbone: Backbone
    images: ImageSet
    sites: Sequence[str]
    dtype: torch.dtype
    options: Options
    _current: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.names = self.images.names

    @contextmanager
    def running(self) -> Iterator[Callable[[Any], Any]]:
        """A function that runs a batch and leaves what the sites gave in ``_current``."""
        import torch

        with torch.inference_mode(), self.backbone.visiting({name: self._keep(name) for name in self.sites}) as run:
            yield run

    def _keep(self, name: str) -> Callable[[Tensor], None]:
        def visit(activation: Tensor) -> None:
            kept = activation.to(device="cpu", dtype=self.dtype, copy=True)
            if not kept.isfinite().all():
                require_finite(activation.float().cpu().numpy(), "activation", name)
                raise DataError(
                    f"{name} gives values up to {float(activation.abs().max()):.3g}",
                    f"They do not fit {str(self.dtype).removeprefix('torch.')}",
                    "Use bfloat16 or float32",
                )
            self._current[name] = kept

        return visit

    def shard(self, run: Callable[[Any], Any], start: int, stop: int) -> tuple[bytes, dict[str, Any]]:
        """The file of the images from ``start`` to ``stop``, and what the manifest says of it."""
        import torch
        from safetensors.torch import save

        options = self.options
        rows: dict[int, dict[str, Tensor]] = {}
        skipped: list[tuple[str, str]] = []
        sources = self.images.images[start:stop]
        for batch in load_batches(sources, self.backbone.preprocessing, options.batch_size, options.workers):
            skipped += [(self.names[start + position], reason) for position, _, reason in batch.failures]
            if batch.index:
                run(torch.from_numpy(batch.inputs))
                for i, position in enumerate(batch.index):
                    rows[start + position] = {site: self._current[site][i] for site in self.sites}
        order = sorted(rows)
        blocks = [
            [rows[position] for position in alike]
            for _, alike in groupby(order, lambda position: [rows[position][site].shape for site in self.sites])
        ]
        tensors = {
            _key(site, number): torch.stack([row[site] for row in block]).contiguous()
            for number, block in enumerate(blocks)
            for site in self.sites
        }
        part = {
            "blocks": [len(block) for block in blocks],
            "shapes": {site: _common_shape(rows[position][site].shape for position in order) for site in self.sites},
            "images": [self._told(position) for position in order],
            "skipped": skipped,
        }
        return save(tensors) if tensors else b"", part

    def _told(self, position: int) -> dict[str, Any]:
        images = self.images
        told = {"name": self.names[position], "sha256": content_hash(images.images[position])}
        return told | {"label": int(images.labels[position]), "generator": images.generators[position]}


def _key(site: str, block: int) -> str:
    return f"{site}/{block}" if block else site


def _common_shape(shapes: Iterable[Sequence[int | None]]) -> list[int | None]:
    """Lengths along each axis, None where they differ; nothing for no shapes."""
    axes = zip(*shapes, strict=True)
    return [lengths[0] if len(set(lengths)) == 1 else None for lengths in axes]


def _is_whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    try:
        with open(folder / shard["file"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    except OSError:
        return False


def _store(folder: Path, number: int, content: bytes, part: dict[str, Any]) -> dict[str, Any]:
    shard = folder / f"shard-{number:05d}.safetensors"
    found = {"file": shard.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **part}
    write_atomically(shard, content)
    # Only now, so that what has a note is whole.
    write_atomically(shard.with_suffix(".json"), json.dumps(found).encode())
    return found


def _finished(folder: Path, number: int) -> dict[str, Any] | None:
    """What the manifest says of a shard that an earlier run finished; None where it did not, or it was damaged."""
    try:
        part = json.loads((folder / f"shard-{number:05d}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return part if _is_whole(folder, part) else None


def _write_manifest(folder: Path, head: Mapping[str, Any], work: _Work, parts: Sequence[Mapping[str, Any]]) -> None:
    filled = [part for part in parts if part["images"]]
    manifest = {
        **head,
        "images": sum(len(part["images"]) for part in filled),
        "sites": {
            name: work.backbone.sites[name].to_json()
            | {"shape": _common_shape(part["shapes"][name] for part in filled)}
            for name in work.sites
        },
        "skipped": [*work.images.skipped, *(pair for part in parts for pair in part["skipped"])],
        "shards": [{k: v for k, v in part.items() if k not in ("shapes", "skipped")} for part in filled],
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _publish(folder: Path, out: Path, overwrite: bool) -> None:
    """Give a folder in which all shards and the manifest are whole its name, without what only the making needed."""
    shards = {shard["file"] for shard in json.loads((folder / MANIFEST).read_bytes())["shards"]}
    for path in folder.iterdir():
        if path.name not in shards | {MANIFEST}:
            path.unlink()
    require_free(out, overwrite)
    old = out.with_name(f".{out.name}.old.{uuid.uuid4().hex[:8]}")
    try:
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except OSError as error:
        raise ArtefactError(
            f"{out} could not be written", error.strerror or str(error), f"All of it lies in {folder}: rename that"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _require_space(folder: Path, needed: int, kept: int, say: Callable[[str], object]) -> None:
    from rich.filesize import decimal

    free = shutil.disk_usage(folder).free
    there = f" beside {decimal(kept)} that an earlier run wrote" if kept else ""
    say(f"Activations will take {decimal(needed)}{there}; the disk has {decimal(free)} left")
    if needed > free:
        raise DataError(
            f"The activations need {decimal(needed)}{there}",
            f"The disk of {folder.parent} has {decimal(free)} left",
            "Name fewer sites, take --dtype float16, or another disk",
        )


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[Path]:
    """The folder, made where it is missing, for this process alone; a process that is killed lets go of it."""
    handle = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(ImportError):  # there is no such lock everywhere
                import fcntl

                handle = os.open(folder, os.O_RDONLY)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not folder.exists():
                    raise BlockingIOError  # the other process finished just now
        except BlockingIOError:
            why, fix = f"It works in {folder}", "Wait for it, or give another --out"
            raise DataError(f"Another process is writing {out}", why, fix) from None
        except OSError as error:
            raise DataError(f"{folder} cannot be used", error.strerror or str(error), "Choose another --out") from error
        try:
            yield folder
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing was written
    finally:
        if handle is not None:
            os.close(handle)
