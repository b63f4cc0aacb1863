import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dna_probe.cli import main

PLANTED = Path(__file__).parent.parent / "planted.py"
BACKBONE = f"{PLANTED}:Planted"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("planted_images", PLANTED)
    planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    root = tmp_path_factory.mktemp("data")
    for i, (picture, label) in enumerate(zip(*planted.images(12), strict=True)):
        place = root / ("fake/checkerboard" if label else "real")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def detector(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "detector"
    assert main(["fit", str(data), "--backbone", BACKBONE, "--out", str(out), "--quiet"]) == 0
    return out


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_brackets_in_names_are_no_markup(capsys, detector, data, tmp_path):
    content = next(data.rglob("*.png")).read_bytes()
    for name in ("photo [copy].png", "a[end].png"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "b[").mkdir()
    (tmp_path / "b[" / "red].png").write_bytes(content)
    status, text, _ = run(capsys, "predict", detector, tmp_path)
    assert status == 0 and "photo [copy].png" in text and "a[end].png" in text and "b[/red].png" in text


class TestLocate:
    def test_table_json_and_files(self, capsys, data, tmp_path):
        out = tmp_path / "locate"
        status, text, _ = run(capsys, "locate", data, "--backbone", BACKBONE, "--out", out)
        assert status == 0 and "blocks.2.hook_resid_post" in text and "takes" in text
        assert {p.name for p in out.iterdir()} == {"layers.json", "layers.csv", "attention_shift.pdf", "layers.pdf"}
        status, text, _ = run(capsys, "locate", data, "--backbone", BACKBONE, "--json")
        result = json.loads(text)
        assert result["schema"] == "dna_probe.layers/1" and result["selected"]
        assert set(result["layers"][0]) >= {"site", "curves", "taken", "reason"}

    def test_rule_by_name(self, capsys, data):
        status, text, _ = run(capsys, "locate", data, "--backbone", BACKBONE, "--rule", "last", "--json")
        assert status == 0 and json.loads(text)["selected"] == ["blocks.5.hook_resid_post"]


class TestFit:
    def test_json_tells_what_was_fitted(self, capsys, data, tmp_path):
        status, text, _ = run(
            capsys,
            "fit",
            data,
            "--backbone",
            BACKBONE,
            "--shots",
            8,
            "--out",
            tmp_path / "d",
            "--json",
            "--scorer",
            "cohens_d",
        )
        result = json.loads(text)
        assert status == 0 and result["schema"] == "dna_probe.fit/1" and result["units"]
        assert result["provenance"]["scorer"] == "cohens_d" and result["provenance"]["images"] == {"real": 8, "fake": 8}

    def test_table_for_people(self, capsys, data, tmp_path):
        status, text, _ = run(capsys, "fit", data, "--backbone", BACKBONE, "--out", tmp_path / "d")
        assert status == 0 and "cross-fitted" in text and "stops after layer" in text

    def test_more_reals_and_no_views(self, capsys, data, tmp_path):
        more = tmp_path / "photographs"
        more.mkdir()
        for i in range(5):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
                more / f"{i}.png"
            )
        plain = ("fit", data, "--backbone", BACKBONE, "--shots", 4, "--json", "--views", "", "--reals", more)
        status, text, _ = run(capsys, *plain, "--cut", "fraction", "--fraction", 0.1, "--out", tmp_path / "d")
        result = json.loads(text)
        assert status == 0 and result["provenance"]["images"] == {"real": 9, "fake": 4}
        assert result["provenance"]["views"] == [] and result["cut"]["cut"] == "fraction"
        assert len(result["units"]) == pytest.approx(0.1 * result["units_scored"], abs=1)
        twice = ("--reals", more / "0.png", "--reals", f"{more}/[12].png", "--layer", "blocks.3.hook_resid_post")
        status, text, _ = run(capsys, *plain[:-2], *twice, "--equalise-to", "32,32,90", "--out", tmp_path / "e")
        assert status == 0 and json.loads(text)["provenance"]["images"] == {"real": 7, "fake": 4}

    def test_views_by_comma(self, capsys, data, tmp_path):
        parts = ("--views", "blur,jpeg", "--layer", "blocks.3.hook_resid_post", "--json", "--out", tmp_path / "d")
        status, text, _ = run(capsys, "fit", data, "--backbone", BACKBONE, *parts)
        result = json.loads(text)
        assert status == 0 and result["provenance"]["views"] == ["blur", "jpeg"]
        assert result["provenance"]["images"] == {"real": 12, "fake": 12}

    def test_unreadable_images_end_with_status_3(self, capsys, data, tmp_path):
        bad = data / "real" / "bad.png"
        bad.write_bytes(b"no image")
        try:
            status, _, err = run(capsys, "fit", data, "--backbone", BACKBONE, "--out", tmp_path / "d", "--quiet")
        finally:
            bad.unlink()
        assert status == 3 and "bad.png" in err and (tmp_path / "d" / "manifest.json").exists()

    def test_interrupt_leaves_nothing_half_done(self, capsys, data, tmp_path, monkeypatch):
        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr("dna_probe.fitting.score_features", interrupt)
        status, _, err = run(capsys, "fit", data, "--backbone", BACKBONE, "--out", tmp_path / "d", "--quiet")
        assert status == 1 and "interrupted" in err.lower() and list(tmp_path.iterdir()) == []


