"""The harness: every method on a planted-unit model, the same bytes after an interruption, and no way to peek."""

import dataclasses
import filecmp
import json
import re

import numpy as np
import pytest

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.errors import ArtefactError, DataError, DnaProbeError
from dna_probe.evaluation import harness, methods
from dna_probe.evaluation.comparison import compare
from dna_probe.evaluation.harness import benchmark
from dna_probe.evaluation.methods import METHODS, Judgement, Method
from dna_probe.evaluation.outcomes import CellOutcome
from dna_probe.evaluation.preparation import Settings, read_release_dates
from dna_probe.evaluation.protocols import Plan
from dna_probe.evaluation.results import BenchmarkResult, read_results, summarise
from dna_probe.evaluation.run_folder import write_run
from dna_probe.evaluation.training import View
from dna_probe.fitting import DnaSettings
from dna_probe.images.sets import ImageSet

from ..planted import Planted, images

QUICK = ("dna", "last-linear", "random-units")


def make_set(count=24, seed=0, **more) -> ImageSet:
    """Reals and fakes of two generators, the second one fainter; one prompt for both."""
    pictures, labels = images(count, seed)
    fainter, _ = images(count, seed + 1, strength=2.0)
    half = count // 2
    chosen = [*pictures[:count], *pictures[count : count + half], *fainter[count + half :]]
    made = ["real"] * count + ["strong"] * half + ["faint"] * half
    groups = [f"photo {i}" for i in range(count)] + [f"prompt {i}" for i in range(half)] * 2
    return ImageSet(tuple(chosen), labels, tuple(made), tuple(groups), origin="planted", **more)


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def all_methods(backbone, tmp_path_factory):
    settings = Settings(plan=Plan(shots=(1, 5), draws=1))
    return benchmark(backbone, make_set(), settings=settings, state=tmp_path_factory.mktemp("state"))


def quick(**plan) -> Settings:
    return Settings(methods=QUICK, plan=Plan(**{"shots": (4,), "draws": 2} | plan))


class TestAllMethods:
    def test_each_has_a_row_for_every_number_of_shots_seen_and_unseen(self, all_methods):
        rows = {(row["method"], row["shots"], row["seen"]) for row in all_methods.result.summary}
        assert rows == {(name, shots, seen) for name in METHODS for shots in (1, 5) for seen in (False, True)}

    def test_the_planted_units_are_found_and_the_controls_find_less(self, all_methods):
        auc = {
            row["method"]: row["metrics"]["auc"]["value"]
            for row in all_methods.result.summary
            if row["shots"] == 5 and not row["seen"]
        }
        assert auc["dna"] > 0.95
        assert auc["dna"] > auc["random-units"]
        assert auc["dna"] > auc["random-weights"] and auc["dna"] > auc["thumbnail"]

    def test_measures_are_complete_and_finite(self, all_methods):
        for row in all_methods.result.summary:
            metrics = row["metrics"]
            assert metrics["auc"]["low"] <= metrics["auc"]["value"] <= metrics["auc"]["high"]
            calibrated = row["method"] not in ("random-units", "located-layers")
            assert (metrics["ece"]["value"] is not None) == calibrated
            assert (row["difference"] is None) == (row["method"] == "last-linear")

    def test_it_reads_back_equal(self, all_methods, tmp_path):
        write_run(all_methods, tmp_path)
        again = read_results(tmp_path)
        assert again.to_json() == json.loads(json.dumps(all_methods.result.to_json()))
        assert len(again.table()) == len(again.summary)
        for name in ("results.parquet", "images.parquet", "summary.md"):
            assert (tmp_path / name).stat().st_size > 0

    def test_the_audit_of_the_data_is_in_the_result(self, all_methods):
        audit = all_methods.result.info["audit"]
        assert {"metadata_auc", "thumbnail_auc", "verdict", "flags"} <= set(audit)

    def test_a_run_compared_with_itself_does_not_differ(self, all_methods, tmp_path):
        write_run(all_methods, tmp_path)
        found = compare(tmp_path, tmp_path)
        assert len(found.rows) == len(all_methods.result.summary)
        assert all(row["paired"] and row["change"] == 0 and row["low"] == row["high"] == 0 for row in found.rows)
        assert not found.notes


