"""Autocast and compiled collection: near to the plain one, told how near, and never mixed with it."""

import numpy as np
import pytest
import torch
from PIL import Image

from dna_probe import engines, fit
from dna_probe.activation_shards import collect_activations
from dna_probe.backbones import open_backbone
from dna_probe.cli import main
from dna_probe.collection import Options, collect_features, collect_moments
from dna_probe.compiling import compile_readings
from dna_probe.errors import BackboneError, DnaProbeError
from dna_probe.gradients import collect_gradients
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_units, map_site
from dna_probe.precision import Agreement, compare, measure_agreement
from dna_probe.scoring import reference_head
from dna_probe.sites import Reading

from .planted import Planted, images

LOW = Options(precision="bfloat16", workers=0)


@pytest.fixture(scope="module")
def data():
    return ImageSet(*images(6))


@pytest.fixture
def backbone():
    return open_backbone(Planted(), device="cpu")


@pytest.fixture
def readings(backbone):
    site = backbone.layers[3]
    return [*layer_units(backbone), *(Reading(site, name) for name in ("mean", "max", "std", "top"))]


class TestBfloat16:
    def test_linear_maps_run_in_it_and_readings_come_in_float32(self, backbone, data, readings):
        seen = []
        hook = backbone.module.blocks[2].mlp[0].register_forward_hook(lambda *passed: seen.append(passed[2].dtype))
        low = collect_features(backbone, data, readings, options=LOW)
        hook.remove()
        full = collect_features(backbone, data, readings)
        assert set(seen) == {torch.bfloat16}
        for reading in readings:
            values, expected = low.values[reading.name], full.values[reading.name]
            assert values.dtype == np.float32 and not np.array_equal(values, expected)
            assert np.abs(values - expected).max() < 0.02 * np.abs(expected).max()

    def test_moments_are_those_of_the_features(self, backbone, data, readings):
        moments = collect_moments(backbone, data, readings, LOW)
        low = collect_features(backbone, data, readings, options=LOW)
        for reading in readings:
            expected = low.values[reading.name][data.labels == 1].mean(0, dtype=np.float64)
            np.testing.assert_allclose(moments[reading.name].classes[1].mean, expected, rtol=1e-5, atol=1e-7)

    def test_attention_maps_too(self, data):
        backbone = open_backbone("nano", device="cpu")
        sites = [map_site(backbone, site) for site in backbone.layers]
        low, full = (collect_features(backbone, data, [], sites, options) for options in (LOW, Options()))
        for site in sites:
            map_low, map_full = low.attention[site.name]["map"], full.attention[site.name]["map"]
            assert map_low.dtype == np.float32 and 0 < np.abs(map_low - map_full).max() < 0.05

    def test_gradients_and_what_comes_with_them_stay_in_float32(self, backbone, data, readings):
        head = reference_head(collect_features(backbone, data, readings), readings[-5], 0)
        low, full = (collect_gradients(backbone, data, readings, head, options) for options in (LOW, Options()))
        for reading in readings:
            assert np.array_equal(low[0].values[reading.name], full[0].values[reading.name])
            assert np.array_equal(low[1].mean[reading.name], full[1].mean[reading.name])

    def test_a_cache_keeps_both_apart(self, backbone, data, readings, tmp_path):
        kept = Options(cache=tmp_path, workers=0)
        full = collect_features(backbone, data, readings, options=kept)
        low = collect_features(backbone, data, readings, options=Options(cache=tmp_path, precision="bfloat16"))
        again = collect_features(backbone, data, readings, options=kept)
        name = readings[2].name
        assert not np.array_equal(low.values[name], full.values[name])
        assert np.array_equal(again.values[name], full.values[name])

    def test_raw_activations_say_it(self, backbone, data, tmp_path):
        names = [backbone.layers[2].name]
        full = collect_activations(backbone, data, names, tmp_path / "full")
        low = collect_activations(backbone, data, names, tmp_path / "low", options=LOW)
        assert (full.manifest["precision"], low.manifest["precision"]) == ("float32", "bfloat16")

    def test_weights_in_another_type_are_refused(self, data, readings):
        backbone = open_backbone(Planted().to(torch.bfloat16), device="cpu")
        with pytest.raises(BackboneError, match=r"cannot be run in bfloat16\. Its weights are bfloat16"):
            collect_features(backbone, data, list(layer_units(backbone)), options=LOW)

    def test_a_mistyped_name(self, backbone, data, readings):
        with pytest.raises(DnaProbeError, match=r"Unknown precision 'bfloat61'\. Did you mean 'bfloat16'"):
            collect_features(backbone, data, readings, options=Options(precision="bfloat61"))


