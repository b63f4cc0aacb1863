"""Run a frozen backbone over images and keep, per image or per class, what its units did.

Two collectors, both a single pass: ``collect_features`` (one row per image) and ``collect_moments`` (streaming
statistics, memory independent of the number of images). ``dna_probe.gradients`` collects gradients the same way.
Images go through in shards, whose size depends on the batch size alone; what was found in them is put together in their
order, wherever they were worked on (``dna_probe.engines``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dna_probe.attention import summarise_energy, summarise_pattern, summarise_sequence
from dna_probe.batches import Batch, load_batches
from dna_probe.cache import RowCache, digest
from dna_probe.engines import open_engine, shard_size
from dna_probe.errors import DataError
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.moments import ClassMoments, require_finite
from dna_probe.sites import Reading, Site, patch_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

    # Positions and inputs of each batch, on the backbone's device.
    Batches = Iterator[tuple[list[int], Tensor]]

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How to run, not what to compute; the command line has the same names.

    Attributes:
        batch_size: images in one forward pass.
        workers: threads that decode images while the model runs; 0 decodes in line.
        cache: folder for features of images already seen, or None.
        progress: show a progress bar when standard error is a terminal.
        engine: ``local``, or ``ray`` for a cluster, see ``dna_probe.engines``.
    """

    batch_size: int = 16
    workers: int = 2
    cache: Path | str | None = None
    progress: bool = False
    engine: str = "local"


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
    names = [reading.name for reading in readings]
    names += [f"{site.name}/{part}" for site in attention for part in ("map", "entropy", "distance")]
    cache = open_cache(backbone, options)
    hashes = [content_hash(image) for image in images.images] if cache is not None else []
    known = [i for i, image in enumerate(hashes) if cache is not None and cache.has(image, names)]
    missing = sorted(set(range(len(images))) - set(known))

    rows: list[dict[str, np.ndarray]] = []
    index: list[int] = []
    skipped: list[tuple[str, str]] = []

    def take(shard: Shard) -> None:
        found = [missing[position] for position in shard.index]
        if found:
            rows.append(shard.found)
            index.extend(found)
        if cache is not None:
            cache.add([hashes[i] for i in found], shard.found)
        skipped.extend(named(images, [(missing[position], reason) for position, reason in shard.failures]))

    if missing:
        feed = partial(_feed_features, readings=tuple(readings), attention=tuple(attention))
        run_shards(feed, backbone, images.subset(missing), options, take)
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


def _feed_features(
    backbone: Backbone,
    images: ImageSet,
    options: Options,
    take: Take,
    *,
    readings: Sequence[Reading],
    attention: Sequence[Site],
) -> None:
    """Shards that hold the rows of each reading and attention summary, by name."""
    import torch

    sites = {reading.site.name: reading.site for reading in readings} | {site.name: site for site in attention}
    current: dict[str, Tensor] = {}

    def visitor(site: Site) -> Callable[[Tensor], None]:
        reduce = _reducer(site, readings, current)

        def visit(activation: Tensor) -> None:
            reduce(activation)
            if site in attention:
                for key, value in attention_summary(backbone, site, activation).items():
                    current[f"{site.name}/{key}"] = value

        return visit

    with torch.inference_mode(), backbone.visiting({n: visitor(s) for n, s in sites.items()}) as run:

        def work(batches: Batches) -> dict[str, np.ndarray]:
            rows: list[dict[str, np.ndarray]] = []
            for _, pixels in batches:
                run(pixels)
                rows.append({name: value.cpu().numpy() for name, value in current.items()})
                for name, values in rows[-1].items():
                    require_finite(values, "activation", name)
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}

        feed_shards(backbone, images, options, work, take)


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
    if activation.ndim == 4:
        first = 2 if site.layout == "nchw" else 1
        return summarise_energy(tokens, (activation.shape[first], activation.shape[first + 1]))
    return summarise_energy(tokens, backbone.grid_of(tokens.shape[1]))


def collect_moments(
    backbone: Backbone, images: ImageSet, readings: Sequence[Reading], options: Options | None = None
) -> dict[str, ClassMoments]:
    """Per-class count, mean, variance and range of every unit; memory does not grow with the number of images.

    Raises:
        DataError: no image could be read.
        NumericalError: an activation is not finite.
    """
    options = options or Options()
    require_modality(backbone, images)
    moments = ClassMoments(sum(reading.width for reading in readings))
    skipped: list[tuple[str, str]] = []

    def take(shard: Shard) -> None:
        moments.merge(shard.found)
        skipped.extend(named(images, shard.failures))

    run_shards(partial(_feed_moments, readings=tuple(readings)), backbone, images, options, take)
    if not sum(part.count for part in moments.classes.values()):
        raise NoReadableImage(images, skipped)
    ends = np.cumsum([reading.width for reading in readings])
    return {
        reading.name: moments.part(slice(end - reading.width, end)) for reading, end in zip(readings, ends, strict=True)
    }


def _feed_moments(
    backbone: Backbone, images: ImageSet, options: Options, take: Take, *, readings: Sequence[Reading]
) -> None:
    """Shards that hold the moments of all units, readings side by side."""
    import torch

    current: dict[str, Tensor] = {}
    visit = {r.site.name: _reducer(r.site, readings, current) for r in readings}
    with torch.inference_mode(), backbone.visiting(visit) as run:

        def work(batches: Batches) -> ClassMoments:
            moments = ClassMoments(sum(reading.width for reading in readings))
            for positions, pixels in batches:
                run(pixels)
                values = torch.cat([current[reading.name] for reading in readings], dim=1).cpu().numpy()
                moments.update(values, images.labels[positions])
            return moments

        feed_shards(backbone, images, options, work, take)


