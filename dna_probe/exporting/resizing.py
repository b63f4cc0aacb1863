"""``Preprocessing`` as tensor operations that export with free image sizes: Pillow's pixels, level for level.

Pillow resizes in two passes, along the rows of pixels first, and rounds after each to whole grey levels. A pass is a
product with a matrix of weights that have 22 bits behind the point (``Resample.c`` of Pillow). Here the product is of
whole numbers that single precision holds exactly, so that every sum rounds as it does there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import PIL
import torch
from torch import Tensor

from dna_probe.images.preprocessing import Preprocessing

PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
PRECISION_BITS = 22
# Weights are split here into a high and a low part, so that the sums over either stay below 2 ** 24.
LOW_BITS = 7
# Pillow has these in single precision.
HAMMING = (0.540000021457672119140625, 0.4600000083446502685546875)
# Output positions that share a window of the input. Fewer read more of the input twice, more multiply by more zeros.
BLOCK = 16


def preprocess(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What ``Preprocessing`` makes of images, uint8 (n, height, width, 3) -> float32 (n, 3, rows, columns)."""
    rows, columns = preprocessing.input_size
    h, w = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[1:3])
    down, along = resized_size(h, w, preprocessing)
    vertical = _axis(h, down, rows, preprocessing)
    horizontal = _axis(w, along, columns, preprocessing)

    small = _either(
        vertical_first(h, w, down, along),
        _vertical_then_horizontal,
        _horizontal_then_vertical,
        (images, vertical.windows, vertical.weights, horizontal.windows, horizontal.weights),
    )
    small = small[:, :, :rows, :columns]
    border = preprocessing.crop_mode == "border"
    fill = _per_channel([round(255 * value) if border else 0 for value in preprocessing.mean])
    pixels = torch.where(vertical.inside[:, None] & horizontal.inside, small, fill)
    return (pixels / 255 - _per_channel(preprocessing.mean)) / _per_channel(preprocessing.std)