def test_dna_is_what_fit_makes_of_the_same_images(backbone, tmp_path):
    """The numbers of a benchmark are those of the detector that a user gets."""
    data = make_set()
    run = benchmark(backbone, data, settings=quick(draws=1), state=tmp_path)
    outcome = CellOutcome.read(run.outcomes[0])
    cells = harness.plan(run.bench, quick(draws=1))
    detector = dna_probe.fit(backbone, run.bench.images.subset(cells[0].train), seed=cells[0].seed)
    probability = detector.predict_proba(run.bench.images.subset(outcome.test))[:, 1]
    judged = outcome.judged[0, "dna"]
    assert judged.units == len(detector.units) and judged.threshold == detector.threshold
    np.testing.assert_allclose(judged.probability, probability, atol=1e-5)


BESIDE = Plan(shots=(6,), draws=1, train_on="strong")
VARIANT = "dna[scorer=cohens_d,cut=fraction,fraction=0.1,views=]"


@pytest.fixture(scope="module")
def variants(backbone, tmp_path_factory):
    layers = ("located-layers", *(f"layer[{number}]" for number in range(len(backbone.layers))))
    named = ("dna", VARIANT, "dna[views=blur]", "all-units", "ica", "last-linear", *layers)
    settings = Settings(methods=named, plan=BESIDE)
    return benchmark(backbone, make_set(), settings=settings, state=tmp_path_factory.mktemp("variants"))


