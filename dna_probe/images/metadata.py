"""What the file of an image says before its pixels are looked at: format, size, JPEG quality."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dna_probe.images.reading import FORMATS, Source, name_of, read_image
from dna_probe.images.sources import StoredImage

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def image_facts(source: Source, name: str | None = None) -> dict[str, Any]:
    """`format`, `width`, `height`, `mode`, `quality` and `bytes` of an image, from its header alone.

    `width` and `height` are those of the upright image, as `read_image` gives it; `mode` is Pillow's name for the
    pixels as stored; `quality` is the estimate of `jpeg_quality`. `bytes` is the size of the encoded image, and
    `format` its name in Pillow ("JPEG"); both are None for an array or tensor, which no file holds.

    A file that ends too early still has a header: only `read_image` finds that out. Raises `UnreadableImage`, worded
    as `read_image` words it, where there is no header to read.
    """
    name = name_of(source, None) if name is None else name
    with open_header(source, name) as (image, size):
        width, height = image.size
        try:
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
        except Exception:  # a damaged EXIF block says nothing about the pixels
            sideways = False
        return {
            "format": image.format,
            "width": height if sideways else width,
            "height": width if sideways else height,
            "mode": image.mode,
            "quality": jpeg_quality(image),
            "bytes": size,
        }


@contextmanager
def open_header(source: Source, name: str | None = None) -> Iterator[tuple[Image.Image, int | None]]:
    """The image as Pillow opens it, nothing decoded yet, and the size of its file in bytes (None without one).

    Raises `UnreadableImage` for what Pillow cannot open, and whatever of it `read_image` would not take either.
    """
    name = name_of(source, None) if name is None else name
    try:
        stream, size = _stream(source)
        if stream is None:
            image = source if isinstance(source, Image.Image) else read_image(source, name=name)
        else:
            Image.init()
            image = Image.open(stream, formats=[known for known in FORMATS if known in Image.OPEN])
    except Exception:
        # Reading it in full names the reason in the words used everywhere else.
        read_image(source, name=name)
        raise
    try:
        yield image, size
    finally:
        if image is not source:
            image.close()


def jpeg_quality(image: Image.Image) -> int | None:
    """The libjpeg quality (1 to 100) whose quantisation tables lie nearest to those of a JPEG; None for other images.

    Nearest is the least mean absolute difference over the entries of the luminance table and, where there is one, of
    the chrominance table. It is exact for files that libjpeg wrote with its own tables, and the nearest equivalent for
    tables of other encoders. `image` must be as Pillow opened it: a converted or copied image has lost its tables.
    """
    given = list((getattr(image, "quantization", None) or {}).values())[:2]
    if not given or any(len(table) != 64 for table in given):
        return None
    distance = sum(np.abs(known - np.asarray(table)).mean(1) for known, table in zip(_tables(), given, strict=False))
    return int(np.argmin(distance)) + 1


@cache
def _tables() -> np.ndarray:
    """libjpeg's luminance and chrominance tables (2, 100, 64) for quality 1 to 100, as it writes them itself."""
    tables = np.zeros((2, 100, 64))
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            tables[:, quality - 1] = [image.quantization[0], image.quantization[1]]  # type: ignore[attr-defined]
    return tables


def _stream(source: Source) -> tuple[Path | io.BytesIO | None, int | None]:
    if isinstance(source, str | Path):
        path = Path(source)
        return path, path.stat().st_size
    if isinstance(source, StoredImage):
        source = source.read_bytes()
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(source), len(source)
    return None, None
