"""One file from a fitted detector: the same verdicts, the same errors, nothing left that disagrees."""

import contextlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dna_probe
from dna_probe.anchor import CLASSIFIERS, AnchorClassifier
from dna_probe.artefacts import open_detector
from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.cli import main
from dna_probe.collection import Options
from dna_probe.detector import Detector
from dna_probe.errors import ArtefactError, BackboneError, DataError, DnaProbeError, NumericalError
from dna_probe.exported import ExportedDetector
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import Equalisation

from ..backbones.zoo import ConvModel
from ..planted import images
from .odd_images import photograph, save_odd_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
TINY = Path(__file__).with_name("tiny.py")


def fitted(
    backbone: Backbone, layer: str, kinds: tuple[str, ...], classifier: str = "whitened", strength: int = 40
) -> Detector:
    traces = images(10, strength=strength)
    detector = dna_probe.fit(backbone, traces, layers=[layer], kinds=kinds, views=(), classifier=classifier)
    assert detector.anchor.calibration_.slope > 0, "it would call everything one half"
    return detector


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def odd(place):
    (place / "odd").mkdir()
    return save_odd_images(place / "odd")


@pytest.fixture(scope="module")
def vit():
    return fitted(open_backbone(f"{TINY}:vit"), "blocks.1.hook_resid_post", ("cls", "mean"))


@pytest.fixture(scope="module")
def onnx_file(vit, place):
    """What the command makes of the saved detector, and what it says of it."""
    vit.save(place / "vit")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert main(["export", str(place / "vit"), "--out", str(place / "vit.onnx"), "--json"]) == 0
    return place / "vit.onnx", json.loads(told.getvalue())


@pytest.fixture(scope="module")
def exported(onnx_file):
    return ExportedDetector.open(onnx_file[0])


@pytest.fixture
def at_hand(onnx_file, monkeypatch):
    """Let ``export`` go on from the graph that was made already: tracing takes ten seconds."""
    from dna_probe.exporting import graph, writing

    def give(change=lambda model: None):
        model = onnx.load(onnx_file[0])
        change(model)
        monkeypatch.setattr(graph, "trace", lambda detector: None)
        monkeypatch.setattr(writing, "to_onnx", lambda program, name: model)

    return give


def assert_equal_predictions(detector, exported, paths, options=None):
    expected, found = detector.judge(paths), exported.judge(paths, options)
    assert [replace(one, probability=None) for one in found] == [replace(one, probability=None) for one in expected]
    gaps = [abs(a.probability - b.probability) for a, b in zip(expected, found, strict=True) if a.error is None]
    assert max(gaps) < 1e-5
    return found


