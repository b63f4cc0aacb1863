"""What an image gives away without being looked at: its file, and its 16-pixel thumbnail.

The features of two controls, the same for every data set: nothing is fitted, categories have fixed columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin

from dna_probe.images.metadata import jpeg_quality, open_header
from dna_probe.images.reading import FORMATS, Source, content_hash, name_of, read_image
from dna_probe.images.sources import StoredImage

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

THUMBNAIL_SIDE = 16
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
# Pillow's codes for the chroma of a JPEG at full, half and quarter resolution.
CHROMA = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
TABLES = ("luminance", "chrominance")
# The lowest frequencies of the first row, where encoders differ most, and the sum of all 64.
ENTRIES = ("0", "1", "2", "sum")
SIDEWAYS = (5, 6, 7, 8)
ORIENTATION = 0x0112
# Entries of Pillow's ``info`` that have columns of their own.
TOLD_APART = {"exif", "icc_profile", "progressive", "progression"}

# What is named in reports -> the columns it has in the features.
FAMILIES: dict[str, tuple[str, ...]] = {
    "format": (*(f"format={name}" for name in (*FORMATS, "none")), *(f"mode={name}" for name in MODES)),
    "quantisation tables": (
        "jpeg_quality",
        "quantisation_tables",
        *(f"{table}[{entry}]" for table in TABLES for entry in ENTRIES),
    ),
    "JPEG coding": ("progressive", *(f"chroma={name}" for name in (*CHROMA.values(), "other"))),
    "size": ("width", "height", "megapixels", "sides_in_eights"),
    "aspect": ("aspect",),
    "bytes per pixel": ("bytes_per_pixel",),
    "EXIF": ("exif", "exif_tags"),
    "colour profile": ("icc_profile", "icc_bytes"),
    "other entries": ("entries",),
}
METADATA_NAMES = tuple(column for columns in FAMILIES.values() for column in columns)


@dataclass(frozen=True, eq=False)
class Inspection:
    """One image, opened once.

    Attributes:
        facts: ``format``, ``mode``, ``width`` and ``height`` (upright), ``quality`` (of a JPEG), ``bytes``, each None
            where there is none, and ``exif`` (number of tags).
        metadata: (k,) float64, in the order of ``METADATA_NAMES``.
        thumbnail: (768,) uint8.
        sha256: as ``content_hash`` gives it.
    """

    facts: dict[str, Any]
    metadata: np.ndarray
    thumbnail: np.ndarray
    sha256: str


def inspect(source: Source, name: str | None = None) -> Inspection:
    """All of an image that an audit needs, from one reading and one decoding.

    Raises:
        UnreadableImage: it cannot be read.
    """
    name = name_of(source, None) if name is None else name
    content = _content(source, name)
    with open_header(content, name) as (image, size):
        facts, metadata = _describe(image, size)
        thumbnail = _thumbnail(read_image(image, name=name), THUMBNAIL_SIDE)
    return Inspection(facts, metadata, thumbnail, content_hash(content))


def metadata_features(sources: Sequence[Source]) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the file of each image says without its pixels, (n, k) float64, and the names of the k columns.

    Format, mode, quantisation tables with the quality they amount to, chroma subsampling, progressive coding, size,
    aspect, bytes per pixel, EXIF tags, colour profile, and how many other entries the header has. What an image does
    not have is -1 (a quality) or 0 (a count or a share).

    Raises:
        UnreadableImage: a header cannot be read.
    """
    rows = np.zeros((len(sources), len(METADATA_NAMES)))
    for row, source in zip(rows, sources, strict=True):
        with open_header(source) as (image, size):
            row[:] = _describe(image, size)[1]
    return rows, METADATA_NAMES


def thumbnail_features(sources: Sequence[Source], side: int = THUMBNAIL_SIDE) -> np.ndarray:
    """Each image squashed to ``side`` x ``side`` pixels (bicubic): colour and layout, (n, 3 side^2) float64 in 0..255.

    Raises:
        UnreadableImage: an image cannot be read.
    """
    rows = [_thumbnail(read_image(source), side) for source in sources]
    return np.stack(rows).astype(np.float64) if rows else np.zeros((0, 3 * side * side))


def metadata_probe(random_state: int = 0, trees: int = 100) -> ClassifierMixin:
    """A random forest for ``metadata_features``, with a ``decision_function`` like a linear probe's.

    Its trees have up to 16 leaves: room to single out the sizes of several generators, and too little to learn the
    bytes per pixel of each image by heart.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline

    class MetadataForest(RandomForestClassifier):
        def decision_function(self, values: np.ndarray) -> np.ndarray:
            """Share of the trees' votes for fake, minus one half, (n,)."""
            return self.predict_proba(values)[:, list(self.classes_).index(1)] - 0.5

    forest = MetadataForest(trees, max_leaf_nodes=16, class_weight="balanced", random_state=random_state)
    # In a pipeline, because a forest that is not fitted yet has no truth value.
    return make_pipeline(forest)


def _content(source: Source, name: str) -> Source:
    """The bytes of a file, so that it is opened once; a source that is no file as it is."""
    try:
        if isinstance(source, str | Path):
            return Path(source).read_bytes() if Path(source).is_file() else source
        if isinstance(source, StoredImage):
            return source.read_bytes()
    except OSError:
        # Reading it as an image names the reason in the words used everywhere else.
        read_image(source, name=name)
        raise
    return source


def _describe(image: Image.Image, size: int | None) -> tuple[dict[str, Any], np.ndarray]:
    """Facts and features of an image as Pillow opened it, from its header."""
    exif = _exif(image)
    width, height = image.size
    if exif.get(ORIENTATION) in SIDEWAYS:
        width, height = height, width
    quality = jpeg_quality(image)
    facts = {
        "format": image.format,
        "mode": image.mode,
        "width": width,
        "height": height,
        "quality": quality,
        "bytes": size,
        "exif": len(exif),
    }
    profile = image.info.get("icc_profile") or b""
    values: dict[str, float] = {
        f"format={image.format if image.format in FORMATS else 'none'}": 1,
        f"mode={image.mode}": 1,
        "jpeg_quality": -1 if quality is None else quality,
        "progressive": bool(image.info.get("progressive")),
        "width": width,
        "height": height,
        "megapixels": width * height / 1e6,
        "sides_in_eights": width % 8 == 0 and height % 8 == 0,
        "aspect": width / height,
        "bytes_per_pixel": (size or 0) / (width * height),
        "exif": len(exif) > 0,
        "exif_tags": len(exif),
        "icc_profile": len(profile) > 0,
        "icc_bytes": len(profile),
        "entries": len(set(image.info) - TOLD_APART),
    }
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        values |= _tables(image)
        values[f"chroma={CHROMA.get(JpegImagePlugin.get_sampling(image), 'other')}"] = 1
    return facts, np.array([values.get(name, 0) for name in METADATA_NAMES], dtype=np.float64)


def _tables(image: JpegImagePlugin.JpegImageFile) -> dict[str, float]:
    tables = list((image.quantization or {}).values())
    values: dict[str, float] = {"quantisation_tables": len(tables)}
    for name, table in zip(TABLES, tables, strict=False):
        values |= {f"{name}[{entry}]": float(table[int(entry)]) for entry in ENTRIES if entry != "sum"}
        values[f"{name}[sum]"] = float(sum(table))
    return values


def _exif(image: Image.Image) -> Image.Exif | dict[int, Any]:
    try:
        return image.getexif()
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return {}


def _thumbnail(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).ravel()
