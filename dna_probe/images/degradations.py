"""The degradations that a detector has to bear: each under a name, in severities from mild to severe.

They know nothing of labels: a real and a fake image go through the same ones, with the same severities.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import PIL
from PIL import Image
from PIL.Image import Resampling

from dna_probe.errors import DataError, unknown_name
from dna_probe.images import distortions

Value = float | tuple[float, float]


@dataclass(frozen=True)
class Degradation:
    """One way in which images suffer, in several severities.

    `severities` are the values of its parameter, mild to severe, and `unit` says what the parameter is; where it is a
    pair, `unit` names both, with a comma between. `function` takes (image, value), and a random generator as well if
    `random`. `needs` is the image format that Pillow must be able to write.
    """

    name: str
    severities: tuple[Value, ...]
    unit: str
    function: Callable[..., Image.Image]
    description: str
    random: bool = False
    needs: str = "JPEG"

    def label(self, severity: int) -> str:
        """The severity (0 is the mildest) as a person reads it, for example "quality 75"."""
        value = self.severities[self._checked(severity)]
        values = value if isinstance(value, tuple) else (value,)
        return ", ".join(f"{unit} {value:g}" for unit, value in zip(self.unit.split(", "), values, strict=True))

    def available(self) -> bool:
        """Whether the installed Pillow can do it."""
        return _can_save(self.needs)

    def apply(self, image: Image.Image, severity: int, seed: int = 0) -> Image.Image:
        """The degraded image; see `degrade`."""
        value = self.severities[self._checked(severity)]
        if not self.available():
            raise DataError(
                f"The degradation {self.name!r} cannot be done here",
                _reason(self),
                f"Install a Pillow that can (pip install -U pillow), or leave {self.name!r} out",
            )
        if seed < 0:
            raise DataError(f"The seed must be 0 or more, not {seed}")
        image = image.convert("RGB")
        if self.random:
            # Python's own hash of a string differs from process to process.
            rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), severity))
            degraded = self.function(image, value, rng)
        else:
            degraded = self.function(image, value)
        degraded.info = {}
        return degraded

    def _checked(self, severity: int) -> int:
        if not 0 <= severity < len(self.severities):
            raise DataError(
                f"The degradation {self.name!r} has no severity {severity}",
                f"It has {len(self.severities)}: 0 (mildest) to {len(self.severities) - 1} (most severe)",
            )
        return severity


def degrade(image: Image.Image, name: str, severity: int, seed: int = 0) -> Image.Image:
    """The image (RGB) after the degradation `name` at `severity`, an index into its values: 0 is the mildest.

    The result is RGB without metadata; the image given is not changed. Some degradations change the size. The random
    ones depend on `seed` (0 or more), name and severity alone, so give every image a seed of its own. Raises
    `DataError` for an unknown name (with near matches), a severity that does not exist, and a codec that the installed
    Pillow lacks.
    """
    if name not in DEGRADATIONS:
        raise unknown_name("degradation", name, DEGRADATIONS, DataError)
    return DEGRADATIONS[name].apply(image, severity, seed)


def available_degradations() -> dict[str, Degradation]:
    """The degradations that the installed Pillow can do; `unavailable_degradations` says why others are left out."""
    return {name: degradation for name, degradation in DEGRADATIONS.items() if degradation.available()}


def unavailable_degradations() -> dict[str, str]:
    """The names of those that the installed Pillow cannot do, each with the reason."""
    return {name: _reason(degradation) for name, degradation in DEGRADATIONS.items() if not degradation.available()}


def _reason(degradation: Degradation) -> str:
    return f"Pillow {PIL.__version__} cannot write {degradation.needs}"


@cache
def _can_save(codec: str) -> bool:
    """Tried out, because a Pillow can know a format and still lack its encoder."""
    buffer = io.BytesIO()
    try:
        Image.new("RGB", (16, 16)).save(buffer, codec)
        with Image.open(io.BytesIO(buffer.getvalue())) as image:
            image.load()
    except (KeyError, OSError, ValueError):
        return False
    return True


_RESIZES = tuple(
    Degradation(
        f"resize_{kernel.name.lower()}",
        (0.75, 0.5, 0.25),
        "scale",
        partial(distortions.rescale_and_return, kernel=kernel),
        f"shrunk and brought back to its size, {kernel.name.lower()} kernel both ways",
    )
    for kernel in (
        Resampling.NEAREST,
        Resampling.BOX,
        Resampling.BILINEAR,
        Resampling.HAMMING,
        Resampling.BICUBIC,
        Resampling.LANCZOS,
    )
)
_ALL = (
    Degradation("jpeg", (95, 90, 75, 50, 30), "quality", distortions.save_again, "saved as JPEG, chroma halved"),
    Degradation(
        "double_jpeg",
        ((90, 95), (75, 85), (60, 70), (40, 50)),
        "first quality, second quality",
        distortions.double_jpeg,
        "saved as JPEG, cut by 1 to 7 pixels, saved again on the other block grid",
        random=True,
    ),
    Degradation(
        "webp",
        (90, 75, 50, 30),
        "quality",
        partial(distortions.save_again, codec="WEBP"),
        "saved as lossy WebP",
        needs="WEBP",
    ),
    Degradation(
        "avif",
        (90, 75, 50, 30),
        "quality",
        partial(distortions.save_again, codec="AVIF"),
        "saved as AVIF",
        needs="AVIF",
    ),
    *_RESIZES,
    Degradation("downscale", (0.75, 0.5, 0.25), "scale", distortions.rescale, "shrunk (bicubic) and left small"),
    Degradation("upscale", (1.25, 1.5, 2), "scale", distortions.rescale, "enlarged (bicubic) and left large"),
    Degradation("crop", (0.9, 0.75, 0.5), "share of each side", distortions.centre_crop, "centre crop, not resized"),
    Degradation("pad", (0.05, 0.1, 0.25), "share of each side", distortions.pad, "black frame on all four edges"),
    Degradation("gaussian_blur", (1, 2, 3), "sigma", distortions.gaussian_blur, "Gaussian blur, sigma in pixels"),
    Degradation("median", (3, 5, 7), "window", distortions.median, "median filter, window in pixels"),
    Degradation(
        "gaussian_noise",
        (5, 10, 20),
        "sigma",
        distortions.gaussian_noise,
        "Gaussian noise, sigma in grey levels of 255",
        random=True,
    ),
    Degradation(
        "poisson_noise",
        (1000, 250, 60),
        "photons",
        distortions.poisson_noise,
        "shot noise, photons counted at white",
        random=True,
    ),
    Degradation("sharpen", (0.5, 1, 2), "amount", distortions.sharpen, "unsharp mask of 2 pixels"),
    Degradation("gamma", (1.2, 1.5, 2), "exponent", distortions.gamma, "tone curve, darker"),
    Degradation(
        "colour_jitter",
        (0.1, 0.2, 0.4),
        "strength",
        distortions.colour_jitter,
        "brightness, contrast, saturation and hue shifted at random",
        random=True,
    ),
    Degradation("grey", (0.33, 0.67, 1), "share", distortions.grey, "colour taken out, 1 is grey"),
    Degradation(
        "screenshot",
        (0.87, 0.71, 0.53),
        "scale",
        distortions.screenshot,
        "shown smaller in a window, slight gamma, saved as PNG or JPEG 90",
        random=True,
    ),
    Degradation(
        "print_scan",
        (1, 2, 3),
        "strength",
        distortions.print_scan,
        "printed and scanned: contrast, cast, halftone, turn, blur, noise, JPEG",
        random=True,
    ),
    Degradation(
        "social",
        ((1280, 80), (768, 60), (512, 40)),
        "longest side, quality",
        distortions.social,
        "shrunk to fit and saved as JPEG, as social networks do",
    ),
)
DEGRADATIONS: dict[str, Degradation] = {degradation.name: degradation for degradation in _ALL}
