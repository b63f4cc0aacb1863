import numpy as np
import pytest
import torch
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.sets import ImageSet, join


def tiny(count=6, labels=(0, 0, 1, 1, 1, -1), **fields):
    images = [np.full((9, 9, 3), value, np.uint8) for value in range(count)]
    return ImageSet(images, labels, **fields)


def test_defaults_and_one_line():
    made = tiny(
        generators=("real", "real", "b", "a", "b", ""), skipped=[("x.jpg", "empty file (0 bytes)")], origin="here"
    )
    assert made.describe() == "here: 2 real, 3 fake (b 2, a 1), 1 unlabelled, 1 skipped"
    assert repr(made) == f"ImageSet({made.describe()})"
    assert made.groups == ("0", "1", "2", "3", "4", "5") and made.splits == ("",) * 6
    assert tiny().generators == ("real", "real", "fake", "fake", "fake", "")
    assert made.counts() == {"real": 2, "b": 2, "a": 1, "": 1}
    assert made.names[2] == "images[2]" and len(made) == 6
    assert tiny(2, (0, 0)).describe() == "images in memory: 2 real, 0 fake"


@pytest.mark.parametrize(
    "labels", [[0, 1], np.array([0.0, 1.0]), torch.tensor([0, 1]), np.array([False, True]), (0, np.int8(1))]
)
def test_labels_of_any_kind_become_integers_that_cannot_be_written(labels):
    made = tiny(2, labels)
    assert made.labels.tolist() == [0, 1] and made.labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        made.labels[0] = 1


@pytest.mark.parametrize(
    "labels, words",
    [
        ([0, 2], "Unknown label 2"),
        ([0, 0.5], "Unknown label 0.5"),
        (["a", "b"], "Unknown label 'a'"),
        ([0], "2 images but 1 labels"),
        ([[0, 1]], "flat list"),
    ],
)
def test_wrong_labels(labels, words):
    with pytest.raises(DataError, match=words):
        tiny(2, labels)


@pytest.mark.parametrize("field", ["generators", "groups", "splits"])
def test_wrong_lengths(field):
    with pytest.raises(DataError, match=f"6 images but 2 {field}"):
        tiny(**{field: ("a", "b")})


def test_subsets_carry_everything():
    made = tiny(groups=tuple("abcdef"), splits=("train",) * 3 + ("test",) * 3, skipped=[("x", "y")])
    some = made.subset([4, 1])
    assert some.labels.tolist() == [1, 0] and some.groups == ("e", "b") and some.splits == ("test", "train")
    assert some.images[0] is made.images[4] and some.skipped == made.skipped and some.origin == made.origin
    assert made.subset(made.labels == 1).groups == ("c", "d", "e")
    assert made.subset(slice(1, 3)).groups == ("b", "c")
    assert made.of_label(-1).groups == ("f",) and made.of_split("train").groups == ("a", "b", "c")
    assert len(made.subset([])) == 0 and len(made.of_label(1).subset(np.zeros(3, bool))) == 0
    with pytest.raises(DataError, match="mask of 2"):
        made.subset(np.array([True, False]))


def test_fingerprints_see_content_and_labels_and_nothing_else(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for value in range(3):
            Image.new("RGB", (9, 9), (value, 0, 0)).save(tmp_path / folder / f"{value}.png")
    one, two = (ImageSet([tmp_path / f / f"{v}.png" for v in range(3)], [0, 1, 1]) for f in ("a", "b"))
    assert one.fingerprint() == two.fingerprint() == one.fingerprint() and len(one.fingerprint()) == 64
    others = [
        ImageSet(one.images, [0, 0, 1]),
        one.subset([0, 2, 1]),
        one.subset([0, 1]),
        ImageSet([tmp_path / "a" / "0.png", tmp_path / "gone.png", tmp_path / "a" / "2.png"], [0, 1, 1]),
    ]
    assert len({made.fingerprint() for made in [one, *others]}) == 5


def test_join():
    both = join([tiny(), tiny(2, (0, 1), origin="there")])
    assert len(both) == 8 and both.labels.tolist() == [0, 0, 1, 1, 1, -1, 0, 1]
    assert both.origin == "images in memory + there" and join([tiny(), tiny()]).origin == "images in memory"
