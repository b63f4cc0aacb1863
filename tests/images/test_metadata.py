import io

import numpy as np
import pytest
from PIL import Image

from dna_probe.images.metadata import image_facts, jpeg_quality
from dna_probe.images.reading import UnreadableImage
from dna_probe.images.sources import EncodedImage


def encode(kind="JPEG", size=(20, 12), mode="RGB", **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [1, 10, 37, 50, 75, 90, 95, 99, 100])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_quality_of_what_libjpeg_wrote(quality, mode):
    assert image_facts(encode(quality=quality, mode=mode))["quality"] == quality


def test_quality_of_foreign_tables_is_the_nearest_one():
    tables = [[17 + k for k in range(64)], [30] * 64]
    with Image.open(io.BytesIO(encode(qtables=tables))) as image:
        assert 1 <= jpeg_quality(image) <= 100
    assert jpeg_quality(Image.new("RGB", (8, 8))) is None


def test_facts_of_every_kind_of_source(tmp_path):
    content = encode("PNG")
    (tmp_path / "a.png").write_bytes(content)
    expected = {"format": "PNG", "width": 20, "height": 12, "mode": "RGB", "quality": None, "bytes": len(content)}
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), content, EncodedImage("x::a.png", content)):
        assert image_facts(source) == expected
    array = np.zeros((12, 20, 3), np.uint8)
    assert image_facts(array) == {**expected, "format": None, "bytes": None}
    assert image_facts(Image.fromarray(array)) == {**expected, "format": None, "bytes": None}


def test_an_image_lying_on_its_side_is_measured_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = image_facts(encode(exif=exif))
    assert (facts["width"], facts["height"]) == (12, 20)


@pytest.mark.parametrize(
    "content, reason", [(b"", "empty file"), (b"no image at all", "not an image"), (None, "no such file")]
)
def test_no_header_is_told_as_reading_tells_it(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        image_facts(path)


def test_a_truncated_file_still_has_a_header():
    assert image_facts(encode(size=(64, 64))[:-500])["format"] == "JPEG"
