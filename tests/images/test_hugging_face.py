"""Hugging Face `datasets`, in memory and as `save_to_disk` writes them."""

import json
import pickle
import sys

import pytest

from dna_probe.batches import load_batches
from dna_probe.errors import DataError
from dna_probe.images.archives import TableCell
from dna_probe.images.layouts import read_images
from dna_probe.images.manifests import write_manifest
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import read_image

from .made_up_trees import assert_reads_back, encoded, picture, plant

datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")


def dataset(count=4, names=("real", "fake"), **columns):
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(names)),
        "model": datasets.Value("string"),
    }
    rows = {
        "image": [{"bytes": encoded(n), "path": None} for n in range(count)],
        "label": [n % 2 for n in range(count)],
        "model": ["sdxl"] * count,
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features), **columns)


def test_a_dataset_in_memory():
    given = dataset()
    for made in (read_images(given), read_images(given, layout="datasets")):
        assert made.generators == ("real", "sdxl") * 2 and made.names[1] == "dataset::1"
        assert [read_image(image).tobytes() for image in made.images] == [picture(n).tobytes() for n in range(4)]
        assert made.layout.startswith("datasets: images in 'image', label in 'label'")
        assert made.origin == "a Dataset of 4 rows"
    assert sum(len(b.index) for b in load_batches(made, Preprocessing(input_size=(8, 8), crop_pct=1.0), 2, 2)) == 4
    assert pickle.loads(pickle.dumps(made.images[2])).read_bytes() == encoded(2)
    assert read_images(dataset(names=("fake", "real"))).labels.tolist() == [1, 0, 1, 0]


def test_rows_follow_a_selection():
    made = read_images(dataset(6).select([5, 2]))
    assert made.labels.tolist() == [1, 0] and made.images[0].read_bytes() == encoded(5)


def test_splits_of_a_dictionary():
    parts = datasets.DatasetDict({"train": dataset(2), "validation": dataset(2)})
    made = read_images(parts)
    assert made.splits == ("train", "train", "val", "val") and made.names[2] == "validation::0"
    with pytest.raises(DataError, match="train::0 lies in no file"):
        write_manifest(made, "never.csv")


def test_images_kept_as_files_become_paths(tmp_path):
    plant(tmp_path, "a.png", "b.png")
    rows = {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "label": [0, 1]}
    made = read_images(datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()))
    assert made.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert_reads_back(made, tmp_path / "m.csv")


@pytest.mark.parametrize("layout", ["auto", "datasets", "hifi-gen"])
def test_a_saved_dataset_is_read_in_place_without_the_library(tmp_path, monkeypatch, layout):
    parts = {"train": dataset(4).shuffle(seed=1), "test": dataset(2)}
    expected = parts["train"]["label"]
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    monkeypatch.setitem(sys.modules, "datasets", None)
    made = read_images(tmp_path / "saved", layout=layout)
    assert made.splits == ("train",) * 4 + ("test",) * 2 and made.labels.tolist() == [*expected, 0, 1]
    assert isinstance(made.images[0], TableCell) and "data-00000-of-00002.arrow::0" in made.names[0]
    assert all(read_image(image).size == (12, 10) for image in made.images)
    assert "datasets: 3 files" in made.layout
    # The same pictures are in both splits; they stay in, for they have one label.
    assert len(assert_reads_back(made, tmp_path / "m.csv", tmp_path / "saved" / "m.parquet")) == 6


def test_a_single_saved_dataset_and_a_damaged_one(tmp_path):
    dataset(split="train").save_to_disk(tmp_path / "one")
    assert read_images(tmp_path / "one").splits == ("train",) * 4
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow cannot be read as an Arrow table"):
        read_images(tmp_path / "one")
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow cannot be read"):
        read_images(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json cannot be read"):
        read_images(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text(json.dumps({"_data_files": []}))
    with pytest.raises(DataError, match="lists no images"):
        read_images(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text(json.dumps({"_data_files": ["x.arrow"]}))
    with pytest.raises(DataError, match=r"state\.json is not what save_to_disk writes"):
        read_images(tmp_path / "one")


def test_streams_and_datasets_without_images_are_refused():
    with pytest.raises(DataError, match=r"An? IterableDataset cannot be read.*load it without streaming"):
        read_images(dataset().to_iterable_dataset())
    with pytest.raises(DataError, match="dataset has no column 'path'"):
        read_images(datasets.Dataset.from_dict({"label": [0, 1]}))
    with pytest.raises(DataError, match="dataset has no column 'label'"):
        read_images(dataset().remove_columns("label"))
    with pytest.raises(DataError, match="a Dataset of 0 rows lists no images"):
        read_images(dataset(0))