def resized_size(h: Tensor, w: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Height and width before cropping, float64 scalars: ``Preprocessing`` rounds in double precision too."""
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.input_size)
    if preprocessing.crop_mode == "squash":
        return torch.full_like(h, rows), torch.full_like(w, columns)
    if preprocessing.crop_mode == "center" and rows == columns:
        short = torch.minimum(h, w)
        return torch.floor(rows * h / short), torch.floor(rows * w / short)
    ratios = h / rows, w / columns
    ratio = torch.maximum(*ratios) if preprocessing.crop_mode == "border" else torch.minimum(*ratios)
    return torch.round(h / ratio).clamp(min=1), torch.round(w / ratio).clamp(min=1)


def vertical_first(h: Tensor, w: Tensor, down: Tensor, along: Tensor) -> Tensor:
    """Whether the Pillow that is installed resizes tall images along their columns first, which rounds otherwise."""
    if PILLOW >= (13,):
        return (h > down) & (h - down > 2 * (w - along))
    if PILLOW >= (12, 2):
        return (h > 100 * w) & (h > down)
    return torch.zeros((), dtype=torch.bool)


class _Axis(NamedTuple):
    """How one axis is resized and cropped.

    Attributes:
        windows: positions in the input that a block of output positions reads, (blocks, length).
        weights: high and low part, whole numbers, (blocks, 2 * BLOCK, length).
        inside: which output positions lie in the resized image; the others are padding, (size,).
    """

    windows: Tensor
    weights: Tensor
    inside: Tensor


def _axis(length: Tensor, resized: Tensor, size: int, preprocessing: Preprocessing) -> _Axis:
    """From ``length`` pixels to ``resized``, of which the central ``size`` are wanted."""
    cut = CROP_ROUNDINGS[preprocessing.crop_rounding]((resized - size) / 2)
    padding = torch.floor((size - resized) / 2)
    offset = torch.where(resized < size, -padding, cut)
    wanted = torch.arange(size, dtype=torch.float64) + offset
    inside = (wanted >= 0) & (wanted < resized)
    # Whole blocks: the last position stands for those that are missing.
    padded = torch.arange(-(-size // BLOCK) * BLOCK).clamp(max=size - 1)
    positions = torch.minimum(wanted[padded].clamp(min=0), resized - 1)

    scale = length / resized
    if preprocessing.interpolation == "nearest":
        low = _nearest(positions, resized, scale)
        kernel: Callable[[Tensor], Tensor] = torch.ones_like
        high, centre, stretch = low + 1, low, torch.ones_like(scale)
    else:
        kernel, reach = KERNELS[preprocessing.interpolation]
        stretch = scale.clamp(min=1)
        centre = (positions + 0.5) * scale
        low = torch.floor(centre - reach * stretch + 0.5).clamp(min=0)
        high = torch.floor(centre + reach * stretch + 0.5).minimum(length)
    low, high, centre = (values.reshape(-1, BLOCK) for values in (low, high, centre))

    longest = (high[:, -1] - low[:, 0]).max().to(torch.int64).item()
    torch._check(longest >= 1)
    window = low[:, :1] + torch.arange(longest, dtype=torch.float64)
    taps = window[:, None]
    weights = kernel((taps - centre[..., None] + 0.5) * (1 / stretch))
    weights = torch.where((taps >= low[..., None]) & (taps < high[..., None]), weights, 0)
    weights = weights / weights.sum(2, keepdim=True)
    return _Axis(window.minimum(length - 1).to(torch.int64), _split(weights), inside)


def _split(weights: Tensor) -> Tensor:
    """Weights as whole numbers, rounded half away from zero, in a high and a low part."""
    scaled = weights * 2.0**PRECISION_BITS
    whole = torch.where(scaled < 0, torch.ceil(scaled - 0.5), torch.floor(scaled + 0.5))
    high = torch.round(whole / 2.0**LOW_BITS)
    return torch.cat([high, whole - high * 2.0**LOW_BITS], 1).float()


def _either(condition: Tensor, yes: Callable[..., Tensor], no: Callable[..., Tensor], arguments: tuple) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.cond(condition, yes, no, arguments)
    return (yes if condition else no)(*arguments)


def _horizontal_then_vertical(images: Tensor, rows: Tensor, down: Tensor, columns: Tensor, along: Tensor) -> Tensor:
    n, height, width, channels = images.shape
    # The axis to be resized goes in front: a pass is then a product with few, long rows.
    lines = images.reshape(n * height, width * channels).t().reshape(width, channels * n * height)
    lines = _resize(lines, columns, along)
    lines = _resize(lines.reshape(-1, height).t(), rows, down)
    return lines.reshape(rows.shape[0] * BLOCK, columns.shape[0] * BLOCK, channels, n).permute(3, 2, 0, 1).contiguous()


def _vertical_then_horizontal(images: Tensor, rows: Tensor, down: Tensor, columns: Tensor, along: Tensor) -> Tensor:
    n, height, width, channels = images.shape
    lines = images.permute(1, 0, 2, 3).reshape(height, n * width * channels)
    lines = _resize(lines, rows, down).reshape(-1, width * channels).t().reshape(width, -1)
    lines = _resize(lines, columns, along)
    return lines.reshape(columns.shape[0] * BLOCK, channels, rows.shape[0] * BLOCK, n).permute(3, 1, 2, 0).contiguous()


def _resize(lines: Tensor, windows: Tensor, weights: Tensor) -> Tensor:
    """Grey levels (length, n) -> (blocks * BLOCK, n)."""
    blocks, length = windows.shape
    taken = lines.index_select(0, windows.reshape(-1)).reshape(blocks, length, lines.shape[1]).float()
    high, low = torch.bmm(weights, taken).split(BLOCK, 1)
    # Half a level is added and the bits behind the point are cut off, as Pillow does, here without leaving 24 bits.
    half = 2.0 ** (PRECISION_BITS - LOW_BITS - 1)
    levels = torch.floor((high + torch.floor(low / 2.0**LOW_BITS) + half) / (2 * half))
    return levels.clamp(0, 255).reshape(blocks * BLOCK, lines.shape[1])


def _nearest(positions: Tensor, resized: Tensor, scale: Tensor) -> Tensor:
    """Pillow adds up the steps one by one, rounding errors too, which decide where a position falls between two."""
    count = resized.to(torch.int64).item()
    torch._check(count >= 1)
    steps = torch.where(torch.arange(count) == 0, scale / 2, scale)
    return torch.floor(steps.cumsum(0).index_select(0, positions.to(torch.int64)))


def _per_channel(values: list[int] | tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _hamming(x: Tensor) -> Tensor:
    x = x.abs()
    return torch.where(x < 1, _sinc(x) * (HAMMING[0] + HAMMING[1] * torch.cos(math.pi * x)), 0)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0)


def _sinc(x: Tensor) -> Tensor:
    angle = math.pi * x
    return torch.where(x == 0, 1, torch.sin(angle) / torch.where(x == 0, 1, angle))


CROP_ROUNDINGS = {"even": torch.round, "down": torch.floor}
# Kernel of each interpolation, and how far it reaches.
KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
    "lanczos": (_lanczos, 3.0),
}