class TestAgreement:
    def test_known_tables(self):
        full = np.array([[1.0, 0.0, 5.0, 1.0], [2.0, 1.0, 5.0, 2.0], [3.0, 2.0, 5.0, 3.0]])
        low = np.array([[2.0, 0.0, 5.0, 3.0], [4.0, 1.0, 5.0, 2.0], [6.0, 2.0, 5.0, 1.0]])
        found = compare("bfloat16", low, full)
        assert found == Agreement("bfloat16", 3, 3, pytest.approx(1.0), pytest.approx(-1.0))
        assert str(found).startswith("bfloat16 against float32 on 3 samples: correlation 1.0000 in the median of 3")

    def test_a_unit_that_does_not_vary_any_more(self):
        found = compare("bfloat16", np.array([[1.0, 2.0], [1.0, 4.0]]), np.array([[1.0, 2.0], [1.1, 4.0]]))
        assert (found.units, found.lowest_correlation) == (2, 0.0)

    def test_units_that_never_change(self):
        found = compare("bfloat16", np.ones((2, 3)), np.ones((2, 3)))
        assert found.units == 0 and np.isnan(found.correlation)

    def test_float32_agrees_with_itself(self, backbone, data):
        found = measure_agreement(backbone, data, layer_units(backbone), Options())
        assert found.lowest_correlation == pytest.approx(1) and found.images == len(data)

    def test_a_fit_tells_it_and_its_detector_judges_in_float32(self, data, capsys):
        detector = fit(Planted(), data, scorer="cohens_d", views=(), options=LOW)
        found = Agreement(**detector.provenance["agreement"])
        assert found.images == len(data) and found.units <= len(detector.units)
        assert 0.9 < found.correlation <= 1 and 0 <= found.probability < 0.2
        plain, low = detector.predict_proba(data), detector.predict_proba(data, LOW)
        assert np.abs(plain - low)[:, 1].max() == pytest.approx(found.probability)
        assert "agreement" not in fit(Planted(), data, scorer="cohens_d", views=()).provenance

    @pytest.mark.parametrize("command", ["fit", "locate", "evaluate", "benchmark"])
    def test_commands_print_it(self, command, data, tmp_path, capsys):
        for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / "data" / ("fake/gen" if label else "real") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        arguments = [command, str(tmp_path / "data"), "--backbone", "nano", "--precision", "bfloat16", "--workers", "0"]
        if command == "evaluate":
            fit("nano", data, scorer="cohens_d").save(tmp_path / "detector")
            arguments[1:4] = [str(tmp_path / "detector"), str(tmp_path / "data")]
        if command == "benchmark":
            arguments += ["--shots", "2", "--draws", "1", "--methods", "last-linear", "--jobs", "1"]
        if command in ("fit", "benchmark"):
            arguments += ["--out", str(tmp_path / "out")]
        assert main(arguments) == 0
        assert "bfloat16 against float32 on" in " ".join(capsys.readouterr().out.split())

    def test_the_command_line_names_the_choices(self, capsys):
        assert main(["locate", "--precision", "half"]) == 2
        assert "Unknown precision 'half'. Known: float32, bfloat16" in capsys.readouterr().err


