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


@contextmanager
def site_gradients(
    backbone: Backbone, sites: Sequence[Site], head: LinearHead
) -> Iterator[Callable[[Tensor], tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]]:
    """A context whose function maps pixels to the head's logits and, per site, (activation, d logit / d activation).

    All sites come out of one forward and one ``autograd.grad``. The graph starts at the first of the sites, so the
    layers below cost a bare forward. Images do not interact, so the gradient of the summed logits is the per-image
    gradient.
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

    names = {site.name for site in sites} | {head.reading.site.name}
    with torch.enable_grad(), backbone.visiting({name: visitor(name) for name in names}) as run:

        def differentiate(pixels: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
            live.clear()
            run(pixels)
            logits = head.logits(live[head.reading.site.name])
            inputs = [live[site.name] for site in sites]
            gradients = torch.autograd.grad(logits.sum(), inputs)
            pairs = {s.name: (a.detach(), g) for s, a, g in zip(sites, inputs, gradients, strict=True)}
            live.clear()
            return logits.detach(), pairs

        yield differentiate


@dataclass(frozen=True)
class Gradients:
    """Gradient of a reference head's logit by each unit, averaged over images.

    Each field maps a reading name to (2, width) float64, one row per class (real, fake): ``mean`` of the signed
    gradient,
    ``absolute`` of its size, ``product`` of gradient times activation (summed over the tokens that the reading
    covers, as captum's ``LayerGradientXActivation``), ``loss`` of the gradient of the head's cross-entropy.
    """

    mean: Mapping[str, np.ndarray]
    absolute: Mapping[str, np.ndarray]
    product: Mapping[str, np.ndarray]
    loss: Mapping[str, np.ndarray]


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
    names = [reading.name for reading in readings]
    fields = ("mean", "absolute", "product", "loss")
    sum_names = [f"{field}/{name}" for field in fields for name in names]
    cache = open_cache(backbone, options)
    key = digest("gradients", images.fingerprint(), names, _tell(head)) if cache is not None else ""
    if cache is not None and cache.has(key, sum_names):
        stored = cache.rows([key], sum_names)
        gradients = Gradients(**{f: {n: stored[f"{f}/{n}"][0] for n in names} for f in fields})
        return collect_features(backbone, images, readings, options=options), gradients

    sites = list({reading.site.name: reading.site for reading in readings}.values())
    count = np.zeros(2)
    sums = {f: {r.name: np.zeros((2, r.width)) for r in readings} for f in fields}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    index: list[int] = []
    skipped: list[tuple[str, str]] = []
    with site_gradients(backbone, sites, head) as differentiate:
        for positions, pixels in _stream(backbone, images, options, skipped):
            labels = images.labels[positions]
            logits, pairs = differentiate(pixels)
            members = np.stack([labels == 0, labels == 1]).astype(float)
            residual = logits.float().sigmoid().cpu().numpy() - labels
            count += members.sum(1)
            index += list(positions)
            for reading in readings:
                activation, gradient = pairs[reading.site.name]
                value = reading.reduce(activation).float().cpu().numpy()
                slope = reading.reduce_gradient(gradient).float().cpu().numpy()
                product = reading.reduce_gradient(gradient * activation).float().cpu().numpy()
                require_finite(value, "activation", reading.name)
                require_finite(slope, "gradient", reading.name)
                rows[reading.name].append(value)
                per_image = (slope, np.abs(slope), product, residual[:, None] * slope)
                for field, contribution in zip(fields, per_image, strict=True):
                    sums[field][reading.name] += members @ contribution
    if not index:
        raise NoReadableImage(images, skipped)
    divisor = np.maximum(count, 1)[:, None]
    means = {f: {name: total / divisor for name, total in by_name.items()} for f, by_name in sums.items()}
    read = replace(images.subset(index), skipped=(*images.skipped, *skipped))
    features = Features(read, {name: np.concatenate(parts) for name, parts in rows.items()}, {})
    if cache is not None:
        cache.add([key], {f"{f}/{n}": means[f][n][None] for f in fields for n in names})
        hashes = [content_hash(image) for image in read.images]
        new = [i for i, image in enumerate(hashes) if not cache.has(image, names)]
        cache.add([hashes[i] for i in new], {name: values[new] for name, values in features.values.items()})
    return features, Gradients(**means)


def open_cache(backbone: Backbone, options: Options) -> RowCache | None:
    """The cache of this backbone under its weights and preprocessing, or None where no folder was given."""
    if not options.cache:
        return None
    return RowCache(options.cache, digest(backbone.weight_hash, backbone.preprocessing.to_json()))


def _tell(head: LinearHead) -> list[object]:
    return [head.reading.name, head.weight.tolist(), head.mean.tolist(), head.scale.tolist(), head.bias]


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
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error for work over two seconds; nothing when it is not a terminal."""
    if not wanted:
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=total)
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