class TestPredict:
    def test_json_in_input_order(self, capsys, data, detector):
        status, text, _ = run(capsys, "predict", detector, data / "fake", data / "real" / "0.png", "--json")
        result = json.loads(text)
        assert status == 0 and result["schema"] == "dna_probe.predictions/1"
        paths = [p["path"] for p in result["predictions"]]
        assert len(paths) == 13 and paths[-1].endswith("0.png")
        assert all(set(p) == {"path", "probability", "verdict", "threshold"} for p in result["predictions"])
        assert np.mean([p["probability"] > 0.5 for p in result["predictions"][:-1]]) > 0.9

    def test_csv_and_table_agree(self, capsys, data, detector):
        _, text, _ = run(capsys, "predict", detector, data / "real", "--csv")
        lines = text.strip().splitlines()
        assert lines[0] == "path,probability,verdict,threshold,error" and len(lines) == 13
        status, text, _ = run(capsys, "predict", detector, data / "real")
        assert status == 0 and "p(fake)" in text

    def test_a_bad_image_keeps_its_place_and_ends_with_status_3(self, capsys, data, detector, tmp_path):
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"")
        status, text, err = run(capsys, "predict", detector, bad, data / "real" / "0.png", "--json")
        first, second = json.loads(text)["predictions"]
        assert status == 3 and set(first) == {"path", "error"} and "verdict" in second
        assert "bad.jpg" in err

    def test_out_writes_a_file_and_does_not_replace_one(self, capsys, data, detector, tmp_path):
        out = tmp_path / "answer.json"
        assert run(capsys, "predict", detector, data / "real", "--out", out)[0] == 0
        assert len(json.loads(out.read_text())["predictions"]) == 12
        status, _, err = run(capsys, "predict", detector, data / "real", "--out", out)
        assert status == 2 and "exists" in err


class TestPlot:
    @pytest.mark.parametrize("figure", ["attention-shift", "layers", "scores"])
    def test_figures_from_a_fitted_detector(self, figure, capsys, detector, tmp_path):
        out = tmp_path / "figure.pdf"
        status, _, err = run(capsys, "plot", figure, detector, "--out", out)
        assert status == 0, err
        assert out.read_bytes().startswith(b"%PDF")

    def test_mistyped_figure_and_empty_run(self, capsys, tmp_path):
        status, _, err = run(capsys, "plot", "layer", tmp_path, "--out", tmp_path / "x.pdf")
        assert status == 2 and "Did you mean 'layers'" in err
        status, _, err = run(capsys, "plot", "layers", tmp_path, "--out", tmp_path / "x.pdf")
        assert status == 2 and not (tmp_path / "x.pdf").exists()


