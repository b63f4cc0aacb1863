"""Forgeries made from a real photograph: the same content, size and colours, and the traces of a forger.

A forger is a function (photograph, random generator) -> forgery. The same generator state makes the same forgery.
Because each forgery has its own photograph as a twin, what separates the two is the trace and not the content.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.upsampling import autoencode, renoise, transpose_convolve

Forger = Callable[..., Image.Image]
SMALLEST = 48


def autoencoder(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photograph re-made by a small patch autoencoder fitted on itself; see `upsampling.autoencode`."""
    return _image(autoencode(_pixels(image), rng))


def transposed_convolution(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photograph shrunk and enlarged by a transposed convolution; see `upsampling.transpose_convolve`."""
    return _image(transpose_convolve(_pixels(image), rng))


def denoise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photograph with noise added and removed; see `upsampling.renoise`."""
    return _image(renoise(_pixels(image), rng))


def splice(image: Image.Image, rng: np.random.Generator, donor: Image.Image | None = None) -> Image.Image:
    """A region replaced by a rotated and rescaled piece of `donor`, or of another place of the photograph itself.

    The seam is feathered, or removed by Poisson editing (Perez et al. 2003), at random. Nothing outside the region
    changes.
    """
    from scipy import ndimage

    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    source = pixels if donor is None else _pixels(donor.resize(image.size, Image.Resampling.BICUBIC))
    mask = _region(height, width, rng)
    target = np.argwhere(mask).mean(0)
    origin = target + _similar_place(pixels, source, mask, rng)
    angle, scale = np.deg2rad(rng.uniform(8, 35) * rng.choice((-1, 1))), rng.uniform(0.75, 1.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    shift = origin - turn @ target
    piece = np.stack(
        [ndimage.affine_transform(source[..., c], turn, shift, order=3, mode="mirror") for c in range(3)], axis=-1
    )
    if rng.random() < 0.5:
        edited = _poisson(pixels, piece, mask)
        # Where the borders do not agree, the solution drifts in brightness, which would be a cue of its own.
        if np.abs(edited[mask].mean(0) - pixels[mask].mean(0)).max() < 12:
            return _image(edited, image, mask)
    piece += (pixels[mask].mean(0) - piece[mask].mean(0)).astype(np.float32)
    return _image(_lay(pixels, piece, mask, soft=rng.uniform(1.0, 2.5)), image, mask)


def copy_move(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A region covered by another region of the same photograph, sometimes mirrored. Nothing outside it changes."""
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    mask = _region(height, width, rng)
    source = pixels[:, ::-1] if rng.random() < 0.3 else pixels
    move = _similar_place(pixels, source, mask, rng)
    piece = np.roll(source, (-move[0], -move[1]), axis=(0, 1))
    # Half of the difference in colour is taken out, so that the copy neither stands out nor adapts entirely.
    piece = piece + 0.5 * (pixels[mask].mean(0) - piece[mask].mean(0))
    return _image(_lay(pixels, piece, mask, soft=rng.uniform(0.6, 1.5)), image, mask)


def inpaint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A region filled in from its surroundings by the biharmonic equation, with a little grain; the rest is kept."""
    from skimage.restoration import inpaint_biharmonic

    pixels = _pixels(image)
    mask = _region(pixels.shape[0], pixels.shape[1], rng, area=(0.03, 0.08))
    # The cost grows with the square of the hole, so a big one is filled at a smaller size.
    shrink = max(1, round(np.sqrt(mask.sum() / 900)))
    # The solver needs known pixels on all sides, also where the hole lies at the border of the photograph.
    margin = 4 * shrink
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    box = _box(np.pad(mask, margin), margin)
    around, hole = padded[box], np.pad(mask, margin)[box]
    if shrink > 1:
        size = (-(-hole.shape[1] // shrink), -(-hole.shape[0] // shrink))
        around = np.asarray(_image(around).resize(size, Image.Resampling.BOX), dtype=np.float32)
        hole = np.asarray(Image.fromarray(hole.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    filled = np.asarray(inpaint_biharmonic(around / 255, hole, channel_axis=-1), dtype=np.float32) * 255
    if shrink > 1:
        size = (box[1].stop - box[1].start, box[0].stop - box[0].start)
        filled = np.asarray(_image(filled).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    padded[box] = filled + rng.uniform(0.5, 1.5) * rng.standard_normal((*filled.shape[:2], 1))
    piece = padded[margin:-margin, margin:-margin]
    return _image(_lay(pixels, piece, mask, soft=0.8), image, mask)


def blend(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A region blended with a warped and re-toned copy of the photograph itself.

    After self-blended images (Shiohara and Yamasaki 2022), which imitate the blending border of face swaps.
    """
    from scipy import ndimage

    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    amplitude = 0.015 * min(height, width)
    field = ndimage.gaussian_filter(rng.standard_normal((2, height, width)), (0, height / 12, width / 12))
    field *= amplitude / max(float(np.abs(field).max()), 1e-9)
    field += rng.uniform(-amplitude, amplitude, (2, 1, 1))
    where = np.mgrid[:height, :width] + field
    warped = np.stack([ndimage.map_coordinates(pixels[..., c], where, order=3, mode="mirror") for c in range(3)], -1)
    if rng.random() < 0.5:
        warped = ndimage.gaussian_filter(warped, (0.7, 0.7, 0))
    else:
        warped += 0.7 * (warped - ndimage.gaussian_filter(warped, (1.0, 1.0, 0)))
    warped *= 1 + rng.uniform(-0.04, 0.04, 3)
    mask = _region(height, width, rng, area=(0.15, 0.3))
    strength = rng.uniform(0.6, 1.0)
    return _image(_lay(pixels, warped, mask, soft=rng.uniform(1.5, 4.0), strength=strength), image, mask)


FORGERS: dict[str, Forger] = {
    "autoencoder": autoencoder,
    "transposed_convolution": transposed_convolution,
    "denoise": denoise,
    "splice": splice,
    "copy_move": copy_move,
    "inpaint": inpaint,
    "blend": blend,
}
LOCAL_FORGERS = frozenset({"splice", "copy_move", "inpaint", "blend"})


def forge(image: Image.Image, name: str, rng: np.random.Generator | int = 0) -> Image.Image:
    """The forgery of a photograph by the forger `name`, RGB and of the same size; a grey photograph stays grey.

    Raises `DataError` for an unknown name (with near matches) and for a photograph with a side below 48 pixels.
    """
    if name not in FORGERS:
        raise unknown_name("forger", name, FORGERS, DataError)
    if min(image.size) < SMALLEST:
        raise DataError(f"{image.width} x {image.height} is too small to forge", f"a side needs {SMALLEST} pixels")
    image = image.convert("RGB")
    forged = FORGERS[name](image, np.random.default_rng(rng))
    # Colour noise or a tint would give a grey photograph's forgery away at once.
    return forged.convert("L").convert("RGB") if _is_grey(image) else forged


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in image.split())
    return bool((red == green).all() and (green == blue).all())


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _image(pixels: np.ndarray, before: Image.Image | None = None, mask: np.ndarray | None = None) -> Image.Image:
    """Rounded to 8 bits; outside `mask` the bytes of `before` are kept, whatever the arithmetic did."""
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if before is not None and mask is not None:
        rounded = np.where(mask[..., None], rounded, np.asarray(before.convert("RGB")))
    return Image.fromarray(rounded)


def _region(height: int, width: int, rng: np.random.Generator, area: tuple[float, float] = (0.06, 0.18)) -> np.ndarray:
    """A rounded, slightly wobbly region of this share of the image, clear of the border: (H, W) bool."""
    share = rng.uniform(*area) * height * width
    aspect = rng.uniform(0.6, 1.6)
    tall, wide = np.sqrt(share * aspect / np.pi), np.sqrt(share / aspect / np.pi)
    tall, wide = min(tall, height / 2.6), min(wide, width / 2.6)
    y = rng.uniform(1.2 * tall + 2, max(height - 1.2 * tall - 2, 1.2 * tall + 3))
    x = rng.uniform(1.2 * wide + 2, max(width - 1.2 * wide - 2, 1.2 * wide + 3))
    rows, columns = np.mgrid[:height, :width]
    dy, dx = (rows - y) / tall, (columns - x) / wide
    angle = np.arctan2(dy, dx)
    wobble = 1 + 0.12 * np.sin(2 * angle + rng.uniform(0, 6.28)) + 0.06 * np.sin(5 * angle + rng.uniform(0, 6.28))
    mask = np.hypot(dy, dx) < wobble
    mask[[0, -1]] = mask[:, [0, -1]] = False
    return mask


def _similar_place(pixels: np.ndarray, source: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By how much to move the region, inside the image, to a place that looks similar: a forger chooses what fits."""
    from scipy import ndimage

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low = np.array([-rows[0], -columns[0]])
    high = np.array([mask.shape[0] - 1 - rows[-1], mask.shape[1] - 1 - columns[-1]])
    moves = rng.integers(low, high + 1, size=(24, 2))
    # A piece that hardly moves would lie on itself; if all do, the one that moves most is taken.
    far = np.abs(moves).max(1)
    near_limit = min(len(rows), len(columns)) // 2
    moves = moves[far >= near_limit] if (far >= near_limit).any() else moves[[far.argmax()]]
    inside = np.argwhere(mask)[::7]
    # Compared without fine texture, so that what counts is whether the piece belongs there.
    coarse, there = (ndimage.gaussian_filter(one, (3, 3, 0)) for one in (source, pixels))
    wanted = there[tuple(inside.T)]
    apart = [np.abs(coarse[tuple((inside + move).T)] - wanted).mean() for move in moves[:16]]
    return moves[int(np.argmin(apart))]


def _lay(pixels: np.ndarray, piece: np.ndarray, mask: np.ndarray, soft: float, strength: float = 1.0) -> np.ndarray:
    """The piece laid over the region, fading out over about 2 * `soft` pixels inside it."""
    from scipy import ndimage

    inside = ndimage.distance_transform_edt(mask)
    alpha = strength * np.clip(inside / (2 * soft), 0, 1)[..., None]
    return pixels * (1 - alpha) + piece * alpha


def _box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The rows and columns of the region, and `margin` more on each side; it must lie that far inside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.s_[rows[0] - margin : rows[-1] + margin + 1, columns[0] - margin : columns[-1] + margin + 1]


def _poisson(pixels: np.ndarray, piece: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The region with the gradients of the piece and the border of the photograph: one sparse linear system."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    ys, xs = np.nonzero(mask)
    number = np.full(mask.shape, -1)
    number[ys, xs] = np.arange(len(ys))
    right = np.zeros((len(ys), 3))
    links: list[tuple[np.ndarray, np.ndarray]] = []
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        ny, nx = ys + dy, xs + dx
        right += piece[ys, xs] - piece[ny, nx]
        inside = number[ny, nx] >= 0
        right[~inside] += pixels[ny, nx][~inside]
        links.append((np.flatnonzero(inside), number[ny, nx][inside]))
    rows, columns = (np.concatenate([link[side] for link in links]) for side in (0, 1))
    shape = (len(ys), len(ys))
    neighbours = coo_matrix((-np.ones(len(rows)), (rows, columns)), shape=shape)
    diagonal = coo_matrix((np.full(len(ys), 4.0), (np.arange(len(ys)),) * 2), shape=shape)
    out = pixels.copy()
    out[ys, xs] = splu((neighbours + diagonal).tocsc(), permc_spec="MMD_AT_PLUS_A").solve(right)
    return out