class TestOnnx:
    def test_odd_images_have_the_same_verdicts_and_errors(self, vit, exported, odd):
        paths, readable = odd
        found = assert_equal_predictions(vit, exported, paths)
        assert sum(one.error is None for one in found) == readable >= 30 and len(paths) == readable + 4
        assert np.ptp([one.probability for one in found if one.error is None]) > 0.01

    @pytest.mark.parametrize("options", [Options(1, 0), Options(3, 1), Options(64, 2)], ids=str)
    def test_batches_and_workers_change_nothing(self, exported, odd, options):
        alike = [photograph(40, 30, seed) for seed in range(7)]
        mixed = [*alike[:4], *odd[0][:12], *alike[4:], *odd[0][-4:]]
        expected, found = exported.judge(mixed), exported.judge(mixed, options)
        assert [one.path for one in found] == [one.path for one in expected]
        assert [one.verdict for one in found] == [one.verdict for one in expected]
        gaps = [abs(a.probability - b.probability) for a, b in zip(expected, found, strict=True) if a.error is None]
        assert max(gaps) < 1e-6

    def test_the_command_tells_what_was_written_and_measured(self, onnx_file):
        path, told = onnx_file
        assert told["schema"] == "dna_probe.export/1" and told["path"] == str(path)
        assert (told["format"], told["precision"], told["size"]) == ("onnx", "float32", path.stat().st_size)
        found = told["agreement"]
        assert found["images"] == 8 and found["equal_verdicts"] == 1 and found["max_difference"] < 1e-5
        assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []

    def test_the_graph_has_one_input_of_any_size_and_names_no_place(self, onnx_file):
        model = onnx.load(onnx_file[0])
        onnx.checker.check_model(model, full_check=True)
        (given,), (made,) = model.graph.input, model.graph.output
        sizes = [one.dim_param or one.dim_value for one in given.type.tensor_type.shape.dim]
        assert (given.name, sizes) == ("images", ["batch", "height", "width", 3])
        assert (made.name, [one.dim_param for one in made.type.tensor_type.shape.dim]) == ("probability", ["batch"])
        assert str(Path(dna_probe.__file__).parent).encode() not in onnx_file[0].read_bytes()

    def test_metadata(self, vit, exported):
        metadata = exported.metadata
        assert metadata["schema"] == "dna_probe.exported/1" and metadata["agreement"]["images"] == 8
        assert metadata["backbone"]["weight_hash"] == vit.backbone.weight_hash
        assert metadata["provenance"]["data"] == vit.provenance["data"]
        assert set(metadata["versions"]) >= {"dna-probe", "torch", "onnx", "onnxruntime", "pillow"}
        assert exported.units == vit.units and exported.preprocessing == vit.backbone.preprocessing
        assert exported.calibration == vit.anchor.calibration_ and exported.threshold == vit.threshold
        assert (exported.name, exported.modality, exported.equalisation) == (vit.name, "image", None)
        assert repr(exported).startswith("ExportedDetector on") and f"{len(vit.units)} units" in repr(exported)

    def test_it_runs_without_torch(self, onnx_file, odd):
        program = (
            "import sys\n"
            "from dna_probe.artefacts import open_detector\n"
            f"found = open_detector({str(onnx_file[0])!r}).judge({[str(path) for path in odd[0][:20]]!r})\n"
            "assert len(found) == 20\n"
            "print([name for name in ('torch', 'timm', 'sklearn', 'onnx', 'matplotlib') if name in sys.modules])"
        )
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert told.stdout.strip() == "[]", told.stderr

    def test_predict_gives_the_same_json(self, capsys, onnx_file, place, odd):
        answers = []
        for detector in (place / "vit", onnx_file[0]):
            status, text, _ = run(capsys, "predict", detector, *odd[0][-6:], "--json", "--quiet")
            assert status == 3
            answers.append(json.loads(text))
        first, second = answers
        assert first["schema"] == second["schema"] and first["detector"].keys() == second["detector"].keys()
        assert first["detector"]["threshold"] == second["detector"]["threshold"]
        for one, other in zip(first["predictions"], second["predictions"], strict=True):
            assert one.keys() == other.keys() and one["path"] == other["path"]
            assert one.get("verdict") == other.get("verdict") and one.get("error") == other.get("error")

    def test_equalised_detectors_treat_images_as_the_detector_does(self, vit, exported, odd):
        treatment = Equalisation(64, 48, 70)
        paths = [*odd[0][9:20], *odd[0][:3]]
        found = assert_equal_predictions(
            replace(vit, equalisation=treatment), replace(exported, equalisation=treatment), paths
        )
        assert sum(one.error is not None for one in found) == 3

    def test_the_shape_of_what_is_asked(self, vit, exported, odd):
        several = odd[0][10:14]
        np.testing.assert_allclose(exported.predict_proba(several), vit.predict_proba(several), atol=1e-5)
        assert exported.predict_proba(np.asarray(photograph(30, 40))).shape == (1, 2)
        assert exported.predict_proba(np.zeros((3, 30, 40, 3), np.uint8)).shape == (3, 2)
        assert [one.path for one in exported.judge([photograph(30, 40)])] == [
            one.path for one in vit.judge([photograph(30, 40)])
        ]
        assert exported.judge([]) == []
        with pytest.raises(DataError, match=r"1 of 1 images cannot be read; first .*cut\.jpg: truncated"):
            exported.predict_proba(odd[0][-4])
        with pytest.raises(DataError, match="A list of images is needed"):
            next(exported.stream("a.jpg"))

    def test_a_stream_reads_no_further_than_it_must(self, exported):
        taken = []

        def endless():
            while True:
                taken.append(1)
                yield photograph(20, 20, len(taken))

        stream = exported.stream(endless(), Options(batch_size=2, workers=0))
        names = [next(stream).path for _ in range(40)]
        assert names == [f"images[{i}]" for i in range(40)] and len(taken) <= 64

    def test_a_probability_that_is_not_finite_is_no_verdict(self, exported):
        broken = replace(exported, run=lambda pixels: np.full(len(pixels), np.nan, np.float32))
        with pytest.raises(NumericalError, match="1 of 1 probability values are NaN"):
            broken.judge([photograph(20, 20)])


