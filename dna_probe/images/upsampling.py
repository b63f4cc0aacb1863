"""Forgeries of the whole photograph: what a generator's decoder leaves when it has to re-make an image.

Every function takes and returns float32 pixels (H, W, 3) in 0..255 and a random generator.
"""

from __future__ import annotations

import numpy as np


def autoencode(
    pixels: np.ndarray, rng: np.random.Generator, stride: int = 4, size: int = 7, components: int = 28
) -> np.ndarray:
    """Encode by strided projection and decode by transposed convolution; the code is learned from the image itself.

    The encoder is a convolution with kernels of `size` x `size` x 3 at every `stride`-th pixel: the principal
    components of the image's own overlapping patches, `components` of them. The decoder adds the decoded patches up
    where they overlap, as a transposed convolution does. Because `size` is no multiple of `stride`, pixels are
    covered unevenly (Odena et al. 2016, "Deconvolution and checkerboard artifacts"), and the reconstruction repeats
    with the stride. The decoder's gain per phase is uneven by a little under one per cent, as that of a trained one
    is.
    """
    padded, (top, left) = _reflect(pixels, stride, size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size, 3))[:, :, 0]
    length = size * size * 3
    ys, xs = (rng.integers(0, side, size=1000) for side in windows.shape[:2])
    sample = windows[ys, xs].reshape(-1, length)
    centre = sample.mean(0)
    basis = _leading(sample - centre, min(components, length), rng)

    strided = windows[::stride, ::stride]
    rows, columns = strided.shape[:2]
    code = (strided.reshape(-1, length) - centre) @ basis
    # A decoder of finite precision: the code is rounded to a fraction of each component's own spread.
    step = np.maximum(code.std(0) / 24, 1e-6)
    decoded = (np.round(code / step) * step) @ basis.T + centre
    gain = 1 + 0.008 * rng.standard_normal((size, size, 1))
    decoded = decoded.reshape(rows, columns, size, size, 3) * (gain / gain.mean())

    summed = np.zeros(((rows - 1) * stride + size, (columns - 1) * stride + size, 3))
    covered = np.zeros((*summed.shape[:2], 1))
    for y in range(size):
        for x in range(size):
            tile = np.s_[y : y + rows * stride : stride, x : x + columns * stride : stride]
            summed[tile] += decoded[:, :, y, x]
            covered[tile] += 1
    out = summed / covered
    return out[top : top + pixels.shape[0], left : left + pixels.shape[1]].astype(np.float32)


def transpose_convolve(pixels: np.ndarray, rng: np.random.Generator, stride: int = 2) -> np.ndarray:
    """Shrink the image, then enlarge it by a transposed convolution that also has to invent the lost detail.

    The enlarging kernel has its own weights for each of the `stride` x `stride` output phases, which is what both a
    strided transposed convolution and a sub-pixel convolution (PixelShuffle) come to; copies of the low frequencies
    are left around multiples of 1/stride. The invented detail is noise made at the small size, sent through the same
    kernel and given, place by place, part of the energy that was lost, so that the result is not merely blurred.
    """
    from scipy import ndimage

    height, width = pixels.shape[:2]
    padded, (top, left) = _reflect(pixels, stride, 4 * stride)
    rows, columns = padded.shape[0] // stride, padded.shape[1] // stride
    padded = padded[: rows * stride, : columns * stride]
    small = padded.reshape(rows, stride, columns, stride, 3).mean((1, 3))
    kernel = _phase_kernel(stride, rng)
    large = _enlarge(small, stride, kernel)

    lost = ndimage.gaussian_filter((padded - large).mean(-1) ** 2, 2 * stride)
    noise = _enlarge(rng.standard_normal((rows, columns, 1)), stride, kernel)
    noise -= ndimage.gaussian_filter(noise, (stride, stride, 0))
    noise /= max(float(noise.std()), 1e-6)
    out = large + 0.7 * np.sqrt(lost)[..., None] * noise
    return out[top : top + height, left : left + width].astype(np.float32)


def renoise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise and take it away again, as a denoising generator's last step does: the sensor's own noise is gone.

    Non-local means (Buades et al. 2005) or total variation (Chambolle 2004), at random.
    """
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    level = rng.uniform(0.03, 0.07)
    noisy = pixels / 255 + level * rng.standard_normal(pixels.shape)
    if rng.random() < 0.5:
        clean = denoise_nl_means(
            noisy, patch_size=5, patch_distance=4, h=0.8 * level, sigma=level, fast_mode=True, channel_axis=-1
        )
    else:
        clean = denoise_tv_chambolle(noisy, weight=1.2 * level, max_num_iter=60, channel_axis=-1)
    return (np.asarray(clean) * 255).astype(np.float32)


def _leading(centred: np.ndarray, count: int, rng: np.random.Generator, rounds: int = 4) -> np.ndarray:
    """The leading principal directions (d, count) by subspace iteration, which is cheaper than all of them."""
    scatter = (centred.T @ centred).astype(np.float64)
    basis = np.linalg.qr(rng.standard_normal((len(scatter), count)))[0]
    for _ in range(rounds):
        basis = np.linalg.qr(scatter @ basis)[0]
    return basis


def _phase_kernel(stride: int, rng: np.random.Generator) -> np.ndarray:
    """A bilinear kernel, 2 * stride on a side, whose phases have each been disturbed at random."""
    half = np.arange(1, 2 * stride, 2) / (2 * stride)
    line = np.concatenate([half, half[::-1]])
    kernel = np.outer(line, line) * (1 + 0.12 * rng.standard_normal((2 * stride, 2 * stride)))
    phases = kernel.reshape(2, stride, 2, stride)
    sums = phases.sum((0, 2), keepdims=True)
    uneven = 1 + 0.006 * rng.standard_normal((1, stride, 1, stride))
    return (phases / sums * uneven / uneven.mean()).reshape(2 * stride, 2 * stride)


def _enlarge(small: np.ndarray, stride: int, kernel: np.ndarray) -> np.ndarray:
    """Transposed convolution of (h, w, c) by `stride`: insert zeros, then convolve."""
    rows, columns, channels = small.shape
    size = len(kernel)
    edge = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    out = np.zeros(((rows + 1) * stride + size, (columns + 1) * stride + size, channels))
    for y in range(size):
        for x in range(size):
            tile = np.s_[y : y + (rows + 2) * stride : stride, x : x + (columns + 2) * stride : stride]
            out[tile] += kernel[y, x] * edge
    start = stride + (size - stride) // 2
    return out[start : start + rows * stride, start : start + columns * stride]


def _reflect(pixels: np.ndarray, stride: int, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Mirror the edges so that whole strides and whole kernels fit; also where the image begins in the result."""
    before = stride * -(-size // (2 * stride))
    after = [before + size + -length % stride for length in pixels.shape[:2]]
    padded = np.pad(pixels, ((before, after[0]), (before, after[1]), (0, 0)), mode="symmetric")
    return padded, (before, before)