def test_backbones(capsys):
    status, text, _ = run(capsys, "backbones", "nano", "--json")
    (entry,) = json.loads(text)["backbones"]
    assert status == 0 and entry["name"] == "nano"
    status, _, err = run(capsys, "backbones", "nothing-like-this*")
    assert status == 2 and "No backbone matches" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{missing}", "--out", "{out}"], "missing"),
        (["fit", "{empty}", "--out", "{out}"], "empty"),
        (["fit", "{data}", "--backbone", "vit_smal_patch16_224", "--out", "{out}"], "Did you mean"),
        (["fit", "{data}", "--backbone", "{planted}:Plantd", "--out", "{out}"], "Did you mean 'Planted'"),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--shots", "999", "--out", "{out}"],
            "999 images of each class",
        ),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--scorer", "triadc", "--out", "{out}"],
            "Did you mean 'triadic'",
        ),
        (["fit", "{data}", "--backbone", "{planted}:Planted", "--rule", "al", "--out", "{out}"], "Did you mean 'all'"),
        (
            [
                "fit",
                "{data}",
                "--backbone",
                "{planted}:Planted",
                "--layer",
                "blocks.9.hook_resid_post",
                "--out",
                "{out}",
            ],
            "Unknown site",
        ),
        (["fit", "{data}", "--backbone", "{planted}:Planted", "--cut", "nee", "--out", "{out}"], "Unknown cut"),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--fraction", "0.1", "--out", "{out}"],
            "Cut 'cumulative_knee' does not take fraction",
        ),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--views", "jpeg,blurr", "--out", "{out}"],
            "Unknown view 'blurr'. Did you mean 'blur'",
        ),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--classifier", "lad", "--out", "{out}"],
            "Did you mean 'lda'",
        ),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--reals", "{empty}", "--out", "{out}"],
            "No images in",
        ),
        (
            ["fit", "{data}", "--backbone", "{planted}:Planted", "--reals", "{missing}", "--out", "{out}"],
            "No such file or folder",
        ),
        (["fit", "{data}", "--backbone", "{planted}:Planted", "--device", "cuda", "--out", "{out}"], "CUDA"),
        (["fit", "{data}", "--weights", "{missing}", "--out", "{out}"], "missing"),
        (["fit", "{data}", "--backbone", "hf:{missing}", "--out", "{out}"], "dna-probe:"),
        (["fit", "{data}", "--out", "{data}"], "is not empty"),
        (["locate", "{one_class}", "--backbone", "{planted}:Planted"], "no fake images"),
        (["locate", "{data}", "--rule", "transitoin"], "Did you mean 'transition'"),
        (["predict", "{missing}", "{data}"], "is not a detector"),
        (["predict", "{empty}", "{data}"], "is not a detector"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, message, capsys, data, tmp_path):
    places = {
        "data": data,
        "planted": PLANTED,
        "missing": tmp_path / "missing",
        "empty": tmp_path / "empty",
        "one_class": data / "real",
        "out": tmp_path / "out",
    }
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in data.rglob("*"))
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    status, out, err = run(capsys, *(a.format(**places) for a in arguments))
    assert status == 2 and message in err and "Traceback" not in err
    # Before it, what was found of the data may be told.
    said = [line for line in err.splitlines() if line.startswith("dna-probe: ")]
    assert len(said) == 1 and err.strip().endswith(said[0]) and message in said[0] and not out
    assert not (tmp_path / "out").exists() and sorted(p.name for p in data.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["fit"], ["nonsense"], ["fit", "x", "--shots", "none", "--out", "y"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "Traceback" not in err


def test_help_of_every_command_names_its_options(capsys):
    for command in ("demo", "locate", "fit", "predict", "plot", "backbones"):
        status, text, _ = run(capsys, command, "--help")
        assert status == 0 and "--help" in text


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, dna_probe, dna_probe.cli\n"
        "heavy = set('torch timm torchvision sklearn matplotlib captum transformer_lens pandas skimage'.split())\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    import dna_probe

    assert all(getattr(dna_probe, name) is not None for name in dna_probe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dna_probe.nothing
