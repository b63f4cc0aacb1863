"""Run a frozen backbone over images and keep, per image or per class, what its units did.

Three collectors, all a single pass: ``collect_features`` (one row per image), ``collect_moments`` (streaming
statistics, memory independent of the number of images) and ``collect_gradients`` (activation and gradient of every
site from one forward and one backward).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.attention import summarise_energy, summarise_pattern
from dna_probe.cache import RowCache, digest
from dna_probe.errors import DataError
from dna_probe.images.reading import content_hash, load_batches
from dna_probe.images.sets import ImageSet
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
            for positions, pixels in _stream(backbone, images.subset(missing), options, skipped):
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
    moments = ClassMoments(sum(reading.width for reading in readings))
    current: dict[str, Tensor] = {}
    visit = {r.site.name: _reducer(r.site, readings, current) for r in readings}
    skipped: list[tuple[str, str]] = []
    with torch.inference_mode(), backbone.visiting(visit) as run:
        for positions, pixels in _stream(backbone, images, options, skipped):
            run(pixels)
            values = torch.cat([current[reading.name] for reading in readings], dim=1).cpu().numpy()
            moments.update(values, images.labels[positions])
    if not sum(part.count for part in moments.classes.values()):
        raise NoReadableImage(images, skipped)
    ends = np.cumsum([reading.width for reading in readings])
    return {
        reading.name: moments.part(slice(end - reading.width, end)) for reading, end in zip(readings, ends, strict=True)
    }


@dataclass(frozen=True)
class LinearHead:
    """A linear read-out of one reading: ``logit = ((x - mean) / scale) @ weight + bias``; all (width,) but ``bias``."""

    reading: Reading
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def logits(self, activation: Tensor) -> Tensor:
        """Logit of each image from the activation of the head's site, differentiable, (n,)."""
        import torch

        values = self.reading.reduce(activation)
        direction = torch.as_tensor(self.weight / self.scale, dtype=values.dtype, device=values.device)
        offset = self.bias - float(self.mean @ (self.weight / self.scale))
        return values @ direction + offset


if TYPE_CHECKING:
    Pairs = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def site_gradients(
    backbone: Backbone, sites: Sequence[Site], heads: Sequence[LinearHead]
) -> Iterator[Callable[[Tensor, Sequence[int]], Iterator[tuple[Tensor, Pairs]]]]:
    """A context whose function maps pixels and positions of heads, for each of these heads in turn, to its logits and,
    per site, (activation, d logit / d activation).

    All sites come out of one forward, and one ``autograd.grad`` per head. The graph starts at the first of the sites,
    so the layers below cost a bare forward. Images do not interact, so the gradient of the summed logits is the
    per-image gradient.
    """
    import torch

    live: dict[str, Tensor] = {}

    def visitor(name: str) -> Callable[[Tensor], Tensor]:
        def visit(activation: Tensor) -> Tensor:
            kept = activation if activation.requires_grad else activation.detach().clone().requires_grad_(True)
            live[name] = kept
            # The model goes on with a copy: a later in-place module must not overwrite what was kept.
            return kept.clone()

        return visit

    names = {site.name for site in sites} | {head.reading.site.name for head in heads}
    with torch.enable_grad(), backbone.visiting({name: visitor(name) for name in names}) as run:

        def differentiate(pixels: Tensor, wanted: Sequence[int]) -> Iterator[tuple[Tensor, Pairs]]:
            live.clear()
            run(pixels)
            inputs = [live[site.name] for site in sites]
            for number in wanted:
                logits = heads[number].logits(live[heads[number].reading.site.name])
                gradients = torch.autograd.grad(logits.sum(), inputs, retain_graph=number != wanted[-1])
                pairs = {s.name: (a.detach(), g) for s, a, g in zip(sites, inputs, gradients, strict=True)}
                yield logits.detach(), pairs
            live.clear()

        yield differentiate


@dataclass(frozen=True)
class Gradients:
    """Gradient of a reference head's logit by each unit, averaged over images.

    Each field maps a reading name to (2, width) float64, one row per class (real, fake): ``mean`` of the signed
    gradient, ``absolute`` of its size, ``product`` of gradient times activation (summed over the tokens that the
    reading covers, as captum's ``LayerGradientXActivation``), ``loss`` of the gradient of the head's cross-entropy.
    """

    mean: Mapping[str, np.ndarray]
    absolute: Mapping[str, np.ndarray]
    product: Mapping[str, np.ndarray]
    loss: Mapping[str, np.ndarray]


