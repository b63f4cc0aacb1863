"""Every kind of file that people have: read truthfully, or refused with a reason; never a black image."""

import gc
import io
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dna_probe.batches import load_batches
from dna_probe.errors import DataError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import UnreadableImage, content_hash, name_of, read_image


def picture(width=40, height=24, seed=0):
    """Smooth colours, so that lossy codecs keep them."""
    rows, columns = np.mgrid[:height, :width]
    red = 40 + 180 * columns / width
    green = 60 + 150 * rows / height
    blue = np.full((height, width), 90 + 10 * seed)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def pixels(image):
    return np.asarray(image, dtype=float)


def reason_of(source, **settings):
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **settings)
    return caught.value.reason


@pytest.mark.parametrize(
    "name", ["plain.jpg", "a.b.jpg", "upper.JPEG", "grüße 图片.png", "x.webp", "x.bmp", "x.tif", "x.gif"]
)
def test_ordinary_files_come_out_as_they_went_in(tmp_path, name):
    path = tmp_path / name
    picture().save(path)
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (40, 24)
    # A GIF has 256 colours, a JPEG halves the chroma; neither moves a colour far.
    assert np.abs(pixels(image) - pixels(picture())).mean() < 4
    assert pixels(read_image(str(path))).tolist() == pixels(image).tolist()
    assert pixels(read_image(path.read_bytes())).tolist() == pixels(image).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = picture()
    back = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    back.save(tmp_path / f"turned.{suffix}", exif=exif)
    image = read_image(tmp_path / f"turned.{suffix}")
    assert image.size == upright.size
    assert np.abs(pixels(image) - pixels(upright)).mean() < 3
    # Reading the result again turns nothing twice.
    assert pixels(read_image(image)).tolist() == pixels(image).tolist()


def test_a_colour_profile_is_converted_and_srgb_is_left_alone(tmp_path):
    picture().save(
        tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    assert pixels(read_image(tmp_path / "srgb.png")).tolist() == pixels(picture()).tolist()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    # A profile that does not fit RGB pixels is ignored; one that is damaged too.
    for number, profile in enumerate((lab, b"no profile at all")):
        picture().save(tmp_path / f"{number}.png", icc_profile=profile)
        assert pixels(read_image(tmp_path / f"{number}.png")).tolist() == pixels(picture()).tolist()


def test_a_swapped_profile_changes_the_colours(tmp_path):
    # An sRGB profile with red and green primaries exchanged: the same numbers mean other colours.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    picture().save(tmp_path / "swapped.png", icc_profile=bytes(profile))
    image = pixels(read_image(tmp_path / "swapped.png"))
    assert np.abs(image - pixels(picture())[:, :, [1, 0, 2]]).mean() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    expected = np.rint(ramp / 257)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
        image = pixels(read_image(tmp_path / f"deep.{suffix}"))
        assert np.abs(image - expected[..., None]).max() <= 1
    assert np.abs(pixels(read_image(ramp)) - expected[..., None]).max() == 0
    assert np.abs(pixels(read_image(Image.fromarray(ramp.astype(np.int32)))) - expected[..., None]).max() == 0


def test_values_without_a_defined_white_are_refused():
    assert "no defined white" in reason_of(Image.fromarray(np.full((20, 20), 1_000_000, np.int32)))
    assert "must lie in 0..1" in reason_of(Image.fromarray(np.full((20, 20), 200, np.float32)))
    assert "not finite" in reason_of(Image.fromarray(np.full((20, 20), np.nan, np.float32)))
    halves = read_image(Image.fromarray(np.full((20, 20), 0.5, np.float32)))
    assert np.unique(pixels(halves)).tolist() == [128]


def test_cmyk_grey_and_two_tone(tmp_path):
    picture().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(pixels(read_image(tmp_path / "print.jpg")) - pixels(picture())).mean() < 6
    picture().convert("L").save(tmp_path / "grey.png")
    assert np.ptp(pixels(read_image(tmp_path / "grey.png")), axis=-1).max() == 0
    picture().convert("1").save(tmp_path / "two.png")
    assert set(np.unique(pixels(read_image(tmp_path / "two.png")))) == {0, 255}
    for mode in ("YCbCr", "HSV"):
        assert np.abs(pixels(read_image(picture().convert(mode))) - pixels(picture())).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    image = picture().convert("L" if mode == "LA" else "RGB")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 20, 24))
    if mode == "PA":
        image = image.quantize(16).convert("PA")
    image.putalpha(alpha)
    seen = pixels(read_image(image))
    assert (seen[:, :20] == 255).all()
    # What is opaque keeps its colours, also those of the palette.
    assert np.abs(seen[:, 20:] - pixels(image.convert("RGB"))[:, 20:]).max() <= 1


