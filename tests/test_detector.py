import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dna_probe
from dna_probe import detector as detector_module
from dna_probe.anchor import AnchorClassifier
from dna_probe.backbones import open_backbone
from dna_probe.collection import Features, collect_features
from dna_probe.errors import ArtefactError, DataError, DnaProbeError, NumericalError
from dna_probe.evaluation.demonstration import demonstrate
from dna_probe.evaluation.metrics import auc, auc_interval
from dna_probe.fitting import HASH_DIGITS, DnaSettings, fit_units, real_images, stack
from dna_probe.images.processed import DEFAULT_VIEWS
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.images.views import Equalisation
from dna_probe.scoring import readings_of

from .planted import Planted, images

LAYER = "blocks.3.hook_resid_post"


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def fitted(backbone):
    return dna_probe.fit(backbone, images(30))


@pytest.fixture(scope="module")
def fresh():
    return images(40, seed=7)


@pytest.fixture
def folder(tmp_path):
    pictures, labels = images(6)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        place = tmp_path / "data" / ("fake/checkerboard" if label else "real")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    return tmp_path / "data"


class TestFit:
    def test_it_detects_on_new_images(self, fitted, fresh):
        pictures, labels = fresh
        probability = fitted.predict_proba(pictures)
        assert probability.shape == (80, 2) and np.allclose(probability.sum(1), 1)
        assert auc(labels, probability[:, 1]) > 0.97
        assert (fitted.predict(pictures) == labels).mean() > 0.85

    def test_a_generator_is_many_images(self, fitted):
        pictures = images(2)[0]
        assert fitted.judge(picture for picture in pictures) == fitted.judge(pictures)

    def test_it_follows_scikit_learn(self, fitted):
        assert fitted.classes_.tolist() == [0, 1] and fitted.random_state == 0
        assert fitted.get_support().sum() == len(fitted.units) == len(fitted.get_feature_names_out())
        assert fitted.get_support(indices=True).dtype.kind == "i"
        assert "Detector on Planted" in repr(fitted)

    def test_same_seed_same_detector(self, backbone):
        a, b = (dna_probe.fit(backbone, images(15), shots=10, seed=4) for _ in range(2))
        assert a.units == b.units and a.anchor.to_json() == b.anchor.to_json()

    def test_one_shot_works_and_is_marked_uncalibrated(self, backbone):
        detector = dna_probe.fit(backbone, images(15), shots=1)
        assert not detector.anchor.calibrated_ and detector.out_of_fold_auc is None
        assert detector.predict(images(2)[0]).shape == (4,)

    @pytest.mark.parametrize("kinds", [("cls",), ("mean",), ("mlp",), ("cls", "mean", "mlp_mean")])
    def test_unit_kinds(self, kinds, backbone, fresh):
        detector = dna_probe.fit(backbone, images(30), kinds=kinds)
        assert auc(fresh[1], detector.predict_proba(fresh[0])[:, 1]) > 0.9

    def test_shuffled_labels_give_no_detector_worth_having(self, backbone, fresh):
        pictures, labels = images(30)
        shuffled = np.random.default_rng(0).permutation(labels)
        detector = dna_probe.fit(backbone, (pictures, shuffled))
        assert detector.out_of_fold_auc < 0.75
        unsure = [p.verdict == "unsure" for p in detector.judge(fresh[0])]
        assert np.mean(unsure) > 0.4

    def test_selection_is_not_judged_on_its_own_images(self, backbone, rng):
        """With many units and random labels the cross-fitted AUC must stay near one half."""
        pictures = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(60)]
        found = [
            dna_probe.fit(backbone, (pictures, rng.permutation(np.repeat([0, 1], 30)))).out_of_fold_auc
            for _ in range(3)
        ]
        assert abs(np.mean(found) - 0.5) < 0.15

    def test_more_shots_than_images(self, backbone):
        with pytest.raises(
            DataError, match=r"50 images of each class were asked for, but .* holds 15 real and 15 fake"
        ):
            dna_probe.fit(backbone, images(15), shots=50)

    def test_empty_choice_of_layers(self, backbone):
        with pytest.raises(DnaProbeError, match=r"No layer was taken"):
            dna_probe.fit(backbone, images(15), layers=[])

    def test_nothing_passes_the_cut(self, backbone, rng):
        pictures = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(40)]
        with pytest.raises(DnaProbeError, match=r"No unit is left: no unit differs"):
            dna_probe.fit(backbone, (pictures, np.tile([0, 1], 20)), cut="fdr", alpha=1e-6)

    def test_nan_weights(self):
        import torch

        model = Planted()
        with torch.no_grad():
            model.blocks[3].mlp[0].weight[0, 0] = float("nan")
        with pytest.raises(NumericalError, match=r"activation values at blocks.3.* are NaN or infinite"):
            dna_probe.fit(model, images(5))

    def test_unreadable_images_are_skipped_and_listed(self, backbone, folder):
        (folder / "real" / "bad.png").write_bytes(b"not an image")
        detector = dna_probe.fit(backbone, folder)
        assert [name.endswith("bad.png") for name, _ in detector.skipped] == [True]

    def test_a_compiled_model_is_unwrapped(self, fitted, fresh):
        import torch

        compiled = torch.compile(fitted.backbone.module)
        again = dna_probe.fit(compiled, images(30))
        assert again.units == fitted.units


