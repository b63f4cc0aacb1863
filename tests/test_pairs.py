"""Content-matched pairs on a model with planted units: forging moves these and no others, whatever the content."""

import numpy as np
import pytest
from PIL import Image

import dna_probe
from dna_probe import pairs
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options
from dna_probe.errors import DataError
from dna_probe.images.forge import FORGERS
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.images.views import encode_jpeg
from dna_probe.pairs import PAIR_FORGERS, collect_many_pairs, collect_pairs, image_ids, standardise
from dna_probe.scorers import Evidence
from dna_probe.scoring import readings_of

from .planted import PLANTED, SIDE, TURN, Planted, checkerboard, images

# Shrunk for the forgers it is a whole multiple of what the model looks at.
LARGE = SIDE * 5 // 2


@pytest.fixture(scope="module")
def planted():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def readings(planted):
    return readings_of(planted, [planted.layers[TURN + 1].name], ["cls"])


def photographs(count: int, seed: int = 0) -> ImageSet:
    """Smooth pictures, large enough to be halved by the model after they were shrunk for the forger; half are fake."""
    small, labels = images(count, seed, strength=0.0)
    return ImageSet(tuple(np.asarray(Image.fromarray(one).resize((LARGE, LARGE))) for one in small), labels)


@pytest.fixture
def forged(monkeypatch):
    """In place of the forgers one that lays a checkerboard over the image, as the planted units see it; its calls."""
    calls = []

    def forge(image, name, rng):
        calls.append(name)
        times = image.width // SIDE
        board = checkerboard(SIDE).repeat(times, 0).repeat(times, 1)[..., None]
        lifted = np.asarray(image) + 6 * rng.uniform(0.5, 1.5) * board
        return Image.fromarray(np.clip(lifted, 0, 255).round().astype(np.uint8))

    monkeypatch.setattr(pairs, "forge", forge)
    return calls


def test_forging_moves_the_planted_units_alone(planted, readings, forged):
    (reading,) = readings
    moved = np.abs(collect_pairs(planted, photographs(8), readings).mean[reading.name])
    others = np.delete(moved, PLANTED)
    assert moved[list(PLANTED)].min() > 2 * others.max()


def test_the_scorer_finds_the_planted_units_where_the_fakes_agree(planted, forged):
    layer = planted.layers[TURN + 1].name
    pictures, labels = images(20)
    large = [one.repeat(5, 0).repeat(5, 1) for one in pictures]
    scores = dna_probe.score_units(planted, (large, labels), [layer], kinds=["cls"], scorer="forged_pairs")
    assert {scores.units[i] for i in scores.order[: len(PLANTED)]} == {f"{layer}[{k}]" for k in PLANTED}
    assert set(scores.factors) == {"forged", "activation", "agreement"}


def test_units_that_forging_moves_the_other_way_score_zero(readings):
    (reading,) = readings
    values, labels = np.zeros((4, reading.width)), np.array([0, 0, 1, 1])
    values[2:, :2] = 1
    values[::2] += 0.1
    away = np.zeros(reading.width)
    away[:3] = 1.0, -1.0, 1.0
    factors = dna_probe.scorers.SCORERS["forged_pairs"].factors(
        Evidence(readings, values, labels, pairs.PairedDifference({reading.name: away}))
    )
    score = np.abs(np.prod(list(factors.values()), axis=0))
    assert score[0] > 0 and not score[1:].any()


def test_only_original_real_images_are_forged(planted, readings, forged):
    """Two views of each image under one name: the second is passed over, and so are fakes."""
    plain = photographs(5)
    encoded = [EncodedImage(f"{i}.jpg", encode_jpeg(Image.fromarray(one))) for i, one in enumerate(plain.images)]
    blurred = [EncodedImage(one.name, encode_jpeg(Image.new("RGB", (LARGE, LARGE)))) for one in encoded]
    labels, groups = np.tile(plain.labels, 2), plain.groups * 2
    stacked = ImageSet((*encoded, *blurred), labels, groups=groups)
    # On one thread: several would forge in an order of their own.
    one = collect_pairs(planted, stacked, readings, options=Options(workers=0))
    assert forged == list(PAIR_FORGERS) * 5
    two = collect_pairs(planted, ImageSet(tuple(encoded[:5]), np.zeros(5, int)), readings)
    assert all(np.array_equal(one.mean[name], two.mean[name]) for name in one.mean)


