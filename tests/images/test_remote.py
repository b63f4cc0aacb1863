"""Images by their URL, on the object store in memory that fsspec brings along."""

import io
import uuid
import zipfile

import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import UnreadableImage, content_hash, read_image
from dna_probe.images.sources import RemoteImage, is_url

fsspec = pytest.importorskip("fsspec")

PLACES = ("real/1.png", "real/2.png", "fake/gan/1.png", "fake/gan/10.png", "fake/gan/9.png")


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def bucket():
    """The URL of a folder with a set, beside the same in a zip."""
    store, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for seed, place in enumerate(PLACES):
            store.pipe(f"/{name}/set/{place}", picture(seed))
            archive.writestr(f"set/{place}", picture(seed))
    store.pipe(f"/{name}/set.zip", buffer.getvalue())
    store.pipe(f"/{name}/set/.hidden/real/3.png", picture(9))
    yield f"memory://{name}"
    store.rm(f"/{name}", recursive=True)


def put(url: str, content: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


@pytest.mark.parametrize("place", ["{}/set", "{}/set/", "zip://set::{}/set.zip", "zip://::{}/set.zip"])
@pytest.mark.parametrize("layout", ["auto", "folders"])
def test_a_folder(bucket, place, layout):
    found = read_images(place.format(bucket), layout)
    assert found.counts() == {"real": 2, "gan": 3}
    assert [name.partition("::")[0].rpartition("/")[2] for name in found.names] == [
        "1.png", "9.png", "10.png", "1.png", "2.png",
    ]  # fmt: skip
    assert found.groups[0] == found.groups[3]
    for source, seed in zip(found.images, (2, 4, 3, 0, 1), strict=True):
        assert content_hash(source) == content_hash(picture(seed))
        np.testing.assert_array_equal(read_image(source), read_image(picture(seed)))


def test_a_manifest_in_the_store(bucket):
    rows = f"path,label\nreal/1.png,real\n{bucket}/set/fake/gan/1.png,fake\n"
    found = read_images(put(f"{bucket}/set/list.csv", rows.encode()))
    assert found.names == (f"{bucket}/set/real/1.png", f"{bucket}/set/fake/gan/1.png")
    assert found.labels.tolist() == [0, 1]


def test_a_manifest_here_of_images_there(bucket, tmp_path):
    (tmp_path / "list.csv").write_text(
        f"root,path,label\n{bucket}/set/,real/1.png,0\n,{bucket}/set/fake/gan/9.png,1\n{bucket}/set,gone.png,1\n"
    )
    found = read_images(tmp_path / "list.csv")
    assert found.names == tuple(f"{bucket}/set/{path}" for path in ("real/1.png", "fake/gan/9.png", "gone.png"))
    assert read_image(found.images[1]).size == (16, 16)
    with pytest.raises(UnreadableImage, match=r"gone.png: cannot be opened \(no such file\)"):
        read_image(found.images[2])


@pytest.mark.parametrize(
    "path",
    ["zip://a.png::file:///etc/a.zip", "zip://a.png::/etc/a.zip", "local:///etc/a.png", "memory://a/../../b.png"],
)
def test_a_manifest_does_not_reach_this_machine_by_another_name(tmp_path, path):
    (tmp_path / "list.csv").write_text(f"path,label\n{path},0\n")
    with pytest.raises(DataError, match=r"names a file of this machine by a URL|leads outside its root"):
        read_images(tmp_path / "list.csv")


def test_a_file_url_is_a_path(tmp_path):
    for place in ("real", "fake"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").write_bytes(picture(0))
    assert read_images(f"file://{tmp_path}").names == read_images(tmp_path).names
    (tmp_path / "list.csv").write_text(f"path,label\nfile://{tmp_path}/real/1.png,0\n")
    assert read_images(tmp_path / "list.csv").names == (str(tmp_path / "real/1.png"),)
    (tmp_path / "list.csv").write_text("path,label\nfile:///etc/passwd,0\n")
    with pytest.raises(DataError, match="leads outside its root"):
        read_images(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing-there", "No images in memory://nothing-there"),
        ("memory://nothing/list.csv", "memory://nothing/list.csv cannot be read"),
        ("memory://nothing/list.parquet", "No images in"),
        ("memry://bucket/set", "Unknown scheme of a URL 'memry'. Did you mean 'memory'"),
    ],
)
def test_what_is_wrong_is_said(url, message):
    with pytest.raises(DataError) as raised:
        read_images(url)
    assert message in str(raised.value)


def test_a_missing_driver_is_named(monkeypatch):
    def lacking(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacking)
    from dna_probe.images.sources import _require_scheme

    _require_scheme.cache_clear()
    with pytest.raises(DataError, match=r"s3:// cannot be read here\. .* pip install s3fs."):
        read_images("s3://bucket/set")


def test_other_layouts_are_refused(bucket):
    with pytest.raises(DataError, match=r"Unknown layout of a URL 'webdataset'.*copy the set to a disk"):
        read_images(f"{bucket}/set", "webdataset")


def test_a_driver_that_fails_makes_one_image_unreadable(monkeypatch):
    def failing(url):
        raise RuntimeError("no credentials")

    monkeypatch.setattr("dna_probe.images.sources.open_filesystem", failing)
    with pytest.raises(UnreadableImage, match="no credentials"):
        read_image(RemoteImage("s3://bucket/a.png"))


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000))
    monkeypatch.setattr("dna_probe.images.sources.MAX_BYTES", 1000)
    with pytest.raises(UnreadableImage, match="larger than"):
        read_image(RemoteImage(f"zip://a.png::file://{tmp_path}/bomb.zip"))


def test_urls():
    assert is_url("s3://a/b") and is_url("zip://a::s3://b")
    assert not (is_url("a/b") or is_url("C:\\a") or is_url("archive.zip::a.png") or is_url(b"s3://a"))
