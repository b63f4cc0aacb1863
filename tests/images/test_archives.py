"""Zips, tars and tables read in place."""

import pickle
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from dna_probe.batches import load_batches
from dna_probe.errors import DataError
from dna_probe.images import archives
from dna_probe.images.archives import TableCell, TarMember, ZipMember, find_member, list_members
from dna_probe.images.layouts import read_images
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import UnreadableImage, content_hash, name_of, read_image

from .made_up_trees import assert_reads_back, encoded, plant, told, write_parquet, write_tar, zip_up

SMALL = Preprocessing(input_size=(8, 8), crop_pct=1.0)
NAMES = ("real/a.png", "real/b.jpg", "fake/sdxl/c.png", "fake/sdxl/d.png")


@pytest.fixture
def zipped(tmp_path):
    return zip_up(plant(tmp_path / "tree", *NAMES), tmp_path / "data.zip")


@pytest.fixture
def tarred(tmp_path):
    return write_tar(tmp_path / "data.tar", {name: encoded(name) for name in NAMES})


@pytest.fixture
def table(tmp_path):
    rows = [{"image": {"bytes": encoded(n), "path": f"{n}.png"}, "label": n % 2, "generator": "m"} for n in range(10)]
    return write_parquet(tmp_path / "part.parquet", rows, row_group_size=3)


def test_members_are_small_named_hashable_and_pickled(zipped, tarred, table):
    for path, kind, name in (
        (zipped, ZipMember, f"{zipped}::fake/sdxl/c.png"),
        (tarred, TarMember, f"{tarred}::fake/sdxl/c.png"),
        (table, TableCell, f"{table}::0"),
    ):
        made = read_images(path)
        first = made.images[0]
        assert isinstance(first, kind) and name_of(first, 0) == name
        copied = pickle.loads(pickle.dumps(made.images))
        assert copied == made.images and len({*made.images, *copied}) == len(made)
        assert len(pickle.dumps(first)) < 400
        assert [read_image(image).size for image in copied] == [(12, 10)] * len(made)


def test_what_is_read_is_what_was_put_in(zipped, tarred, table, tmp_path):
    for made, root in ((read_images(zipped), tmp_path / "tree"),):
        for image in made.images:
            assert image.read_bytes() == (root / image.member).read_bytes()
    assert [image.read_bytes() for image in read_images(tarred).images] == [
        encoded(name) for name in sorted(NAMES, key=lambda name: name.replace("fake", "0"))
    ]
    assert [image.read_bytes() for image in read_images(table).images] == [encoded(n) for n in range(10)]
    assert (
        told(read_images(zipped))
        == told(read_images(tarred))
        == told(read_images(tmp_path / "tree"), tmp_path / "tree")
    )


def test_many_threads(tmp_path):
    names = [f"{label}/{number}.png" for label in ("real", "fake") for number in range(40)]
    made = read_images(zip_up(plant(tmp_path / "tree", *names), tmp_path / "data.zip"))
    expected = [content_hash(tmp_path / "tree" / image.member) for image in made.images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(content_hash, made.images)) == expected
    assert sum(len(batch.index) for batch in load_batches(made, SMALL, batch_size=16, workers=4)) == 80


def test_rows_of_a_table_are_not_all_held_in_memory(table):
    made = read_images(table)
    archives._row_group.cache_clear()
    list(map(content_hash, made.images))
    # Four row groups, each decoded once, and no more than two of them kept.
    assert archives._row_group.cache_info()[1:] == (4, 2, 2)


def test_a_changed_archive_is_read_anew(zipped, tmp_path):
    made = read_images(zipped)
    before = made.images[0].read_bytes()
    (tmp_path / "tree" / made.images[0].member).write_bytes(encoded("something else entirely"))
    zipped.unlink()
    zip_up(tmp_path / "tree", zipped)
    assert made.images[0].read_bytes() != before
    zipped.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(made.images[0])


