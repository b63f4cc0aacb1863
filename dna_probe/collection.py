"""Run a frozen backbone over images and keep, per image or per class, what its units did.

Two collectors, both a single pass: ``collect_features`` (one row per image) and ``collect_moments`` (streaming
statistics, memory independent of the number of images). ``dna_probe.gradients`` collects gradients the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.attention import summarise_energy, summarise_pattern, summarise_sequence
from dna_probe.batches import load_batches
from dna_probe.cache import RowCache, digest
from dna_probe.errors import DataError
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.moments import ClassMoments, require_finite
from dna_probe.sites import Reading, Site, patch_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone


@dataclass(frozen=True)
class Options:
    """How to run, not what to compute; the command line has the same names.

    Attributes:
        batch_size: images in one forward pass.
        workers: threads that decode images while the model runs; 0 decodes in line.
        cache: folder for features of images already seen, or None.
        progress: show a progress bar when standard error is a terminal.
    """

    batch_size: int = 16
    workers: int = 2
    cache: Path | str | None = None
    progress: bool = False


@dataclass(frozen=True)
class Features:
    """What the units did on each image.

    Attributes:
        images: the images that could be read, in their order; the others are in ``images.skipped``.
        values: reading name -> (n, width) float32.
        attention: site name -> ``map`` (n, patches), ``entropy`` (n,), ``distance`` (n,).
    """

    images: ImageSet
    values: Mapping[str, np.ndarray]
    attention: Mapping[str, Mapping[str, np.ndarray]]

    def of(self, readings: Iterable[Reading]) -> np.ndarray:
        """The readings side by side, (n, units)."""
        return np.concatenate([self.values[reading.name] for reading in readings], axis=1)

    def subset(self, index: np.ndarray) -> Features:
        """The images at these positions, in that order."""
        return Features(
            images=self.images.subset(index),
            values={name: values[index] for name, values in self.values.items()},
            attention={
                site: {part: values[index] for part, values in parts.items()} for site, parts in self.attention.items()
            },
        )


def collect_features(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    attention: Sequence[Site] = (),
    options: Options | None = None,
) -> Features:
    """One forward pass over the images; rows that the cache holds are not computed again.

    Args:
        readings: what to keep of each image.
        attention: sites whose attention (pattern sites) or energy map (others) is summarised.

    Raises:
        DataError: no image could be read.
        NumericalError: an activation is not finite.
    """
    options = options or Options()
    require_modality(backbone, images)
    sites = {reading.site.name: reading.site for reading in readings} | {site.name: site for site in attention}
    names = [reading.name for reading in readings]
    names += [f"{site.name}/{part}" for site in attention for part in ("map", "entropy", "distance")]
    cache = open_cache(backbone, options)
    hashes = [content_hash(image) for image in images.images] if cache is not None else []
    known = [i for i, image in enumerate(hashes) if cache is not None and cache.has(image, names)]
    missing = sorted(set(range(len(images))) - set(known))

    rows: list[dict[str, np.ndarray]] = []
    index: list[int] = []
    skipped: list[tuple[str, str]] = []
    current: dict[str, Tensor] = {}

    def visitor(site: Site) -> Callable[[Tensor], None]:
        reduce = _reducer(site, readings, current)

        def visit(activation: Tensor) -> None:
            reduce(activation)
            if site in attention:
                for key, value in attention_summary(backbone, site, activation).items():
                    current[f"{site.name}/{key}"] = value

        return visit

    if missing:
        import torch

        with torch.inference_mode(), backbone.visiting({n: visitor(s) for n, s in sites.items()}) as run:
            for positions, pixels in stream_batches(backbone, images.subset(missing), options, skipped):
                run(pixels)
                batch = {name: value.cpu().numpy() for name, value in current.items()}
                for name, values in batch.items():
                    require_finite(values, "activation", name)
                rows.append(batch)
                index += [missing[p] for p in positions]
                if cache is not None:
                    cache.add([hashes[missing[p]] for p in positions], batch)
    if cache is not None and known:
        rows.append(cache.rows([hashes[i] for i in known], names))
        index += known
    if not index:
        raise NoReadableImage(images, skipped)
    order = np.argsort(index)
    columns = {name: np.concatenate([row[name] for row in rows])[order] for name in names}
    read = images.subset(sorted(index))
    return Features(
        images=replace(read, skipped=(*images.skipped, *skipped)),
        values={reading.name: columns[reading.name] for reading in readings},
        attention={s.name: {k: columns[f"{s.name}/{k}"] for k in ("map", "entropy", "distance")} for s in attention},
    )


def _reducer(site: Site, readings: Sequence[Reading], into: dict[str, Tensor]) -> Callable[[Tensor], None]:
    """A visitor that reduces the activation where it is, and keeps nothing of it."""
    own = [reading for reading in readings if reading.site == site]

    def visit(activation: Tensor) -> None:
        for reading in own:
            into[reading.name] = reading.reduce(activation).float()

    return visit


def attention_summary(backbone: Backbone, site: Site, activation: Tensor) -> dict[str, Tensor]:
    """Map, entropy and distance of each image at a site, from the pattern where it is one, else from the energy map."""
    if backbone.preprocessing.modality != "image":
        return summarise_sequence(activation, site)
    if site.kind == "pattern":
        if backbone.grid is None:
            raise DataError(f"{site.name} has no patch grid", "The model does not say how its tokens are laid out")
        return summarise_pattern(activation, site, backbone.grid)
    tokens = patch_tokens(site, activation)
    if site.layout == "nchw":
        grid = (activation.shape[2], activation.shape[3])
    elif site.layout == "nhwc":
        grid = (activation.shape[1], activation.shape[2])
    elif backbone.grid is not None and backbone.grid[0] * backbone.grid[1] == tokens.shape[1]:
        grid = backbone.grid
    else:
        grid = (1, tokens.shape[1])
    return summarise_energy(tokens, grid)


def collect_moments(
    backbone: Backbone, images: ImageSet, readings: Sequence[Reading], options: Options | None = None
) -> dict[str, ClassMoments]:
    """Per-class count, mean, variance and range of every unit; memory does not grow with the number of images.

    Raises:
        DataError: no image could be read.
        NumericalError: an activation is not finite.
    """
    import torch

    options = options or Options()
    require_modality(backbone, images)
    moments = ClassMoments(sum(reading.width for reading in readings))
    current: dict[str, Tensor] = {}
    visit = {r.site.name: _reducer(r.site, readings, current) for r in readings}
    skipped: list[tuple[str, str]] = []
    with torch.inference_mode(), backbone.visiting(visit) as run:
        for positions, pixels in stream_batches(backbone, images, options, skipped):
            run(pixels)
            values = torch.cat([current[reading.name] for reading in readings], dim=1).cpu().numpy()
            moments.update(values, images.labels[positions])
    if not sum(part.count for part in moments.classes.values()):
        raise NoReadableImage(images, skipped)
    ends = np.cumsum([reading.width for reading in readings])
    return {
        reading.name: moments.part(slice(end - reading.width, end)) for reading, end in zip(readings, ends, strict=True)
    }


def require_modality(backbone: Backbone, samples: ImageSet) -> None:
    """Raises ``DataError`` where the backbone takes another kind of sample than these are."""
    takes = backbone.preprocessing.modality
    if samples.modality != takes:
        raise DataError(
            f"{backbone.name} takes {noun_of(takes)}, and {samples.origin} holds {noun_of(samples.modality)}",
            "",
            f"Give {noun_of(takes)}, or another backbone",
        )


def open_cache(backbone: Backbone, options: Options) -> RowCache | None:
    """The cache of this backbone under its weights and preprocessing, or None where no folder was given."""
    if not options.cache:
        return None
    return RowCache.open(options.cache, digest(backbone.weight_hash, backbone.preprocessing.to_json()))


def stream_batches(
    backbone: Backbone, images: ImageSet, options: Options, skipped: list[tuple[str, str]]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and inputs of each batch on the backbone's device; unreadable samples go to ``skipped``."""
    import torch

    with progress_bar(len(images), options.progress) as advance:
        for batch in load_batches(images.images, backbone.preprocessing, options.batch_size, options.workers):
            skipped += [(name, reason) for _, name, reason in batch.failures]
            if batch.index:
                yield batch.index, torch.from_numpy(batch.inputs).to(backbone.device)
            advance(len(batch.index) + len(batch.failures))


@contextmanager
def progress_bar(total: int, wanted: bool, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on standard error for work over two seconds; nothing when it is not a terminal."""
    if not wanted:
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(unit, total=total)
        yield lambda step: progress.advance(task, step)


class NoReadableImage(DataError):
    """Not one image of a set could be read; ``skipped`` has the (name, reason) of each."""

    def __init__(self, images: ImageSet, skipped: Sequence[tuple[str, str]]):
        self.skipped = tuple(skipped)
        first = skipped[0] if skipped else ("", "no images")
        super().__init__(
            f"None of the {len(images)} images of {images.origin} could be read",
            f"First: {first[0]}: {first[1]}",
            "Check the files",
        )