def test_rows_of_one_name_label_and_group_are_one_image():
    name = [EncodedImage(name, b"") for name in ("a", "b", "a", "a", "a")]
    found = ImageSet(tuple(name), np.array([0, 0, 0, 1, 0]), groups=("x", "x", "x", "x", "y"))
    assert image_ids(found).tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("cached", [False, True])
def test_many_requests_equal_one_after_the_other(cached, planted, forged, tmp_path):
    options = Options(cache=tmp_path, workers=0) if cached else Options()
    some = photographs(12)
    first, second = (readings_of(planted, [planted.layers[k].name], ["cls", "mean"]) for k in (1, 3))
    requests = [(np.arange(0, 16), first), (np.arange(4, 20), second), (np.array([1, 13]), second)]
    many = collect_many_pairs(planted, some, requests, options=options)
    assert len(forged) == 12 * len(PAIR_FORGERS)
    for (members, readings), found in zip(requests, many, strict=True):
        one = collect_pairs(planted, some.subset(members), readings, options=options)
        for reading in readings:
            np.testing.assert_allclose(found.mean[reading.name], one.mean[reading.name], atol=1e-6)
    assert (len(forged) == 12 * len(PAIR_FORGERS)) == cached


def test_the_built_in_forgers_run_and_the_pairs_depend_on_content_and_seed_alone(planted, readings):
    some = photographs(3)
    (name,) = (reading.name for reading in readings)
    one = collect_pairs(planted, some, readings, options=Options(workers=2)).mean[name]
    turned = collect_pairs(planted, some.subset([2, 0, 1]), readings, options=Options(workers=0)).mean[name]
    assert np.isfinite(one).all() and one.any()
    np.testing.assert_allclose(one, turned, atol=1e-6)
    assert not np.allclose(one, collect_pairs(planted, some, readings, seed=1).mean[name])


def test_the_difference_is_standardised_by_its_spread_and_a_floor(rng):
    """Slow reference: unit by unit."""
    values = rng.normal(0.5, 1, (6, 2, 7)) * rng.uniform(0.1, 3, 7)
    expected = np.zeros(7)
    for forger in range(2):
        floor = np.median([np.sqrt(np.mean(values[:, forger, k] ** 2)) for k in range(7)])
        for k in range(7):
            own = values[:, forger, k]
            expected[k] += own.mean() / (own.std() + floor) / 2
    np.testing.assert_allclose(standardise(values), expected)
    np.testing.assert_allclose(standardise(1000 * values), expected)
    assert np.isfinite(standardise(values[:1])).all() and not standardise(np.zeros((3, 2, 4))).any()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), (80, 80)),
        ((400, 200), (256, 160)),
        ((2000, 1500), (256, 256)),
        ((20, 8), (120, 48)),
        ((5000, 8), (256, 48)),
    ],
)
def test_photographs_are_shrunk_and_cut_to_a_size_to_forge(size, expected):
    assert pairs._shrink(Image.new("RGB", size)).size == expected


@pytest.mark.parametrize(
    ("labels", "forgers", "message"),
    [
        ([1, 1], PAIR_FORGERS, "images in memory holds no real image to forge"),
        ([0, 1], ["splise"], "Unknown forger 'splise'. Did you mean 'splice'"),
        ([0, 1], [], "No forger was named"),
    ],
)
def test_wrong_use_is_named(labels, forgers, message, planted, readings):
    with pytest.raises(DataError) as caught:
        collect_pairs(planted, ImageSet(photographs(1).images, np.array(labels)), readings, forgers)
    assert message in str(caught.value)


def test_the_forgers_used_re_make_the_whole_image():
    assert set(PAIR_FORGERS) == {"autoencoder", "transposed_convolution", "denoise"} <= set(FORGERS)