@dataclass(eq=False)
class Shard:
    """What was found in some neighbouring images of a set.

    Attributes:
        index: positions of those that could be read, in the order of the rows in ``found``.
        failures: positions of the others, with the reason.
        found: rows by name, moments, or sums, as who asked for it keeps them.
    """

    index: list[int]
    failures: list[tuple[int, str]]
    found: Any = None

    def moved(self, start: int) -> Shard:
        """The same at later positions."""
        return Shard(
            [position + start for position in self.index],
            [(position + start, reason) for position, reason in self.failures],
            self.found,
        )


Take = Callable[[Shard], None]
# Goes over the images and hands each shard to the last argument, in order.
Feed = Callable[["Backbone", ImageSet, Options, Take], None]


def run_shards(feed: Feed, backbone: Backbone, images: ImageSet, options: Options, take: Take) -> None:
    """Go over the images by the engine of the options; ``take`` gets every shard here and in order.

    Args:
        feed: for another engine than ``local``, something that can be pickled. It is then called with one shard of the
            images at a time, at whose first image positions begin.
    """
    if options.engine == "local":
        feed(backbone, images, options, take)
        return
    size = shard_size(options.batch_size)
    starts = range(0, len(images), size)
    shards = (replace(images.subset(slice(start, start + size)), skipped=()) for start in starts)
    alone = replace(options, engine="local", cache=None, progress=False)
    found = open_engine(options.engine).map(_run_shard, shards, feed, backbone, alone)
    with progress_bar(len(images), options.progress) as advance, closing(found):
        for start, shard in zip(starts, found, strict=True):
            take(shard.moved(start))
            advance(len(shard.index) + len(shard.failures))


def _run_shard(images: ImageSet, feed: Feed, backbone: Backbone, options: Options) -> Shard:
    shards: list[Shard] = []
    feed(backbone, images, options, shards.append)
    (shard,) = shards
    return shard


def feed_shards(
    backbone: Backbone, images: ImageSet, options: Options, work: Callable[[Batches], Any], take: Take
) -> None:
    """``work`` on the batches of each shard, and hand over what it gives."""
    with progress_bar(len(images), options.progress) as advance, closing(_load(backbone, images, options)) as loaded:
        for _, batches in groupby(loaded, key=itemgetter(0)):
            shard = Shard([], [])
            shard.found = work(_listen(shard, backbone, (batch for _, batch in batches), advance))
            take(shard)


def _listen(
    shard: Shard, backbone: Backbone, batches: Iterable[Batch], advance: Callable[[int], None]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and inputs of the batches, while the shard notes what could be read."""
    import torch

    for batch in batches:
        shard.failures += [(position, reason) for position, _, reason in batch.failures]
        shard.index += batch.index
        if batch.index:
            yield batch.index, torch.from_numpy(batch.inputs).to(backbone.device)
        advance(len(batch.index) + len(batch.failures))


def _load(backbone: Backbone, images: ImageSet, options: Options) -> Generator[tuple[int, Batch], None, None]:
    """Batches with the position at which their shard begins; none has images of two shards."""
    size = shard_size(options.batch_size)

    def load() -> Generator[tuple[int, Batch], None, None]:
        for start in range(0, len(images), size):
            part = images.images[start : start + size]
            for batch in load_batches(part, backbone.preprocessing, options.batch_size, options.workers):
                index = [start + position for position in batch.index]
                failures = [(start + position, name, reason) for position, name, reason in batch.failures]
                yield start, replace(batch, index=index, failures=failures)

    # Else the threads that decode would have nothing to do between two shards.
    return _ahead(load()) if options.workers else load()


def _ahead(values: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same values, each made while the one before it is being used."""
    with closing(values), ThreadPoolExecutor(1, thread_name_prefix="dna-probe-batches") as pool:
        coming = pool.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = pool.submit(next, values, None)
            yield value


def named(images: ImageSet, failures: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """The names, as the set has them, in place of positions."""
    names = images.names if failures else ()
    return [(names[position], reason) for position, reason in failures]


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
    preprocessing = backbone.preprocessing.to_json()
    about = {"backbone": backbone.name, "weight_hash": backbone.weight_hash, "preprocessing": preprocessing}
    return RowCache.open(options.cache, digest(backbone.weight_hash, preprocessing), about)


def stream_batches(
    backbone: Backbone, images: ImageSet, options: Options, skipped: list[tuple[str, str]]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and inputs of each batch on the backbone's device; unreadable samples go to ``skipped``."""
    shard = Shard([], [])
    with progress_bar(len(images), options.progress) as advance, closing(_load(backbone, images, options)) as loaded:
        yield from _listen(shard, backbone, (batch for _, batch in loaded), advance)
    skipped += named(images, shard.failures)


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
        noun = noun_of(images.modality)
        first = skipped[0] if skipped else ("", f"no {noun}")
        super().__init__(
            f"None of the {len(images)} {noun} of {images.origin} could be read",
            f"First: {first[0]}: {first[1]}",
            "Check the files",
        )