class TestVariants:
    def first(self, run) -> tuple[CellOutcome, ImageSet, int]:
        """What the first cell said, what it was trained on, and its seed."""
        outcome = CellOutcome.read(run.outcomes[0])
        cell = harness.plan(run.bench, Settings(plan=BESIDE))[0]
        return outcome, run.bench.images.subset(cell.train), cell.seed

    def test_each_has_rows_of_its_own_beside_dna(self, variants):
        assert {row["method"] for row in variants.result.summary} == set(variants.result.info["methods"])
        assert VARIANT in variants.result.info["methods"]
        outcome, _, _ = self.first(variants)
        assert not np.array_equal(outcome.judged[0, VARIANT].scores, outcome.judged[0, "dna"].scores)

    def test_a_variant_is_what_fit_makes_with_its_settings(self, backbone, variants):
        outcome, train, seed = self.first(variants)
        detector = dna_probe.fit(backbone, train, scorer="cohens_d", cut="fraction", fraction=0.1, views=(), seed=seed)
        judged = outcome.judged[0, VARIANT]
        probability = detector.predict_proba(variants.bench.images.subset(outcome.test))[:, 1]
        assert judged.units == len(detector.units) and judged.threshold == detector.threshold
        np.testing.assert_allclose(judged.probability, probability, atol=1e-5)

    def test_a_variant_that_changes_nothing_says_the_same(self, variants):
        outcome, _, _ = self.first(variants)
        np.testing.assert_array_equal(outcome.judged[0, "dna[views=blur]"].scores, outcome.judged[0, "dna"].scores)

    def test_located_layers_are_probed_one_by_one(self, backbone, variants):
        outcome, train, seed = self.first(variants)
        located = dna_probe.locate_layers(backbone, train, seed=seed).selected
        numbers = [i for i, site in enumerate(backbone.layers) if site.name in located]
        each = [outcome.judged[0, f"layer[{number}]"].scores[0] for number in numbers]
        np.testing.assert_array_equal(outcome.judged[0, "located-layers"].scores, each)
        last = outcome.judged[0, f"layer[{len(backbone.layers) - 1}]"]
        np.testing.assert_array_equal(last.scores, outcome.judged[0, "last-linear"].scores)

    def test_all_units_reads_every_unit_of_the_located_layers_and_ica_as_many_components_as_dna_units(
        self, backbone, variants
    ):
        outcome, train, seed = self.first(variants)
        scored = len(dna_probe.fit(backbone, train, seed=seed).unit_set.mask)
        units = {name: outcome.judged[0, name].units for name in ("dna", VARIANT, "all-units", "ica")}
        assert units["all-units"] == scored > units["dna"] >= units["ica"] > 0
        assert units[VARIANT] == pytest.approx(0.1 * scored, abs=1)

    def test_views_are_made_only_where_a_detector_trains_on_them(self, backbone, tmp_path, monkeypatch):
        made, real = [], harness.process

        def recording(images, view, preprocessing):
            made.append(view)
            return real(images, view, preprocessing)

        monkeypatch.setattr(harness, "process", recording)
        plan = Plan(shots=(2,), draws=1, train_on="strong")
        for number, (named, views, expected) in enumerate(
            [
                (("dna", "last-linear"), (), []),
                (("dna[views=jpeg+crop]", "dna[views=crop]"), (), ["jpeg", "crop"]),
                (("last-linear",), ("blur",), []),
            ]
        ):
            made.clear()
            settings = Settings(methods=named, plan=plan, dna=DnaSettings(views=views))
            benchmark(backbone, make_set(), settings=settings, state=tmp_path / str(number))
            assert made == expected

    @pytest.mark.parametrize(
        ("name", "changed"),
        [
            ("dna", {}),
            ("dna[]", {}),
            ("dna[views=]", {"views": ()}),
            ("dna[views=blur+jpeg, kinds=cls]", {"views": ("blur", "jpeg"), "kinds": ("cls",)}),
            ("dna[cut=knee]", {"cut": "knee", "parameters": ()}),
            ("dna[cut=fraction,fraction=0.05]", {"parameters": (("fraction", 0.05),)}),
            ("dna[cut=top_k,k=50]", {"cut": "top_k", "parameters": (("k", 50.0),)}),
            (
                "dna[rule=all,scorer=weight,classifier=lda,scope=global]",
                {"rule": "all", "scorer": "weight", "classifier": "lda", "scope": "global"},
            ),
            ("all-units", {"parameters": (("fraction", 1.0),)}),
        ],
    )
    def test_a_variant_keeps_the_settings_of_the_run_that_it_does_not_name(self, name, changed):
        run = DnaSettings(scope="layer", cut="fraction", parameters=(("fraction", 0.2),), views=("jpeg",))
        assert methods.make_method(name).settings(run) == dataclasses.replace(run, **changed)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("dna[scorer=wieght]", "Unknown scorer 'wieght'. Did you mean 'weight'?"),
            ("dna[views=blurr]", "Unknown view 'blurr'. Did you mean 'blur'?"),
            ("dna[kinds=cls+men]", "Did you mean 'mean'"),
            ("dna[cut=nee]", "Unknown cut 'nee'. Did you mean 'knee'?"),
            ("dna[rule=al]", "Did you mean 'all'"),
            ("dna[classifier=logisitc]", "Unknown classifier 'logisitc'. Did you mean 'logistic'?"),
            ("dna[scorrer=weight]", "Unknown setting 'scorrer'. Did you mean 'scorer'"),
            ("dna[fraction=0.05]", "Cut 'cumulative_knee' does not take fraction. It takes fallback"),
            ("dna[cut=fraction,fraction=2]", "fraction = 2.0 is not a share"),
            ("dna[scorer]", "'scorer' changes nothing. Write it as name=value, for example scorer=weight."),
            ("dnaa[cut=knee]", "Unknown method 'dnaa[cut=knee]'"),
            ("dna[cut=knee", "Unknown method 'dna[cut=knee'"),
        ],
    )
    def test_a_mistyped_variant_is_told_at_once(self, name, told):
        with pytest.raises(DnaProbeError, match=re.escape(told)):
            Settings(methods=(name, "last-linear"))


