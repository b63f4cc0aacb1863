"""What happens to images on their way: saved again, resized, cut, blurred, made noisy, re-coloured, photographed.

Every function takes an RGB image and the value of one parameter, and returns a new RGB image; those that draw at random
take a random generator as well. Images of any size and aspect are accepted. `degradations` names them and grades them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling

Pair = tuple[float, float]

# AVIF at a fast effort, and in one thread, so that the result does not depend on the machine.
_SAVING: dict[str, dict[str, Any]] = {
    "JPEG": {"subsampling": "4:2:0"},
    "WEBP": {"method": 4},
    "AVIF": {"speed": 9, "max_threads": 1, "subsampling": "4:2:0"},
}
# In whole macroblocks; WebP takes sides up to 16383, and Pillow suspects a bomb in anything above 89 megapixels.
_TILE = 8192


def save_again(image: Image.Image, quality: float, codec: str = "JPEG") -> Image.Image:
    """The image after one round through "JPEG", "WEBP" (lossy) or "AVIF" at this quality, chroma halved.

    An image with a side beyond 8192 pixels, which some codecs refuse, is saved in tiles, cut between macroblocks.
    """
    width, height = image.size
    if max(width, height) <= _TILE:
        return _round_trip(image, int(quality), codec)
    joined = Image.new("RGB", image.size)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            tile = image.crop((left, top, min(left + _TILE, width), min(top + _TILE, height)))
            joined.paste(_round_trip(tile, int(quality), codec), (left, top))
    return joined


def double_jpeg(image: Image.Image, qualities: Pair, rng: np.random.Generator) -> Image.Image:
    """Saved as JPEG at the first quality, cut, saved at the second: the two block grids do not coincide.

    The case of non-aligned double compression (Bianchi and Piva 2012). So that the size stays, the image is first
    extended by the 1 to 7 rows and columns that are cut off afterwards.
    """
    first, second = qualities
    rows, columns = (int(shift) for shift in rng.integers(1, 8, size=2))
    extended = np.pad(np.asarray(image), ((rows, 0), (columns, 0), (0, 0)), mode="edge")
    saved = save_again(Image.fromarray(extended), first)
    return save_again(saved.crop((columns, rows, saved.width, saved.height)), second)


def social(image: Image.Image, preset: Pair) -> Image.Image:
    """Shrunk until the longest side fits (Lanczos; never enlarged), then saved as JPEG: `preset` = (side, quality)."""
    longest, quality = preset
    scale = min(1.0, longest / max(image.size))
    return save_again(_scaled(image, scale, Resampling.LANCZOS), quality)


def rescale(image: Image.Image, scale: float, kernel: Resampling = Resampling.BICUBIC) -> Image.Image:
    """Both sides times `scale`. Pillow widens the kernel when shrinking, so there is no aliasing but with NEAREST."""
    return _scaled(image, scale, kernel)


def rescale_and_return(image: Image.Image, scale: float, kernel: Resampling) -> Image.Image:
    """Both sides times `scale`, then back to the original size with the same kernel."""
    return _scaled(image, scale, kernel).resize(image.size, kernel)


def centre_crop(image: Image.Image, share: float) -> Image.Image:
    """The central part with this share of each side, at its native resolution."""
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pad(image: Image.Image, share: float) -> Image.Image:
    """Set into a black frame, on each edge this share of the side wide."""
    across, down = (max(1, round(side * share)) for side in image.size)
    return ImageOps.expand(image, (across, down, across, down))


def gaussian_blur(image: Image.Image, sigma: float) -> Image.Image:
    """Convolved with a Gaussian of `sigma` pixels, edges mirrored."""
    return _image(_blurred(_pixels(image), sigma))


def median(image: Image.Image, size: float) -> Image.Image:
    """Each channel's median over windows of `size` x `size` pixels; at the edges, over what lies inside the image."""
    from skimage.filters import rank

    window = np.ones((int(size), int(size)), dtype=np.uint8)
    return Image.merge("RGB", [Image.fromarray(rank.median(np.array(band), window)) for band in image.split()])


def gaussian_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise on each pixel and channel, of `sigma` grey levels (0..255)."""
    pixels = _pixels(image)
    return _image(pixels + sigma * rng.standard_normal(pixels.shape, dtype=np.float32))


def poisson_noise(image: Image.Image, photons: float, rng: np.random.Generator) -> Image.Image:
    """Shot noise: a pixel x in 0..255 counts Poisson(x / 255 * photons) and is shown as 255 * counts / photons.

    Its standard deviation is 255 * sqrt(x / 255 / photons) grey levels. The model of ImageNet-C (Hendrycks and
    Dietterich 2019), whose mildest setting is 60 photons at white.
    """
    return _image(rng.poisson(_pixels(image) / 255 * photons) * (255 / photons))


def sharpen(image: Image.Image, amount: float) -> Image.Image:
    """Unsharp mask: plus `amount` times the difference to a blurred copy (2 pixels)."""
    return image.filter(ImageFilter.UnsharpMask(radius=2, percent=round(100 * amount), threshold=0))


def gamma(image: Image.Image, exponent: float) -> Image.Image:
    """Each channel, scaled to 0..1, raised to this exponent; above 1 it darkens."""
    curve = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(int).tolist()
    return image.point(curve * 3)


def colour_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation times 1 ± `strength`, hue turned by ± `strength` / 4 of the circle.

    The proportions of SimCLR (Chen et al. 2020). Each is drawn between half and the whole of it, up or down, so that
    twice the strength is never the milder draw.
    """
    shifts = strength * rng.uniform(0.5, 1.0, size=4) * rng.choice((-1, 1), size=4)
    for enhance, shift in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), shifts, strict=False
    ):
        image = enhance(image).enhance(1 + shift)
    hue, saturation, value = image.convert("HSV").split()
    turn = round(shifts[3] / 4 * 256)
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def grey(image: Image.Image, share: float) -> Image.Image:
    """Mixed with its own luminance (ITU-R 601) in this share: 1 is a grey image."""
    return ImageEnhance.Color(image).enhance(1 - share)