class TestViews:
    def test_none_is_reproducible_and_not_the_default(self, backbone, fitted):
        a, b = (dna_probe.fit(backbone, images(15), views=(), seed=4) for _ in range(2))
        assert a.units == b.units and a.anchor.to_json() == b.anchor.to_json()
        assert a.provenance["views"] == [] and fitted.provenance["views"] == list(DEFAULT_VIEWS)
        assert a.anchor.to_json() != dna_probe.fit(backbone, images(15), seed=4).anchor.to_json()

    def test_they_are_no_images_of_their_own(self, backbone):
        """Neither counted nor calibrated on: with 10 reals no rate below 1 in 11 can be set."""
        detector = dna_probe.fit(backbone, images(10), views=("blur", "jpeg"), layers=[LAYER], target_fpr=1 / 11)
        assert detector.provenance["images"] == {"real": 10, "fake": 10}
        assert len(detector.provenance["image_hashes"]) == 20
        with pytest.raises(DataError, match="there are 10"):
            dna_probe.fit(backbone, images(10), views=("blur", "jpeg"), layers=[LAYER], target_fpr=1 / 12)

    def test_an_unknown_one_is_refused_before_any_forward_pass(self, backbone):
        ran = []
        handle = backbone.module.register_forward_hook(lambda *a: ran.append(1))
        with pytest.raises(DnaProbeError, match=r"Unknown view 'blurr'\. Did you mean 'blur'"):
            dna_probe.fit(backbone, images(5), views=("blur", "blurr"))
        handle.remove()
        assert not ran

    def test_an_image_that_a_view_cannot_show_is_left_out_and_listed(self, backbone):
        pictures, labels = images(6)
        small = np.zeros((9, 9, 3), np.uint8)
        detector = dna_probe.fit(backbone, ([small, *pictures], [0, *labels]), layers=[LAYER], views=("crop",))
        assert detector.provenance["images"] == {"real": 6, "fake": 6}
        assert [name for name, _ in detector.skipped] == ["images[0]"]

    def test_an_image_and_its_views_share_name_group_and_fold(self, rng):
        data = dna_probe.read_images(images(3))
        parts = [Features(data, {"r": rng.normal(size=(6, 2)), str(i): np.zeros((6, 1))}, {}) for i in range(3)]
        rows = stack(parts[0], parts[1:])
        assert rows.images.names == data.names * 3 and rows.images.groups == data.groups * 3
        assert rows.images.labels.tolist() == data.labels.tolist() * 3
        assert list(rows.values) == ["r"], "a reading that some view lacks is left out"
        np.testing.assert_array_equal(rows.values["r"], np.concatenate([part.values["r"] for part in parts]))
        alone = stack(parts[0], [])
        assert alone.images.names == data.names and len(alone.values["r"]) == 6


