import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.layouts import read_images
from dna_probe.images.manifests import WRITTEN_COLUMNS, changed_images, write_manifest
from dna_probe.images.sets import ImageSet, join

from .made_up_trees import assert_reads_back, encoded, everything, plant, plant_nasty, write_parquet, zip_up

ROWS = [
    {"path": "a.png", "label": "real", "generator": "laion", "group": "g1", "split": "train"},
    {"path": "sub/b.png", "label": "fake", "generator": "sdxl", "group": "g1", "split": "test"},
    {"path": "c.png", "label": 1, "generator": "", "group": "", "split": ""},
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    return tmp_path


def write(root, kind, rows=ROWS):
    path = root / f"list.{kind}"
    columns = list(rows[0])
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(columns), *(mark.join(str(row.get(c, "")) for c in columns) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        write_parquet(path, [{k: str(v) for k, v in row.items()} for row in rows])
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_table(root, kind):
    made = read_images(write(root, kind))
    assert made.images == (root / "a.png", root / "sub" / "b.png", root / "c.png")
    assert made.labels.tolist() == [0, 1, 1]
    assert made.generators == ("real", "sdxl", "fake")
    assert made.groups == ("g1", "g1", "row 2") and made.splits == ("train", "test", "")
    assert made.skipped == () and made.origin == str(root / f"list.{kind}")


def test_only_path_and_label_are_needed_under_names_in_use(root):
    rows = [
        {"FileName": "a.png", "Label": "0", "model": "x"},
        {"FileName": str(root / "c.png"), "Label": "1", "model": "glide"},
    ]
    made = read_images(write(root, "csv", rows))
    assert made.images[1] == root / "c.png" and made.generators == ("real", "glide")
    (root / "semi.csv").write_text("path;label\na.png;real\nc.png;fake\n")
    assert read_images(root / "semi.csv").labels.tolist() == [0, 1]


def test_missing_files_are_skipped_with_their_row(root):
    made = read_images(write(root, "csv", [*ROWS, {**ROWS[0], "path": "gone.png"}]))
    assert len(made) == 3
    assert made.skipped == ((str(root / "gone.png"), "no such file (row 5 of list.csv)"),)
    with pytest.raises(DataError, match=r"None of the 1 files that .* lists exists"):
        read_images(write(root, "csv", [{"path": "gone.png", "label": 0}]))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"file_x": "a.png", "label": 0}], "has no column 'path'"),
        ([{"path": "a.png", "generator": 0}], "has no column 'label'"),
        ([{"path": "a.png", "label": "maybe"}], "has the unknown label 'maybe'"),
        ([{"path": "a.png", "label": ""}], "has the unknown label ''"),
        ([{"path": "", "label": "real"}], "has no path"),
        ([{"path": "a.png", "label": 0}, {"path": "a.png", "label": 1}], "as real and as fake"),
    ],
)
def test_wrong_tables(root, kind, rows, words):
    with pytest.raises(DataError, match=words):
        read_images(write(root, kind, rows))


@pytest.mark.parametrize(
    "name, content",
    [("x.csv", b"\xff\xfe\x00path"), ("x.jsonl", b"{not json"), ("x.json", b"3"), ("x.csv", b""), ("x.jsonl", b"[1]")],
)
def test_damaged_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"x\.(csv|json)"):
        read_images(tmp_path / name)


def test_groups_come_from_names_where_the_table_has_none(root):
    for name in ("m1_7.png", "m2_7.png"):
        Image.new("RGB", (9, 9)).save(root / name)
    rows = [{"path": f"{g}_7.png", "label": 1, "generator": g} for g in ("m1", "m2")]
    made = read_images(write(root, "csv", [*rows, {"path": "a.png", "label": 0, "generator": ""}]))
    assert made.groups[0] == made.groups[1] != made.groups[2]


