"""benchmark, evaluate and compare, and the options of fit that belong to them, as a user calls them."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pymupdf
import pytest
from PIL import Image

from dna_probe.cli import main
from dna_probe.cli.arguments import names

PLANTED = Path(__file__).parent.parent / "planted.py"
BACKBONE = f"{PLANTED}:Planted"


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


def arguments(data, out, *more):
    plan = ("--methods", "dna,last-linear,random-units", "--shots", "2,4", "--draws", "2", "--jobs", "1")
    return ("benchmark", data, "--backbone", BACKBONE, *plan, "--out", out, *more)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fewshot"
    assert main([str(a) for a in arguments(data, out, "--quiet")]) == 0
    return out


def run(capsys, *parts) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(a) for a in parts])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        (" , ,", ()),
        ("dna, last-linear,", ("dna", "last-linear")),
        (
            "dna[scorer=weight,views=],dna,dna[cut=fraction, fraction=0.05]",
            ("dna[scorer=weight,views=]", "dna", "dna[cut=fraction, fraction=0.05]"),
        ),
        ("dna,dna[a=1,b=2]", ("dna", "dna[a=1,b=2]")),
        ("dna[],knn", ("dna[]", "knn")),
        ("dna[a=1,knn", ("dna[a=1", "knn")),
    ],
)
def test_commas_in_brackets_belong_to_the_part(text, parts):
    assert names(text) == parts


class TestBenchmark:
    def test_one_folder_holds_everything_and_nothing_is_left_beside_it(self, finished):
        names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
        assert {"results.json", "results.parquet", "images.parquet", "summary.md", "tables/auc.tex"} <= names
        assert {f"figures/{name}.pdf" for name in ("few-shot", "generators", "reliability", "roc")} <= names
        assert [path.name for path in finished.parent.iterdir()] == ["fewshot"]
        for figure in (finished / "figures").iterdir():
            assert len(pymupdf.open(figure)) == 1

    def test_the_result_carries_settings_versions_hashes_seeds_and_the_audit(self, finished):
        result = json.loads((finished / "results.json").read_text())
        assert result["schema"] == "dna_probe.benchmark/1"
        assert result["settings"]["plan"]["seed"] == 0 and result["settings"]["plan"]["shots"] == [2, 4]
        assert {"dna-probe", "torch", "scikit-learn"} <= set(result["versions"])
        assert len(result["backbone"]["weight_hash"]) == 64 and len(result["data"]["fingerprint"]) == 64
        assert "metadata_auc" in result["audit"]

    def test_the_rows_are_tidy(self, finished):
        import pandas as pd

        rows = pd.read_parquet(finished / "results.parquet")
        assert len(rows) == 2 * 2 * 2 * 2 * 3  # sources, shots, draws, tested generators, methods
        assert rows["auc"].between(0, 1).all() and set(rows["method"]) == {"dna", "last-linear", "random-units"}

    def test_it_prints_what_was_found_before_the_table(self, capsys, data, tmp_path):
        status, out, err = run(capsys, *arguments(data, tmp_path / "run"))
        assert status == 0
        assert "20 real, 20 fake (even 10, odd 10)" in err and "found folders" in err and "Audit of" in err
        assert "against last-linear" in out and f"Written to {tmp_path / 'run'}" in out

    def test_json_is_the_result(self, capsys, data, tmp_path):
        status, out, _ = run(capsys, *arguments(data, tmp_path / "run", "--json"))
        assert status == 0 and json.loads(out) == json.loads((tmp_path / "run" / "results.json").read_text())

    def test_it_can_be_plotted_again(self, capsys, finished, tmp_path):
        for figure in ("few-shot", "generators", "reliability", "roc"):
            status, _, err = run(capsys, "plot", figure, finished, "--out", tmp_path / f"{figure}.png")
            assert status == 0, err
        status, _, err = run(capsys, "plot", "robustness", finished, "--out", tmp_path / "r.pdf")
        assert status == 2 and "Traceback" not in err

    def test_the_options_of_the_detector_and_a_variant_beside_it(self, capsys, data, tmp_path):
        variant = "dna[scorer=cohens_d,cut=top_k,k=3]"
        parts = ("--methods", f"dna,{variant},last-linear", "--train-on", "odd", "--draws", "1", "--reals", "all")
        fitted = ("--cut", "fraction", "--fraction", "0.1", "--classifier", "logistic", "--views", "")
        status, out, err = run(capsys, *arguments(data, tmp_path / "run", *parts, *fitted, "--json"))
        assert status == 0, err
        result = json.loads(out)
        plan, dna = result["settings"]["plan"], result["settings"]["dna"]
        assert plan["reals"] == "all" and dna["classifier"] == "logistic" and dna["views"] == []
        assert dna["cut"] == "fraction" and dna["parameters"] == [["fraction", 0.1]]
        units = {row["method"]: row["units"] for row in result["summary"]}
        assert units[variant] == 3 < units["dna"]

    def test_an_interruption_tells_how_to_go_on(self, capsys, data, tmp_path, monkeypatch):
        from dna_probe.evaluation import harness

        def stop(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(harness, "_run_cell", stop)
        status, _, err = run(capsys, *arguments(data, tmp_path / "run"))
        assert status == 1 and "the same command goes on" in err
        assert not (tmp_path / "run").exists()
        monkeypatch.undo()
        status, _, _ = run(capsys, *arguments(data, tmp_path / "run", "--quiet"))
        assert status == 0 and [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_robustness(self, capsys, data, tmp_path):
        out = tmp_path / "robust"
        parts = ("--protocol", "robustness", "--transforms", "jpeg", "--test-images", "5", "--shots", "4")
        status, text, err = run(capsys, *arguments(data, out, *parts))
        assert status == 0, err
        assert "the ten worst" in text and "quality 30" in text
        assert (out / "figures" / "robustness.pdf").exists()

    def test_cross_set_with_equalised_images(self, capsys, data, tmp_path):
        parts = ("--protocol", "cross-set", "--test", data, "--equalise-to", "32,32,90")
        status, _, err = run(capsys, *arguments(data, tmp_path / "run", *parts))
        assert status == 2 and "holds no real images" in err, "a set tested on itself leaves nothing to test on"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--methods", "dna,lastlinear"), "Did you mean 'last-linear'"),
            (("--protocol", "fewshot"), "Did you mean 'few-shot'"),
            (("--methods", "dna,dna[scorer=wieght,views=]"), "Unknown scorer 'wieght'. Did you mean 'weight'"),
            (("--views", "blurr"), "Did you mean 'blur'"),
            (("--classifier", "lad"), "Did you mean 'lda'"),
            (("--shots", "ten"), "'ten' is not a number of shots"),
            (("--shots", "500"), "Ask for at most"),
            (("--target-fpr", "0.05"), "needs at least 19 real training samples"),
            (("--transforms", "jpge"), "Did you mean 'jpeg'"),
            (("--equalise-to", "big"), "is not understood"),
            (("--layout", "genimagee"), "Did you mean 'genimage'"),
            (("--train-on", "od"), "Did you mean 'odd'"),
            (("--protocol", "temporal"), "release date of even, odd is not known"),
        ],
    )
    def test_a_users_mistake_is_one_line_and_status_2(self, more, message, capsys, data, tmp_path):
        status, _, err = run(capsys, *arguments(data, tmp_path / "run", *more))
        assert status == 2 and message in err and "Traceback" not in err
        assert not (tmp_path / "run").exists()


class TestCompare:
    def test_two_scorers_are_paired(self, capsys, data, finished, tmp_path):
        other = tmp_path / "other"
        assert main([str(a) for a in arguments(data, other, "--quiet", "--scorer", "weight")]) == 0
        status, out, _ = run(capsys, "compare", finished, other)
        assert status == 0 and "dna" in out and "not paired" not in out
        status, out, _ = run(capsys, "compare", finished, other, "--json")
        rows = {(row["method"], row["shots"], row["seen"]): row for row in json.loads(out)["results"]}
        assert rows["last-linear", 4, False]["change"] == 0
        assert rows["dna", 4, False]["low"] <= rows["dna", 4, False]["change"] <= rows["dna", 4, False]["high"]

    def test_what_is_no_benchmark_is_refused(self, capsys, data, finished):
        status, _, err = run(capsys, "compare", finished, data)
        assert status == 2 and "holds no results.json" in err


class TestEvaluate:
    @pytest.fixture(scope="class")
    @classmethod
    def detector(cls, data, tmp_path_factory):
        out = tmp_path_factory.mktemp("detectors") / "plain"
        assert main(["fit", str(data), "--backbone", BACKBONE, "--shots", "8", "--out", str(out), "--quiet"]) == 0
        return out

    def test_table_and_json(self, capsys, data, detector, tmp_path):
        status, out, _ = run(capsys, "evaluate", detector, data, "--out", tmp_path / "e")
        assert status == 0 and "bal. acc." in out
        assert "16 of these samples were trained on" in out, "an evaluation on training images says so"
        result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        assert result["schema"] == "dna_probe.evaluation/1" and result["audit"]["verdict"]
        assert [row["generator"] for row in result["results"]] == ["all", "even", "odd"]
        assert set(result["results"][0]["fpr"]) == {"value", "low", "high"}

    def test_reals_alone_give_a_false_positive_rate(self, capsys, data, detector):
        status, out, _ = run(capsys, "evaluate", detector, data / "real", "--json")
        (row,) = json.loads(out)["results"]
        assert status == 0 and row["real"] == 20 and "fpr" in row and "auc" not in row

    def test_a_bad_image_is_named_and_the_rest_is_measured(self, capsys, data, detector):
        bad = data / "real" / "zbad.png"
        bad.write_bytes(b"no image")
        try:
            status, out, err = run(capsys, "evaluate", detector, data, "--json")
        finally:
            bad.unlink()
        assert status == 3 and "zbad.png" in err and json.loads(out)["results"][0]["real"] == 20


class TestFitOptions:
    def test_an_equalised_detector_equalises_what_it_judges(self, capsys, data, tmp_path):
        out = tmp_path / "d"
        status, _, _ = run(
            capsys, "fit", data, "--backbone", BACKBONE, "--equalise-to", "32,32,95", "--out", out, "--quiet"
        )
        assert status == 0
        assert json.loads((out / "manifest.json").read_text())["equalisation"] == {
            "side": 32,
            "crop": 32,
            "quality": 95,
        }
        status, text, _ = run(capsys, "predict", out, data / "real", "--json")
        assert status == 0 and len(json.loads(text)["predictions"]) == 20
        small = tmp_path / "small.png"
        Image.new("RGB", (20, 40)).save(small)
        status, text, _ = run(capsys, "predict", out, small, "--json")
        assert status == 3 and "short side below 32 pixels" in json.loads(text)["predictions"][0]["error"]
        status, text, _ = run(capsys, "evaluate", out, data, "--json", "--cache", tmp_path / "cache")
        assert status == 0 and len(json.loads(text)["trained_on"]) == 40

    def test_an_operating_point_is_stored_or_refused(self, capsys, data, tmp_path):
        base = ("fit", data, "--backbone", BACKBONE, "--quiet")
        status, _, _ = run(capsys, *base, "--target-fpr", "0.1", "--out", tmp_path / "d")
        assert status == 0
        assert json.loads((tmp_path / "d" / "manifest.json").read_text())["anchor"]["target_fpr"] == 0.1
        status, _, err = run(capsys, *base, "--target-fpr", "0.01", "--out", tmp_path / "e")
        assert status == 2 and "needs at least 99 real training samples, and there are 20" in err
