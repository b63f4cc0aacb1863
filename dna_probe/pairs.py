"""Content-matched pairs: what the built-in forgers do to a unit when the content stays as it is.

Between real and fake images of different content, content is the largest difference. Where a real photograph is passed
through a forger, the forgery has its own photograph as a twin, and the paired difference has no content in it: the
insight behind training on reconstructions (DRCT, Chen et al. 2024; B-Free, Guillaro et al. 2025; DDA, Chen et al.
2025). The traces are those of our forgers and not of a generator, so they go beside the labelled fakes, never in their
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dna_probe.cache import digest
from dna_probe.collection import Options, collect_features, open_cache
from dna_probe.errors import DataError, unknown_name
from dna_probe.images.forge import FORGERS, LOCAL_FORGERS, SMALLEST, forge
from dna_probe.images.reading import content_hash, read_image
from dna_probe.images.sets import REAL, ImageSet
from dna_probe.images.threads import in_order
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

# Those that re-make the whole image, as a generator does.
PAIR_FORGERS = tuple(name for name in FORGERS if name not in LOCAL_FORGERS)
# Content cancels in a pair, so that few of them tell what many would.
MOST_PHOTOGRAPHS = 64
# Photographs are shrunk before they are forged: below a factor of one no block grid of a JPEG file is left, which a
# forgery would not have; and the traces of a forgery larger than this are gone when a backbone has shrunk it.
SHRINK, LARGEST_SIDE = 0.8, 256
_BATCH = 32


@dataclass(frozen=True)
class PairedDifference:
    """How far forging moves each unit, forgery minus its own photograph, over the spread of the differences.

    Attributes:
        mean: reading name -> (width,) float64, averaged over forgers.
    """

    mean: Mapping[str, np.ndarray]


def image_ids(images: ImageSet) -> np.ndarray:
    """Which image each row of a set is a view of, (n,), numbered as they come: rows of one name, label and group."""
    found: dict[tuple[str, int, str], int] = {}
    keys = zip(images.names, images.labels.tolist(), images.groups, strict=True)
    return np.array([found.setdefault(key, len(found)) for key in keys], dtype=np.int64)


def collect_pairs(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    forgers: Sequence[str] = PAIR_FORGERS,
    seed: int = 0,
    options: Options | None = None,
) -> PairedDifference:
    """Forge the real images, and compare every unit on forgery and photograph.

    Of the views of an image the first is taken. With a cache, the differences are stored under the photograph.

    Args:
        images: all of them readable; those that are not real are passed over.
        forgers: names in ``dna_probe.images.forge.FORGERS``.

    Raises:
        DataError: an unknown forger, or no real image.
        NumericalError: an activation is not finite.
    """
    return collect_many_pairs(backbone, images, [(np.arange(len(images)), readings)], forgers, seed, options)[0]


def collect_many_pairs(
    backbone: Backbone,
    images: ImageSet,
    requests: Sequence[tuple[np.ndarray, Sequence[Reading]]],
    forgers: Sequence[str] = PAIR_FORGERS,
    seed: int = 0,
    options: Options | None = None,
) -> list[PairedDifference]:
    """What ``collect_pairs`` gives for the images at some positions, by some readings, for each request; a photograph
    that several ask for is forged once.

    Raises:
        DataError: an unknown forger or none, or a request without a real image.
    """
    for name in forgers:
        if name not in FORGERS:
            raise unknown_name("forger", name, FORGERS, DataError)
    if not forgers:
        raise DataError("No forger was named", fix=f"Known: {', '.join(FORGERS)}")
    chosen = [members[_photographs(images.subset(members), seed)] for members, _ in requests]
    wanted = np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
    readings = list({reading.name: reading for _, own in requests for reading in own}.values())
    differences = _twin_differences(backbone, images.subset(wanted), readings, forgers, seed, options or Options())
    return [
        PairedDifference(
            {r.name: standardise(differences[r.name][np.searchsorted(wanted, positions)]) for r in own_readings}
        )
        for positions, (_, own_readings) in zip(chosen, requests, strict=True)
    ]


def standardise(differences: np.ndarray) -> np.ndarray:
    """Mean over standard deviation of paired differences (photographs, forgers, units), averaged over forgers.

    The standard deviation has a floor added, as in the significance analysis of microarrays (Tusher et al. 2001), so
    that a unit that hardly moves, however steadily, does not come first: the median over the units of the root mean
    square difference.
    """
    mean = differences.mean(0, dtype=np.float64)
    spread = differences.std(0, dtype=np.float64)
    spread += np.median(np.hypot(mean, spread), axis=1, keepdims=True)
    return np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0).mean(0)


def _photographs(images: ImageSet, seed: int) -> np.ndarray:
    """Positions of the real images, the first view of each, and at most so many of them.

    Raises:
        DataError: there is none.
    """
    _, first = np.unique(image_ids(images), return_index=True)
    real = first[images.labels[first] == REAL]
    if not len(real):
        raise DataError(f"{images.origin} holds no real image to forge", "", "Give real images, or use another scorer")
    return np.sort(np.random.default_rng(seed).permutation(real)[:MOST_PHOTOGRAPHS])


def _twin_differences(
    backbone: Backbone,
    photographs: ImageSet,
    readings: Sequence[Reading],
    forgers: Sequence[str],
    seed: int,
    options: Options,
) -> dict[str, np.ndarray]:
    """Reading name -> forgery minus photograph, (photographs, forgers, width)."""
    cache, names = open_cache(backbone, options), [reading.name for reading in readings]
    hashes = [content_hash(source) for source in photographs.images]
    keys = [digest("pairs", image, list(forgers), seed, SHRINK, LARGEST_SIDE) for image in hashes]
    known = [i for i, key in enumerate(keys) if cache is not None and cache.has(key, names)]
    missing = sorted(set(range(len(keys))) - set(known))
    parts = []
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        entropy = [[seed, int(hashes[i][:16], 16)] for i in batch]
        made = _forge_and_compare(backbone, photographs.subset(batch), readings, forgers, entropy, options)
        if cache is not None:
            cache.add([keys[i] for i in batch], made)
        parts.append(made)
    if cache is not None and known:
        parts.append(cache.rows([keys[i] for i in known], names))
    order = np.argsort([*missing, *known])
    return {name: np.concatenate([part[name] for part in parts])[order] for name in names}


def _forge_and_compare(
    backbone: Backbone,
    photographs: ImageSet,
    readings: Sequence[Reading],
    forgers: Sequence[str],
    entropy: Sequence[Sequence[int]],
    options: Options,
) -> dict[str, np.ndarray]:
    """``_twin_differences`` of photographs that are in memory together, with the entropy of each one's forgeries."""
    from threadpoolctl import threadpool_limits

    names = photographs.names

    def twins(position: int) -> list[Image.Image]:
        photograph = _shrink(read_image(photographs.images[position], name=names[position]))
        made = [forge(photograph, f, np.random.default_rng([*entropy[position], *f.encode()])) for f in forgers]
        return [photograph, *made]

    # One thread in each: these matrices are too small for more, and the pixels must not depend on how many there are.
    with threadpool_limits(1, user_api="blas"):
        images = [image for made in in_order(twins, len(photographs), options.workers) for image in made]
    quiet = replace(options, cache=None, progress=False)
    found = collect_features(backbone, ImageSet(tuple(images), np.zeros(len(images), int)), readings, options=quiet)
    shaped = {name: values.reshape(len(photographs), -1, values.shape[1]) for name, values in found.values.items()}
    return {name: values[:, 1:] - values[:, :1] for name, values in shaped.items()}


def _shrink(photograph: Image.Image) -> Image.Image:
    """The photograph at a size to forge it at, with what exceeds a square of ``LARGEST_SIDE`` cut off all round."""
    short = min(photograph.size)
    target = int(np.clip(SHRINK * short, SMALLEST, LARGEST_SIDE))
    size = [min(LARGEST_SIDE, max(target, round(side * target / short))) for side in photograph.size]
    covered = [min(side, new * short / target) for side, new in zip(photograph.size, size, strict=True)]
    left, top = ((side - part) / 2 for side, part in zip(photograph.size, covered, strict=True))
    box = (left, top, left + covered[0], top + covered[1])
    return photograph.resize((size[0], size[1]), Image.Resampling.LANCZOS, box=box)
