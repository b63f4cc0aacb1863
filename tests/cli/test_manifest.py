import json

import pytest
from PIL import Image, ImageDraw

from dna_probe.cli import main
from dna_probe.images.layouts import read_images


def scene(seed):
    image = Image.new("RGB", (64, 64), (20 * seed, 255 - 20 * seed, 90))
    ImageDraw.Draw(image).rectangle((5 * seed, 40 - 5 * seed, 10 + 9 * seed, 60), fill=(255, 30 * seed, 0))
    return image


@pytest.fixture
def data(tmp_path):
    """GenImage, with one picture of train also in val, and only fakes besides it there."""
    root = tmp_path / "data"
    for number, place in enumerate(("train/ai", "train/ai", "train/nature", "val/ai")):
        folder = root / "ADM" / place
        folder.mkdir(parents=True, exist_ok=True)
        scene(number).save(folder / f"{number}.png")
    scene(0).resize((48, 48)).save(root / "ADM/val/ai/copy.jpg")
    return root


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_says_what_was_found_then_writes(capsys, data, tmp_path):
    out = tmp_path / "new" / "m.csv"
    status, text, err = run(capsys, "manifest", data, "--out", out)
    assert status == 0
    assert err.splitlines()[0].startswith(
        "found genimage: <generator>/[imagenet_*/]{train,val}/{ai,nature}, splits train"
    )
    assert "4 fake (ADM 4)" in err.splitlines()[1]
    assert "warning: split 'val' holds 0 real and 2 fake images; using it needs both" in err
    assert "warning: groups that belong together lie in more than one split: 1" in err
    assert "5 images in 4 groups, sets of near-duplicates: 1" in text
    made = read_images(out)
    assert made.counts() == {"real": 1, "ADM": 4} and len(set(made.groups)) == 4


def test_json(capsys, data, tmp_path):
    status, text, _ = run(capsys, "manifest", data, "--out", tmp_path / "m.parquet", "--json", "--quiet")
    result = json.loads(text)
    assert status == 0 and result["schema"] == "dna_probe.manifest/1"
    assert result["splits"] == {"train": {"real": 1, "fake": 2}, "val": {"real": 0, "fake": 2}}
    assert len(result["near_duplicates"]) == 1 and len(result["groups_in_several_splits"]) == 1
    assert result["images"] == 5 and result["layout"].startswith("genimage: ") and result["skipped"] == []


def test_without_joining(capsys, data, tmp_path):
    status, text, err = run(
        capsys, "manifest", data, "--out", tmp_path / "m.jsonl", "--no-join-duplicates", "--layout", "folders", "--json"
    )
    result = json.loads(text)
    assert status == 0 and result["groups"] == 5 and result["near_duplicates"] == [] and "found folders: " in err


def test_unreadable_images_are_named_and_the_status_says_so(capsys, data, tmp_path):
    (data / "ADM/val/ai/empty.jpg").write_bytes(b"")
    status, text, err = run(capsys, "manifest", data, "--out", tmp_path / "m.csv", "--quiet")
    assert status == 3 and text == ""
    assert err == f"skipped {data}/ADM/val/ai/empty.jpg: empty file (0 bytes)\n"
    assert len(read_images(tmp_path / "m.csv")) == 5


def test_a_manifest_is_checked_and_written_anew(capsys, data, tmp_path):
    assert run(capsys, "manifest", data, "--out", tmp_path / "m.csv", "--quiet")[0] == 0
    scene(7).save(data / "ADM/train/ai/0.png")
    status, _, err = run(capsys, "manifest", tmp_path / "m.csv", "--out", tmp_path / "n.csv", "--quiet")
    assert status == 0
    assert err == f"note: {data}/ADM/train/ai/0.png: its content has changed since the manifest was written\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{data}", "--out", "{tmp}/m.xlsx"], "is no name for a manifest"),
        (["{data}", "--out", "{tmp}/there.csv"], "exists. Choose another file or pass --overwrite"),
        (["{data}", "--out", "{tmp}/m.csv", "--layout", "genimge"], "Did you mean 'genimage'"),
        (["{data}", "--out", "{tmp}/m.csv", "--layout", "chameleon"], "is not arranged as chameleon"),
        (["{tmp}/gone", "--out", "{tmp}/m.csv"], "No such folder or manifest"),
    ],
)
def test_wrong_usage(capsys, data, tmp_path, arguments, words):
    (tmp_path / "there.csv").write_text("kept")
    given = [argument.format(data=data, tmp=tmp_path) for argument in arguments]
    status, text, err = run(capsys, "manifest", *given, "--quiet")
    assert status == 2 and text == "" and words in err and err.startswith("dna-probe: ")
    assert (tmp_path / "there.csv").read_text() == "kept" and not (tmp_path / "m.csv").exists()
    status, _, _ = run(capsys, "manifest", data, "--out", tmp_path / "there.csv", "--overwrite", "--quiet")
    assert status == 0
