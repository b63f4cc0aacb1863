"""Preprocessing as a graph must give Pillow's pixels, level for level."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dna_probe.exporting import resizing
from dna_probe.images.preprocessing import CROP_MODES, CROP_ROUNDINGS, INTERPOLATIONS, Preprocessing

MEAN, STD = (0.48, 0.5, 0.41), (0.2, 0.5, 0.3)


def noise(width, height, seed=0, extremes=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if extremes else pixels


def by_graph(preprocessing, *images):
    return resizing.preprocess(torch.from_numpy(np.stack(images)), preprocessing).numpy()


def assert_equal(preprocessing, *images):
    expected = np.stack([preprocessing(Image.fromarray(image)) for image in images])
    np.testing.assert_array_equal(by_graph(preprocessing, *images), expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 250), st.integers(8, 250)),
    input_size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    square=st.booleans(),
    crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 0.965, 1.0]),
    crop_mode=st.sampled_from(CROP_MODES),
    interpolation=st.sampled_from(list(INTERPOLATIONS)),
    rounding=st.sampled_from(list(CROP_ROUNDINGS)),
    extremes=st.booleans(),
)
def test_equals_pillow(size, input_size, square, crop_pct, crop_mode, interpolation, rounding, extremes):
    rows, columns = input_size
    preprocessing = Preprocessing(
        (rows, rows if square else columns), crop_pct, crop_mode, interpolation, MEAN, STD, rounding
    )
    assert_equal(preprocessing, noise(*size, extremes=extremes))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(8, 3000), (3000, 8), (2000, 1500), (1500, 2000), (24, 24), (27, 24)], ids=str)
def test_equals_pillow_far_from_the_usual(size, crop_mode):
    assert_equal(Preprocessing((24, 24), 0.9, crop_mode, "lanczos", MEAN, STD), noise(*size))


def test_many_taps_are_added_up_exactly():
    """Each pixel out of thousands: the sums are the longest that single precision must hold."""
    for image in (np.full((20, 12_000, 3), 255, np.uint8), noise(12_000, 20, extremes=True)):
        assert_equal(Preprocessing((8, 8), 1.0, "squash", "lanczos", MEAN, STD), image)


def test_images_of_a_batch_do_not_mix():
    assert_equal(Preprocessing((20, 28), 0.9, "center", "bicubic", MEAN, STD), *(noise(61, 47, i) for i in range(3)))


def test_the_order_of_the_passes_is_that_of_the_installed_pillow(monkeypatch):
    """Pillow 13 resizes tall images along their columns first, 12.2 very tall ones, and those before it none."""

    def first(height, width, down, along, version):
        monkeypatch.setattr(resizing, "PILLOW", version)
        sizes = (torch.tensor(float(value)) for value in (height, width, down, along))
        return bool(resizing.vertical_first(*sizes))

    assert (
        not first(5000, 20, 64, 20, (12, 1)) and first(5000, 20, 64, 20, (12, 2)) and first(5000, 20, 64, 20, (13, 0))
    )
    assert not first(400, 100, 64, 64, (12, 3)) and first(400, 100, 64, 64, (13, 0))
    assert not first(100, 400, 64, 64, (13, 0)) and not first(164, 114, 64, 64, (13, 0))
