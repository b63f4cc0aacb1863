"""WebDataset shards."""

import pytest

from dna_probe.errors import DataError
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import read_image

from .made_up_trees import NASTY, assert_reads_back, encoded, plant_nasty, told, write_tar


def test_sidecars_of_every_kind_in_shards_in_natural_order(tmp_path):
    members = {
        "0001.png": encoded("a"),
        "0001.json": {"label": "fake", "model": "sdxl", "prompt": "a cat", "split": "test"},
        "0002.jpg": encoded("b", "JPEG"),
        "0002.cls": "0",
        "0002.txt": "A cat",
        "0003.b.png": encoded("c"),
        "0003.txt": "real",
        "grüße.png": encoded("d"),
        "grüße.json": {"label": 1, "generator": "glide", "group": "g", "release_date": "2024-05-01"},
    }
    write_tar(tmp_path / "train-000010.tar", members)
    write_tar(tmp_path / "train-000002.tar", {"x.png": encoded("x"), "x.cls": "1"})
    for made in (read_images(tmp_path), read_images(tmp_path, layout="webdataset")):
        assert told(made) == {
            "x.png": (1, "fake", "train"),
            "0001.png": (1, "sdxl", "test"),
            "0002.jpg": (0, "real", "train"),
            "0003.b.png": (0, "real", "train"),
            "grüße.png": (1, "glide", "train"),
        }
        assert made.names[0].endswith("train-000002.tar::x.png") and made.skipped == ()
        assert made.groups[1] == made.groups[2] and made.groups[4] == "g" and len(set(made.groups)) == 4
        assert made.dates[4] == "2024-05-01" and made.layout.startswith("webdataset: 2 files, label in 'label'")
        assert [read_image(image).size for image in made.images] == [(12, 10)] * 5
    assert_reads_back(made, tmp_path / "m.csv", tmp_path / "else" / "m.jsonl")


def test_samples_that_cannot_be_used_are_told(tmp_path):
    members = {
        "1.png": encoded(1),
        "1.cls": "1",
        "2.png": encoded(2),
        "3.json": {"label": 1},
        "4.png": encoded(4),
        "4.json": "{not json",
        "5.png": encoded(5),
        "5.json": b"[1]",
        "real/6.png": encoded(6),
    }
    shard = write_tar(tmp_path / "x.tar", members)
    made = read_images(shard)
    assert told(made) == {"1.png": (1, "fake", ""), "real/6.png": (0, "real", "")}
    said = {name.rpartition("::")[2]: reason for name, reason in made.skipped}
    assert said["2"] == "has no label, and lies in no folder that names its class"
    assert said["3"] == "has no image"
    assert said["4"].startswith("has a file beside it that cannot be read (")
    assert "the JSON is not an object" in said["5"] and len(said) == 4


def test_nothing_but_images_is_a_folder(tmp_path):
    plant_nasty(tmp_path / "files")
    contents = {f"fake/sdxl/{name}": (tmp_path / "files" / name).read_bytes() for name in NASTY}
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", {**contents, "real/x.png": encoded("x")})
    write_tar(tmp_path / "data" / "real-0001.tar", {"y.png": encoded("y")})
    made = read_images(tmp_path / "data")
    assert made.counts() == {"real": 2, "sdxl": len(NASTY)} and made.layout.startswith("folders: ")
    written = assert_reads_back(made, tmp_path / "m.parquet")
    assert len(written.skipped) == 2


def test_shards_named_by_class(tmp_path):
    for name in ("real", "fake"):
        write_tar(tmp_path / f"{name}-0001.tar", {"1.png": encoded(name), "1.json": {"prompt": name}})
    assert read_images(tmp_path).generators == ("fake", "real")
    write_tar(tmp_path / "fake-0001.tar", {"1.png": encoded(1), "1.json": {"model": "flux"}})
    assert read_images(tmp_path).generators == ("flux", "real")


def test_unknown_and_missing_labels(tmp_path):
    shard = write_tar(tmp_path / "x.tar", {"7.png": encoded(1), "7.cls": "9"})
    with pytest.raises(DataError, match=r"Sample 7\.png of .*x\.tar has the unknown label '9'"):
        read_images(shard)
    shard = write_tar(tmp_path / "x.tar", {"7.png": encoded(1), "7.txt": "a prompt"})
    with pytest.raises(DataError, match=r"No labelled images in .*put a json with a label, or a cls"):
        read_images(shard)