class TestMoreReals:
    @pytest.fixture(scope="class")
    @classmethod
    def reals(cls):
        return images(20, seed=11)[0][:20]

    def test_they_join_the_shots_and_are_counted(self, backbone, reals, fresh):
        plain = dna_probe.fit(backbone, images(15), shots=8, layers=[LAYER])
        detector = dna_probe.fit(backbone, images(15), shots=8, layers=[LAYER], reals=reals)
        assert plain.provenance["images"] == {"real": 8, "fake": 8}
        assert detector.provenance["images"] == {"real": 28, "fake": 8} and detector.provenance["shots"] == 8
        assert set(plain.provenance["image_hashes"]) < set(detector.provenance["image_hashes"])
        assert auc(fresh[1], detector.predict_proba(fresh[0])[:, 1]) > 0.9

    def test_they_count_for_the_operating_point(self, backbone, reals):
        with pytest.raises(DataError, match="needs at least 19 real training samples, and there are 8"):
            dna_probe.fit(backbone, images(8), layers=[LAYER], target_fpr=0.05)
        assert dna_probe.fit(backbone, images(8), layers=[LAYER], target_fpr=0.05, reals=reals).anchor.calibrated_

    def test_they_are_equalised_as_the_others_are(self, backbone, reals):
        treatment = Equalisation(32, 32, 90)
        detector = dna_probe.fit(backbone, images(4), layers=[LAYER], reals=reals, equalisation=treatment)
        treated = {content_hash(EncodedImage("", treatment(real)))[:HASH_DIGITS] for real in reals}
        assert treated <= set(detector.provenance["image_hashes"])

    def test_one_that_cannot_be_read_is_skipped_and_listed(self, backbone, folder):
        (folder / "real" / "bad.png").write_bytes(b"not an image")
        detector = dna_probe.fit(backbone, images(5), layers=[LAYER], reals=folder / "real")
        assert detector.provenance["images"] == {"real": 11, "fake": 5}
        assert [Path(name).name for name, _ in detector.skipped] == ["bad.png"]

    def test_a_folder_files_and_patterns_are_the_same_images(self, folder):
        real = folder / "real"
        found = [
            real_images(given)
            for given in (real, str(real), [real], sorted(real.iterdir()), f"{real}/*.png", [f"{real}/*.png"])
        ]
        assert {one.fingerprint() for one in found} == {found[0].fingerprint()}
        assert len(found[0]) == 6 and not found[0].labels.any() and set(found[0].generators) == {"real"}

    def test_each_is_a_group_of_its_own_that_no_other_set_has(self, reals):
        data, more = dna_probe.read_images(images(20)), real_images(reals)
        assert len(more) == len(set(more.groups)) == 20 and not set(more.groups) & set(data.groups)
        assert len(real_images(reals[0])) == len(real_images((Image.fromarray(reals[0]),))) == 1

    def test_a_set_keeps_its_groups(self, reals):
        given = ImageSet(tuple(reals), np.zeros(20), groups=("same photographer",) * 20)
        assert real_images(given).groups == given.groups

    def test_of_a_labelled_set_the_real_ones_are_taken_and_of_an_unlabelled_one_all(self, reals):
        mixed = real_images(ImageSet(tuple(reals), [0, 1] * 10))
        assert len(mixed) == 10 and not mixed.labels.any()
        unknown = real_images(ImageSet(tuple(reals), [-1] * 20))
        assert len(unknown) == 20 and not unknown.labels.any() and set(unknown.generators) == {"real"}

    def test_what_is_trained_on_already_does_not_join_again(self, backbone):
        data = images(10)
        again = dna_probe.fit(backbone, data, layers=[LAYER], reals=data[0][:10])
        assert again.provenance["images"] == {"real": 10, "fake": 10}

    def test_where_there_is_nothing_it_is_named(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for given, told in (
            (tmp_path / "empty", "No images in .*empty"),
            (tmp_path / "gone", "No such file or folder: .*gone"),
            ([], "No images were given"),
        ):
            with pytest.raises(DataError, match=told):
                real_images(given)


class TestFitUnits:
    @pytest.mark.parametrize("classifier", ["whitened", "logistic"])
    def test_without_calibration_units_and_decision_are_the_same(self, classifier, backbone):
        data = dna_probe.read_images(images(12))
        readings = readings_of(backbone, [LAYER], ("cls", "mean"))
        features = collect_features(backbone, data, readings)
        settings = DnaSettings(classifier=classifier, views=())
        with_it, without = (
            fit_units(features, readings, None, AnchorClassifier(classifier), settings, calibrate=calibrate)
            for calibrate in (True, False)
        )
        values = features.of(readings)[:, with_it.unit_set.mask]
        assert with_it.unit_set.units == without.unit_set.units
        np.testing.assert_array_equal(
            with_it.anchor.decision_function(values), without.anchor.decision_function(values)
        )
        assert with_it.anchor.calibrated_ and with_it.out_of_fold_auc is not None
        assert not without.anchor.calibrated_ and without.out_of_fold_auc is None


class TestJudge:
    def test_order_is_kept_and_failures_keep_their_place(self, fitted, folder):
        bad = folder / "broken.jpg"
        bad.write_bytes(b"")
        paths = [folder / "real" / "0.png", bad, folder / "fake" / "checkerboard" / "6.png"]
        judged = fitted.judge(paths)
        assert [p.path for p in judged] == [str(p) for p in paths]
        assert judged[1].error and judged[1].verdict is None
        assert judged[0].verdict in ("real", "unsure") and judged[2].verdict in ("fake", "unsure")
        assert set(judged[1].to_json()) == {"path", "error"}
        assert set(judged[0].to_json()) == {"path", "probability", "verdict", "threshold"}

    def test_only_failures(self, fitted, tmp_path):
        bad = tmp_path / "broken.jpg"
        bad.write_bytes(b"xx")
        (judged,) = fitted.judge([bad])
        assert judged.error

    def test_predict_proba_refuses_with_the_name(self, fitted, tmp_path):
        bad = tmp_path / "broken.jpg"
        bad.write_bytes(b"xx")
        with pytest.raises(DataError, match=r"broken.jpg"):
            fitted.predict_proba([bad])

    def test_batches_do_not_change_the_answer(self, fitted, fresh):
        pictures, _ = fresh
        one = fitted.predict_proba(pictures, dna_probe.Options(batch_size=1, workers=0))
        many = fitted.predict_proba(pictures, dna_probe.Options(batch_size=7))
        assert np.allclose(one, many, atol=1e-5)

    def test_one_image_in_several_forms(self, fitted):
        import torch

        picture = images(1)[0][1]
        forms = [picture, Image.fromarray(picture), torch.from_numpy(picture).permute(2, 0, 1)]
        answers = [fitted.predict_proba([form])[0, 1] for form in forms]
        assert np.allclose(answers, answers[0], atol=1e-5)
        assert np.isclose(fitted.predict_proba(Image.fromarray(picture))[0, 1], answers[0], atol=1e-5)

    def test_the_forward_stops_at_the_deepest_unit(self, backbone):
        detector = dna_probe.fit(backbone, images(10), layers=["blocks.2.hook_resid_post"])
        ran = []
        handles = [b.register_forward_hook(lambda *a, i=i: ran.append(i)) for i, b in enumerate(backbone.module.blocks)]
        detector.predict_proba(images(1)[0])
        for handle in handles:
            handle.remove()
        assert set(ran) == {0, 1, 2} and detector.deepest_layer == 2


class TestCache:
    def test_a_second_fit_runs_no_forward(self, backbone, tmp_path):
        options = dna_probe.Options(cache=tmp_path)
        data = dna_probe.read_images(images(15))
        first = dna_probe.fit(backbone, data, options=options)
        ran = []
        handle = backbone.module.embed.register_forward_hook(lambda *a: ran.append(1))
        second = dna_probe.fit(backbone, data, options=options)
        handle.remove()
        assert not ran and second.units == first.units
        assert np.allclose(
            second.anchor.decision_function(np.zeros((1, len(first.units)))),
            first.anchor.decision_function(np.zeros((1, len(first.units)))),
        )

    def test_a_damaged_shard_is_computed_again(self, backbone, tmp_path):
        options = dna_probe.Options(cache=tmp_path)
        data = dna_probe.read_images(images(15))
        first = dna_probe.fit(backbone, data, options=options)
        for shard in tmp_path.rglob("*.safetensors"):
            shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        assert dna_probe.fit(backbone, data, options=options).units == first.units


class TestArtefact:
    @pytest.fixture
    def saved(self, tmp_path, backbone):
        factory = tmp_path / "factory.py"
        shutil.copy(__file__.replace("test_detector", "planted"), factory)
        detector = dna_probe.fit(open_backbone(f"{factory}:Planted"), images(30))
        detector.save(tmp_path / "detector")
        return detector, tmp_path / "detector", factory

    def test_loaded_equals_saved(self, saved, fresh):
        detector, folder, _ = saved
        again = dna_probe.load(folder)
        assert np.array_equal(again.predict_proba(fresh[0]), detector.predict_proba(fresh[0]))
        assert again.units == detector.units and again.layers.selected == detector.layers.selected
        assert np.array_equal(again.get_support(), detector.get_support())
        assert sorted(p.name for p in folder.iterdir()) == [
            "arrays.safetensors",
            "layers.json",
            "manifest.json",
            "scores.json",
        ]

    def test_other_weights_are_refused(self, saved):
        _, folder, factory = saved
        factory.write_text(factory.read_text().replace("seed: int = 0", "seed: int = 1"))
        with pytest.raises(ArtefactError, match=r"weights of .* are not those that"):
            dna_probe.load(folder)

    def test_damage_is_named(self, saved):
        _, folder, _ = saved
        content = (folder / "arrays.safetensors").read_bytes()
        (folder / "arrays.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtefactError, match=r"arrays.safetensors is damaged. Its SHA-256"):
            dna_probe.load(folder)
        (folder / "arrays.safetensors").unlink()
        with pytest.raises(ArtefactError, match=r"no readable arrays.safetensors"):
            dna_probe.load(folder)
        (folder / "manifest.json").write_text("{")
        with pytest.raises(ArtefactError, match=r"manifest.json is damaged"):
            dna_probe.load(folder)

    def test_newer_schema_and_foreign_folder(self, saved, tmp_path):
        _, folder, _ = saved
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": "dna_probe.detector/99"}))
        with pytest.raises(ArtefactError, match=r"written by a newer dna_probe"):
            dna_probe.load(folder)
        (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": "other/1"}))
        with pytest.raises(ArtefactError, match=r"is not a detector"):
            dna_probe.load(folder)
        with pytest.raises(ArtefactError, match=r"is not a detector"):
            dna_probe.load(tmp_path)

    def test_incomplete_manifest(self, saved):
        _, folder, _ = saved
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["units"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtefactError, match=r"It lacks units"):
            dna_probe.load(folder)

    def test_model_objects_must_be_given_again(self, fitted, tmp_path, fresh):
        fitted.save(tmp_path / "d")
        with pytest.raises(ArtefactError, match=r"Pass it: dna_probe.load"):
            dna_probe.load(tmp_path / "d")
        again = dna_probe.load(tmp_path / "d", model=Planted())
        assert np.array_equal(again.predict_proba(fresh[0]), fitted.predict_proba(fresh[0]))

    def test_a_timm_model_object_is_rebuilt_by_its_name(self, tmp_path, monkeypatch):
        from dna_probe.backbones import timm as timm_backbones

        def build(name, **settings):
            return timm_backbones.build_random(name.partition(".")[0])

        monkeypatch.setattr("dna_probe.backbones.download.build_pretrained", build)
        model = build("vit_tiny_patch16_224")
        pictures = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(6)]
        detector = dna_probe.fit(model, (pictures, [0, 1] * 3), layers=["blocks.0.hook_resid_post"], scorer="cohens_d")
        detector.save(tmp_path / "d")
        assert dna_probe.load(tmp_path / "d").units == detector.units

    def test_a_full_folder_is_not_touched(self, fitted, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "mine.txt").write_text("precious")
        with pytest.raises(ArtefactError, match=r"is not empty"):
            fitted.save(tmp_path / "d")
        assert (tmp_path / "d" / "mine.txt").read_text() == "precious"
        fitted.save(tmp_path / "d", overwrite=True)
        assert (tmp_path / "d" / "manifest.json").exists() and not (tmp_path / "d" / "mine.txt").exists()

    @pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_full_disk_or_interrupt_leaves_what_was_there(self, failure, fitted, tmp_path, monkeypatch):
        fitted.save(tmp_path / "d")
        before = {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()}

        def fail(*args, **kwargs):
            raise failure

        monkeypatch.setattr("pathlib.Path.write_bytes", fail)
        with pytest.raises((ArtefactError, KeyboardInterrupt)) as caught:
            fitted.save(tmp_path / "d", overwrite=True)
        monkeypatch.undo()
        if isinstance(failure, OSError):
            assert "No space left on device" in str(caught.value) and "nothing that was there has changed" in str(
                caught.value
            )
        assert {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()} == before
        assert [p.name for p in tmp_path.iterdir()] == ["d"]

    def test_no_pickle_anywhere(self, saved):
        _, folder, _ = saved
        assert not any(b"\x80\x04" in p.read_bytes()[:2] for p in folder.iterdir())
        assert "pickle" not in Path(detector_module.__file__).read_text().replace("without pickle", "")


class TestControls:
    def test_random_units_are_worse_than_the_planted_ones(self, backbone, fresh):
        names = {"layers": ["blocks.3.hook_resid_post"], "scorer": "triadic", "kinds": ("cls",), "views": ()}
        detector = dna_probe.fit(backbone, images(30), **names, cut="top_k", k=6)
        result = demonstrate(detector, dna_probe.read_images(images(30)), dna_probe.read_images(fresh))
        found = {row["method"]: row["auc"] for row in result["results"]}
        assert found["detector"] > found["random units"] + 0.05

    def test_the_detector_is_measured_as_it_predicts(self, fitted, fresh):
        result = demonstrate(fitted, dna_probe.read_images(images(30)), dna_probe.read_images(fresh))
        found = {row["method"]: row["auc"] for row in result["results"]}
        assert found["detector"] == pytest.approx(auc(fresh[1], fitted.predict_proba(fresh[0])[:, 1]))
        assert found["last-layer probe"] > 0.9 and found["thumbnail probe"] < 0.75
        assert result["test"] == {"real": 40, "fake": 40, "photographs": 80}

    def test_auc_interval_covers_and_counts_groups(self, rng):
        labels = np.repeat([0, 1], 50)
        scores = rng.normal(size=100) + labels
        one = auc_interval(labels, scores)
        assert one.low < one.value < one.high and np.isclose(one.value, auc(labels, scores))
        doubled = auc_interval(np.tile(labels, 2), np.tile(scores, 2), np.tile(np.arange(100), 2))
        assert abs((doubled.high - doubled.low) - (one.high - one.low)) < 0.03


@pytest.mark.real
def test_real_backbone_and_images(shared_data):
    """The whole job on real weights: fit on one generator, better than chance on another."""
    data = dna_probe.read_images(shared_data / "images" / "genai5")
    made = np.asarray(data.generators)
    own = data.subset(np.isin(made, ["real", "SDXL_Base"]))
    backbone = open_backbone(f"{shared_data / 'weights' / 'deit_tiny_q3.py'}:build")
    detector = dna_probe.fit(backbone, own, shots=12)
    assert detector.layers.selected and detector.deepest_layer < backbone.depth
    rng = np.random.default_rng(0)
    other = np.concatenate([rng.choice(np.flatnonzero(made == g), 15, replace=False) for g in ("real", "SDXL_Turbo")])
    test = data.subset(other)
    assert auc(test.labels, detector.predict_proba(test)[:, 1]) > 0.6
