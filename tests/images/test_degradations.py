"""Degradations do what their names and severities say, to every image alike.

The checks take a `Degradation`, so that broken copies can be held against them: a check that lets a copy pass which
ignores its parameter, or grades it the wrong way round, is worth nothing.
"""

import io
import subprocess
import sys
import zlib
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from dna_probe.errors import DataError
from dna_probe.images import degradations, distortions
from dna_probe.images.degradations import (
    DEGRADATIONS,
    available_degradations,
    degrade,
    unavailable_degradations,
)
from dna_probe.images.probe_set import photographs

AVAILABLE = available_degradations()
CELLS = [(name, severity) for name, item in AVAILABLE.items() for severity in range(len(item.severities))]
CODECS = [name for name in ("jpeg", "double_jpeg", "webp", "avif", "social") if name in AVAILABLE]
# An enlargement loses nothing, and what a screenshot loses is only seen with its window taken off.
LOSSY = [name for name in AVAILABLE if name not in ("upscale", "screenshot")]


@pytest.fixture(scope="module")
def photograph():
    return photographs()["astronaut"].crop((80, 0, 304, 224))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def array(image):
    return np.asarray(image, dtype=float)


def same(one, other):
    return one.size == other.size and one.mode == other.mode and one.tobytes() == other.tobytes()


def psnr(image, clean):
    """Peak signal-to-noise ratio in decibels, the image first brought back to the size of the clean one."""
    if image.size != clean.size:
        image = image.resize(clean.size, Image.Resampling.BICUBIC)
    return 10 * np.log10(255**2 / np.mean((array(image) - array(clean)) ** 2))


@contextmanager
def bytes_saved():
    """The lengths of everything that Pillow encodes meanwhile."""
    lengths, save = [], Image.Image.save

    def counted(self, target, *args, **options):
        save(self, target, *args, **options)
        lengths.append(len(target.getvalue()))

    with patch.object(Image.Image, "save", counted):
        yield lengths


def check_psnr_falls(item, image, seeds=6):
    levels = [
        np.mean([psnr(item.apply(image, severity, seed), image) for seed in range(seeds if item.random else 1)])
        for severity in range(len(item.severities))
    ]
    assert all(mild > severe + 0.3 for mild, severe in pairwise(levels)), levels


def check_bytes_fall(item, image):
    sizes = []
    for severity in range(len(item.severities)):
        with bytes_saved() as lengths:
            item.apply(image, severity)
        sizes.append(lengths[-1])
    assert all(mild > severe for mild, severe in pairwise(sizes)), sizes


def check_the_declared_quality_reaches_the_encoder(item, image):
    """The pixels are those of a plain save at the declared quality, and those of no other severity."""
    for severity, declared in enumerate(item.severities):
        degraded = item.apply(image, severity)
        for quality in item.severities:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
            assert same(degraded, Image.open(buffer).convert("RGB")) == (quality == declared), (declared, quality)


def test_at_least_eighteen_in_three_severities_or_more():
    assert len(DEGRADATIONS) >= 18
    for name, item in DEGRADATIONS.items():
        assert item.name == name and len(item.severities) >= 3 and len(set(item.severities)) == len(item.severities)
        assert item.description and "\n" not in item.description and len(item.description) <= 80
        labels = [item.label(severity) for severity in range(len(item.severities))]
        assert len(set(labels)) == len(labels) and all(any(c.isdigit() for c in label) for label in labels)
    assert DEGRADATIONS["jpeg"].severities == (95, 90, 75, 50, 30)
    assert DEGRADATIONS["jpeg"].label(2) == "quality 75"
    assert DEGRADATIONS["social"].label(1) == "longest side 768, quality 60"


@pytest.mark.parametrize("name", LOSSY)
def test_psnr_falls_with_severity(name, photograph):
    check_psnr_falls(AVAILABLE[name], photograph)


@pytest.mark.parametrize("name", CODECS)
def test_bytes_fall_with_quality(name, photograph):
    check_bytes_fall(AVAILABLE[name], photograph)


def test_jpeg_is_saved_at_the_declared_quality(photograph):
    check_the_declared_quality_reaches_the_encoder(AVAILABLE["jpeg"], photograph)


