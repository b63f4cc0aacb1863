import csv
import json
import shutil

import numpy as np
import pymupdf
import pytest
from PIL import Image

from dna_probe.cli import main
from dna_probe.evaluation.audit import Audit


@pytest.fixture
def data(tmp_path):
    """Fakes saved at another JPEG quality, and one picture under both labels."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for folder, quality in ((root / "real", 75), (root / "fake" / "gan", 95)):
        folder.mkdir(parents=True)
        for i in range(16):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{folder.name}_{i}.jpg", quality=quality)
    shutil.copy(root / "real" / "real_0.jpg", root / "fake" / "gan" / "same.jpg")
    return root


@pytest.fixture
def run(capsys):
    def call(*arguments):
        capsys.readouterr()
        status = main(["audit", *(str(a) for a in arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_tables_copies_and_the_verdict_for_people(run, data, monkeypatch):
    # By a short name: long paths are wrapped in the table.
    monkeypatch.chdir(data.parent)
    data = data.name
    status, out, err = run(data)
    assert status == 0 and "16 real, 17 fake (gan 17)" in err
    assert "quantisation tables" in out and "JPEG quality 75" in out
    assert "the same file under both labels" in out and "real_0.jpg" in out
    assert out.strip().endswith("equalise them first; and there is 1 leak to mend.")
    assert run(data, "--quiet")[:3] == (0, "", "")


def test_json_is_the_audit_of_the_images_as_given(run, data):
    status, out, err = run(data, "--json", "--seed", 1)
    told = json.loads(out)
    assert status == 0 and "gan 17" in err and told["schema"] == "dna_probe.audit/1"
    assert told["metadata_auc"] >= 0.9 and told["thumbnail_auc"] is not None and told["seed"] == 1
    assert "equalised" not in told and Audit.from_json(told).to_json() == told


def test_equalising_shows_both_and_what_it_changed(run, data):
    options = ("--equalise", "--equalise-to", "80,64,90", "--workers", 0)
    told = json.loads(run(data, *options, "--json")[1])
    assert told["metadata_auc"] >= 0.9 and told["origin"] == str(data)
    after = told["equalised"]
    assert after["schema"] == "dna_probe.audit/1" and after["metadata_auc"] < told["metadata_auc"]
    assert after["files"]["fake"]["quality"]["median"] == 90
    assert after["changes"]["equalisation"] == {"side": 80, "crop": 64, "quality": 90}
    assert after["changes"]["before"]["fake"]["quality"]["high"] == 95
    _, out, _ = run(data, *options)
    assert "as given" in out and "Images equalised" in out and "centre crop 64 x 64" in out
    assert "As given: Real and fake can be told apart" in out and "\nEqualised: " in out


def test_a_folder_with_the_audit_its_table_and_its_figure(run, data, tmp_path):
    out = tmp_path / "run"
    status, text, _ = run(data, "--out", out, "--equalise", "--equalise-to", "80,64,90")
    assert status == 0 and f"Written to {out}" in text
    assert sorted(p.name for p in out.iterdir()) == ["audit.csv", "audit.json", "audit.pdf", "audit_equalised.pdf"]
    assert "equalised" in json.loads((out / "audit.json").read_text())
    with open(out / "audit.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["as given"] * 2 + ["equalised"] * 2
    assert "JPEG quality" in pymupdf.open(out / "audit.pdf")[0].get_text()
    status, _, err = run(data, "--out", out)
    assert status == 2 and "is not empty" in err and "--overwrite" in err
    assert run(data, "--out", out, "--overwrite", "--quiet")[0] == 0
    assert sorted(p.name for p in out.iterdir()) == ["audit.csv", "audit.json", "audit.pdf"]


def test_unreadable_images_end_with_status_3(run, data, tmp_path):
    (data / "real" / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "run"
    status, text, err = run(data, "--json", "--out", out)
    assert status == 3 and "bad.jpg: not an image" in err and (out / "audit.json").exists()
    assert json.loads(text)["unreadable"][0]["path"].endswith("bad.jpg")


def test_one_class_is_wrong_input(run, data):
    shutil.rmtree(data / "fake")
    status, _, err = run(data)
    assert status == 2 and "holds no fake images" in err and "Traceback" not in err


def test_images_too_small_to_equalise_are_wrong_input(run, data, tmp_path):
    status, _, err = run(data, "--equalise", "--out", tmp_path / "run")
    assert status == 2 and "is left after equalising" in err and "256 pixels" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.real
def test_the_real_set_is_flagged_and_equalising_mends_it(run, shared_data):
    status, out, _ = run(shared_data / "images" / "stylegan2-ffhq", "--equalise", "--json")
    told = json.loads(out)
    assert status == 0 and told["metadata_auc"] >= 0.95 and told["flags"]
    assert told["equalised"]["metadata_auc"] <= 0.6
