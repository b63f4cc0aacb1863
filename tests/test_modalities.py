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
from dna_probe.evaluation.examination import evaluate
from dna_probe.evaluation.metrics import auc
from dna_probe.fitting import real_images
from dna_probe.gradients import collect_gradients
from dna_probe.images.views import Equalisation
from dna_probe.location import layer_reading
from dna_probe.samples import read_samples
from dna_probe.scoring import reference_head
from dna_probe.selectivity import measure_selectivity
from dna_probe.stability import measure_stability
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


@pytest.fixture(scope="module")
def reader_of_texts(bert):
    return dna_probe.fit(bert, tiny.texts(12))


@pytest.fixture(scope="module")
def listener():
    return dna_probe.fit(
        open_backbone(tiny.ast(), preprocessing=AudioPreprocessing(tiny.ast_extractor(), 1.0)), tiny.sounds(8)
    )


def test_gradients_come_in_the_order_of_the_set(bert):
    """Texts of equal length go through together, so that the order of the batches is another."""
    samples, readings = read_samples(tiny.texts(8)), [layer_reading(site) for site in bert.layers]
    plain = collect_features(bert, samples, readings)
    head = reference_head(plain, readings[-1])
    features, _ = collect_gradients(bert, samples, readings[:2], head, Options(batch_size=8))
    assert features.images.names == samples.names and features.images.labels.tolist() == samples.labels.tolist()
    for reading in readings[:2]:
        np.testing.assert_allclose(features.values[reading.name], plain.values[reading.name], atol=1e-5)


class TestJudge:
    def test_failures_go_by_the_names_of_the_set(self, listener, tmp_path):
        good, silent = tiny.sounds(1)[0][0], np.zeros(16_000, np.float32)
        first, second = listener.judge([good, silent])
        assert first.error is None and (second.path, second.error) == ("recordings[1]", "silent")
        samples, readings = read_samples(([good, silent], [0, 1])), [layer_reading(listener.backbone.layers[0])]
        for _ in range(2):
            found = collect_features(listener.backbone, samples, readings, options=Options(cache=tmp_path))
            assert found.images.skipped == (("recordings[1]", "silent"),)

    def test_a_pair_is_one_recording(self, listener):
        sound = tiny.sounds(1)[0][0]
        one = listener.predict_proba((sound, 16_000))
        assert one.shape == (1, 2)
        np.testing.assert_array_equal(one, listener.predict_proba([(sound, 16_000)]))
        assert listener.predict_proba((sound, sound)).shape == (2, 2)

    def test_a_long_text_is_no_path(self, reader_of_texts):
        assert reader_of_texts.predict_proba("the quick brown fox " * 2000).shape == (1, 2)

    def test_names_of_files_are_no_texts(self, reader_of_texts, tmp_path):
        table = tmp_path / "texts.csv"
        table.write_text("text\nthe quick fox\nseven grey geese\n")
        for given in (str(table), table, tmp_path):
            assert reader_of_texts.predict_proba(given).shape == (2, 2)
        missing, listed, text = reader_of_texts.judge(["missing.txt", str(table), "Look at notes.txt"])
        assert missing.error == "no such file" and listed.error == "a table of texts, not one text"
        assert text.error is None


class TestMoreReals:
    def test_a_string_alone_is_a_place(self, tmp_path):
        (tmp_path / "a.txt").write_text("the fox")
        for given in (str(tmp_path), str(tmp_path / "*.txt"), [str(tmp_path / "*.txt")], tmp_path / "a.txt"):
            assert real_images(given, "text").names == (str(tmp_path / "a.txt"),)
        with pytest.raises(DataError, match="No such file or folder: rael"):
            real_images("rael", "text")
        with pytest.raises(DataError, match="No texts match"):
            real_images(str(tmp_path / "*.md"), "text")
        assert real_images(["the fox", "a moon"], "text").names == ("texts[0]", "texts[1]")

    def test_a_pair_is_one_recording(self):
        sound = tiny.sounds(1)[0][0]
        assert len(real_images((sound, 16_000), "audio")) == 1 and len(real_images([sound, sound], "audio")) == 2