@pytest.fixture
def quick_compiler(monkeypatch):
    """The front end of the compiler without its code generation, which takes a minute."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend="eager"))


@pytest.mark.usefixtures("quick_compiler")
class TestCompiled:
    compiled = Options(compile=True, workers=0, batch_size=5)

    def test_the_same_numbers_whatever_is_left_for_the_last_batch(self, backbone, data, readings, monkeypatch):
        calls = []
        monkeypatch.setattr(type(backbone), "visiting", lambda *_: calls.append(1))
        with pytest.raises(TypeError):
            collect_features(backbone, data, readings)
        monkeypatch.undo()
        found = collect_features(backbone, data, readings, options=self.compiled)
        plain = collect_features(backbone, data, readings)
        for reading in readings:
            np.testing.assert_allclose(found.values[reading.name], plain.values[reading.name], rtol=1e-4, atol=1e-5)

    def test_moments(self, backbone, data, readings):
        found, plain = (collect_moments(backbone, data, readings, o) for o in (self.compiled, Options()))
        for reading in readings:
            one, two = found[reading.name].classes[1], plain[reading.name].classes[1]
            np.testing.assert_allclose(one.mean, two.mean, rtol=1e-4, atol=1e-6)

    def test_compiled_once_for_as_long_as_the_weights_are_the_same(self, backbone, readings):
        first = compile_readings(backbone, readings)
        assert compile_readings(backbone, readings) is first
        with torch.no_grad():
            backbone.module.cls_token.add_(1)
        assert compile_readings(backbone, readings) is not first

    def test_not_in_bfloat16(self, backbone, data, readings, capsys):
        options = Options(compile=True, precision="bfloat16", workers=0)
        with pytest.raises(DnaProbeError, match=r"bfloat16 and compiling exclude each other.*Choose one"):
            collect_moments(backbone, data, readings, options)
        assert main(["fit", "x", "--out", "y", "--compile", "--precision", "bfloat16"]) == 2
        assert "exclude each other" in capsys.readouterr().err

    def test_what_cannot_be_traced_is_told(self, data):
        class Branching(Planted):
            def forward(self, x):
                return super().forward(x if x.sum() > 0 else -x)

        backbone = open_backbone(Branching(), device="cpu")
        with pytest.raises(BackboneError, match=r"cannot be compiled\. It cannot be traced.* Leave compiling out"):
            collect_features(backbone, data, list(layer_units(backbone)), options=self.compiled)


def test_a_compiler_that_fails(backbone, readings, monkeypatch):
    def fail(module):
        def run(pixels):
            raise RuntimeError("no working C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(BackboneError, match=r"cannot be compiled.*no working C\+\+ compiler.*or leave compiling out"):
        compile_readings(backbone, readings)


class TestResumed:
    """Batches stay the same, whatever of a set is known or cannot be read, so that the last bits do."""

    @pytest.fixture
    def batches(self, backbone, monkeypatch):
        monkeypatch.setattr(engines, "SHARD", 4)
        sizes = []
        backbone.module.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        return sizes

    def test_only_whole_shards_are_run_again(self, backbone, batches, data, readings, tmp_path):
        pictures = list(data.images)
        pictures[1], pictures[6] = b"rubbish", pictures[0]
        given, options = ImageSet(tuple(pictures), data.labels), Options(batch_size=2, workers=0, cache=tmp_path)
        # Eleven that differ, one of them unreadable: shards of 4, 4 and 3.
        whole = collect_features(backbone, given, readings, options=options)
        assert batches == [2, 1, 2, 2, 2, 1]
        assert len(whole.images) == 11 and [name for name, _ in whole.images.skipped] == ["images[1]"]
        assert np.array_equal(whole.values[readings[0].name][0], whole.values[readings[0].name][5])
        newest = sorted(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)[1:]
        for path in newest:
            path.unlink()
        batches.clear()
        again = collect_features(backbone, given, readings, options=options)
        assert batches == [2, 2, 2, 1]
        for name, values in whole.values.items():
            assert np.array_equal(values, again.values[name])
        assert again.images.skipped == whole.images.skipped

    def test_copies_of_an_unreadable_image_are_all_told(self, backbone, data, readings, tmp_path):
        given = ImageSet((b"rubbish", data.images[0], b"rubbish"), [0, 1, 1])
        found = collect_features(backbone, given, readings, options=Options(workers=0, cache=tmp_path))
        assert [name for name, _ in found.images.skipped] == ["images[0]", "images[2]"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_batches_sent_ahead_to_cuda_are_those_of_the_cpu(data):
    here, there = (open_backbone(Planted(), device=device) for device in ("cpu", "cuda"))
    found, expected = (
        collect_features(backbone, data, list(layer_units(backbone)), options=Options(batch_size=3))
        for backbone in (there, here)
    )
    for name, values in expected.values.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-3, atol=1e-4)
