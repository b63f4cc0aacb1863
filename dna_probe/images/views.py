"""One treatment for every image, so that codec, size and quality tell the classes apart no more."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.reading import Source, UnreadableImage, name_of, read_image
from dna_probe.images.sets import ImageSet


def jpeg(image: Image.Image, quality: int = 90) -> Image.Image:
    """The image after one round through JPEG at this quality (1 to 100, chroma halved as is usual), RGB."""
    if not 1 <= quality <= 100:
        raise DataError(f"JPEG quality must lie in 1..100, not {quality}")
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(io.BytesIO(buffer.getvalue())) as coded:
        result = coded.convert("RGB")
    result.info = {}
    return result


def equalised(source: Source, side: int = 256, crop: int = 224, quality: int = 90) -> Image.Image | None:
    """The matched form of an image: upright RGB, short side shrunk to `side` (bicubic), centre `crop`, JPEG `quality`.

    None where the short side is below `side`: an enlarged image would carry a trace that the others do not.
    Raises `UnreadableImage` where the source cannot be read, or is an endless strip.
    """
    if crop > side:
        raise DataError(f"A crop of {crop} does not fit into a short side of {side}")
    image = read_image(source)
    width, height = image.size
    short = min(width, height)
    if short < side:
        return None
    # Cutting the strip to what the crop can reach first would change the edge pixels, so long strips are refused.
    if max(width, height) > 100 * short:
        raise UnreadableImage(name_of(source, None), f"its sides differ too much: {width} x {height}")
    width, height = round(width * side / short), round(height * side / short)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - crop) // 2, (height - crop) // 2
    return jpeg(image.crop((left, top, left + crop, top + crop)), quality)


def equalise_set(
    image_set: ImageSet, workers: int = 0, side: int = 256, crop: int = 224, quality: int = 90
) -> ImageSet:
    """The set with every image in its matched form, in memory, labels, generators, groups and splits kept.

    Images that are too small or unreadable are left out and listed in `skipped`. Raises `DataError` where none is left.
    """
    kept: list[int] = []
    images: list[Image.Image] = []
    skipped = list(image_set.skipped)
    names = image_set.names

    def treat(position: int) -> Image.Image | str:
        try:
            made = equalised(image_set.images[position], side, crop, quality)
        except UnreadableImage as error:
            return error.reason
        return f"short side below {side} pixels" if made is None else made

    for position, made in enumerate(_map(treat, len(image_set), workers)):
        if isinstance(made, str):
            skipped.append((names[position], made))
            continue
        # Reports go on naming the image by its file.
        made.filename = names[position]  # type: ignore[attr-defined]
        kept.append(position)
        images.append(made)
    if not kept:
        raise DataError(
            f"No image of {image_set.origin} is left after equalising", f"the first reason: {skipped[-1][1]}"
        )
    chosen = image_set.subset(kept)
    return ImageSet(
        images=tuple(images),
        labels=chosen.labels,
        generators=chosen.generators,
        groups=chosen.groups,
        splits=chosen.splits,
        origin=f"{image_set.origin} (equalised)",
        skipped=tuple(skipped),
    )


def _map(function, count: int, workers: int) -> Iterator[Image.Image | str]:
    if workers == 0:
        yield from map(function, range(count))
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="dna-probe-views") as pool:
        yield from pool.map(function, range(count))