def quality_under_a_wrong_name(image, quality):
    """RINE's robustness test: the quality is passed as the parameter's id, so the encoder takes its default."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{str(quality): 1})
    return Image.open(buffer).convert("RGB")


def test_a_jpeg_whose_quality_is_lost_on_the_way_fails_the_checks(photograph):
    broken = replace(DEGRADATIONS["jpeg"], function=quality_under_a_wrong_name)
    for check in (check_bytes_fall, check_psnr_falls, check_the_declared_quality_reaches_the_encoder):
        with pytest.raises(AssertionError):
            check(broken, photograph)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_that_always_takes_its_mildest_setting_fails_the_checks(name, photograph):
    right = DEGRADATIONS[name]

    def broken_function(image, _, *rng):
        return right.function(image, right.severities[0], *rng)

    broken = replace(right, function=broken_function)
    for check in (check_bytes_fall, check_psnr_falls):
        with pytest.raises(AssertionError):
            check(broken, photograph)


@pytest.mark.parametrize("name", LOSSY)
def test_severities_the_wrong_way_round_fail_the_check(name, photograph):
    right = DEGRADATIONS[name]
    with pytest.raises(AssertionError):
        check_psnr_falls(replace(right, severities=right.severities[::-1]), photograph)


@pytest.mark.parametrize("name, severity", CELLS)
def test_same_seed_same_pixels_whatever_came_before(name, severity, photograph):
    before = photograph.tobytes()
    first = degrade(photograph, name, severity, seed=7)
    degrade(noise(50, 40), name, severity, seed=8)
    np.random.seed(1)
    assert same(first, degrade(photograph.copy(), name, severity, seed=7))
    others = [degrade(photograph, name, severity, seed) for seed in (8, 9, 10)]
    if DEGRADATIONS[name].random:
        assert not any(same(first, other) for other in others)
    else:
        assert all(same(first, other) for other in others)
    assert photograph.tobytes() == before and first.mode == "RGB" and first.info == {}


def test_severities_of_one_seed_do_not_share_their_noise(photograph):
    mild, severe = (array(degrade(photograph, "gaussian_noise", s, seed=0)) - array(photograph) for s in (0, 1))
    assert abs(np.corrcoef(mild.ravel(), severe.ravel())[0, 1]) < 0.02


def test_same_pixels_in_another_process(photograph):
    cells = [(name, 1) for name in AVAILABLE if DEGRADATIONS[name].random]
    code = (
        "import sys, zlib; from PIL import Image; from dna_probe.images.degradations import degrade;"
        "image = Image.frombytes('RGB', (224, 224), sys.stdin.buffer.read());"
        f"print([zlib.crc32(degrade(image, *cell, seed=3).tobytes()) for cell in {cells}])"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=photograph.tobytes(), stdout=subprocess.PIPE, check=True)
    assert ran.stdout.decode().strip() == str([zlib.crc32(degrade(photograph, *c, seed=3).tobytes()) for c in cells])


def test_metadata_and_other_modes_are_left_behind(photograph):
    tagged = photograph.copy()
    tagged.info = {"exif": b"Exif\x00\x00", "icc_profile": b"x", "comment": "fake"}
    for name in AVAILABLE:
        assert degrade(tagged, name, 0).info == {}
        assert same(degrade(tagged, name, 0), degrade(photograph, name, 0))
        assert degrade(photograph.convert("L"), name, 0).mode == "RGB"
    assert set(tagged.info) == {"exif", "icc_profile", "comment"}


@settings(max_examples=12, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**32 - 1))
def test_every_cell_takes_every_size(width, height, seed):
    image = noise(width, height)
    for name, severity in CELLS:
        degraded = degrade(image, name, severity, seed)
        assert degraded.mode == "RGB" and min(degraded.size) >= 2


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (8, 2000), (1500, 9)])
@pytest.mark.parametrize("colour", ["black", "white", None])
def test_tiny_long_and_flat_images(size, colour):
    image = noise(*size) if colour is None else Image.new("RGB", size, colour)
    for name, severity in CELLS:
        degrade(image, name, severity)


@pytest.mark.parametrize("name", CODECS)
def test_images_longer_than_a_codec_takes(name):
    strip = noise(20000, 16)
    degraded = degrade(strip, name, 1)
    if name != "social":
        assert degraded.size == strip.size
        mean, whole = (array(image).mean() for image in (degraded, strip))
        assert abs(mean - whole) < 2
    # Tiles are cut between macroblocks, so up to the seam nothing differs from the image saved in one piece.
    if name == "jpeg":
        assert np.allclose(
            array(degraded)[:, :16360], array(degrade(strip.crop((0, 0, 16368, 16)), name, 1))[:, :16360]
        )


def test_wrong_names_severities_and_codecs(photograph, monkeypatch):
    with pytest.raises(DataError, match=r"Unknown degradation 'gausian_blur'\. Did you mean 'gaussian_blur'"):
        degrade(photograph, "gausian_blur", 0)
    for severity in (-1, 5):
        with pytest.raises(
            DataError, match=rf"'jpeg' has no severity {severity}\. It has 5: 0 \(mildest\) to 4 \(most severe\)"
        ):
            degrade(photograph, "jpeg", severity)
        with pytest.raises(DataError, match="no severity"):
            DEGRADATIONS["jpeg"].label(severity)
    with pytest.raises(DataError, match=r"The seed must be 0 or more, not -3\."):
        degrade(photograph, "gaussian_noise", 0, seed=-3)

    monkeypatch.setattr(degradations, "_can_save", lambda codec: codec != "AVIF")
    assert set(DEGRADATIONS) - set(available_degradations()) == {"avif"}
    assert list(unavailable_degradations()) == ["avif"]
    assert unavailable_degradations()["avif"].endswith("cannot write AVIF")
    with pytest.raises(DataError, match=r"'avif' cannot be done here\. Pillow [\d.]+ cannot write AVIF\. Install"):
        degrade(photograph, "avif", 0)


def test_what_pillow_can_save_is_tried_out():
    assert degradations._can_save("JPEG") and degradations._can_save("PNG")
    assert not degradations._can_save("NO SUCH FORMAT")
    with patch.object(Image.Image, "save", side_effect=OSError("encoder error")):
        assert not degradations._can_save.__wrapped__("AVIF")


# Each against an independent account of what its name says.


def test_sizes():
    image = noise(200, 120)
    sizes = {"downscale": (100, 60), "upscale": (300, 180), "crop": (150, 90), "pad": (240, 144), "social": (200, 120)}
    assert {name: degrade(image, name, 1).size for name in sizes} == sizes
    kept = set(AVAILABLE) - set(sizes) - {"screenshot"}
    assert all(degrade(image, name, severity).size == image.size for name, severity in CELLS if name in kept)


def test_social_networks_shrink_only_what_is_too_large():
    for severity, longest in enumerate((1280, 768, 512)):
        assert degrade(noise(1600, 800), "social", severity).size == (longest, longest // 2)
        assert degrade(noise(200, 300), "social", severity).size == (200, 300)


def test_crop_and_pad_touch_no_pixel(photograph):
    pixels = array(photograph)
    assert np.array_equal(array(degrade(photograph, "crop", 2)), pixels[56:168, 56:168])
    padded = array(degrade(photograph, "pad", 2))
    assert padded.shape == (336, 336, 3) and np.array_equal(padded[56:280, 56:280], pixels)
    assert padded.sum() == pixels.sum()


@pytest.mark.parametrize("severity, sigma", [(0, 1), (1, 2), (2, 3)])
def test_blur_has_the_sigma_it_says(severity, sigma):
    """The second moment of a blurred point is sigma squared."""
    point = np.zeros((41, 41, 3), np.uint8)
    point[18:23, 18:23] = 255
    line = array(degrade(Image.fromarray(point), "gaussian_blur", severity)).sum((0, 2))
    at = np.arange(41) - 20
    assert (line * at**2).sum() / line.sum() == pytest.approx(sigma**2 + 2, rel=0.05)


@pytest.mark.parametrize("severity, size", [(0, 3), (1, 5), (2, 7)])
def test_median_of_the_window(severity, size, photograph):
    made, inside = array(degrade(photograph, "median", severity)), np.s_[4:-4, 4:-4]
    assert np.array_equal(made[inside], ndimage.median_filter(array(photograph), (size, size, 1))[inside])


@pytest.mark.parametrize("severity", range(3))
def test_noise_has_the_spread_it_says(severity):
    flat = Image.new("RGB", (200, 200), (128,) * 3)
    sigma = DEGRADATIONS["gaussian_noise"].severities[severity]
    assert array(degrade(flat, "gaussian_noise", severity)).std() == pytest.approx(sigma, rel=0.02)
    photons = DEGRADATIONS["poisson_noise"].severities[severity]
    for level in (40, 128):
        made = array(degrade(Image.new("RGB", (200, 200), (level,) * 3), "poisson_noise", severity))
        assert made.mean() == pytest.approx(level, abs=0.5)
        assert made.std() == pytest.approx(255 * np.sqrt(level / 255 / photons), rel=0.03)
    assert not array(degrade(Image.new("RGB", (20, 20)), "poisson_noise", severity)).any()


def test_tones_and_colours(photograph):
    pixels = array(photograph)
    assert np.array_equal(array(degrade(photograph, "gamma", 2)), np.rint(255 * (pixels / 255) ** 2))
    assert np.ptp(array(degrade(photograph, "grey", 2)), axis=-1).max() == 0
    spread = [np.ptp(array(degrade(photograph, "grey", s)), axis=-1).mean() for s in range(3)]
    before = np.ptp(pixels, axis=-1).mean()
    assert np.allclose(np.divide(spread, before), (0.67, 0.33, 0), atol=0.03)
    grey = photograph.convert("L").convert("RGB")
    assert np.ptp(array(degrade(grey, "colour_jitter", 2)), axis=-1).max() == 0


def test_sharpening_raises_what_blur_lowers(photograph):
    def detail(image):
        return np.abs(ndimage.laplace(array(image).mean(-1))).mean()

    levels = [detail(degrade(photograph, "sharpen", s)) for s in range(3)]
    assert detail(photograph) < levels[0] < levels[1] < levels[2]


def block_edges(image):
    """How much the steps between neighbouring columns stand out at each of the 8 phases of a block grid."""
    steps = np.abs(np.diff(array(image).mean(-1), axis=1)).mean(0)
    return np.array([steps[phase::8].mean() for phase in range(8)])


def test_the_two_grids_of_double_jpeg_do_not_coincide(photograph):
    """A coarse first save leaves its grid in the finely saved second, at another phase than the image's own."""
    aligned = block_edges(distortions.save_again(distortions.save_again(photograph, 5), 98))
    assert aligned.argmax() == 7
    phases = {
        int(block_edges(distortions.double_jpeg(photograph, (5, 98), np.random.default_rng(seed))).argmax())
        for seed in range(12)
    }
    assert 7 not in phases and len(phases) > 3