class TestOtherGraphs:
    def test_a_convolutional_network_in_torch_export(self, place, odd):
        preprocessing = Preprocessing((24, 32), 0.9, "border", "bilinear", crop_rounding="down")
        torch.manual_seed(0)
        backbone = open_backbone(ConvModel(), preprocessing=preprocessing)
        cnn = fitted(backbone, backbone.layers[1].name, ("mean",), "rbf_svm", strength=120)
        report = dna_probe.export(cnn, place / "cnn.pt2", agree=odd[0][:4])
        assert (report.format, report.precision) == ("torch-export", "float32")
        assert report.agreement.images == 4 and report.agreement.origin == "the images given"
        again = open_detector(place / "cnn.pt2")
        assert isinstance(again, ExportedDetector) and again.metadata["agreement"]["images"] == 4
        assert_equal_predictions(cnn, again, odd[0])
        assert "cnn.pt2: torch-export, float32" in repr(report) and "100.0% of the verdicts" in repr(report)

    @pytest.mark.parametrize("kind", CLASSIFIERS)
    def test_every_classifier(self, kind, rng):
        from dna_probe.exporting.graph import Classifier

        labels = np.tile([0, 1], 20)
        values = rng.normal(size=(40, 5)) + labels[:, None]
        anchor = AnchorClassifier(kind, widths=(3, 2)).fit(values, labels)
        found = Classifier(anchor)(torch.from_numpy(values.astype(np.float32))).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, anchor.predict_proba(values)[:, 1], atol=1e-6)

    @pytest.mark.parametrize(("size", "right"), [(1, True), (7, True), (8, False)])
    def test_searching_a_sorted_row(self, size, right):
        import onnxruntime

        from dna_probe.exporting.operators import translations

        class Search(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("row", torch.arange(size).float())

            def forward(self, values):
                return torch.searchsorted(self.row, values, right=right)

        values = torch.arange(-2, 10, 0.25).reshape(4, 12)
        values[0, :2] = torch.tensor([float("inf"), -float("inf")])
        program = torch.export.export(Search(), (values,))
        made = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=translations())
        session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
        (found,) = session.run(None, {session.get_inputs()[0].name: values.numpy()})
        np.testing.assert_array_equal(found, Search()(values).numpy())

    def test_an_operation_without_translation_is_named(self):
        from dna_probe.exporting.writing import to_onnx

        class Strange(torch.nn.Module):
            def forward(self, images):
                return torch.linalg.eigvals(images[:, :2, :2, 0].double()).real.sum(1)

        free = {0: torch.export.Dim("n"), 1: torch.export.Dim("h", min=8), 2: torch.export.Dim("w", min=8)}
        program = torch.export.export(
            Strange(), (torch.zeros(2, 9, 10, 3, dtype=torch.uint8),), dynamic_shapes={"images": free}
        )
        with pytest.raises(BackboneError, match=r"model x cannot be exported to ONNX\. It runs aten.* Export it with"):
            to_onnx(program, "model x")


class TestEightBits:
    def test_it_is_smaller_and_what_it_costs_is_measured(self, vit, onnx_file, place, at_hand, odd):
        at_hand()
        report = dna_probe.export(vit, place / "small.onnx", int8=True, agree=odd[0][:30], overwrite=True)
        assert report.precision == "int8" and report.size < onnx_file[0].stat().st_size
        assert report.agreement.images == 30 and 0 < report.agreement.max_difference < 0.05
        small = ExportedDetector.open(place / "small.onnx")
        assert small.metadata["precision"] == "int8"
        assert small.metadata["agreement"]["mean_difference"] == report.agreement.mean_difference
        gaps = small.predict_proba(odd[0][:30])[:, 1] - vit.predict_proba(odd[0][:30])[:, 1]
        assert np.abs(gaps).max() == pytest.approx(report.agreement.max_difference, abs=1e-6)

    def test_the_command_prints_it(self, capsys, place, at_hand, odd):
        at_hand()
        arguments = ("export", place / "vit", "--out", place / "again.onnx", "--int8", "--agree", odd[0][9])
        status, text, _ = run(capsys, *arguments, "--agree", odd[0][10])
        text = " ".join(text.split())
        assert status == 0 and "again.onnx: onnx, int8, " in text and "2 of the images given" in text
        assert "equal verdicts" in text and "largest difference of a probability" in text
        status, _, told = run(capsys, *arguments)
        assert status == 2 and "again.onnx exists. It would be replaced" in told


def spoil(model):
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(weights.raw_data, np.float32) * 1.5
    weights.raw_data = values.astype(np.float32).tobytes()


def edited(metadata, part, **changes) -> str:
    return json.dumps(metadata | {part: metadata[part] | changes})