class TestBaseline:
    def test_the_others_are_compared_with_the_method_named(self, variants):
        """Turned round, the same difference has the other sign."""
        again = summarise(variants.result.info, variants.measured, ([], []), baseline="dna")
        rows = {(row["method"], row["shots"], row["seen"]): row["difference"] for row in again.summary}
        for row in variants.result.summary:
            if row["method"] == "dna":
                at, there = (row["shots"], row["seen"]), row["difference"]
                back = rows["last-linear", *at]
                assert rows["dna", *at] is None
                assert back["value"] == pytest.approx(-there["value"])
                assert (back["low"], back["high"]) == pytest.approx((-there["high"], -there["low"]), abs=1e-6)

    def test_without_the_baseline_among_the_methods_there_is_no_difference(self, variants):
        own = variants.measured.where(lambda row: row["method"] == "dna")
        assert all(row["difference"] is None for row in summarise({}, own, ([], [])).summary)

    def test_some_rows_alone_measure_the_same(self, variants):
        measured = variants.measured
        kept = measured.where(lambda row: row["method"] in ("dna", "last-linear"))
        assert 0 < len(kept.rows) == len(kept.auc) == len(kept.accuracy) == len(kept.by_threshold) < len(measured.rows)
        rows = summarise(variants.result.info, kept, ([], [])).summary
        assert rows == [row for row in variants.result.summary if row["method"] in ("dna", "last-linear")]
        assert measured.where(lambda row: False).rows == []


class TestInterruption:
    def test_a_run_cut_off_goes_on_and_ends_with_the_same_bytes(self, backbone, tmp_path, monkeypatch):
        data, whole, cut = make_set(), tmp_path / "whole", tmp_path / "cut"
        run = benchmark(backbone, data, settings=quick(), state=tmp_path / "a")
        whole.mkdir()
        write_run(run, whole)

        real, done = harness._run_cell, []

        def stopping(task, arrays):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(task)
            real(task, arrays)

        monkeypatch.setattr(harness, "_run_cell", stopping)
        with pytest.raises(KeyboardInterrupt):
            benchmark(backbone, data, settings=quick(), state=tmp_path / "b")
        monkeypatch.setattr(harness, "_run_cell", real)
        told = []
        run = benchmark(backbone, data, settings=quick(), state=tmp_path / "b", say=told.append)
        cut.mkdir()
        write_run(run, cut)
        assert any("2 of them done before" in line for line in told)
        names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
        assert len(names) > 5
        assert filecmp.cmpfiles(whole, cut, names, shallow=False)[0] == names

    def test_processes_give_the_same_bytes(self, backbone, tmp_path):
        data = make_set()
        files = [
            benchmark(backbone, data, settings=quick(), state=tmp_path / str(jobs), jobs=jobs).outcomes
            for jobs in (1, 2)
        ]
        for one, two in zip(*files, strict=True):
            assert one.read_bytes() == two.read_bytes()

    def test_other_settings_do_not_take_up_old_cells(self, backbone, tmp_path):
        told = []
        benchmark(backbone, make_set(), settings=quick(draws=1), state=tmp_path)
        benchmark(backbone, make_set(seed=5), settings=quick(draws=1), state=tmp_path, say=told.append)
        assert not any("done before" in line for line in told)

    def test_a_damaged_outcome_is_named(self, backbone, tmp_path):
        run = benchmark(backbone, make_set(), settings=quick(draws=1), state=tmp_path)
        run.outcomes[0].write_bytes(b"half")
        with pytest.raises(ArtefactError, match=r"00000.safetensors is damaged.*Delete it"):
            CellOutcome.read(run.outcomes[0])


class Peeking(Method):
    """Uses whatever it can find that is not a feature."""

    description = "tries to cheat"
    seen: list = []  # noqa: RUF012 (shared on purpose)

    def fit(self, train):
        self.train = train
        return self

    def judge(self, test):
        type(self).seen.append(test)
        count = len(test.matrix)
        return Judgement(np.arange(count, dtype=float)[None], None, 0.0, None, 0)