class TestChecks:
    def test_masking(self, reader_of_texts):
        texts = tiny.texts(12, seed=1)
        found = dna_probe.verify(reader_of_texts, texts, interventions=("mean",), draws=4, max_images=4)
        assert found.images == 24 and found.network_images == 4 and found.verdicts

    def test_stability(self, bert):
        texts, labels = tiny.texts(9)
        found = measure_stability(bert, ([*texts, " "], [*labels, 1]), shots=(3,), draws=2)
        assert found.fits == 2 and found.skipped == (("texts[18]", "no text: nothing but white space"),)
        assert found.provenance["settings"]["views"] == ()
        with pytest.raises(DataError, match=r"Views \(blur\) cannot be had of texts"):
            measure_stability(bert, tiny.texts(3), views=("blur",))

    def test_what_there_is_of_images_alone(self, reader_of_texts, tmp_path):
        texts = read_samples(tiny.texts(6))
        with pytest.raises(DataError, match="Selectivity is of images, and texts in memory holds texts"):
            measure_selectivity(reader_of_texts, texts)
        with pytest.raises(DataError, match="The audit is of images, and what was given holds texts"):
            dna_probe.audit(tiny.texts(6))
        with pytest.raises(DataError, match="Equalising cannot be had of texts"):
            evaluate(reader_of_texts, texts, equalisation=Equalisation())

    def test_messages_name_what_there_is(self, bert, listener):
        with pytest.raises(DataError, match=r"holds no fake texts.*arrange them as human/ and machine/"):
            dna_probe.fit(bert, (["the fox", "a moon"], [0, 0]))
        with pytest.raises(DataError, match=r"9 texts of each class were asked for.*or add texts"):
            dna_probe.fit(bert, tiny.texts(3), shots=9)
        with pytest.raises(DataError, match="None of the 1 recordings of the recordings given could be read"):
            listener.predict_proba(np.zeros(16_000, np.float32))
        with pytest.raises(DataError, match="1 of 2 recordings cannot be read"):
            listener.predict_proba([np.zeros(16_000, np.float32), tiny.sounds(1)[0][0]])


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
        assert "No recordings in" in capsys.readouterr().err
        quick = ["--draws", "4", "--max-images", "4", "--interventions", "mean", "--shots", "3", "--refits", "2"]
        assert main(["verify", out, data, "--modality", "text", "--out", f"{out}3", *quick]) == 0
        assert "selectivity was left out: Selectivity is of images" in " ".join(capsys.readouterr().err.split())
        assert {"verification.json", "stability.json"} <= {path.name for path in (tmp_path / "detector3").iterdir()}
        for command in (["audit", data], ["manifest", data, "--out", f"{out}.csv"]):
            assert main(command) == 2
            assert f" is of images, and {data} holds texts" in capsys.readouterr().err

    def test_as_much_is_read_as_when_it_was_fitted(self, factory, tmp_path):
        named = open_backbone(f"{factory}:bert")
        short = open_backbone(named, preprocessing=TextPreprocessing(tiny.tokeniser(), max_length=12))
        fitted = dna_probe.fit(short, tiny.texts(8))
        fitted.save(tmp_path / "detector")
        again = dna_probe.load(tmp_path / "detector")
        assert again.backbone.preprocessing.max_length == 12 and again.backbone.spec == f"{factory}:bert"
        texts = tiny.texts(3, seed=1)[0]
        np.testing.assert_array_equal(again.predict_proba(texts), fitted.predict_proba(texts))
        with pytest.raises(ArtefactError, match="fitted with another preprocessing"):
            dna_probe.load(tmp_path / "detector", model=named)

    def test_sounds(self, factory, tmp_path, capsys):
        import soundfile

        sounds, labels = tiny.sounds(8)
        for number, (sound, label) in enumerate(zip(sounds, labels, strict=True)):
            place = tmp_path / "sounds" / ("fake/hum" if label else "real")
            place.mkdir(parents=True, exist_ok=True)
            soundfile.write(place / f"{number}.{('wav', 'flac', 'ogg')[number % 3]}", sound, 16_000)
        data, out, model = str(tmp_path / "sounds"), str(tmp_path / "detector"), f"{factory}:ast"
        assert main(["locate", data, "--backbone", model]) == 0
        assert "8 real and 8 fake recordings" in capsys.readouterr().out
        assert main(["fit", data, "--backbone", model, "--out", out, "--quiet"]) == 0
        assert main(["predict", out, data]) == 0
        assert "16 recordings" in capsys.readouterr().out