class TestRefusals:
    def test_a_folder(self, vit):
        with pytest.raises(ArtefactError, match=r"^\. is a folder\. A file is written"):
            dna_probe.export(vit, ".", "onnx")

    def test_an_infinite_unit_is_no_verdict(self, vit):
        from dna_probe.exporting.graph import Classifier

        units = torch.ones(2, len(vit.units))
        units[1, 0] = torch.inf
        assert Classifier(vit.anchor)(units).isfinite().tolist() == [True, False]

    def test_a_set_lends_no_place_to_the_file(self, vit, place, at_hand, odd):
        at_hand()
        images = ImageSet(tuple(odd[0][9:11]), [0, 1], origin=str(place))
        report = dna_probe.export(vit, place / "set.onnx", agree=images)
        assert report.agreement.origin == "the images given" and str(place) not in repr(report.agreement)

    def test_weights_of_8_bits_need_a_graph_that_is_right(self, vit, place, at_hand):
        at_hand(spoil)
        with pytest.raises(DnaProbeError, match="disagrees with the detector, and was not kept"):
            dna_probe.export(vit, place / "wrong.onnx", int8=True)
        assert not (place / "wrong.onnx").exists()

    def test_a_file_that_disagrees_is_not_left(self, vit, place, at_hand):
        at_hand(spoil)
        (place / "kept.onnx").write_bytes(b"before")
        with pytest.raises(
            DnaProbeError, match=r"disagrees with the detector, and was not kept\. On 8 images .* allowed"
        ):
            dna_probe.export(vit, place / "kept.onnx", overwrite=True)
        assert (place / "kept.onnx").read_bytes() == b"before"
        report = dna_probe.export(vit, place / "kept.onnx", tolerance=0.5, overwrite=True)
        assert 1e-4 < report.agreement.max_difference < 0.5
        assert [entry for entry in place.iterdir() if entry.name.startswith(".")] == []

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (
                {"path": "a.onx"},
                r"'a.onx' says no format\. Files in onnx end in \.onnx, those in torch-export in \.pt2",
            ),
            ({"path": "a.onnx", "format": "onxx"}, r"Unknown format 'onxx'\. Did you mean 'onnx'\?"),
            (
                {"path": "a.bin", "format": "onnx"},
                r"must end in \.onnx, and 'a\.bin' does not\. .* Write it to 'a\.onnx'",
            ),
            ({"path": "a.pt2", "int8": True}, r"Weights of 8 bits are for onnx\. torch-export keeps them"),
            ({"path": "there.onnx"}, r"there\.onnx exists\. It would be replaced\. .* pass --overwrite"),
            ({"path": "folder.onnx"}, r"folder\.onnx is a folder"),
            ({"path": "there.onnx/a.onnx"}, r"a\.onnx cannot be written\. .* Choose another folder"),
        ],
        ids=str,
    )
    def test_what_cannot_be_written(self, vit, tmp_path, settings, told):
        (tmp_path / "there.onnx").write_bytes(b"x")
        (tmp_path / "folder.onnx").mkdir()
        with pytest.raises(DnaProbeError, match=told):
            dna_probe.export(vit, **settings | {"path": tmp_path / settings["path"]})

    def test_the_command_says_so_before_it_opens_the_detector(self, capsys, tmp_path):
        status, _, told = run(capsys, "export", tmp_path, "--out", tmp_path / "a.onx")
        assert status == 2 and "says no format" in told
        status, _, told = run(capsys, "export", tmp_path, "--out", tmp_path / "a.onnx")
        assert status == 2 and "is not a detector" in told

    def test_a_missing_extra(self, vit, tmp_path, monkeypatch, onnx_file):
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(
            DnaProbeError, match=r"Exporting to ONNX needs onnxscript\. .*pip install 'dna-probe\[onnx\]'"
        ):
            dna_probe.export(vit, tmp_path / "a.onnx")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(DnaProbeError, match=r"vit\.onnx needs onnxruntime\. .*pip install 'dna-probe\[onnx\]'"):
            ExportedDetector.open(onnx_file[0])

    def test_texts_and_other_devices(self, vit, tmp_path, monkeypatch):
        monkeypatch.setattr(type(vit), "modality", property(lambda self: "text"))
        with pytest.raises(DnaProbeError, match=r"takes texts, and only detectors of images are exported"):
            dna_probe.export(vit, tmp_path / "a.onnx")
        monkeypatch.undo()
        monkeypatch.setattr(type(vit.backbone), "device", torch.device("cuda:0"))
        with pytest.raises(DnaProbeError, match=r"lies on cuda:0\. .* Load it with device='cpu'"):
            dna_probe.export(vit, tmp_path / "a.onnx")

    def test_nothing_to_compare_with(self, vit, place, at_hand, odd):
        at_hand()
        with pytest.raises(
            DataError, match=r"No image to compare with could be read in .*cut\.jpg\. First: .* truncated"
        ):
            dna_probe.export(vit, place / "none.onnx", agree=str(odd[0][-4]))


