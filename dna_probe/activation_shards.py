"""Collect raw activations into shards, see ``dna_probe.activations``.

``collect_activations`` works in a hidden folder beside the one asked for and renames it at the end. A shard covers a
fixed run of the images and is written whole or not at all; a run that was cut off keeps the whole ones when it is
started again, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.activations import MANIFEST, PARTIAL, SCHEMA, Activations, is_whole, open_activations, tensor_key
from dna_probe.batches import load_batches
from dna_probe.cache import digest
from dna_probe.collection import NoReadableImage, Options, require_modality
from dna_probe.errors import ArtefactError, DataError, SiteError, UnreadableSample, unknown_name
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.moments import require_finite
from dna_probe.precision import autocast
from dna_probe.shards import progress_bar
from dna_probe.storage import publish, require_free, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

# Bytes of a number of each type.
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Where no shard size is given, shards are about as large; one is held in memory, twice while it is written.
SHARD_BYTES = 256_000_000
# Samples of unequal shape that the size of all is estimated by.
LOOKED_AT = 16


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
        options: the feature cache is not used, and nothing is compiled.
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
        "precision": options.precision,
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

        with torch.inference_mode(), self.backbone.visiting({name: self._keep(name) for name in self.sites}) as visit:

            def run(inputs: Any) -> None:
                with autocast(self.backbone, self.options.precision):
                    visit(inputs)

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
            tensor_key(site, number): torch.stack([row[site] for row in block]).contiguous()
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


def _common_shape(shapes: Iterable[Sequence[int | None]]) -> list[int | None]:
    """Lengths along each axis, None where they differ; nothing for no shapes."""
    axes = zip(*shapes, strict=True)
    return [lengths[0] if len(set(lengths)) == 1 else None for lengths in axes]


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
    return part if is_whole(folder, part) else None


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
    try:
        publish(folder, out, overwrite)
    except OSError as error:
        raise ArtefactError(
            f"{out} could not be written", error.strerror or str(error), f"All of it lies in {folder}: rename that"
        ) from error


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