@pytest.mark.parametrize(
    "suffix, kind", [(".zip", "zip archive"), (".tar", "tar archive"), (".parquet", "parquet table")]
)
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 50, None])
def test_damaged_archives_are_named(tmp_path, suffix, kind, content, zipped, tarred, table):
    whole = {".zip": zipped, ".tar": tarred, ".parquet": table}[suffix].read_bytes()
    path = tmp_path / f"broken{suffix}"
    # A tar ends in zeros, so that its second half may be nothing but these.
    path.write_bytes(whole[: 3700 if suffix == ".tar" else len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=rf"broken\{suffix} cannot be read as a {kind}"):
        read_images(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.move(path, folder)
    with pytest.raises(DataError, match=rf"broken\{suffix} cannot be read as a {kind}"):
        read_images(folder)


def test_a_damaged_header_in_the_middle_of_a_tar(tarred):
    content = bytearray(tarred.read_bytes())
    with tarfile.open(tarred) as opened:
        content[opened.getmembers()[2].offset + 100] ^= 0xFF
    tarred.write_bytes(content)
    with pytest.raises(DataError, match="damaged header at byte"):
        list_members(tarred)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="a compressed tar has to be unpacked or stored without compression"):
        read_images(tmp_path / "x.tar")


def test_a_damaged_member_is_unreadable_with_a_reason(zipped, tarred):
    for archive in (zipped, tarred):
        content = archive.read_bytes()
        middle = content.index(b"IDAT") if archive is tarred else _data_of(archive, "real/a.png")
        archive.write_bytes(content[:middle] + bytes(30) + content[middle + 30 :])
        made = read_images(archive)
        failures = [failure for batch in load_batches(made, SMALL) for failure in batch.failures]
        assert len(made) == 4 and len(failures) == 1
        assert failures[0][1] == f"{archive}::real/a.png"
        assert "damaged" in failures[0][2] or "not an image" in failures[0][2]


def _data_of(archive, member):
    with zipfile.ZipFile(archive) as opened:
        return opened.getinfo(member).header_offset + 30 + len(member) + 10


def test_a_member_that_is_too_large_or_encrypted(zipped, tarred, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 10)
    for archive in (zipped, tarred):
        with pytest.raises(UnreadableImage, match="larger than 0 MiB"):
            read_image(read_images(archive).images[0])
    monkeypatch.undo()
    content = bytearray(zipped.read_bytes())
    for mark, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flag] |= 1
    zipped.write_bytes(content)
    assert any("encrypted" in _reason(image) for image in read_images(zipped).images)


def _reason(image):
    try:
        read_image(image)
    except UnreadableImage as error:
        return error.reason
    return ""


def test_names_that_try_to_leave_the_archive_are_harmless(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as opened:
        for name in ("../../real/up.png", "/real/root.png", "real\\windows.png", "fake/a.png", "__MACOSX/real/._a.png"):
            opened.writestr(name, encoded(name))
        opened.writestr("real/.hidden.png", b"")
    before = sorted(tmp_path.rglob("*"))
    made = read_images(tmp_path / "evil.zip")
    assert made.labels.tolist().count(0) == 3 and len(made) == 4
    assert all(read_image(image).size == (12, 10) for image in made.images)
    assert sorted(tmp_path.rglob("*")) == before
    assert_reads_back(made, tmp_path / "m.csv")


def test_a_member_replaced_by_appending_counts_once(zipped):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(zipped, "a") as opened:
        opened.writestr("real/a.png", encoded("newer"))
    made = read_images(zipped)
    assert len(made) == 4
    assert [i.read_bytes() for i in made.images if i.member == "real/a.png"] == [encoded("newer")]


def test_zips_named_by_class_in_natural_order(tmp_path):
    for name, inner in (("real_2", "x.png"), ("real_10", "y.png"), ("fake/sdxl", "z.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        zip_up(plant(tmp_path / name.replace("/", "-"), inner), tmp_path / "data" / f"{name}.zip")
    for made in (read_images(tmp_path / "data"), read_images(tmp_path / "data", layout="zip")):
        assert [name.rpartition("/")[2] for name in made.names] == [
            "sdxl.zip::z.png",
            "real_2.zip::x.png",
            "real_10.zip::y.png",
        ]
        assert made.generators == ("sdxl", "real", "real")
    assert_reads_back(made, tmp_path / "data" / "m.csv", tmp_path / "m.jsonl")


def test_a_zip_whose_name_is_its_class(tmp_path):
    assert read_images(zip_up(plant(tmp_path / "t", "a.png"), tmp_path / "real.zip")).labels.tolist() == [0]
    with pytest.raises(DataError, match="No class folders in"):
        read_images(zip_up(plant(tmp_path / "u", "a.png"), tmp_path / "photos.zip"))
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as opened:
        opened.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match="No images in"):
        read_images(tmp_path / "none.zip")


def test_members_are_found_by_name(zipped, tarred, table):
    assert find_member(zipped, "real/a.png") == ZipMember(zipped, "real/a.png")
    assert find_member(tarred, "real/a.png").read_bytes() == encoded("real/a.png")
    assert find_member(table, "7") == TableCell(table, 7, "image")
    assert all(find_member(a, m) is None for a, m in ((zipped, "x"), (tarred, "x"), (table, "10"), (table, "-1")))
