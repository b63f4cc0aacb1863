"""Gradients of a linear read-out's logit by the units of a frozen backbone, averaged over images.

``collect_gradients`` gives features and gradients of all readings from one forward and one backward per batch;
``collect_many_gradients`` serves many heads and subsets of images from one forward per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.cache import digest
from dna_probe.collection import Features, NoReadableImage, Options, collect_features, open_cache
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet
from dna_probe.moments import require_finite
from dna_probe.shards import Shard, Take, feed_shards, named, run_shards
from dna_probe.sites import Reading, Site

if TYPE_CHECKING:
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone
    from dna_probe.shards import Batches

    Pairs = dict[str, tuple[Tensor, Tensor]]

GRADIENT_FIELDS = ("mean", "absolute", "product", "loss")


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


@dataclass(frozen=True)
class LinearHead:
    """A linear read-out of one reading: ``logit = ((x - mean) / scale) @ weight + bias``; all (width,) but ``bias``."""

    reading: Reading
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    @property
    def key(self) -> list:
        """All that tells it from another head, for a cache."""
        return [self.reading.name, self.weight.tolist(), self.mean.tolist(), self.scale.tolist(), self.bias]

    def logits(self, activation: Tensor) -> Tensor:
        """Logit of each image from the activation of the head's site, differentiable, (n,)."""
        import torch

        values = self.reading.reduce(activation)
        direction = torch.as_tensor(self.weight / self.scale, dtype=values.dtype, device=values.device)
        offset = self.bias - float(self.mean @ (self.weight / self.scale))
        return values @ direction + offset


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
            slope = reading.reduce_gradient(gradient, activation).float().cpu().numpy()
            product = reading.reduce_attribution(gradient * activation, activation).float().cpu().numpy()
            require_finite(slope, "gradient", reading.name)
            per_image = (slope, np.abs(slope), product, residual[:, None] * slope)
            for field, contribution in zip(GRADIENT_FIELDS, per_image, strict=True):
                self.sums[field][reading.name] += members @ contribution

    def merge(self, other: _GradientSums) -> None:
        self.count += other.count
        for field, by_name in self.sums.items():
            for name, total in by_name.items():
                total += other.sums[field][name]

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
    options = _in_full(options)
    stored = _StoredGradients(backbone, options)
    found = stored.get(images, readings, head)
    if found is not None:
        return collect_features(backbone, images, readings, options=options), found

    sums = _GradientSums(readings)
    rows: list[dict[str, np.ndarray]] = []
    index: list[int] = []
    skipped: list[tuple[str, str]] = []

    def take(shard: Shard) -> None:
        found, shard_sums = shard.found
        if shard.index:
            rows.append(found)
            index.extend(shard.index)
            stored.put_features([images.images[position] for position in shard.index], found)
        sums.merge(shard_sums)
        skipped.extend(named(images, shard.failures))

    run_shards(partial(_feed_gradients, readings=tuple(readings), head=head), backbone, images, options, take)
    if not index:
        raise NoReadableImage(images, skipped)
    # Texts come in the order of their lengths.
    order = np.argsort(index)
    read = replace(images.subset(sorted(index)), skipped=(*images.skipped, *skipped))
    features = Features(read, {r.name: np.concatenate([row[r.name] for row in rows])[order] for r in readings}, {})
    gradients = sums.average()
    stored.put(images, readings, head, gradients)
    return features, gradients


def _feed_gradients(
    backbone: Backbone, images: ImageSet, options: Options, take: Take, *, readings: Sequence[Reading], head: LinearHead
) -> None:
    """Shards that hold the rows of each reading, and the sums of its gradients."""
    sites = list({reading.site.name: reading.site for reading in readings}.values())
    with site_gradients(backbone, sites, [head]) as differentiate:

        def work(batches: Batches) -> tuple[dict[str, np.ndarray], _GradientSums]:
            sums = _GradientSums(readings)
            rows: dict[str, list[np.ndarray]] = {reading.name: [] for reading in readings}
            for positions, pixels in batches:
                for logits, pairs in differentiate(pixels, [0]):
                    for reading in readings:
                        value = reading.reduce(pairs[reading.site.name][0]).float().cpu().numpy()
                        require_finite(value, "activation", reading.name)
                        rows[reading.name].append(value)
                    sums.add(images.labels[positions], logits, pairs)
            return {name: np.concatenate(parts) for name, parts in rows.items() if parts}, sums

        feed_shards(backbone, images, options, work, take)


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
    options = _in_full(options)
    stored = _StoredGradients(backbone, options)
    own = [images.subset(request.members) for request in requests]
    found = [stored.get(part, r.readings, r.head) for part, r in zip(own, requests, strict=True)]
    missing = [number for number, gradients in enumerate(found) if gradients is None]
    sums = {number: _GradientSums(requests[number].readings) for number in missing}

    def take(shard: Shard) -> None:
        for number, part in shard.found.items():
            sums[number].merge(part)

    for sites, positions, asking in _by_sites(requests, missing):
        # Marked, so that a part of them still knows who asks for which.
        marked = replace(images.subset(positions), groups=tuple(map(str, range(len(positions)))))
        wanted = {number: requests[number] for numbers in asking for number in numbers}
        feed = partial(_feed_many_gradients, sites=sites, asking=asking, requests=wanted)
        run_shards(feed, backbone, marked, replace(options, batch_size=1), take)
    for number in missing:
        gradients = found[number] = sums[number].average()
        stored.put(own[number], requests[number].readings, requests[number].head, gradients)
    return [gradients for gradients in found if gradients is not None]


def _feed_many_gradients(
    backbone: Backbone,
    images: ImageSet,
    options: Options,
    take: Take,
    *,
    sites: Sequence[Site],
    asking: Sequence[Sequence[int]],
    requests: Mapping[int, GradientRequest],
) -> None:
    """Shards that hold the sums of the requests, by number, that ask for one of their images; one image in a batch."""
    place = {number: i for i, number in enumerate(requests)}
    heads = [request.head for request in requests.values()]
    with site_gradients(backbone, sites, heads) as differentiate:

        def work(batches: Batches) -> dict[int, _GradientSums]:
            sums: dict[int, _GradientSums] = {}
            for index, pixels in batches:
                numbers = asking[int(images.groups[index[0]])]
                passes = differentiate(pixels, [place[number] for number in numbers])
                for number, (logits, pairs) in zip(numbers, passes, strict=True):
                    own = sums.setdefault(number, _GradientSums(requests[number].readings))
                    own.add(images.labels[index], logits, pairs)
            return sums

        feed_shards(backbone, images, options, work, take)


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


def _in_full(options: Options | None) -> Options:
    """The options as gradients heed them, and the features that come with them."""
    return replace(options or Options(), precision="float32", compile=False)


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

    def put_features(self, images: Sequence[Any], rows: Mapping[str, np.ndarray]) -> None:
        """Whoever finds the gradients looks for the features too."""
        if self.cache is not None:
            hashes = [content_hash(image) for image in images]
            new = [i for i, image in enumerate(hashes) if not self.cache.has(image, rows)]
            self.cache.add([hashes[i] for i in new], {name: values[new] for name, values in rows.items()})

    @staticmethod
    def _key(images: ImageSet, readings: Sequence[Reading], head: LinearHead) -> str:
        return digest("gradients", images.fingerprint(), [reading.name for reading in readings], head.key)