@pytest.mark.parametrize("seed", range(6))
def test_a_screenshot_is_the_image_made_smaller_in_a_window(seed, photograph):
    """With the flat window taken off, the image is there at the scale, and loses more the smaller it was shown."""
    levels = []
    for severity, scale in enumerate(DEGRADATIONS["screenshot"].severities):
        shot = degrade(photograph, "screenshot", severity, seed)
        pixels, side = array(shot), round(224 * scale)
        assert 0 < shot.width - side < 0.1 * side and 0.05 * side < shot.height - side < 0.2 * side
        bar = pixels[:2]
        assert np.ptp(bar) <= 4 and min(abs(bar.mean() - 32), abs(bar.mean() - 243)) < 4
        places = [
            psnr(shot.crop((left, top, left + side, top + side)), photograph)
            for left in range(shot.width - side + 1)
            for top in range(shot.height - side + 1)
        ]
        levels.append(max(places))
    assert min(levels) > 20 and levels[0] > levels[2]


def test_print_and_scan_keeps_the_picture_and_loses_its_range(photograph):
    clean = array(photograph)
    for severity in range(3):
        for seed in range(4):
            made = array(degrade(photograph, "print_scan", severity, seed))
            inner = np.s_[12:-12, 12:-12]
            assert np.corrcoef(made.mean(-1)[inner].ravel(), clean.mean(-1)[inner].ravel())[0, 1] > 0.9
            assert np.quantile(made[inner], 0.02) > np.quantile(clean[inner], 0.02) + 5
    black = array(degrade(Image.new("RGB", (64, 64)), "print_scan", 2))
    assert 15 < np.median(black) < 45


def test_a_resize_is_what_pillow_does_with_this_kernel(photograph):
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        kernel = Image.Resampling[name.upper()]
        expected = photograph.resize((112, 112), kernel).resize((224, 224), kernel)
        assert same(degrade(photograph, f"resize_{name}", 1), expected)
