import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.reading import UnreadableImage
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import equalise_set, equalised, jpeg


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_jpeg_loses_more_at_lower_quality():
    image = noise(64, 64)
    loss = [np.abs(np.asarray(jpeg(image, q), float) - np.asarray(image, float)).mean() for q in (95, 60, 20)]
    assert 0 < loss[0] < loss[1] < loss[2]
    assert jpeg(image).size == image.size and jpeg(image).mode == "RGB" and jpeg(image).info == {}
    with pytest.raises(DataError, match=r"1\.\.100"):
        jpeg(image, 0)


def test_the_matched_form_follows_the_protocol():
    image = noise(400, 300)
    shrunk = image.resize((341, 256), Image.Resampling.BICUBIC)
    by_hand = jpeg(shrunk.crop((58, 16, 58 + 224, 16 + 224)), 90)
    assert np.array_equal(np.asarray(equalised(image)), np.asarray(by_hand))
    assert equalised(noise(255, 400)) is None
    assert equalised(noise(256, 256)).size == (224, 224)
    assert equalised(noise(70, 90), side=64, crop=48).size == (48, 48)
    with pytest.raises(DataError, match="does not fit"):
        equalised(image, side=200)
    with pytest.raises(UnreadableImage, match="differ too much"):
        equalised(Image.new("RGB", (300 * 101, 300)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_keeps_what_belongs_to_it_and_names_what_is_dropped(tmp_path, workers):
    for name, size in (("a.png", (300, 280)), ("small.png", (100, 300)), ("c.png", (280, 300))):
        noise(*size).save(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["a.png", "small.png", "empty.png", "c.png"]
    image_set = ImageSet(
        [tmp_path / n for n in names], [0, 0, 1, 1], ("real", "real", "g", "g"), tuple("wxyz"), ("train",) * 4
    )
    made = equalise_set(image_set, workers)
    assert made.labels.tolist() == [0, 1] and made.groups == ("w", "z") and made.generators == ("real", "g")
    assert all(image.size == (224, 224) for image in made.images)
    assert made.names == (str(tmp_path / "a.png"), str(tmp_path / "c.png"))
    assert made.skipped == (
        (str(tmp_path / "small.png"), "short side below 256 pixels"),
        (str(tmp_path / "empty.png"), "empty file (0 bytes)"),
    )
    with pytest.raises(DataError, match="left after equalising"):
        equalise_set(image_set.subset([1, 2]), workers)


@pytest.mark.real
def test_the_real_set_is_matched(shared_data):
    from dna_probe.images.layouts import read_images

    some = read_images(shared_data / "images" / "genai5").subset(np.arange(0, 950, 60))
    made = equalise_set(some, workers=2)
    assert len(made) + len(made.skipped) == len(some) and {image.size for image in made.images} == {(224, 224)}
