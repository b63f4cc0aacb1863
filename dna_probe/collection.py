"""Run a frozen backbone over images and keep, per image or per class, what its units did.

Two collectors, both a single pass: ``collect_features`` (one row per image) and ``collect_moments`` (streaming
statistics, memory independent of the number of images). ``dna_probe.gradients`` collects gradients the same way.
How images go through is in ``dna_probe.shards``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.attention import summarise_energy, summarise_pattern, summarise_sequence
from dna_probe.cache import RowCache, digest
from dna_probe.engines import shard_size
from dna_probe.errors import DataError
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.images.threads import in_order
from dna_probe.moments import ClassMoments, require_finite
from dna_probe.precision import autocast, require_precision
from dna_probe.shards import Shard, Take, feed_shards, named, run_shards
from dna_probe.sites import Reading, Site, patch_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone
    from dna_probe.shards import Batches


@dataclass(frozen=True)
class Options:
    """How to run, not what to compute; the command line has the same names.

    Attributes:
        batch_size: images in one forward pass.
        workers: threads that decode images while the model runs; 0 decodes in line.
        cache: folder for features of images already seen, or None.
        progress: show a progress bar when standard error is a terminal.
        engine: ``local``, or ``ray`` for a cluster, see ``dna_probe.engines``.
        precision: ``float32``, that of the weights; or ``bfloat16`` by autocast, see ``dna_probe.precision``. Gradients
            are taken in float32. Not together with ``compile``.
        compile: compute readings by ``torch.compile``, see ``compiling.compile_readings``; attention maps and
            gradients are not. Worth its while from some thousand images on.
    """

    batch_size: int = 16
    workers: int = 2
    cache: Path | str | None = None
    progress: bool = False
    engine: str = "local"
    precision: str = "float32"
    compile: bool = False


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
    # With a cache, copies of an image are computed once. Without one nothing is hashed, and every image is its own.
    keys = list(map(str, range(len(images)))) if cache is None else _hashes(images, options.workers)
    first = {keys[position]: position for position in reversed(range(len(images)))}
    unique = sorted(first.values())
    known = [position for position in unique if cache is not None and cache.has(keys[position], names)]
    rows: list[dict[str, np.ndarray]] = []
    row_of: dict[str, int] = {}
    reasons: dict[str, str] = {}

    def keep(computed: Sequence[str], found: dict[str, np.ndarray]) -> None:
        rows.append(found)
        row_of.update(zip(computed, count(len(row_of))))

    def take(shard: Shard, positions: Sequence[int]) -> None:
        computed = [keys[positions[i]] for i in shard.index]
        reasons.update((keys[positions[i]], reason) for i, reason in shard.failures)
        if computed:
            keep(computed, shard.found)
        if cache is not None:
            cache.add(computed, shard.found)

    feed = partial(_feed_features, readings=tuple(readings), attention=tuple(attention))
    for positions in _missing(unique, set(known), shard_size(options.batch_size)):
        run_shards(feed, backbone, images.subset(positions), options, partial(take, positions=positions))
    if cache is not None and known:
        found = [keys[position] for position in known]
        keep(found, cache.rows(found, names))
    index = [position for position, key in enumerate(keys) if key in row_of]
    skipped = named(images, [(position, reasons[key]) for position, key in enumerate(keys) if key in reasons])
    if not index:
        raise NoReadableImage(images, skipped)
    order = [row_of[keys[position]] for position in index]
    columns = {name: np.concatenate([row[name] for row in rows])[order] for name in names}
    read = images.subset(index)
    return Features(
        images=replace(read, skipped=(*images.skipped, *skipped)),
        values={reading.name: columns[reading.name] for reading in readings},
        attention={s.name: {k: columns[f"{s.name}/{k}"] for k in ("map", "entropy", "distance")} for s in attention},
    )


def _hashes(images: ImageSet, workers: int) -> list[str]:
    return list(in_order(lambda i: content_hash(images.images[i]), len(images), workers))


def _missing(positions: Sequence[int], known: set[int], size: int) -> Iterator[list[int]]:
    """Positions that are not known, in parts to be run: shards of which nothing is known, then what is left of others.

    Whole shards alone, so that a run that goes on where another was cut off divides its images into the same batches;
    what is left of a shard that was finished are images that cannot be read.
    """
    shards = [positions[start : start + size] for start in range(0, len(positions), size)]
    untouched = [shard for shard in shards if known.isdisjoint(shard)]
    begun = [shard for shard in shards if not known.isdisjoint(shard)]
    rest = [[position for position in shard if position not in known] for shard in begun]
    for part in (untouched, rest):
        if found := [position for shard in part for position in shard]:
            yield found


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

    names = [reading.name for reading in readings]
    ends = np.cumsum([reading.width for reading in readings])[:-1]
    summaries: dict[str, Tensor] = {}
    with torch.inference_mode(), _reading(backbone, readings, options, attention, summaries) as run:

        def work(batches: Batches) -> dict[str, np.ndarray]:
            rows: list[dict[str, np.ndarray]] = []
            for _, pixels in batches:
                table = run(pixels).cpu().numpy()
                rows.append(dict(zip(names, np.split(table, ends, axis=1), strict=True)) if names else {})
                rows[-1].update((name, value.cpu().numpy()) for name, value in summaries.items())
                for name, values in rows[-1].items():
                    require_finite(values, "activation", name)
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]} if rows else {}

        feed_shards(backbone, images, options, work, take)


@contextmanager
def _reading(
    backbone: Backbone,
    readings: Sequence[Reading],
    options: Options,
    attention: Sequence[Site] = (),
    summaries: dict[str, Tensor] | None = None,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """A context whose function runs a batch and gives its readings side by side, (n, units) float32.

    Args:
        attention: sites whose maps, entropies and distances are left in ``summaries``, by name.
    """
    import torch

    require_precision(options.precision, options.compile)
    if options.compile and not attention:
        from dna_probe.compiling import compile_readings

        yield compile_readings(backbone, readings)
        return
    widths = [reading.width for reading in readings]
    columns: dict[str, Tensor] = {}

    def visitor(site: Site) -> Callable[[Tensor], None]:
        own = [reading for reading in readings if reading.site == site]

        def visit(activation: Tensor) -> None:
            for reading in own:
                columns[reading.name].copy_(reading.reduce(activation))
            if summaries is not None and site in attention:
                for key, value in attention_summary(backbone, site, activation).items():
                    summaries[f"{site.name}/{key}"] = value

        return visit

    sites = {reading.site.name: reading.site for reading in readings} | {site.name: site for site in attention}
    with backbone.visiting({name: visitor(site) for name, site in sites.items()}) as forward:

        def run(inputs: Tensor) -> Tensor:
            # Copied into one table that is there before: a view would keep a whole activation, and show what the next
            # module in place makes of it; small tensors made between large ones keep their room from being used again.
            table = torch.empty(len(inputs), sum(widths), device=backbone.device)
            columns.update(zip((reading.name for reading in readings), table.split(widths, 1), strict=True))
            with autocast(backbone, options.precision):
                forward(inputs)
            return table

        yield run


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

    with torch.inference_mode(), _reading(backbone, readings, options) as run:

        def work(batches: Batches) -> ClassMoments:
            moments = ClassMoments(sum(reading.width for reading in readings))
            for positions, pixels in batches:
                moments.update(run(pixels).cpu().numpy(), images.labels[positions])
            return moments

        feed_shards(backbone, images, options, work, take)


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
    how = {"precision": options.precision, "compiled": options.compile}
    about = {"backbone": backbone.name, "weight_hash": backbone.weight_hash, "preprocessing": preprocessing, **how}
    key = digest(backbone.weight_hash, backbone.structure, preprocessing, how)
    return RowCache.open(options.cache, key, about)


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
