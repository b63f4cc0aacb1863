import io
import json
import sys

import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import read_image

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
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows]), path)
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


def test_parquet_without_its_reader_says_what_to_install(root, monkeypatch):
    (root / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'dna-probe\[parquet\]'"):
        read_images(root / "x.parquet")


def test_parquet_with_the_images_inside(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (5, 6, 7)).save(buffer, "PNG")
    rows = [{"image": {"bytes": buffer.getvalue(), "path": "a"}, "label": "fake", "model": "m"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    made = read_images(tmp_path / "x.parquet")
    assert made.generators == ("m",) and read_image(made.images[0]).getpixel((0, 0)) == (5, 6, 7)


def test_groups_come_from_names_where_the_table_has_none(root):
    for name in ("m1_7.png", "m2_7.png"):
        Image.new("RGB", (9, 9)).save(root / name)
    rows = [{"path": f"{g}_7.png", "label": 1, "generator": g} for g in ("m1", "m2")]
    made = read_images(write(root, "csv", [*rows, {"path": "a.png", "label": 0, "generator": ""}]))
    assert made.groups[0] == made.groups[1] != made.groups[2]