def test_what_is_written(tmp_path):
    root = plant(tmp_path / "data", "test/real/a.png", "test/fake/sdxl/b.png")
    (root / "test/real/c.jpg").write_bytes(encoded("c", "JPEG", quality=83))
    written = write_manifest(read_images(root), root / "m.csv")
    with open(root / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == WRITTEN_COLUMNS and len(rows) == len(written) == 3
    assert rows[2] == {
        "path": "test/real/c.jpg",
        "label": "real",
        "generator": "real",
        "split": "test",
        "group": "data/test/real/c.jpg",
        "sha256": hashlib.sha256((root / "test/real/c.jpg").read_bytes()).hexdigest(),
        "width": "12",
        "height": "10",
        "format": "JPEG",
        "quality": "83",
    }
    assert rows[0]["quality"] == "" and rows[0]["generator"] == "sdxl"
    write_manifest(read_images(root), root / "m.jsonl")
    assert json.loads((root / "m.jsonl").read_text().splitlines()[2])["quality"] == 83


def test_a_manifest_beside_its_images_moves_with_them(tmp_path):
    root = plant(tmp_path / "data", "real/a.png", "fake/b.png")
    write_manifest(read_images(root), root / "m.csv")
    root.rename(tmp_path / "moved")
    assert [image.exists() for image in read_images(tmp_path / "moved" / "m.csv").images] == [True, True]


def test_a_manifest_elsewhere_names_its_root(tmp_path, monkeypatch):
    plant(tmp_path / "one", "real/a.png")
    plant(tmp_path / "two", "fake/b.png")
    monkeypatch.chdir(tmp_path)
    both = join([read_images("one/real"), read_images("two/fake")])
    for manifest in ("runs/m.csv", "runs/m.jsonl", "runs/m.parquet"):
        written = write_manifest(both, manifest)
        made = read_images(manifest)
        assert everything(made) == everything(written)
        assert made.images[0] == tmp_path / "one/real/a.png"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_outside_the_root_are_refused(root, kind):
    (root / "inner").mkdir()
    for place in ("../a.png", str(root / "a.png"), "../a.zip::x.png", "sub/../../a.png"):
        rows = [{"path": place, "label": "real"}]
        with pytest.raises(DataError, match=rf"Row \d of .*list.{kind} leads outside its root: .*'root'") as caught:
            read_images(write(root / "inner", kind, rows))
        assert "does not lie below" in str(caught.value)
    rows = [
        {"path": "sub/../a.png", "label": "real", "root": ".."},
        {"path": str(root / "c.png"), "label": "fake", "root": str(root)},
    ]
    made = read_images(write(root / "inner", kind, rows))
    assert [image.resolve() for image in made.images] == [root / "a.png", root / "c.png"]


def test_links_into_the_root_count_as_inside(root):
    (root / "link").symlink_to(root)
    assert len(read_images(write(root, "csv", [{"path": str(root / "link" / "a.png"), "label": 0}]))) == 1


def test_rows_said_twice(root):
    made = read_images(write(root, "csv", [ROWS[0], ROWS[1], {**ROWS[0], "path": "./a.png"}]))
    assert (
        len(made) == 2 and made.skipped[0][1] == f"listed twice (Row 2 of {root}/list.csv and Row 4 of {root}/list.csv)"
    )
    for field, value in (("split", "test"), ("group", "g9"), ("label", "fake")):
        with pytest.raises(DataError, match=r"a\.png is listed as '?\w+'? and as '?\w+'?. \(Row 2 of"):
            read_images(write(root, "csv", [ROWS[0], {**ROWS[0], field: value}]))


def test_one_content_under_two_labels(root):
    rows = [{"path": "a.png", "label": 0, "sha256": "ab"}, {"path": "c.png", "label": 1, "sha256": "AB"}]
    with pytest.raises(DataError, match=r"The same image is listed as real and as fake. Row 2 of .* have one sha256"):
        read_images(write(root, "csv", rows))
    data = plant(root / "data", "real/x.png", "real/y.png", "fake/b.png")
    (data / "fake" / "z.png").write_bytes((data / "real" / "x.png").read_bytes())
    written = assert_reads_back(read_images(data), root / "m.csv")
    assert len(written) == 2 and len(written.skipped) == 2
    assert {reason for _, reason in written.skipped} == {
        "the very same image is there as real and fake, so its label is not known"
    }


def test_changed_content_is_found(tmp_path):
    root = plant(tmp_path, "real/a.png", "fake/b.png")
    write_manifest(read_images(root), root / "m.parquet")
    assert changed_images(root / "m.parquet") == ()
    (root / "real/a.png").write_bytes(encoded("another"))
    changed = ((str(root / "real/a.png"), "its content has changed since the manifest was written"),)
    assert changed_images(root / "m.parquet", workers=2) == changed
    assert changed_images(write(root, "csv", [{"path": "real/a.png", "label": 0}])) == ()


def test_what_cannot_be_listed(tmp_path):
    plant_nasty(tmp_path / "data" / "real")
    made = read_images(tmp_path / "data")
    written = write_manifest(made, tmp_path / "m.csv", workers=2)
    assert len(written) == len(made) - 2
    assert sorted(reason.partition(" (")[0] for _, reason in written.skipped) == [
        "empty file",
        "truncated: the file ends too early",
    ]
    (tmp_path / "data" / "real" / "a.b.jpg").unlink()
    gone = write_manifest(made, tmp_path / "m.csv")
    assert (str(tmp_path / "data/real/a.b.jpg"), "no such file") in gone.skipped
    for images, words in (
        (ImageSet([np.zeros((9, 9, 3), np.uint8)], [0]), r"images\[0\] lies in no file"),
        (ImageSet([encoded(1)], [0]), "lies in no file"),
        (
            ImageSet([tmp_path / "gone.png"], [0]),
            "None of the 1 images of .* can be listed. the first is .*no such file",
        ),
        (ImageSet([], []), "None of the 0 images"),
    ):
        with pytest.raises(DataError, match=words):
            write_manifest(images, tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"m\.xlsx is no name for a manifest. let it end in \.csv, \.jsonl, \.parquet"):
        write_manifest(made, tmp_path / "m.xlsx")


def test_odd_names_unlabelled_images_and_dates_come_back(tmp_path):
    names = [" edge .png", "a,b.png", 'quo"te.png', "new\nline.png", "a::b.png", "ünï.png"]
    plant(tmp_path, *names)
    given = ImageSet(
        [tmp_path / name for name in names],
        [0, 1, -1, 1, 0, 0],
        generators=("real", "g,1", "", "fake", "real", "real"),
        groups=("a", "a", "b", "c c", "d", "row 1"),
        splits=("train", "train", "", "test", "odd", ""),
        dates=("", "2024-01-01", "", "2023", "", ""),
    )
    assert_reads_back(given, tmp_path / "m.csv", tmp_path / "m.jsonl", tmp_path / "m.parquet", tmp_path / "x" / "m.csv")


def test_a_name_that_is_no_text_is_told(tmp_path):
    plant(tmp_path, "real/a.png", "fake/b.png")
    (tmp_path / "real" / b"\xff.png".decode(errors="surrogateescape")).write_bytes(encoded("z"))
    written = assert_reads_back(read_images(tmp_path), tmp_path / "m.csv")
    assert [reason for _, reason in written.skipped] == ["its name is not valid Unicode, which a table cannot hold"]


def test_members_of_archives_are_listed_and_found(root):
    archive = zip_up(plant(root / "tree", "x.png", "y.png"), root / "data.zip")
    rows = [{"path": "data.zip::x.png", "label": 0}, {"path": "data.zip::gone.png", "label": 1}]
    made = read_images(write(root, "csv", rows))
    assert made.names == (f"{archive}::x.png",) and made.skipped[0][1].startswith("no such file")
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip cannot be read as a zip archive"):
        read_images(root / "list.csv")


def test_a_split_with_one_class_is_named_when_it_is_used(root):
    from dna_probe.images.sampling import require_two_classes

    made = read_images(write(root, "csv"))
    with pytest.raises(DataError, match=r"list\.csv, split test holds no real images"):
        require_two_classes(made.of_split("test"))