class TestPeeking:
    @pytest.fixture
    def peeked(self, backbone, tmp_path, monkeypatch):
        monkeypatch.setitem(methods.METHODS, "peeking", Peeking)
        Peeking.seen = []
        settings = Settings(methods=("peeking", "last-linear"), plan=Plan(shots=(4,), draws=20))
        return benchmark(backbone, make_set(), settings=settings, state=tmp_path)

    def test_the_place_of_a_test_image_says_nothing(self, peeked):
        rows = [row for row in peeked.result.summary if row["method"] == "peeking"]
        assert all(abs(row["metrics"]["auc"]["value"] - 0.5) < 0.1 for row in rows)

    def test_a_method_is_handed_arrays_and_nothing_else(self, peeked):
        """No labels, no names, no paths; and no column that equals the labels."""
        assert Peeking.seen
        for view in Peeking.seen:
            assert {field.name for field in dataclasses.fields(view)} == {
                "matrix",
                "spans",
                "layers",
                "tables",
                "untrained",
            }
            assert isinstance(view, View) and isinstance(view.matrix, np.ndarray)
            assert all(isinstance(table, np.ndarray) for table in view.tables.values())
        with pytest.raises(AttributeError):
            _ = Peeking.seen[0].labels

    def test_a_feature_that_carries_the_label_shows(self, backbone, tmp_path, monkeypatch):
        """The planted leak: were labels handed on, a method would reach an AUC of one; the test would see it."""

        class Told(Peeking):
            def judge(self, test):
                return Judgement(test.tables["label"][None], None, 0.5, None, 1)

        monkeypatch.setitem(methods.METHODS, "peeking", Told)
        settings = Settings(methods=("peeking", "last-linear"), plan=Plan(shots=(4,), draws=1))
        with pytest.raises(KeyError, match="label"):
            benchmark(backbone, make_set(), settings=settings, state=tmp_path / "honest")
        real = harness._view

        def leaking(network, untrained, tables):
            return real(network, untrained, {**tables, "label": make_set().labels.astype(float)})

        monkeypatch.setattr(harness, "_view", leaking)
        run = benchmark(backbone, make_set(), settings=settings, state=tmp_path / "leaking")
        row = next(row for row in run.result.summary if row["method"] == "peeking")
        assert row["metrics"]["auc"]["value"] == 1


def test_copies_of_an_image_never_lie_on_both_sides(backbone, tmp_path):
    """A photograph that is in the set twice, under groups of its own, is tied together by its looks."""
    data = make_set()
    pictures = list(data.images)
    pictures[1] = pictures[0]
    run = benchmark(
        backbone, dataclasses.replace(data, images=tuple(pictures)), settings=quick(draws=8), state=tmp_path
    )
    assert run.bench.images.groups[0] == run.bench.images.groups[1]
    for file in run.outcomes:
        test = set(CellOutcome.read(file).test.tolist())
        assert not {0, 1} & test or {0, 1} <= test


@pytest.fixture(scope="module")
def transformed(backbone, tmp_path_factory):
    settings = Settings(
        "robustness",
        methods=("dna", "last-linear", "metadata", "thumbnail"),
        plan=Plan(shots=(6,), draws=2),
        transforms=("jpeg", "grey"),
        test_images=6,
    )
    return benchmark(backbone, make_set(), settings=settings, state=tmp_path_factory.mktemp("robust"))


class TestRobustness:
    def test_every_severity_has_its_drop_and_flips(self, transformed):
        rows = [row for row in transformed.result.summary if row["method"] == "dna" and row["transform"]]
        assert {(row["transform"], row["level"]) for row in rows} == {
            *(("jpeg", level) for level in range(1, 6)),
            *(("grey", level) for level in range(1, 4)),
        }
        for row in rows:
            clean = next(
                r
                for r in transformed.result.summary
                if r["method"] == "dna" and not r["transform"] and r["seen"] == row["seen"]
            )
            drop = clean["metrics"]["auc"]["value"] - row["metrics"]["auc"]["value"]
            assert row["auc_drop"] == pytest.approx(drop) and 0 <= row["flips"] <= 1

    def test_a_fine_trace_does_not_survive_heavy_jpeg(self, transformed):
        def auc(level):
            return next(
                row["metrics"]["auc"]["value"]
                for row in transformed.result.summary
                if row["method"] == "dna" and row["transform"] == "jpeg" and row["level"] == level and not row["seen"]
            )

        assert auc(5) < auc(1) - 0.1

    def test_test_images_are_capped_and_files_are_not_judged_under_transforms(self, transformed):
        outcome = CellOutcome.read(transformed.outcomes[0])
        labels = transformed.bench.images.labels[outcome.test]
        assert (labels == 0).sum() == 6 and (labels == 1).sum() == 6
        assert (0, "metadata") in outcome.judged and (1, "metadata") not in outcome.judged


