"""Near-duplicates are found, others are not, and they share a group."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dna_probe.images.duplicates import find_near_duplicates, join_groups, join_near_duplicates, straddling_groups
from dna_probe.images.groups import connect
from dna_probe.images.layouts import read_images
from dna_probe.images.sampling import split_by_group
from dna_probe.images.sets import ImageSet


def scene(seed, size=(160, 120)):
    """A picture with shapes in it: unlike noise, it survives resizing."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.integers(0, size[0]), rng.integers(0, size[1])
        box = (left, top, left + rng.integers(10, 90), top + rng.integers(10, 90))
        draw.ellipse([int(side) for side in box], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


@pytest.fixture
def saved(tmp_path):
    """Five scenes, and copies of the first two."""
    for seed in range(5):
        scene(seed).save(tmp_path / f"{seed}.png")
    scene(0).save(tmp_path / "0-again.jpg", quality=40)
    scene(0).resize((80, 60)).save(tmp_path / "0-half.webp")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "1-turned.jpg", exif=exif, quality=90)
    scene(1).crop((2, 2, 158, 118)).save(tmp_path / "1-cropped.png")
    (tmp_path / "broken.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "0-again.jpg").read_bytes()[:-700])
    return tmp_path


def as_set(root, labels=None, **fields):
    paths = sorted(root.iterdir())
    return ImageSet(paths, labels or [0] * len(paths), **fields)


def test_copies_are_found_and_nothing_else(saved):
    images = as_set(saved)
    found = [{images.images[i].name for i in same} for same in find_near_duplicates(images, workers=2)]
    assert found == [{"0.png", "0-again.jpg", "0-half.webp"}, {"1.png", "1-turned.jpg", "1-cropped.png"}]


def test_the_distance_asked_for(saved):
    counts = [sum(map(len, find_near_duplicates(as_set(saved), distance=d))) for d in (0, 8, 64)]
    assert counts[0] <= counts[1] == 6 <= counts[2]


def test_groups_are_joined_and_never_split(saved):
    paths = sorted(saved.glob("[0-9]*"))
    labels = [int(path.suffix == ".png") for path in paths]
    before = ImageSet(paths, labels, groups=[path.name for path in paths], splits=["train", "test", *[""] * 7])
    images = join_near_duplicates(before)
    groups = dict(zip((path.name for path in paths), images.groups, strict=True))
    assert groups["0.png"] == groups["0-half.webp"] == "0-again.jpg" and len(set(images.groups)) == 5
    assert images.splits == before.splits and straddling_groups(before) == ()
    assert straddling_groups(images) == ("0-again.jpg",)
    for seed in range(5):
        train, test = split_by_group(images, 0.4, seed)
        assert not set(train.groups) & set(test.groups)


def test_joining_runs_through_groups():
    images = ImageSet([np.zeros((9, 9, 3), np.uint8)] * 6, [0] * 6, groups=["a", "b", "b", "c", "d", "e"])
    assert join_groups(images, ((0, 1), (2, 3))).groups == ("a", "a", "a", "a", "d", "e")
    assert join_groups(images, ()).groups == images.groups


def test_flat_images_are_told_apart_by_their_colour():
    shades = [np.full((40, 40, 3), value, np.uint8) for value in (0, 60, 90, 90, 200, 255)]
    images = ImageSet(shades, [0] * 6)
    assert find_near_duplicates(images) == ((2, 3),)
    ramp = np.linspace(0, 3, 40)[None, :, None] + np.zeros((40, 40, 3))
    ramps = ImageSet([np.uint8(ramp + base) for base in (10, 40, 100)], [0] * 3)
    assert find_near_duplicates(ramps) == ()


def test_very_many_copies_take_little_memory():
    blank = np.zeros((40, 40, 3), np.uint8)
    assert find_near_duplicates(ImageSet([blank] * 3000, [0] * 3000)) == (tuple(range(3000)),)


def test_sets_of_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert find_near_duplicates(as_set(tmp_path)) == () == find_near_duplicates(ImageSet([], []))


def test_against_every_pair_by_hand(saved):
    """The table of all pairs, made of the hashes themselves."""
    import imagehash

    images = as_set(saved)
    names = [path.name for path in images.images]
    good = [i for i, name in enumerate(names) if name not in ("broken.jpg", "cut.jpg")]
    from dna_probe.images.reading import read_image

    pictures = {i: read_image(images.images[i]) for i in good}
    near = [
        (i, j)
        for i, j in itertools.combinations(good, 2)
        if all(hash_of(pictures[i]) - hash_of(pictures[j]) <= 8 for hash_of in (imagehash.phash, imagehash.dhash))
    ]
    component = connect(len(names), near)
    expected = {frozenset(np.flatnonzero(component == c).tolist()) for c in component if (component == c).sum() > 1}
    assert {frozenset(same) for same in find_near_duplicates(images)} == expected


def test_components_are_numbered_as_they_come():
    assert connect(6, [(4, 0), (2, 3)]).tolist() == [0, 1, 2, 2, 0, 3]
    assert connect(3, []).tolist() == [0, 1, 2]


@pytest.mark.real
def test_unrelated_pictures_are_not_joined(shared_data):
    root = shared_data / "images"
    paths = sorted(root.rglob("*.jpg"))[::3]
    assert find_near_duplicates(ImageSet(paths, [0] * len(paths)), workers=2) == ()


@pytest.mark.real
def test_real_copies_are_found(shared_data, tmp_path):
    paths = sorted((shared_data / "images" / "genai5").rglob("*.jpg"))[::40]
    for path in paths:
        with Image.open(path) as image:
            (tmp_path / path.name).write_bytes(path.read_bytes())
            image.convert("RGB").resize((224, 224)).save(tmp_path / f"{path.stem}-small.jpg", quality=50)
    images = as_set(tmp_path)
    assert len(find_near_duplicates(images)) == len(paths)
    assert read_images(images) is images
