"""From an RGB image to the pixels of a backbone: resize, crop, normalise, without torchvision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dna_probe.errors import DataError, unknown_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_MODES = ("center", "squash", "border")
# Where the margin around a crop is odd: to the even side as torchvision does, or down as transformers does.
CROP_ROUNDINGS: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor}
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
# A strip of 8 x 1 000 000 pixels is small on disk and huge once its short side is stretched to the input size.
_MAX_RESIZED = 100_000_000


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform of a timm configuration, step for step.

    The image is resized (Pillow, anti-aliased) so that a crop of `input_size` (height, width) takes `crop_pct` of it:
    "center" keeps the aspect ratio and fits the short side, "squash" does not keep it, "border" keeps it, fits the long
    side and pads with the mean colour. Then the centre is cropped, divided by 255, and normalised by `mean` and `std`.
    Half of an odd margin is rounded by `crop_rounding`: to the "even" side, as by timm, or "down", as by transformers.
    """

    input_size: tuple[int, int] = (224, 224)
    crop_pct: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_rounding: str = "even"
    modality: ClassVar[str] = "image"

    def __post_init__(self):
        size = self.input_size
        size = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
        if len(size) != 2 or min(size) < 1:
            raise DataError(f"input_size must be (height, width), not {self.input_size!r}")
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct must lie in 0..1, not {self.crop_pct!r}", "", "0.875 keeps 7/8 of each side")
        if self.crop_mode not in CROP_MODES:
            raise unknown_name("crop mode", str(self.crop_mode), CROP_MODES, DataError)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", str(self.interpolation), INTERPOLATIONS, DataError)
        if self.crop_rounding not in CROP_ROUNDINGS:
            raise unknown_name("crop rounding", str(self.crop_rounding), CROP_ROUNDINGS, DataError)
        for field in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, field))
            values = values * 3 if len(values) == 1 else values
            if len(values) != 3 or (field == "std" and min(values) <= 0):
                raise DataError(f"{field} must be three numbers{' above 0' if field == 'std' else ''}, not {values!r}")
            object.__setattr__(self, field, values)
        object.__setattr__(self, "input_size", size)
        object.__setattr__(self, "crop_pct", float(self.crop_pct))

    def load(self, source: Any, name: str = "the image") -> np.ndarray:
        """The pixels of an image wherever it lies, float32 (3, height, width). Raises `UnreadableImage`."""
        from dna_probe.images.reading import read_image

        return self(read_image(source, name=name), name=name)

    def trial(self, count: int) -> np.ndarray:
        """Faint noise, (count, 3, height, width)."""
        noise = np.random.default_rng(0).standard_normal((count, 3, *self.input_size))
        return (0.1 * noise).astype(np.float32)

    def __call__(self, image: Image.Image, name: str = "the image") -> np.ndarray:
        """The pixels of an RGB image, float32 (3, height, width). Raises `UnreadableImage` for an endless strip."""
        pixels = np.asarray(self.crop(image, name), dtype=np.float32) / np.float32(255)
        pixels -= np.asarray(self.mean, dtype=np.float32)
        pixels /= np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def crop(self, image: Image.Image, name: str = "the image") -> Image.Image:
        """The resized and cropped image, before normalisation: what the backbone looks at, for figures."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        width, height = self._resized(*image.size)
        if width * height > _MAX_RESIZED:
            from dna_probe.images.reading import UnreadableImage

            raise UnreadableImage(name, f"its sides differ too much: {image.width} x {image.height}")
        if (width, height) != image.size:
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        fill = tuple(round(255 * value) for value in self.mean) if self.crop_mode == "border" else (0, 0, 0)
        return _centre_crop(image, self.input_size, fill, CROP_ROUNDINGS[self.crop_rounding])

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = (math.floor(side / self.crop_pct) for side in self.input_size)
        if self.crop_mode == "squash":
            return columns, rows
        if self.crop_mode == "center" and rows == columns:
            # The long side is cut off, not rounded, where the target is square: torchvision's rule.
            short = min(width, height)
            long = int(rows * max(width, height) / short)
            return (rows, long) if width <= height else (long, rows)
        ratios = (height / rows, width / columns)
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; the usual rounding of crops is left out."""
        values = json.loads(json.dumps(asdict(self)))
        if self.crop_rounding == "even":
            del values["crop_rounding"]
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str) -> Preprocessing:
        """The inverse of `to_json`; also takes its text."""
        values: dict[str, Any] = json.loads(data) if isinstance(data, str) else dict(data)
        for name in values:
            if name not in cls.__dataclass_fields__:
                raise unknown_name("preprocessing setting", name, cls.__dataclass_fields__, DataError)
        return cls(**values)

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """From `model.pretrained_cfg` or from what timm's `resolve_data_config` returns; gaps take timm's defaults."""
        size = tuple(cfg.get("input_size") or (3, 224, 224))
        if len(size) == 3 and size[0] != 3:
            raise DataError(f"This backbone takes {size[0]} channels", "images are read as RGB, three channels")
        return cls(
            input_size=size[-2:],
            crop_pct=cfg.get("crop_pct") or 0.875,
            crop_mode=cfg.get("crop_mode") or "center",
            interpolation=cfg.get("interpolation") or "bicubic",
            mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
            std=tuple(cfg.get("std") or IMAGENET_STD),
        )


def _centre_crop(
    image: Image.Image, size: tuple[int, int], fill: tuple[int, ...], whole: Callable[[float], int]
) -> Image.Image:
    rows, columns = size
    if image.width < columns or image.height < rows:
        padded = Image.new("RGB", (max(image.width, columns), max(image.height, rows)), fill)
        padded.paste(image, ((padded.width - image.width) // 2, (padded.height - image.height) // 2))
        image = padded
    if image.size == (columns, rows):
        return image
    top, left = whole((image.height - rows) / 2), whole((image.width - columns) / 2)
    return image.crop((left, top, left + columns, top + rows))