def screenshot(image: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """As captured from a screen that shows the image at `scale`, with a bar above it and margins around it.

    Shrunk with the bilinear kernel of browsers, shown with a slightly different gamma (exponent 0.95 to 1.05) in a
    window of one flat colour, light or dark, without text or sub-pixel smoothing; saved as PNG, which changes nothing,
    or as JPEG quality 90, with equal chances.
    """
    shown = gamma(_scaled(image, scale, Resampling.BILINEAR), rng.uniform(0.95, 1.05))
    left, right, below = (max(1, round(share * min(shown.size))) for share in rng.uniform(0.01, 0.04, size=3))
    above = max(2, round(rng.uniform(0.06, 0.12) * min(shown.size)))
    colour = int(rng.choice((32, 243)))
    window = ImageOps.expand(shown, (left, above, right, below), fill=(colour,) * 3)
    return save_again(window, 90) if rng.random() < 0.5 else window


def print_scan(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """As printed and scanned again; the size stays. `strength` 1 is a good office machine, 3 a poor one.

    Printed: narrower contrast, a cast of colour, halftone dots that spread. Scanned: a slight turn and perspective on
    white paper, blur and noise. Then saved as JPEG. Lin and Chang (1999) model contrast, blur, noise and turn in this
    way; dots, cast and perspective are added to them.
    """
    paper = _image(_printed(_pixels(image), strength, rng))
    scanned = _pixels(_laid_askew(paper, strength, rng))
    scanned = _blurred(scanned, 0.2 + 0.15 * strength)
    scanned += 1.5 * strength * rng.standard_normal(scanned.shape, dtype=np.float32)
    return save_again(_image(scanned), 95 - 10 * strength)


def _printed(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels (H, W, 3) on paper: ink is not black, paper not white, and mid-tones are dots."""
    ink, white = 10.0 * strength, 255 - 4.0 * strength
    cast = 1 + 0.02 * strength * rng.uniform(-1, 1, size=3)
    tone = pixels / 255
    # Dots show most where half the paper is covered, and not at all in white and in full ink.
    dots = 12 * strength * 4 * tone * (1 - tone) * _halftone(pixels.shape[0], pixels.shape[1], rng)
    printed = (ink + (white - ink) * tone) * cast.astype(np.float32) + dots
    return _blurred(printed, 0.3 + 0.15 * strength)


def _halftone(height: int, width: int, rng: np.random.Generator, period: float = 3.6) -> np.ndarray:
    """Dot screens (H, W, 3) in -1..1, one per channel, turned by the customary 15, 75 and 45 degrees."""
    rows, columns = np.ogrid[:height, :width]
    screens = []
    for angle, (first, second) in zip(np.deg2rad((15, 75, 45)), rng.uniform(0, 2 * np.pi, size=(3, 2)), strict=True):
        across, down = 2 * np.pi / period * np.array((np.cos(angle), np.sin(angle)))
        waves = np.cos(across * columns + down * rows + first) + np.cos(down * columns - across * rows + second)
        screens.append(waves.astype(np.float32) / 2)
    return np.stack(screens, axis=-1)


def _laid_askew(paper: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Turned by up to half a degree times `strength`, each corner also moved by up to 0.4 % of the side, on white."""
    width, height = paper.size
    # A long strip would otherwise leave the scanner's glass.
    most = min(np.deg2rad(0.5 * strength), 0.1 * min(width, height) / max(width, height))
    angle = most * rng.uniform(0.5, 1.0) * rng.choice((-1, 1))
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], dtype=float)
    centre = corners.mean(0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (corners - centre) @ turn.T + centre
    moved += 0.004 * strength * rng.uniform(-1, 1, size=(4, 2)) * min(width, height)
    # For movements this small Pillow's bilinear quadrilateral is the perspective to a fraction of a pixel.
    quad = tuple(moved.ravel().tolist())
    white = (255, 255, 255)
    return paper.transform(paper.size, Image.Transform.QUAD, quad, Resampling.BICUBIC, fillcolor=white)


def _round_trip(image: Image.Image, quality: int, codec: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, codec, quality=quality, **_SAVING[codec])
    with Image.open(io.BytesIO(buffer.getvalue())) as coded:
        return coded.convert("RGB")


def _scaled(image: Image.Image, scale: float, kernel: Resampling) -> Image.Image:
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), kernel)


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
