"""The images that the units of a detector are shown, untouched and degraded, and their responses."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.collection import NoReadableImage, Options
from dna_probe.errors import DataError
from dna_probe.fitting import HASH_DIGITS
from dna_probe.images.degradations import Degradation
from dna_probe.images.reading import Source, UnreadableImage, content_hash, read_image
from dna_probe.images.sets import FAKE, REAL, ImageSet
from dna_probe.images.sources import EncodedImage, is_stored
from dna_probe.images.views import TreatedImage
from dna_probe.shards import progress_bar
from dna_probe.tuning import Sweep

if TYPE_CHECKING:
    from PIL import Image

    from dna_probe.detector import Detector

# Groups of images of a class below which no interval means anything.
LEAST = 5


def draw_stimuli(detector: Detector, images: ImageSet, each: int, seed: int) -> tuple[ImageSet, set[str]]:
    """At most ``each`` images of either class as the detector looks at them, and the names of those trained on.

    Raises:
        DataError: too few images that can be used.
    """
    known = set(detector.provenance.get("image_hashes", ()))
    rng = np.random.default_rng(seed)
    treated, names = detector.treated(images).images, images.names
    failures: list[tuple[str, str]] = []
    usable: dict[int, Source] = {}
    trained: set[int] = set()
    taken: list[list[int]] = []
    for label in (REAL, FAKE):
        fresh: list[int] = []
        used: list[int] = []
        for position in _in_turn(images, label, rng):
            if len(fresh) == each:
                break
            try:
                usable[position] = _opened(treated[position], names[position])
            except UnreadableImage as error:
                failures.append((names[position], error.reason))
                continue
            looks = (images.images[position], usable[position]) if known else ()
            (used if any(content_hash(look)[:HASH_DIGITS] in known for look in looks) else fresh).append(position)
        trained |= set(used)
        taken.append([*fresh, *used][:each])
    fewest = min(map(len, taken))
    kept = sorted(position for own in taken for position in own[:fewest])
    found = replace(images.subset(kept), images=tuple(usable[i] for i in kept), skipped=(*images.skipped, *failures))
    require_enough(found)
    return found, {names[i] for i in kept if i in trained}


def _opened(source: Source, name: str) -> Source:
    """The source after a look whether it can be read.

    What is treated each time it is read is kept, as it is small; what has no name of its own gets one.
    """
    if isinstance(source, TreatedImage):
        return EncodedImage(name, source.read_bytes())
    image = read_image(source, name=name)
    return source if isinstance(source, str | Path) or is_stored(source) else EncodedImage(name, _bitmap(image))


def _bitmap(image: Image.Image) -> bytes:
    """The image as a BMP file, which loses nothing and costs no time."""
    content = io.BytesIO()
    image.save(content, "BMP")
    return content.getvalue()


def _in_turn(images: ImageSet, label: int, rng: np.random.Generator) -> list[int]:
    """Positions of a class at random, the generators in turn, and each group's first image before its second."""
    own: dict[str, list[int]] = {}
    for position in rng.permutation(np.flatnonzero(images.labels == label)).tolist():
        own.setdefault(images.generators[position], []).append(position)
    order = [position for turn in zip_longest(*own.values()) for position in turn if position is not None]
    seen: Counter[str] = Counter()
    rank = {}
    for position in order:
        rank[position] = seen[images.groups[position]]
        seen[images.groups[position]] += 1
    return sorted(order, key=rank.__getitem__)


def require_enough(images: ImageSet) -> None:
    """Raises ``DataError`` where a class has too few groups of images for an interval."""
    groups = np.asarray(images.groups, dtype=object)
    real, fake = (len(set(groups[images.labels == label])) for label in (REAL, FAKE))
    if min(real, fake) < LEAST:
        first = f"; first left out, {images.skipped[0][0]}: {images.skipped[0][1]}" if images.skipped else ""
        raise DataError(
            f"Only {real} real and {fake} fake images of {images.origin} can be used, images of one group counted once",
            f"The intervals need {LEAST} of each{first}",
            "Give more images",
        )


@dataclass(frozen=True)
class _DegradedImage:
    """An image that is degraded each time it is read."""

    source: Source = field(repr=False)
    degradation: Degradation
    level: int
    seed: int
    name: str

    def read_bytes(self) -> bytes:
        return _bitmap(self.degradation.apply(read_image(self.source, name=self.name), self.level, self.seed))


def collect_responses(
    detector: Detector, images: ImageSet, sweeps: Sequence[Sweep], seed: int, options: Options
) -> tuple[ImageSet, list[np.ndarray]]:
    """The images that can be read at every level, and per sweep their responses (1 + levels, images, units) with the
    untouched ones first.

    Raises:
        DataError: no image can be read at every level.
        NumericalError: an activation is not finite.
    """
    quiet = replace(options, progress=False)
    passes: list[tuple[np.ndarray, list[int]]] = []
    failures: dict[str, str] = {}
    with progress_bar(1 + sum(len(sweep.values) for sweep in sweeps), options.progress, "passes") as advance:

        def run(sources: Sequence[Source]) -> None:
            values, index, failed = detector.unit_values(replace(images, images=tuple(sources)), quiet)
            passes.append((values, index))
            failures.update({name: reason for name, reason in failed if name not in failures})
            advance(1)

        run(images.images)
        for sweep in sweeps:
            for level in range(len(sweep.values)):
                degraded = [
                    _DegradedImage(source, sweep.levels, level, seed + i, name)
                    for i, (source, name) in enumerate(zip(images.images, images.names, strict=True))
                ]
                run(degraded)
    everywhere = sorted(set.intersection(*(set(index) for _, index in passes)))
    if not everywhere:
        raise NoReadableImage(images, list(failures.items()))
    rows = iter([values[np.searchsorted(index, everywhere)] for values, index in passes])
    untouched = next(rows)
    values = [np.stack([untouched, *(next(rows) for _ in sweep.values)]) for sweep in sweeps]
    return replace(images.subset(everywhere), skipped=(*images.skipped, *failures.items())), values