GRADIENT_FIELDS = ("mean", "absolute", "product", "loss")


class _GradientSums:
    """Sums over images of what ``Gradients`` averages."""

    def __init__(self, readings: Sequence[Reading]):
        self.readings, self.count = readings, np.zeros(2)
        self.sums = {f: {r.name: np.zeros((2, r.width)) for r in readings} for f in GRADIENT_FIELDS}

    def add(self, labels: np.ndarray, logits: Tensor, pairs: Pairs) -> None:
        """Raises ``NumericalError`` where a gradient is not finite."""
        members = np.stack([labels == 0, labels == 1]).astype(float)
        residual = logits.float().sigmoid().cpu().numpy() - labels
        self.count += members.sum(1)
        for reading in self.readings:
            activation, gradient = pairs[reading.site.name]
            slope = reading.reduce_gradient(gradient).float().cpu().numpy()
            product = reading.reduce_gradient(gradient * activation).float().cpu().numpy()
            require_finite(slope, "gradient", reading.name)
            per_image = (slope, np.abs(slope), product, residual[:, None] * slope)
            for field, contribution in zip(GRADIENT_FIELDS, per_image, strict=True):
                self.sums[field][reading.name] += members @ contribution

    def average(self) -> Gradients:
        divisor = np.maximum(self.count, 1)[:, None]
        return Gradients(**{f: {n: total / divisor for n, total in self.sums[f].items()} for f in GRADIENT_FIELDS})


def collect_gradients(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    head: LinearHead,
    options: Options | None = None,
) -> tuple[Features, Gradients]:
    """Features and gradients of all readings from one forward and one backward per batch.

    With a cache, the sums are stored under the head, the images and the readings, and the features per image.

    Raises:
        DataError: no image could be read.
        NumericalError: an activation or gradient is not finite.
    """
    options = options or Options()
    stored = _StoredGradients(backbone, options)
    found = stored.get(images, readings, head)
    if found is not None:
        return collect_features(backbone, images, readings, options=options), found

    sites = list({reading.site.name: reading.site for reading in readings}.values())
    sums = _GradientSums(readings)
    rows: dict[str, list[np.ndarray]] = {reading.name: [] for reading in readings}
    index: list[int] = []
    skipped: list[tuple[str, str]] = []
    with site_gradients(backbone, sites, [head]) as differentiate:
        for positions, pixels in _stream(backbone, images, options, skipped):
            index += list(positions)
            for logits, pairs in differentiate(pixels, [0]):
                for reading in readings:
                    value = reading.reduce(pairs[reading.site.name][0]).float().cpu().numpy()
                    require_finite(value, "activation", reading.name)
                    rows[reading.name].append(value)
                sums.add(images.labels[positions], logits, pairs)
    if not index:
        raise NoReadableImage(images, skipped)
    read = replace(images.subset(index), skipped=(*images.skipped, *skipped))
    features = Features(read, {name: np.concatenate(parts) for name, parts in rows.items()}, {})
    gradients = sums.average()
    stored.put(images, readings, head, gradients)
    stored.put_features(features)
    return features, gradients


@dataclass(frozen=True, eq=False)
class GradientRequest:
    """Gradients of one head over some images of a set, by some readings."""

    members: np.ndarray
    readings: Sequence[Reading]
    head: LinearHead


def collect_many_gradients(
    backbone: Backbone, images: ImageSet, requests: Sequence[GradientRequest], options: Options | None = None
) -> list[Gradients]:
    """What ``collect_gradients`` gives for each request, from one forward per image however many ask for it.

    Images go through one by one, and each of them backwards once for every head that asks for it; where the requests
    overlap, that is several times faster than one after the other.

    Args:
        images: of all requests; ``members`` are positions in it, and all of them must be readable.

    Raises:
        NumericalError: a gradient is not finite.
    """
    options = options or Options()
    stored = _StoredGradients(backbone, options)
    own = [images.subset(request.members) for request in requests]
    found = [stored.get(part, r.readings, r.head) for part, r in zip(own, requests, strict=True)]
    missing = [number for number, gradients in enumerate(found) if gradients is None]
    sums = {number: _GradientSums(requests[number].readings) for number in missing}
    for sites, positions, asking in _by_sites(requests, missing):
        heads = [requests[number].head for number in missing]
        place = {number: i for i, number in enumerate(missing)}
        chosen = images.subset(positions)
        with site_gradients(backbone, sites, heads) as differentiate:
            for index, pixels in _stream(backbone, chosen, replace(options, batch_size=1), []):
                numbers = asking[index[0]]
                passes = differentiate(pixels, [place[number] for number in numbers])
                for number, (logits, pairs) in zip(numbers, passes, strict=True):
                    sums[number].add(chosen.labels[index], logits, pairs)
    for number in missing:
        gradients = found[number] = sums[number].average()
        stored.put(own[number], requests[number].readings, requests[number].head, gradients)
    return [gradients for gradients in found if gradients is not None]