def test_transparent_colour_of_palette_and_plain_files(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.paste(1, (10, 0, 20, 20))
    image.save(tmp_path / "palette.png", transparency=0)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "keyed.png", transparency=(1, 2, 3))
    image.save(tmp_path / "palette.gif", transparency=0)
    for name in ("palette.png", "palette.gif"):
        seen = pixels(read_image(tmp_path / name))
        assert (seen[:, :10] == 255).all() and (seen[:, 10:] == [200, 100, 50]).all()
    assert (pixels(read_image(tmp_path / "keyed.png")) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated_files_give_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=50, **lossless)
    assert np.abs(pixels(read_image(tmp_path / f"moving.{suffix}")) - [250, 0, 0]).max() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    reason = reason_of(path)
    assert "truncated" in reason or "damaged" in reason
    assert "\n" not in reason and len(reason) < 140


@pytest.mark.parametrize("kept", [1, 3, 12, 30])
def test_a_few_bytes_of_a_file_are_refused(tmp_path, kept):
    for suffix in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        picture().save(buffer, suffix)
        reason_of(buffer.getvalue()[:kept])


def test_missing_empty_foreign_and_folders_are_refused(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert reason_of(tmp_path / "empty.jpg") == "empty file (0 bytes)"
    assert reason_of(b"") == "empty file (0 bytes)"
    assert "not an image" in reason_of(tmp_path / "text.jpg")
    # PostScript would start another program.
    assert "not an image" in reason_of(tmp_path / "script.png")
    assert reason_of(tmp_path) == "a folder, not an image"
    assert reason_of(tmp_path / "gone.jpg") == "no such file"
    assert "is not an image" in reason_of(3)
    with pytest.raises(DataError, match=r"Cannot read .*gone\.jpg: no such file\."):
        read_image(tmp_path / "gone.jpg")


def test_small_images_are_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert reason_of(tmp_path / "dot.png") == "too small: 1 x 1, and a side needs at least 8 pixels"
    assert "too small: 30 x 7" in reason_of(np.zeros((7, 30, 3), np.uint8))
    assert read_image(np.zeros((8, 8, 3), np.uint8)).size == (8, 8)


@pytest.mark.parametrize("filtered", ["ignore", "error", "default"])
def test_bombs_are_refused_from_the_header_alone(tmp_path, monkeypatch, filtered):
    picture(200, 100).save(tmp_path / "big.png")

    def explode(self):
        raise AssertionError("decoded before its size was checked")

    with warnings.catch_warnings():
        warnings.simplefilter(filtered, Image.DecompressionBombWarning)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with monkeypatch.context() as patched:
            patched.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
            reason = reason_of(tmp_path / "big.png", max_pixels=19_999)
        assert reason.startswith("too many pixels: 200 x 100 is more than the limit")
        assert read_image(tmp_path / "big.png", max_pixels=20_000).size == (200, 100)


def test_a_header_that_promises_a_thousand_megapixels(tmp_path):
    def chunk(kind, body):
        import struct
        import zlib

        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    import struct

    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert "too many pixels" in reason_of(tmp_path / "bomb.png")


def test_arrays_and_tensors_of_every_kind():
    base = np.asarray(picture())
    kinds = {
        "uint8": base,
        "uint16": base.astype(np.uint16) * 257,
        "float32": base.astype(np.float32) / 255,
        "float64": base / 255,
        "int64": base.astype(np.int64),
        "channel last of four": np.dstack([base, np.full(base.shape[:2], 255, np.uint8)]),
        "not contiguous": np.asfortranarray(base),
        "tensor": torch.from_numpy(base.copy()).permute(2, 0, 1),
        "float tensor": torch.from_numpy(base.copy()).permute(2, 0, 1) / 255,
        "tensor with a graph": (torch.from_numpy(base.copy()).permute(2, 0, 1) / 255).requires_grad_(),
    }
    for kind, source in kinds.items():
        assert (np.asarray(read_image(source)) == base).all(), kind
    grey = base[:, :, 0]
    for source in (grey, grey[:, :, None], torch.from_numpy(grey.copy())[None]):
        assert (np.asarray(read_image(source)) == grey[..., None]).all()
    assert set(np.unique(np.asarray(read_image(grey > 100)))) == {0, 255}
    half = torch.full((3, 9, 9), 0.5, dtype=torch.bfloat16)
    assert np.unique(np.asarray(read_image(half))).tolist() == [128]


@pytest.mark.parametrize(
    "source, words",
    [
        (np.full((20, 20, 3), 200.0), "must lie in 0..1, found 200 to 200"),
        (np.full((20, 20, 3), np.nan), "not finite"),
        (np.full((20, 20, 3), 300, np.int32), "must lie in 0..255"),
        (np.zeros((3, 20, 20), np.uint8), "shape (3, 20, 20)"),
        (np.zeros((20,), np.uint8), "shape (20,)"),
        (np.zeros((20, 20, 3), complex), "array of complex128"),
        (torch.zeros(20, 20, 3), "tensor of shape (20, 20, 3)"),
        (np.zeros((0, 20, 3), np.uint8), "too small"),
    ],
)
def test_arrays_that_are_no_images(source, words):
    assert words in reason_of(source)


def test_the_source_is_left_as_it_was():
    image = picture()
    image.info["note"] = "kept"
    first = read_image(image)
    first.paste((0, 0, 0), (0, 0, 40, 24))
    assert pixels(image).mean() > 50 and image.info == {"note": "kept"}
    array = np.asarray(picture()).copy()
    read_image(array).paste((0, 0, 0), (0, 0, 40, 24))
    assert array.mean() > 50


def test_names_and_hashes(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert name_of(tmp_path / "a.png", 3) == str(tmp_path / "a.png")
    assert name_of(np.zeros((9, 9)), 3) == "images[3]"
    with Image.open(tmp_path / "a.png") as opened:
        assert name_of(opened, 0) == str(tmp_path / "a.png")
        assert content_hash(opened) == content_hash(picture())
    assert content_hash(tmp_path / "a.png") == content_hash(str(tmp_path / "b.png"))
    assert content_hash(picture(seed=0)) != content_hash(picture(seed=1))
    assert content_hash(np.zeros((9, 8), np.uint8)) != content_hash(np.zeros((8, 9), np.uint8))
    assert content_hash(torch.zeros(3, 9, 9)) == content_hash(np.zeros((3, 9, 9), np.float32))
    assert content_hash(tmp_path / "gone.png") != content_hash(tmp_path / "lost.png")
    assert len(content_hash(picture())) == 64


def mixed_sources(tmp_path, count=23, broken=(0, 5, 6, 21, 22)):
    sources = []
    for position in range(count):
        path = tmp_path / f"{position}.png"
        if position in broken:
            path.write_bytes(b"")
        else:
            Image.new("RGB", (20, 20), (position * 10, 0, 0)).save(path)
        sources.append(path)
    return sources


SMALL = Preprocessing(input_size=(8, 8), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_batches_keep_the_order_and_tell_every_failure(tmp_path, workers, batch_size):
    sources = mixed_sources(tmp_path)
    batches = list(load_batches(sources, SMALL, batch_size, workers))
    index = [position for batch in batches for position in batch.index]
    failures = [failure for batch in batches for failure in batch.failures]
    assert index == [p for p in range(23) if p not in (0, 5, 6, 21, 22)]
    assert failures == [(p, str(sources[p]), "empty file (0 bytes)") for p in (0, 5, 6, 21, 22)]
    assert all(len(batch.index) == batch_size for batch in batches[:-1])
    for batch in filter(lambda batch: batch.index, batches):
        assert batch.inputs.shape == (len(batch.index), 3, 8, 8) and batch.inputs.dtype == np.float32
        assert np.allclose(batch.inputs[:, 0, 0, 0] * 255, [position * 10 for position in batch.index])


def test_batches_of_nothing_and_of_failures_only(tmp_path):
    assert list(load_batches([], SMALL)) == []
    (batch,) = load_batches(mixed_sources(tmp_path, 3, broken=(0, 1, 2)), SMALL, 2)
    assert len(batch.inputs) == 0 and batch.index == [] and len(batch.failures) == 3
    for wrong in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(DataError):
            list(load_batches([], SMALL, **wrong))


def test_read_ahead_is_bounded_and_memory_is_freed():
    alive = weakref.WeakSet()
    most = 0
    lock = threading.Lock()

    class Watched(Preprocessing):
        def __call__(self, image, name=""):
            nonlocal most
            row = super().__call__(image, name).view(Row)
            with lock:
                alive.add(row)
                most = max(most, len(alive))
            return row

    class Row(np.ndarray):
        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    sources = [np.full((10, 10, 3), 7, np.uint8)] * 300
    for _ in load_batches(sources, Watched(input_size=(8, 8), crop_pct=1.0), batch_size=8, workers=3):
        pass
    gc.collect()
    assert most <= 2 * 8 + 3 * 3 + 2
    assert len(alive) == 0


def test_threads_end_with_the_iterator_and_other_errors_go_through():
    def readers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("dna-probe-images")]

    batches = load_batches([np.zeros((10, 10), np.uint8)] * 100, SMALL, batch_size=2, workers=2)
    next(batches)
    batches.close()
    assert not readers()

    class Failing(Preprocessing):
        def __call__(self, image, name=""):
            raise KeyError("a bug, not an unreadable image")

    for workers in (0, 2):
        with pytest.raises(KeyError):
            list(load_batches([np.zeros((10, 10), np.uint8)] * 9, Failing(), workers=workers))
    assert not readers()


@pytest.mark.real
def test_real_photographs_are_read(shared_data):
    for path in sorted((shared_data / "images" / "reals-bsds").glob("*.jpg"))[:5]:
        assert read_image(path).size in ((481, 321), (321, 481))
