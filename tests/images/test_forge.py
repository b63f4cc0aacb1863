"""A forgery keeps the content and leaves a trace."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dna_probe.errors import DataError
from dna_probe.images.forge import FORGERS, LOCAL_FORGERS, forge, splice
from dna_probe.images.probe_set import photographs
from dna_probe.images.upsampling import autoencode, transpose_convolve


@pytest.fixture(scope="module")
def crops():
    shots = photographs()
    boxes = {"astronaut": (100, 100), "coffee": (200, 100), "chelsea": (100, 60), "grass": (50, 70)}
    return [shots[name].crop((x, y, x + 160, y + 128)) for name, (x, y) in boxes.items() if name in shots]


def array(image):
    return np.asarray(image, dtype=float)


@pytest.mark.parametrize("name", FORGERS)
def test_same_size_same_seed_same_colours_and_yet_different(crops, name):
    for crop in crops:
        before = array(crop)
        made = forge(crop, name, 5)
        assert made.mode == "RGB" and made.size == crop.size
        assert np.array_equal(array(made), array(forge(crop, name, 5)))
        assert np.array_equal(array(made), array(forge(crop, name, np.random.default_rng(5))))
        assert not np.array_equal(array(made), array(forge(crop, name, 6)))
        assert np.abs(array(made) - before).max() > 4
        assert np.abs(array(made).mean((0, 1)) - before.mean((0, 1))).max() < 4
        # Fine texture may go, what is seen at a glance may not.
        assert abs(array(made).std() / before.std() - 1) < 0.25
        glances = [array(image.resize((20, 16), Image.Resampling.BOX)) for image in (made, crop)]
        assert np.abs(glances[0] - glances[1]).mean() < 10
        # A forgery is the photograph to the eye: strongly correlated with it, and not shifted.
        grey, forged = before.mean(-1), array(made).mean(-1)
        assert np.corrcoef(grey.ravel(), forged.ravel())[0, 1] > 0.75
        assert np.array_equal(array(crop), before)


@pytest.mark.parametrize("name", sorted(LOCAL_FORGERS))
def test_local_forgers_leave_the_rest_untouched(crops, name):
    for seed, crop in enumerate(crops):
        changed = (array(forge(crop, name, seed)) != array(crop)).any(-1)
        assert 0.005 < changed.mean() < 0.45
        # One region: what changed hangs together, and the border of the image is not in it.
        closed = ndimage.binary_closing(changed, iterations=6, border_value=0)
        sizes = np.bincount(ndimage.label(closed)[0].ravel())[1:]
        assert sizes.max() > 0.8 * sizes.sum()
        assert not changed[0].any() and not changed[-1].any() and not changed[:, 0].any() and not changed[:, -1].any()


@pytest.mark.parametrize("name", sorted(set(FORGERS) - LOCAL_FORGERS))
def test_whole_image_forgers_change_everything(crops, name):
    for crop in crops:
        changed = (array(forge(crop, name, 0)) != array(crop)).any(-1)
        quarters = [part.mean() for half in np.array_split(changed, 2) for part in np.array_split(half, 2, axis=1)]
        assert min(quarters) > 0.3


def periodic(image, stride):
    """The strongest line of the residual's spectrum at multiples of 1/stride, against what surrounds it."""
    grey = array(image).mean(-1)
    residual = grey - ndimage.median_filter(grey, 3)
    window = np.outer(np.hanning(grey.shape[0]), np.hanning(grey.shape[1]))
    power = np.abs(np.fft.fft2((residual - residual.mean()) * window)) ** 2
    height, width = power.shape
    peaks = []
    for row in range(stride):
        for column in range(stride):
            if row or column:
                around = np.roll(power, (8 - row * height // stride, 8 - column * width // stride), (0, 1))[:17, :17]
                peaks.append(around[7:10, 7:10].max() / np.median(around))
    return max(peaks)


@pytest.mark.parametrize("name, stride", [("autoencoder", 4), ("transposed_convolution", 2)])
def test_upsampling_leaves_its_period_in_the_spectrum(crops, name, stride):
    real = np.median([periodic(crop, stride) for crop in crops])
    forged = np.median([periodic(forge(crop, name, seed), stride) for seed, crop in enumerate(crops)])
    assert forged > 4 * real and forged > 20


def test_the_autoencoder_is_better_with_more_components(crops):
    before = array(crops[0]).astype(np.float32)
    errors = [
        np.abs(autoencode(before, np.random.default_rng(0), components=count) - before).mean() for count in (4, 28, 120)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("size", [(97, 64), (48, 131)])
def test_any_stride_and_size_is_aligned(stride, size):
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = (128 + 60 * np.sin(rows / 15) + 50 * np.cos(columns / 17)).astype(np.float32)
    pixels = np.repeat(smooth[..., None], 3, axis=-1)
    for made in (
        transpose_convolve(pixels, np.random.default_rng(0), stride),
        autoencode(pixels, np.random.default_rng(0), stride=stride),
    ):
        assert made.shape == pixels.shape
        assert np.abs(made - pixels).mean() < 5


def test_a_grey_photograph_stays_grey(crops):
    grey = crops[0].convert("L").convert("RGB")
    for name in FORGERS:
        assert np.ptp(np.asarray(forge(grey, name, 1)), axis=-1).max() == 0


def test_a_piece_of_another_photograph(crops):
    made = splice(crops[0], np.random.default_rng(3), donor=crops[1].resize((50, 70)))
    assert made.size == crops[0].size and not np.array_equal(
        array(made), array(splice(crops[0], np.random.default_rng(3)))
    )


@pytest.mark.parametrize("size", [(48, 48), (49, 300), (300, 260)])
def test_every_forger_takes_odd_and_larger_sizes(size):
    image = photographs()["motorcycle"].resize(size)
    for name in FORGERS:
        for seed in range(3):
            assert forge(image, name, seed).size == size


def test_wrong_names_and_sizes(crops):
    with pytest.raises(DataError, match="Did you mean 'splice'"):
        forge(crops[0], "slice")
    with pytest.raises(DataError, match="40 x 90 is too small to forge"):
        forge(Image.new("RGB", (40, 90)), "splice")
