"""Texts and sounds through the whole of it, as images go: locate, score, fit, predict, save, load, command line."""

import json

import numpy as np
import pytest

import dna_probe
from dna_probe.audio.preprocessing import AudioPreprocessing
from dna_probe.backbones import open_backbone
from dna_probe.cli import main
from dna_probe.collection import Options, collect_features, collect_moments
from dna_probe.errors import ArtefactError, DataError
from dna_probe.evaluation.metrics import auc
from dna_probe.location import layer_reading
from dna_probe.samples import read_samples
from dna_probe.texts.preprocessing import TextPreprocessing

from . import tiny_language as tiny

MODELS = {
    "bert": (tiny.bert, lambda: TextPreprocessing(tiny.tokeniser()), tiny.texts),
    "gpt": (tiny.gpt, lambda: TextPreprocessing(tiny.bare_tokeniser()), tiny.texts),
    "ast": (tiny.ast, lambda: AudioPreprocessing(tiny.ast_extractor(), 1.0), tiny.sounds),
    "wav2vec2": (tiny.wav2vec2, lambda: AudioPreprocessing(tiny.waveform_extractor(), 1.0), tiny.sounds),
    "hubert": (tiny.hubert, lambda: AudioPreprocessing(tiny.waveform_extractor(), 1.0), tiny.sounds),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(model):
    make, preprocessing, _ = MODELS[model]
    return open_backbone(make(), preprocessing=preprocessing())


@pytest.fixture(scope="module")
def data(model):
    return MODELS[model][2]


@pytest.fixture(scope="module")
def fitted(backbone, data):
    return dna_probe.fit(backbone, data(12))


def test_layers_are_located(backbone, data):
    report = dna_probe.locate_layers(backbone, data(10), resamples=20)
    assert len(report.layers) == 3 and report.selected
    assert all(np.isfinite(curve.value).all() for curve in report.curves.values())
    assert {shape.shape for shape in report.maps["real"]} == {backbone.grid} and backbone.grid[0] == 1
    assert ((report.curves["spread"].value >= 0) & (report.curves["spread"].value <= 1 + 1e-6)).all()


def test_units_are_scored_with_a_gradient(backbone, data):
    scores = dna_probe.score_units(backbone, data(6), layers=[backbone.layers[1].name], scorer="triadic")
    assert len(scores.score) and np.isfinite(scores.score).all() and scores.score.any()


def test_a_detector_tells_what_differs(model, fitted, data):
    samples, labels = data(20, seed=1)
    if model in ("bert", "ast"):
        assert auc(np.array(labels), fitted.predict_proba(samples)[:, 1]) > 0.75
    first = fitted.judge(samples[:3])
    assert [p.path for p in first] == list(read_samples((samples, labels)).names[:3])
    assert fitted.provenance["views"] == []


def test_it_is_saved_and_loaded(fitted, backbone, data, tmp_path):
    samples, _ = data(3, seed=2)
    fitted.save(tmp_path / "detector")
    again = dna_probe.load(tmp_path / "detector", model=backbone)
    np.testing.assert_array_equal(again.predict_proba(samples), fitted.predict_proba(samples))


def test_another_preprocessing_is_told(fitted, backbone, tmp_path):
    fitted.save(tmp_path / "detector")
    reader = backbone.preprocessing
    changed = (
        TextPreprocessing(reader.tokeniser, max_length=12)
        if reader.modality == "text"
        else AudioPreprocessing(reader.extractor, seconds=1.5 if reader.extractor.feature_size == 1 else 2.0)
    )
    with pytest.raises(ArtefactError, match="fitted with another preprocessing"):
        dna_probe.load(tmp_path / "detector", model=open_backbone(backbone.module, preprocessing=changed))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_no_sample_changes_with_those_beside_it(backbone, data, batch_size):
    """Texts are of unequal lengths: a padded batch would change their means."""
    samples = read_samples(data(5))
    readings = [layer_reading(site) for site in backbone.layers]
    alone = collect_features(backbone, samples, readings, options=Options(batch_size=1))
    together = collect_features(backbone, samples, readings, options=Options(batch_size=batch_size))
    for name, values in alone.values.items():
        np.testing.assert_allclose(together.values[name], values, rtol=1e-4, atol=1e-5)
    moments = collect_moments(backbone, samples, readings, Options(batch_size=batch_size))
    for reading in readings:
        mean = alone.values[reading.name][samples.labels == 1].mean(0)
        np.testing.assert_allclose(moments[reading.name].classes[1].mean, mean, rtol=1e-3, atol=1e-4)


def test_the_cache_gives_the_same(backbone, data, tmp_path):
    samples, readings = read_samples(data(4)), [layer_reading(site) for site in backbone.layers]
    runs = [collect_features(backbone, samples, readings, options=Options(cache=tmp_path)) for _ in range(2)]
    for name in runs[0].values:
        np.testing.assert_array_equal(runs[0].values[name], runs[1].values[name])


@pytest.fixture(scope="module")
def bert():
    return open_backbone(tiny.bert(), preprocessing=TextPreprocessing(tiny.tokeniser()))


class TestMistakes:
    def test_samples_of_another_kind(self, bert):
        with pytest.raises(DataError, match="takes texts, and recordings in memory holds recordings"):
            dna_probe.fit(bert, tiny.sounds(3))

    def test_no_built_in_texts(self, bert):
        with pytest.raises(DataError, match="needs labelled samples"):
            dna_probe.locate_layers(bert)

    def test_no_views_of_texts(self, bert):
        with pytest.raises(DataError, match=r"Views \(blur\) cannot be had of texts"):
            dna_probe.fit(bert, tiny.texts(3), views=("blur",))

    def test_an_empty_text_is_told_in_its_place(self, bert):
        detector = dna_probe.fit(bert, tiny.texts(6))
        first, second = detector.judge(["the quick brown fox", "  "])
        assert first.error is None and "texts[1]" in second.path and second.probability is None


FACTORY = """
import sys
sys.path.insert(0, {tests!r})
import tiny_language as tiny
from dna_probe.audio.preprocessing import AudioPreprocessing
from dna_probe.backbones import open_backbone
from dna_probe.texts.preprocessing import TextPreprocessing

def bert():
    return open_backbone(tiny.bert(), preprocessing=TextPreprocessing(tiny.tokeniser()))

def ast():
    return open_backbone(tiny.ast(), preprocessing=AudioPreprocessing(tiny.ast_extractor(), 1.0))
"""


class TestCommands:
    @pytest.fixture
    def factory(self, tmp_path, request):
        path = tmp_path / "models.py"
        path.write_text(FACTORY.format(tests=str(request.path.parent)))
        return path

    def test_texts(self, factory, tmp_path, capsys):
        texts, labels = tiny.texts(12)
        for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
            place = tmp_path / "texts" / ("machine" if label else "human")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.txt").write_text(text)
        data, out, model = str(tmp_path / "texts"), str(tmp_path / "detector"), f"{factory}:bert"
        assert main(["locate", data, "--backbone", model, "--quiet", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["layers"]) == 3
        assert main(["fit", data, "--backbone", model, "--shots", "10", "--out", out]) == 0
        assert "10 real and 10 fake texts" in capsys.readouterr().out
        assert main(["predict", out, data, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["predictions"]
        assert len(found) == 24 and {p["verdict"] for p in found} <= {"real", "fake", "unsure"}
        assert main(["evaluate", out, data, "--quiet", "--json"]) == 0
        assert main(["fit", data, "--backbone", model, "--modality", "audio", "--out", f"{out}2"]) == 2
        assert "dna-probe:" in capsys.readouterr().err

    def test_sounds(self, factory, tmp_path, capsys):
        import soundfile

        sounds, labels = tiny.sounds(8)
        for number, (sound, label) in enumerate(zip(sounds, labels, strict=True)):
            place = tmp_path / "sounds" / ("fake/hum" if label else "real")
            place.mkdir(parents=True, exist_ok=True)
            soundfile.write(place / f"{number}.{('wav', 'flac', 'ogg')[number % 3]}", sound, 16_000)
        data, out, model = str(tmp_path / "sounds"), str(tmp_path / "detector"), f"{factory}:ast"
        assert main(["fit", data, "--backbone", model, "--out", out, "--quiet"]) == 0
        assert main(["predict", out, data]) == 0
        assert "16 recordings" in capsys.readouterr().out