def _by_sites(
    requests: Sequence[GradientRequest], missing: Sequence[int]
) -> Iterator[tuple[list[Site], list[int], list[list[int]]]]:
    """Sites, positions of images, and numbers of the requests that want each: images of equal sites together.

    The graph of an image starts at the first site that it is asked for, so an early one must not burden the others.
    """
    asking: dict[int, list[int]] = {}
    for number in missing:
        for position in requests[number].members.tolist():
            asking.setdefault(position, []).append(number)
    together: dict[tuple[Site, ...], list[int]] = {}
    for position in sorted(asking):
        wanted = {r.site.name: r.site for number in asking[position] for r in requests[number].readings}
        key = tuple(sorted(wanted.values(), key=lambda site: (site.layer, site.name)))
        together.setdefault(key, []).append(position)
    for sites, positions in together.items():
        yield list(sites), positions, [asking[position] for position in positions]


class _StoredGradients:
    """Gradients in the cache, under the head, the images and the readings; nothing where there is no cache."""

    def __init__(self, backbone: Backbone, options: Options):
        self.cache = open_cache(backbone, options)

    def get(self, images: ImageSet, readings: Sequence[Reading], head: LinearHead) -> Gradients | None:
        if self.cache is None:
            return None
        key, names = self._key(images, readings, head), [reading.name for reading in readings]
        arrays = [f"{field}/{name}" for field in GRADIENT_FIELDS for name in names]
        if not self.cache.has(key, arrays):
            return None
        stored = self.cache.rows([key], arrays)
        return Gradients(**{f: {n: stored[f"{f}/{n}"][0] for n in names} for f in GRADIENT_FIELDS})

    def put(self, images: ImageSet, readings: Sequence[Reading], head: LinearHead, gradients: Gradients) -> None:
        if self.cache is not None:
            parts = {f: getattr(gradients, f) for f in GRADIENT_FIELDS}
            arrays = {f"{f}/{n}": values[None] for f, by_name in parts.items() for n, values in by_name.items()}
            self.cache.add([self._key(images, readings, head)], arrays)

    def put_features(self, features: Features) -> None:
        if self.cache is not None:
            hashes = [content_hash(image) for image in features.images.images]
            new = [i for i, image in enumerate(hashes) if not self.cache.has(image, features.values)]
            self.cache.add([hashes[i] for i in new], {name: values[new] for name, values in features.values.items()})

    @staticmethod
    def _key(images: ImageSet, readings: Sequence[Reading], head: LinearHead) -> str:
        weights = [head.reading.name, head.weight.tolist(), head.mean.tolist(), head.scale.tolist(), head.bias]
        return digest("gradients", images.fingerprint(), [reading.name for reading in readings], weights)


def open_cache(backbone: Backbone, options: Options) -> RowCache | None:
    """The cache of this backbone under its weights and preprocessing, or None where no folder was given."""
    if not options.cache:
        return None
    return RowCache.open(options.cache, digest(backbone.weight_hash, backbone.preprocessing.to_json()))


def _stream(
    backbone: Backbone, images: ImageSet, options: Options, skipped: list[tuple[str, str]]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and pixels of each batch on the backbone's device; unreadable images go to ``skipped``."""
    import torch

    with progress_bar(len(images), options.progress) as advance:
        for batch in load_batches(images.images, backbone.preprocessing, options.batch_size, options.workers):
            skipped += [(name, reason) for _, name, reason in batch.failures]
            if batch.index:
                yield batch.index, torch.from_numpy(batch.pixels).to(backbone.device)
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