class TestRefusals:
    """All before anything runs."""

    @pytest.fixture(autouse=True)
    def nothing_runs(self, monkeypatch):
        def never(*arguments, **options):
            raise AssertionError("something ran")

        monkeypatch.setattr(harness._Arena, "collect", never)

    def test_names(self, backbone, tmp_path):
        for settings, told in (
            ({"methods": ("dnaa",)}, "Unknown method 'dnaa'.*Did you mean 'dna'"),
            ({"protocol": "few"}, "Unknown protocol"),
            ({"transforms": ("jpg",)}, "Unknown transform 'jpg'"),
        ):
            with pytest.raises(DnaProbeError, match=told):
                Settings(**settings)

    def test_an_operating_point_with_too_few_reals_names_the_number_needed(self, backbone, tmp_path):
        settings = Settings(methods=QUICK, plan=Plan(shots=(4,), draws=1), target_fpr=0.05)
        with pytest.raises(DataError, match="needs at least 19 real training samples, and there are 4"):
            benchmark(backbone, make_set(), settings=settings, state=tmp_path)

    def test_too_many_shots(self, backbone, tmp_path):
        with pytest.raises(DataError, match="Ask for at most"):
            benchmark(backbone, make_set(), settings=quick(shots=(40,)), state=tmp_path)

    def test_one_class(self, backbone, tmp_path):
        with pytest.raises(DataError, match="holds no fake images"):
            benchmark(backbone, make_set().of_label(0), settings=quick(), state=tmp_path)


class TestReleaseDates:
    def test_they_are_read_and_used(self, backbone, tmp_path):
        table = tmp_path / "dates.csv"
        table.write_text("generator,release_date\nstrong,2022-01-01\nfaint,2023-06-30\n")
        settings = Settings("temporal", QUICK, Plan(shots=(4,), draws=1), release_dates=read_release_dates(table))
        run = benchmark(backbone, make_set(), settings=settings, state=tmp_path / "state")
        assert {row["train_on"] for row in run.rows} == {"up to 2022-01-01"}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("generator,when\na,2022-01-01\n", "lacks a column"),
            ("generator,release_date\na,spring\n", "'spring' in .* is no date"),
        ],
    )
    def test_a_bad_table_is_refused(self, tmp_path, text, told):
        table = tmp_path / "dates.csv"
        table.write_text(text)
        with pytest.raises(DataError, match=told):
            read_release_dates(table)


def test_results_of_another_kind_or_version_are_refused():
    with pytest.raises(ArtefactError, match="not the result of a benchmark"):
        BenchmarkResult.from_json({"schema": "dna_probe.layers/1"})
    with pytest.raises(ArtefactError, match="newer"):
        BenchmarkResult.from_json({"schema": "dna_probe.benchmark/99"})


def test_a_result_that_lacks_a_part_is_damaged(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": "dna_probe.benchmark/1", "summary": []}')
    with pytest.raises(ArtefactError, match=r"results.json is damaged. It lacks 'by_generator'"):
        read_results(tmp_path)


class TestWhatCannotBeFitted:
    def test_a_method_left_with_nothing_says_so_and_the_run_goes_on(self, backbone, tmp_path):
        """One image of each class is no evidence against any unit, so a false discovery rate keeps none."""
        settings = Settings(
            methods=QUICK, plan=Plan(shots=(1,), draws=1), dna=DnaSettings(scorer="cohens_d", cut="fdr")
        )
        run = benchmark(backbone, make_set(), settings=settings, state=tmp_path)
        rows = {row["method"]: row for row in run.result.summary if not row["seen"]}
        assert rows["dna"]["metrics"]["auc"]["value"] == 0.5 and rows["dna"]["metrics"]["unsure_share"]["value"] == 1
        assert rows["last-linear"]["metrics"]["auc"]["value"] > 0
        assert any("dna: No unit is left" in note for note in run.result.info["notes"])

    def test_unlabelled_images_are_left_out(self, backbone, tmp_path):
        data = make_set()
        labels = data.labels.copy()
        labels[[0, -1]] = -1
        run = benchmark(backbone, dataclasses.replace(data, labels=labels), settings=quick(draws=1), state=tmp_path)
        assert len(run.bench.images) == len(data) - 2
