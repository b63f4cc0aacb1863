"""Tables with the images inside, and tables of published sets."""

import datetime
import json

import pytest

from dna_probe.errors import DataError
from dna_probe.images.archives import DamagedTable
from dna_probe.images.entries import parse_date
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import read_image
from dna_probe.images.tables import open_table

from .made_up_trees import NASTY, assert_reads_back, encoded, plant, plant_nasty, write_parquet


def test_shards_in_natural_order_with_their_split(tmp_path):
    for split, number in (("train", 10), ("train", 2), ("validation", 0)):
        rows = [{"image": encoded((split, number, n)), "label": n, "model": "m"} for n in range(2)]
        write_parquet(tmp_path / "data" / f"{split}-{number:05d}-of-00011.parquet", rows)
    for made in (read_images(tmp_path), read_images(tmp_path, layout="parquet"), read_images(tmp_path, "hifi-gen")):
        assert [name.rpartition("/")[2].partition("-of")[0] for name in made.names] == [
            *["train-00002"] * 2,
            *["train-00010"] * 2,
            *["validation-00000"] * 2,
        ]
        assert made.splits == ("train",) * 4 + ("val",) * 2
        assert made.generators == ("real", "m") * 3 and len(set(made.groups)) == 6
    assert (
        "parquet: 3 files, images in 'image', label in 'label', generator in 'model', splits train and val"
        in made.layout
    )
    assert_reads_back(made, tmp_path / "m.csv", tmp_path / "else" / "m.parquet")


def test_nasty_images_inside(tmp_path):
    plant_nasty(tmp_path / "files")
    files = sorted((tmp_path / "files").iterdir())
    rows = [{"image": file.read_bytes(), "label": "fake", "model": file.name} for file in files]
    write_parquet(tmp_path / "x.parquet", [*rows, {"image": None, "label": "real", "model": ""}])
    made = read_images(tmp_path / "x.parquet")
    assert len(made) == len(NASTY) + 1
    written = assert_reads_back(made, tmp_path / "m.parquet")
    assert dict(written.skipped)[f"{tmp_path}/x.parquet::{len(NASTY)}"] == "cannot be opened (the row holds no image)"
    assert len(written.skipped) == 3


def test_community_forensics(tmp_path):
    columns = {"architecture": "LatDiff", "resolution": "512", "prompt": ""}
    for number, flag in enumerate((True, "False")):
        rows = [
            {"image_data": encoded((number, n)), "label": str(n), "model_name": "SDXL", "nsfw_flag": flag, **columns}
            for n in range(2)
        ]
        write_parquet(tmp_path / f"part-{number}.parquet", rows)
    for made in (read_images(tmp_path), read_images(tmp_path, layout="communityforensics")):
        assert made.generators == ("real", "SDXL") * 2 and made.layout.startswith("communityforensics: 2 files")
    assert read_image(made.images[3]).size == (12, 10)
    assert_reads_back(made, tmp_path / "m.csv")


OPENFAKE = [
    {"label": "real", "model": "real", "type": "real", "release_date": None, "prompt": "a cat"},
    {"label": "fake", "model": "flux", "type": "base", "release_date": "2024-08-01", "prompt": "A  cat"},
    {"label": "fake", "model": "", "type": "lora", "release_date": "2024-09", "prompt": "a dog"},
    {"label": "fake", "model": "x", "type": "base", "release_date": "some day", "prompt": ""},
]


def test_openfake_with_images_inside(tmp_path):
    rows = [{"image": {"bytes": encoded(n), "path": None}, **row} for n, row in enumerate(OPENFAKE)]
    write_parquet(tmp_path / "openfake" / "x.parquet", rows)
    for made in (read_images(tmp_path / "openfake"), read_images(tmp_path / "openfake", layout="openfake")):
        assert made.generators == ("real", "flux", "lora", "x")
        assert made.dates == ("", "2024-08-01", "2024-09", "")
        assert made.groups[0] == made.groups[1] != made.groups[2] and len(set(made.groups)) == 3
        assert made.layout.startswith("openfake: images in 'image'")
        assert made.layout.endswith("release dates not understood: 1 (the first is some day)")
    assert_reads_back(made, tmp_path / "m.csv", tmp_path / "m.jsonl", tmp_path / "m.parquet")