class TestOpening:
    def test_what_is_not_there_or_has_another_name(self, tmp_path):
        for name in ("gone.onnx", "gone.pt2"):
            with pytest.raises(ArtefactError, match=rf"There is no file .*{name}\. Give the file that 'export' wrote"):
                open_detector(tmp_path / name)
        with pytest.raises(ArtefactError, match="is not a detector"):
            open_detector(tmp_path)
        (tmp_path / "a.bin").write_bytes(b"x")
        with pytest.raises(ArtefactError, match=r"is no exported detector\. Such files end in \.onnx or \.pt2"):
            ExportedDetector.open(tmp_path / "a.bin")

    @pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
    @pytest.mark.parametrize("content", [b"", b"no graph", b"PK\x03\x04" + bytes(90)], ids=["empty", "text", "zip"])
    def test_damaged(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=rf"{name} is damaged.* Copy or export it again"):
            open_detector(tmp_path / name)

    def test_cut_in_half(self, tmp_path, onnx_file):
        content = onnx_file[0].read_bytes()
        (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])
        with pytest.raises(ArtefactError, match=r"half\.onnx is damaged"):
            open_detector(tmp_path / "half.onnx")

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda metadata: None, r"is no detector of dna_probe\. It says nothing of units or threshold"),
            (lambda metadata: "{", "is damaged"),
            (lambda metadata: json.dumps(metadata | {"schema": "other/1"}), "is damaged. Its metadata have another"),
            (
                lambda metadata: json.dumps(metadata | {"schema": "dna_probe.exported/9"}),
                r"was written by a newer dna_probe\. Its schema is 9, this version reads up to 1\. Upgrade dna-probe",
            ),
            (
                lambda metadata: json.dumps({"schema": metadata["schema"], "units": []}),
                r"is damaged\. It lacks backbone, calib",
            ),
            (lambda metadata: json.dumps(metadata | {"calibration": {"steep": 1}}), "is damaged. TypeError"),
            (lambda metadata: json.dumps(metadata | {"schema": "dna_probe.exported/²"}), "is damaged. Its metadata"),
            (lambda metadata: edited(metadata, "calibration", threshold="x"), "is damaged. TypeError"),
            (lambda metadata: edited(metadata, "preprocessing", input_size=["a", 3]), "is damaged. ValueError"),
        ],
        ids=["none", "json", "schema", "newer", "lacks", "wrong", "digit", "threshold", "size"],
    )
    def test_metadata_that_cannot_be_used(self, tmp_path, onnx_file, change, told):
        model = onnx.load(onnx_file[0])
        stored = change(json.loads(model.metadata_props[0].value))
        del model.metadata_props[:]
        if stored is not None:
            model.metadata_props.add(key="dna_probe", value=stored)
        onnx.save(model, tmp_path / "a.onnx")
        with pytest.raises(ArtefactError, match=told):
            open_detector(tmp_path / "a.onnx")

    @pytest.mark.parametrize("hidden", [("a/data/constants/opaque_obj_0", b""), ("a/x_config.json", b"custom_obj_1")])
    def test_a_program_with_pickles_is_refused(self, tmp_path, hidden):
        with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
            archive.writestr(*hidden)
        with pytest.raises(ArtefactError, match=r"holds Python objects\. Opening them could run any code"):
            open_detector(tmp_path / "a.pt2")

    def test_how_it_is_run(self, capsys, exported, onnx_file, odd, tmp_path):
        with pytest.raises(DataError, match="batch_size must be at least 1, not 0"):
            exported.judge([odd[0][0]], Options(batch_size=0))
        with pytest.raises(DataError, match=r"takes images, not texts"):
            exported.judge(ImageSet(("a text",), [0], modality="text"))
        assert exported.judge(path for path in odd[0][9:11]) == exported.judge(odd[0][9:11])
        status, _, told = run(capsys, "predict", onnx_file[0], odd[0][0], "--cache", tmp_path)
        assert status == 2 and "has no features to keep. It is exported. Leave out --cache" in told

    def test_a_file_takes_neither_weights_nor_device(self, onnx_file):
        with pytest.raises(DnaProbeError, match="brings its weights along"):
            open_detector(onnx_file[0], weights="w.pth")
        with pytest.raises(DnaProbeError, match="runs on the CPU, not on cuda"):
            open_detector(onnx_file[0], device="cuda")
        assert isinstance(open_detector(onnx_file[0], device="cpu"), ExportedDetector)
