"""One treatment for every image, so that codec, size and quality tell the classes apart no more."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.metadata import image_facts
from dna_probe.images.reading import MIN_SIDE, Source, UnreadableImage, name_of, read_image
from dna_probe.images.sets import FAKE, REAL, ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.images.threads import in_order

if TYPE_CHECKING:
    import pandas as pd

# Beyond this ratio of sides an image is a strip, of which the centre crop shows next to nothing.
MAX_ASPECT = 100
# How the reason begins for which equalising leaves out an image that could be read.
TOO_SMALL = "short side below"
CLASSES = {"real": REAL, "fake": FAKE}


def encode_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The image as a JPEG file of this quality (1 to 100), chroma halved as is usual."""
    _require_quality(quality)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def jpeg(image: Image.Image, quality: int = 90) -> Image.Image:
    """The image after one round through `encode_jpeg`, RGB."""
    with Image.open(io.BytesIO(encode_jpeg(image, quality))) as coded:
        result = coded.convert("RGB")
    result.info = {}
    return result


@dataclass(frozen=True)
class Equalisation:
    """The treatment: upright RGB, short side shrunk to `side` (bicubic), centre `crop`, JPEG `quality` (4:2:0).

    The default is the matched protocol of few-shot comparisons. Called with a source, it gives the encoded JPEG, of
    `crop` x `crop` pixels. Raises `DataError` where the settings do not fit each other.
    """

    side: int = 256
    crop: int = 224
    quality: int = 90

    def __post_init__(self):
        for name in ("side", "crop", "quality"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise DataError(f"{name} must be a whole number, not {value!r}")
            object.__setattr__(self, name, int(value))
        if self.crop < MIN_SIDE:
            raise DataError(f"A crop needs at least {MIN_SIDE} pixels, not {self.crop}")
        if self.crop > self.side:
            raise DataError(f"A crop of {self.crop} does not fit into a short side of {self.side}")
        _require_quality(self.quality)

    def __call__(self, source: Source, name: str | None = None) -> bytes:
        """The image treated, as the bytes of a JPEG file.

        Raises `UnreadableImage` where the source cannot be read, is an endless strip, or has a short side below
        `side`: an enlarged image would carry a trace that the others do not.
        """
        name = name_of(source, None) if name is None else name
        image = read_image(source, name=name)
        width, height = image.size
        short = min(width, height)
        if short < self.side:
            raise UnreadableImage(name, f"{TOO_SMALL} {self.side} pixels")
        # Cutting the strip to what the crop can reach first would change the edge pixels, so long strips are refused.
        if max(width, height) > MAX_ASPECT * short:
            raise UnreadableImage(name, f"its sides differ too much: {width} x {height}")
        width, height = round(width * self.side / short), round(height * self.side / short)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        return encode_jpeg(image.crop((left, top, left + self.crop, top + self.crop)), self.quality)

    def __str__(self) -> str:
        return (
            f"short side {self.side} (bicubic), centre crop {self.crop} x {self.crop}, "
            f"JPEG quality {self.quality} (4:2:0)"
        )

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Equalisation:
        return cls(data["side"], data["crop"], data["quality"])


@dataclass(frozen=True)
class TreatedImage:
    """An image that is equalised each time it is read: a `StoredImage` that keeps nothing in memory.

    `read_bytes` raises `UnreadableImage` where the image cannot be read or is too small for the treatment.
    """

    source: Source = field(repr=False)
    treatment: Equalisation
    name: str

    def read_bytes(self) -> bytes:
        return self.treatment(self.source, self.name)


def equalise_set(
    image_set: ImageSet,
    equalisation: Equalisation | None = None,
    workers: int = 0,
    advance: Callable[[int], object] | None = None,
) -> ImageSet:
    """The set with every image treated alike, as `EncodedImage` in memory under its own name.

    Labels, generators, groups, splits and dates are kept. Images that are too small or unreadable are left out and
    listed in `skipped`. `advance` is called with 1 after each image, for a progress bar. Raises `DataError` where no
    image of a class is left.
    """
    treatment = equalisation or Equalisation()
    names = image_set.names

    def treat(position: int) -> EncodedImage | UnreadableImage:
        name = names[position]
        try:
            return EncodedImage(name, treatment(image_set.images[position], name))
        except UnreadableImage as error:
            return error

    kept: list[int] = []
    images: list[EncodedImage] = []
    left_out: list[tuple[str, str]] = []
    for position, made in enumerate(in_order(treat, len(image_set), workers)):
        if isinstance(made, UnreadableImage):
            left_out.append((made.name, made.reason))
        else:
            kept.append(position)
            images.append(made)
        if advance is not None:
            advance(1)
    _require_left(image_set, kept, left_out, treatment)
    return replace(
        image_set.subset(kept),
        images=tuple(images),
        origin=f"{image_set.origin} (equalised)",
        skipped=(*image_set.skipped, *left_out),
    )


def _require_left(
    image_set: ImageSet, kept: list[int], left_out: list[tuple[str, str]], treatment: Equalisation
) -> None:
    """Raise `DataError` where nothing is left of the set, or of a class that it has."""
    if len(image_set) == 0:
        raise DataError(f"{image_set.origin} holds no images to equalise")
    reasons = dict(left_out)
    left = set(image_set.labels[kept].tolist())
    for label, name in zip(image_set.labels.tolist(), image_set.names, strict=True):
        if label not in left:
            word = {code: f"{word} " for word, code in CLASSES.items()}.get(label, "")
            raise DataError(
                f"No {word}image of {image_set.origin} is left after equalising",
                f"The first, {name}, was left out for this: {reasons[name]}",
                f"Give images with a short side of {treatment.side} pixels or more, or equalise to a smaller one",
            )


def unreadable(image_set: ImageSet) -> ImageSet:
    """The set with only what could not be read in `skipped`; what was too small is in the `EqualisationReport`."""
    told = tuple((name, reason) for name, reason in image_set.skipped if not reason.startswith(TOO_SMALL))
    return replace(image_set, skipped=told)


@dataclass(frozen=True, repr=False)
class EqualisationReport:
    """What equalising changed.

    Attributes:
        equalisation: the treatment.
        before, after: class ("real", "fake") -> what `summarise_files` tells of its images.
        left_out: class -> reason -> number of images left out for it.
    """

    equalisation: Equalisation
    before: Mapping[str, Mapping[str, Any]]
    after: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, Mapping[str, int]]

    def __repr__(self) -> str:
        lines = [f"EqualisationReport: {self.equalisation}"]
        for name in CLASSES:
            before, after = (file_words(stage.get(name, {})) for stage in (self.before, self.after))
            lines.append(f"  {name} before: {before}\n  {name} after:  {after}")
            lines += [f"  {name} left out: {count} ({reason})" for reason, count in self.left_out.get(name, {}).items()]
        return "\n".join(lines)

    def table(self) -> pd.DataFrame:
        """One row per class before and after: images, formats, quality, sizes, bytes per pixel, left out."""
        import pandas as pd

        rows = []
        for name in CLASSES:
            for when, stage in (("before", self.before), ("after", self.after)):
                gone = sum(self.left_out.get(name, {}).values()) if when == "after" else 0
                rows.append({"class": name, "when": when, "left_out": gone, **_flat(stage.get(name, {}))})
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "dna_probe.equalisation/1",
            "equalisation": self.equalisation.to_json(),
            "before": {name: dict(told) for name, told in self.before.items()},
            "after": {name: dict(told) for name, told in self.after.items()},
            "left_out": {name: dict(reasons) for name, reasons in self.left_out.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EqualisationReport:
        return cls(Equalisation.from_json(data["equalisation"]), data["before"], data["after"], data["left_out"])


def equalisation_report(
    before: ImageSet, after: ImageSet, equalisation: Equalisation | None = None
) -> EqualisationReport:
    """What `equalise_set` made of `before`; reads the header of every image of both sets."""
    label_of = dict(zip(before.names, before.labels.tolist(), strict=True))
    new = after.skipped[len(before.skipped) :]
    left_out = {
        name: dict(Counter(reason for one, reason in new if label_of.get(one) == label))
        for name, label in CLASSES.items()
    }
    first, then = (summarise_files(map(_facts, one.images), one.labels) for one in (before, after))
    return EqualisationReport(equalisation or Equalisation(), first, then, left_out)


def summarise_files(facts: Iterable[Mapping[str, Any] | None], labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Class ("real", "fake") -> what the files of its images are like, as JSON.

    `images`; `formats` (name -> number); `quality` (JPEG quality: `median`, `low`, `high`, or None); `sizes` (how many
    distinct ones); medians of `width`, `height` and `bytes_per_pixel` (None where there is none). `facts` come from
    `image_facts`, None for an image without.
    """
    by_class: dict[str, list[Mapping[str, Any]]] = {name: [] for name in CLASSES}
    for one, label in zip(facts, labels.tolist(), strict=True):
        for name, code in CLASSES.items():
            if one is not None and label == code:
                by_class[name].append(one)
    return {name: _summary(own) for name, own in by_class.items()}


def _summary(facts: list[Mapping[str, Any]]) -> dict[str, Any]:
    def median(values: list[float]) -> float | None:
        return float(np.median(values)) if values else None

    quality = [one["quality"] for one in facts if one["quality"] is not None]
    spread = {"median": median(quality), "low": min(quality), "high": max(quality)} if quality else None
    return {
        "images": len(facts),
        "formats": dict(Counter(one["format"] or "none" for one in facts).most_common()),
        "quality": spread,
        "sizes": len({(one["width"], one["height"]) for one in facts}),
        "width": median([one["width"] for one in facts]),
        "height": median([one["height"] for one in facts]),
        "bytes_per_pixel": median(
            [one["bytes"] / (one["width"] * one["height"]) for one in facts if one["bytes"] is not None]
        ),
    }


def file_words(summary: Mapping[str, Any]) -> str:
    """One of the summaries of `summarise_files` in words."""
    if not summary.get("images"):
        return "no images"
    parts = [f"{summary['images']} images", ", ".join(f"{n} {count}" for n, count in summary["formats"].items())]
    quality = summary["quality"]
    if quality:
        span = f" ({quality['low']} to {quality['high']})" if quality["low"] < quality["high"] else ""
        parts.append(f"JPEG quality {quality['median']:g}{span}")
    size = f"{summary['width']:g} x {summary['height']:g}"
    parts.append(f"all {size}" if summary["sizes"] == 1 else f"{summary['sizes']} sizes, median {size}")
    if summary["bytes_per_pixel"] is not None:
        parts.append(f"{summary['bytes_per_pixel']:.2f} bytes per pixel")
    return "; ".join(parts)


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    quality = summary.get("quality") or {}
    return {
        "images": summary.get("images", 0),
        "formats": ", ".join(f"{name} {count}" for name, count in summary.get("formats", {}).items()),
        **{f"quality_{part}": quality.get(part) for part in ("median", "low", "high")},
        **{part: summary.get(part) for part in ("sizes", "width", "height", "bytes_per_pixel")},
    }


def _facts(source: Source) -> dict[str, Any] | None:
    try:
        return image_facts(source)
    except UnreadableImage:
        return None


def _require_quality(quality: int) -> None:
    if not 1 <= quality <= 100:
        raise DataError(f"JPEG quality must lie in 1..100, not {quality}")