def test_openfake_as_csv_beside_its_images(tmp_path):
    plant(tmp_path, *(f"images/{n}.png" for n in range(4)))
    lines = ["image,label,model,type,release_date"]
    lines += [
        f"images/{n}.png,{r['label']},{r['model']},{r['type']},{r['release_date'] or ''}"
        for n, r in enumerate(OPENFAKE)
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    made = read_images(tmp_path)
    assert made.layout.startswith("openfake: ") and made.dates == ("", "2024-08-01", "2024-09", "")
    assert (
        read_images(tmp_path, layout="openfake").images
        == made.images
        == tuple(tmp_path / "images" / f"{n}.png" for n in range(4))
    )


def test_aigcdetect_mirror(tmp_path):
    rows = [{"image": encoded(n), "label": n, "generator": "ADM"} for n in range(2)]
    write_parquet(tmp_path / "test" / "x.parquet", rows)
    made = read_images(tmp_path, layout="aigcdetect")
    assert made.generators == ("real", "ADM") and made.splits == ("test", "test")


@pytest.mark.parametrize("layout", ["openfake", "communityforensics", "aigcdetect"])
def test_a_table_that_is_not_it(tmp_path, layout):
    path = write_parquet(tmp_path / "x.parquet", [{"image": b"x", "label": 0}])
    with pytest.raises(
        DataError, match=rf"x\.parquet is not arranged as {layout}. Expected the columns .*, found image, label"
    ):
        read_images(path, layout=layout)


def test_class_names_written_by_hugging_face(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    def save(names):
        table = pa.table({"image": [encoded(0), encoded(1)], "label": [0, 1]})
        features = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
        parquet.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "x.parquet")

    save(["fake", "real"])
    assert read_images(tmp_path / "x.parquet").labels.tolist() == [1, 0]
    save(["cat", "dog"])
    with pytest.raises(DataError, match=r"has the unknown label 0. its classes are called cat and dog"):
        read_images(tmp_path / "x.parquet")


def test_labels_by_folder_or_name_where_there_is_no_column(tmp_path):
    for name in ("real/part-0", "fake/sdxl/part-0", "fake/glide/part-0"):
        write_parquet(tmp_path / f"{name}.parquet", [{"image": encoded(name)}])
    made = read_images(tmp_path)
    assert made.generators == ("glide", "sdxl", "real") and "label by the names of folders and files" in made.layout
    write_parquet(tmp_path / "else" / "photos.parquet", [{"image": encoded(1)}])
    with pytest.raises(DataError, match=r"photos\.parquet has no column 'label'"):
        read_images(tmp_path / "else")


def test_empty_tables(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    parquet.write_table(empty, tmp_path / "a-0.parquet")
    with pytest.raises(DataError, match="lists no images"):
        read_images(tmp_path)
    write_parquet(tmp_path / "a-1.parquet", [{"image": encoded(n), "label": n} for n in range(2)])
    assert len(read_images(tmp_path)) == 2


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "label,path\n0,a.png\n0,b, c.png\n", r"Row 3 of .*a\.csv has more cells than the header"),
        ("a.csv", 'label,path\n0,"a.png\n1,"b.png"\n', "cannot be read as a csv table. row 2: ',' expected after"),
        ("a.csv", 'label,path\n0,"a.png\n1,b.png\n', "cannot be read as a csv table. row 2: unexpected end of data"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 1, "b" 2}\n', "as a jsonl table. line 3: Expecting ':' delimiter, at column 14"),
    ],
)
def test_damaged_rows_are_told_by_their_number(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedTable, match=words):
        open_table(tmp_path / name)


def test_rows_may_end_in_empty_cells_or_early(tmp_path):
    (tmp_path / "a.csv").write_text('label,path,,group\n0,a.png,,,,\n1,"b ""x"".png"\n')
    rows = [row for _, row in open_table(tmp_path / "a.csv").rows]
    assert [row["path"] for row in rows] == ["a.png", 'b "x".png'] and rows[1]["group"] is None


@pytest.mark.parametrize(
    "given, expected",
    [
        ("2024-08-01", "2024-08-01"),
        ("2024-08-01T10:00:00Z", "2024-08-01"),
        ("2024-08", "2024-08"),
        (2024, "2024"),
        ("August 1, 2024", "2024-08-01"),
        (datetime.date(2024, 8, 1), "2024-08-01"),
        (datetime.datetime(2024, 8, 1, 3), "2024-08-01"),
        (None, ""),
        (" ", ""),
        ("nan", ""),
        ("soon", None),
    ],
)
def test_dates(given, expected):
    assert parse_date(given) == expected
