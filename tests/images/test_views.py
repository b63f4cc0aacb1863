import io
import json

import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.reading import UnreadableImage, content_hash, read_image
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.images.views import (
    Equalisation,
    EqualisationReport,
    TreatedImage,
    encode_jpeg,
    equalisation_report,
    equalise_set,
    jpeg,
)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(source):
    return np.asarray(read_image(source))


def test_jpeg_loses_more_at_lower_quality():
    image = noise(64, 64)
    loss = [np.abs(np.asarray(jpeg(image, q), float) - np.asarray(image, float)).mean() for q in (95, 60, 20)]
    assert 0 < loss[0] < loss[1] < loss[2]
    assert jpeg(image).size == image.size and jpeg(image).mode == "RGB" and jpeg(image).info == {}
    assert np.array_equal(np.asarray(jpeg(image, 70)), pixels(encode_jpeg(image, 70)))
    with pytest.raises(DataError, match=r"1\.\.100"):
        jpeg(image, 0)


def test_the_treatment_follows_the_protocol_step_by_step():
    image = noise(400, 300)
    shrunk = image.resize((341, 256), Image.Resampling.BICUBIC)
    by_hand = jpeg(shrunk.crop((58, 16, 58 + 224, 16 + 224)), 90)
    assert np.array_equal(pixels(Equalisation()(image)), np.asarray(by_hand))
    with Image.open(io.BytesIO(Equalisation()(noise(256, 256)))) as coded:
        assert (coded.format, coded.size, dict(coded.info).get("exif")) == ("JPEG", (224, 224), None)
    assert pixels(Equalisation(64, 48)(noise(70, 90))).shape == (48, 48, 3)


def test_the_treatment_turns_an_image_upright_and_drops_what_its_header_says(tmp_path):
    image = noise(300, 260)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert Equalisation()(tmp_path / "turned.png") == Equalisation()(image)


def test_what_cannot_be_treated_is_refused_with_a_reason():
    with pytest.raises(UnreadableImage, match="short side below 256 pixels"):
        Equalisation()(noise(255, 400))
    with pytest.raises(UnreadableImage, match="differ too much"):
        Equalisation()(Image.new("RGB", (300 * 101, 300)))


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ((200, 224, 90), "A crop of 224 does not fit into a short side of 200"),
        ((256, 4, 90), "A crop needs at least 8 pixels, not 4"),
        ((256, 224, 101), r"JPEG quality must lie in 1\.\.100, not 101"),
        ((256, 224.5, 90), "crop must be a whole number, not 224.5"),
        ((True, 224, 90), "side must be a whole number, not True"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, wording):
    with pytest.raises(DataError, match=wording):
        Equalisation(*settings)


def test_settings_come_back_from_json():
    settings = Equalisation(np.int64(64), 48, 75)
    assert Equalisation.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert str(settings) == "short side 64 (bicubic), centre crop 48 x 48, JPEG quality 75 (4:2:0)"


@pytest.fixture
def mixed_bag(tmp_path):
    """Two images that fit, one that is too small and one that is empty."""
    for name, size in (("a.png", (300, 280)), ("small.png", (100, 300)), ("c.png", (280, 300))):
        noise(*size).save(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(b"")
    return ImageSet(
        [tmp_path / name for name in ("a.png", "small.png", "empty.png", "c.png")],
        [0, 0, 1, 1],
        ("real", "real", "g", "g"),
        tuple("wxyz"),
        ("train",) * 4,
        ("",) * 3 + ("2024-05-01",),
        origin="bag",
        layout="plain",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_keeps_what_belongs_to_it_and_names_what_is_dropped(tmp_path, mixed_bag, workers):
    steps = []
    made = equalise_set(mixed_bag, workers=workers, advance=steps.append)
    assert made.labels.tolist() == [0, 1] and made.groups == ("w", "z") and made.generators == ("real", "g")
    assert made.splits == ("train",) * 2 and made.dates == ("", "2024-05-01") and made.layout == "plain"
    assert made.origin == "bag (equalised)" and steps == [1] * 4
    assert all(isinstance(image, EncodedImage) for image in made.images)
    assert made.names == (str(tmp_path / "a.png"), str(tmp_path / "c.png"))
    assert np.array_equal(pixels(made.images[1]), pixels(Equalisation()(tmp_path / "c.png")))
    assert made.skipped == (
        (str(tmp_path / "small.png"), "short side below 256 pixels"),
        (str(tmp_path / "empty.png"), "empty file (0 bytes)"),
    )


def test_a_class_that_would_vanish_is_an_error_with_the_reason(mixed_bag):
    with pytest.raises(DataError, match=r"No fake image of bag is left.*empty file.*smaller one"):
        equalise_set(mixed_bag.subset([0, 1, 2]))
    with pytest.raises(DataError, match=r"No real image of bag is left.*short side below 256"):
        equalise_set(mixed_bag.subset([1, 2]))
    with pytest.raises(DataError, match="bag holds no images"):
        equalise_set(mixed_bag.subset([]))


def test_an_image_treated_when_read_is_the_one_treated_before(mixed_bag):
    lazy = TreatedImage(mixed_bag.images[0], Equalisation(), "a")
    eager = equalise_set(mixed_bag).images[0]
    assert np.array_equal(pixels(lazy), pixels(eager)) and content_hash(lazy) == content_hash(eager)
    with pytest.raises(UnreadableImage, match="Cannot read b: short side below 256 pixels"):
        read_image(TreatedImage(mixed_bag.images[1], Equalisation(), "b"))


def test_the_report_says_what_changed_in_each_class(tmp_path):
    reals = [tmp_path / f"{i}.png" for i in range(3)]
    fakes = [tmp_path / f"{i}.jpg" for i in range(2)]
    for path, size in zip([*reals, *fakes], [(300, 300), (400, 300), (50, 50), (512, 512), (512, 512)], strict=True):
        noise(*size).save(path, **({"quality": 75} if path.suffix == ".jpg" else {}))
    given = ImageSet([*reals, *fakes], [0, 0, 0, 1, 1])
    report = equalisation_report(given, equalise_set(given))
    assert report.before["real"] | {"bytes_per_pixel": None} == {
        "images": 3,
        "formats": {"PNG": 3},
        "quality": None,
        "sizes": 3,
        "width": 300,
        "height": 300,
        "bytes_per_pixel": None,
    }
    assert report.before["fake"]["quality"] == {"median": 75, "low": 75, "high": 75}
    for told in report.after.values():
        assert told["formats"] == {"JPEG": 2} and told["quality"]["median"] == 90 and told["sizes"] == 1
        assert (told["width"], told["height"]) == (224, 224)
    assert report.left_out == {"real": {"short side below 256 pixels": 1}, "fake": {}}
    assert "real left out: 1 (short side below 256 pixels)" in repr(report) and "all 224 x 224" in repr(report)
    assert EqualisationReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    table = report.table()
    assert table["left_out"].tolist() == [0, 1, 0, 0] and table["quality_median"].tolist()[1:] == [90, 75, 90]


@pytest.mark.real
def test_the_real_set_is_matched(shared_data):
    from dna_probe.images.layouts import read_images

    some = read_images(shared_data / "images" / "genai5").subset(np.arange(0, 950, 60))
    made = equalise_set(some, workers=2)
    assert len(made) + len(made.skipped) == len(some)
    assert {pixels(image).shape for image in made.images} == {(224, 224, 3)}
