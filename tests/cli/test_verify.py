"""verify, and the figures of its run, as a user calls them."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pymupdf
import pytest
from PIL import Image

from dna_probe.cli import main

PLANTED = Path(__file__).parent.parent / "planted.py"
BACKBONE = f"{PLANTED}:Planted"
QUICK = ("--draws", "4", "--max-images", "4", "--interventions", "mean", "--shots", "2,3", "--refits", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    spec = spec_from_file_location("planted_images", PLANTED)
    planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    root = tmp_path_factory.mktemp("data")
    for i, (picture, label) in enumerate(zip(*planted.images(20), strict=True)):
        place = root / (f"fake/{'odd' if i % 2 else 'even'}" if label else "real")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"picture{i:02d}.png")
    return root


def fit(data, out, *more):
    arguments = ("fit", data, "--backbone", BACKBONE, "--scorer", "cohens_d", "--kinds", "cls", "--out", out, *more)
    assert main([str(a) for a in (*arguments, "--quiet")]) == 0
    return out


@pytest.fixture(scope="module")
def detector(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("runs") / "detector", "--shots", 8)


@pytest.fixture(scope="module")
def finished(data, detector, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "verify"
    arguments = ("verify", detector, data, "--out", out, *QUICK, "--quiet")
    assert main([str(a) for a in arguments]) == 0
    return out


def run(capsys, *parts) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(a) for a in parts])
    out, err = capsys.readouterr()
    return status, out, err


def test_one_folder_holds_everything_and_nothing_is_left_beside_it(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"verification.json", "masking.csv", "masking.pdf", "masking.png"} <= names
    assert {"stability.json", "stability.csv", "stability_units.csv", "stability.pdf"} <= names
    assert {"selectivity.json", "units.csv", "units.pdf"} <= names
    assert [path.name for path in finished.parent.iterdir()] == ["verify"]
    for figure in finished.glob("*.pdf"):
        assert len(pymupdf.open(figure)) == 1


def test_tables_and_json_say_the_same(finished):
    import pandas as pd

    told = json.loads((finished / "verification.json").read_text())
    assert told["schema"] == "dna_probe.verification/1" and told["verdicts"] and len(told["trained_on"]) == 16
    table = pd.read_csv(finished / "masking.csv")
    assert len(table) == len(told["rows"]) and set(table["kind"]) >= {"fdu", "random", "weight-matched"}
    again = json.loads((finished / "stability.json").read_text())
    settings = again["provenance"]["settings"]
    assert (settings["scorer"], settings["shots"], settings["draws"]) == ("cohens_d", [2, 3], 2)


def test_the_table_and_the_sentences(capsys, data, detector, tmp_path):
    out = tmp_path / "verify"
    status, text, err = run(capsys, "verify", detector, data, "--out", out, *QUICK, "--checks", "masking")
    assert status == 0, err
    assert "found folders" in err and "readout, detector" in text and "network, last-layer" in text
    assert "- 16 of 40 images were trained on" in text and f"Written to {out}" in text
    assert {path.name for path in out.iterdir()} == {"verification.json", "masking.csv", "masking.pdf", "masking.png"}


def test_json_is_one_object(capsys, data, detector, tmp_path):
    parts = ("--checks", "masking,stability", "--json", "--max-images", "0")
    status, text, _ = run(capsys, "verify", detector, data, "--out", tmp_path / "v", *QUICK, *parts)
    told = json.loads(text)
    assert status == 0 and told["schema"] == "dna_probe.verify/1" and set(told) == {"schema", "masking", "stability"}
    assert told["masking"] == json.loads((tmp_path / "v" / "verification.json").read_text())


def test_its_figures_can_be_plotted_again(capsys, finished, tmp_path):
    for figure in ("masking", "stability", "units"):
        status, _, err = run(capsys, "plot", figure, finished, "--out", tmp_path / f"{figure}.png")
        assert status == 0, err
    (tmp_path / "empty").mkdir()
    for figure in ("masking", "stability", "units"):
        status, _, err = run(capsys, "plot", figure, tmp_path / "empty", "--out", tmp_path / "x.pdf")
        assert status == 2 and "Give a folder that 'verify" in err and "Traceback" not in err


def test_a_check_that_cannot_be_made_is_told_and_left_out(capsys, data, tmp_path):
    named = fit(data, tmp_path / "named", "--layer", "blocks.3.hook_resid_post")
    parts = (*QUICK, "--checks", "masking,stability", "--max-images", "0")
    status, _, err = run(capsys, "verify", named, data, "--out", tmp_path / "v", *parts)
    assert status == 0 and "stability was left out: The layers of this detector were named by hand" in err
    assert not (tmp_path / "v" / "stability.json").exists()
    status, _, err = run(capsys, "verify", named, data, "--out", tmp_path / "w", *QUICK, "--checks", "stability")
    assert status == 2 and "The layers of this detector were named by hand" in err and not (tmp_path / "w").exists()


def test_an_unreadable_image_ends_with_status_3(capsys, data, detector, tmp_path):
    bad = data / "real" / "bad.png"
    bad.write_bytes(b"no image")
    try:
        parts = (*QUICK, "--checks", "masking", "--max-images", "0", "--quiet")
        status, _, err = run(capsys, "verify", detector, data, "--out", tmp_path / "v", *parts)
    finally:
        bad.unlink()
    assert status == 3 and "bad.png" in err and (tmp_path / "v" / "verification.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--checks", "maskin"), "Unknown check 'maskin'. Did you mean 'masking'"),
        (("--checks", ","), "No check was named. Known: masking, stability, selectivity"),
        (("--interventions", "means"), "Unknown intervention 'means'. Did you mean 'mean'"),
        (("--shots", "ten"), "--shots 'ten' is not understood. Give whole numbers by comma, like 10,20,50"),
        (("--max-images", "2", "--checks", "masking"), "2 images are too few to edit inside the network"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(capsys, data, detector, tmp_path, more, message):
    status, _, err = run(capsys, "verify", detector, data, "--out", tmp_path / "v", *more)
    assert status == 2 and message in err and "Traceback" not in err and not (tmp_path / "v").exists()


def test_a_folder_with_something_in_it_is_not_overwritten(capsys, data, detector, finished):
    status, _, err = run(capsys, "verify", detector, data, "--out", finished, *QUICK)
    assert status == 2 and "is not empty" in err
