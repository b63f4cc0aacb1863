import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import dna_probe
from dna_probe import control_units
from dna_probe.anchor import AnchorClassifier
from dna_probe.backbones import open_backbone
from dna_probe.collection import collect_features
from dna_probe.control_units import ABSENT, DRAWN, UnitPool, control_sequences
from dna_probe.detector import Detector
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.evaluation.metrics import auc
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import Equalisation
from dna_probe.masking_sentences import holds, masking_sentences
from dna_probe.probing import folds, linear_probe
from dna_probe.scoring import UnitScores
from dna_probe.sites import resolve_reading
from dna_probe.truncation import truncate
from dna_probe.verification import Verification

from .planted import PLANTED, Planted, images

LAYER = "blocks.3.hook_resid_post"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Waking a second thread for such small tensors costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scores_of(backbone, names, best):
    """Scores that rank some units first, whatever the images."""
    readings = tuple(resolve_reading(name, backbone.sites) for name in names)
    score = np.linspace(0.2, 0.1, sum(reading.width for reading in readings))
    score[list(best)] = 1 - 0.01 * np.arange(len(best))
    return UnitScores(readings, "by hand", score, {}, np.ones_like(score), np.empty((0, len(score))))


def detector_on(backbone, names, best, data):
    """A detector on units named by hand, fitted on these images."""
    unit_set = truncate(scores_of(backbone, names, best), cut="top_k", k=len(best))
    pictures = ImageSet(tuple(data[0]), data[1])
    values = collect_features(backbone, pictures, unit_set.scores.readings).of(unit_set.scores.readings)
    anchor = AnchorClassifier().fit(values[:, unit_set.mask], data[1])
    return Detector(backbone, tuple(unit_set.units), anchor, scores=unit_set.scores, unit_set=unit_set)


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def planted(backbone):
    return detector_on(backbone, [LAYER], PLANTED, images(30, strength=1.5))


@pytest.fixture(scope="module")
def fresh():
    return images(40, seed=8, strength=1.5)


@pytest.fixture(scope="module")
def found(planted, fresh):
    return dna_probe.verify(planted, fresh, max_images=12)


def rows_of(found, **wanted):
    return [row for row in found.rows if all(row[name] == value for name, value in wanted.items())]


def summary_of(found, place, reader, intervention):
    (row,) = (
        row
        for row in found.summary
        if (row["place"], row["reader"], row["intervention"]) == (place, reader, intervention)
    )
    return row


class TestPlantedUnits:
    @pytest.mark.parametrize("intervention", ["mean", "zero", "swap"])
    def test_masking_them_kills_every_reader_and_masking_others_none(self, found, intervention):
        assert found.knee == len(PLANTED) and found.units == 48
        for place, reader in {(row["place"], row["reader"]) for row in found.summary} - {("network", "last-layer")}:
            row = summary_of(found, place, reader, intervention)
            assert row["unmasked"] > 0.98 and row["masked"] < 0.7, (place, reader)
            for kind, one in row["controls"].items():
                assert one["loss"] < 0.05, (place, reader, kind)
                assert one["p"] is None if kind not in DRAWN else one["p"] == pytest.approx(1 / 21)
            assert not row["controls"] or holds(row)

    def test_a_network_that_reads_the_patches_again_does_not_need_them(self, found):
        """Blocks behind the edited one fill the class token anew; only a false trace in it does harm."""
        for intervention in ("mean", "zero"):
            row = summary_of(found, "network", "last-layer", intervention)
            assert row["loss"] < 0.01 and not holds(row)
        assert holds(summary_of(found, "network", "last-layer", "swap"))

    def test_a_detector_reads_no_controls_at_the_readout(self, found):
        assert {row["kind"] for row in rows_of(found, place="readout", reader="detector")} == {"fdu"}
        assert {row["kind"] for row in rows_of(found, place="network", reader="detector")} > {"fdu", *DRAWN}

    def test_curves_run_from_none_over_the_knee_to_four_times_the_knee(self, found):
        counts = [
            row["k"] for row in rows_of(found, place="readout", reader="all-units", intervention="mean", kind="fdu")
        ]
        assert counts == [0, 1, 2, 3, 4, 5, 6, 12, 24]
        network = rows_of(found, place="network", reader="last-layer", intervention="mean", kind="fdu")
        assert [row["k"] for row in network] == [0, 2, 3, 6]
        (random,) = rows_of(found, place="network", reader="last-layer", intervention="mean", kind="random", k=6)
        assert random["draws"] == 20 and random["masked"] == 6 and random["auc_low"] <= random["auc"]

    def test_both_classes_are_judged_apart(self, found):
        row = summary_of(found, "readout", "detector", "zero")
        before, after = zip(row["accuracy_real"], row["accuracy_fake"], strict=True)
        assert min(before) > 0.85 and sorted(after) == [0, 1], "a detector without its units calls all images alike"

    def test_the_sentences_say_so(self, found):
        assert found.verdicts[0].startswith(
            "Masking the 6 selected units costs more than masking matched ones in 10 of 12"
        )
        text = "\n".join(found.verdicts)
        assert "At the readout, the detector (AUC" in text and "Inside the network, a probe on the last layer" in text
        assert "falls steadily" in text and "were trained on" not in text
        assert "Verification on images in memory: 6 of 48 units, 80 images" in repr(found)

    def test_it_reads_back_equal_and_tabulates(self, found):
        data = json.loads(json.dumps(found.to_json()))
        again = Verification.from_json(data)
        assert data["schema"] == "dna_probe.verification/1" and again.verdicts == found.verdicts
        assert json.loads(json.dumps(again.to_json())) == data
        assert len(found.table()) == len(found.rows) and {"place", "kind", "auc_low", "self_repair"} <= set(
            found.table()
        )

    def test_the_same_seed_gives_the_same(self, planted, fresh, found):
        again = dna_probe.verify(planted, fresh, max_images=12, interventions=("mean",))
        assert rows_of(again, intervention="mean") == rows_of(found, intervention="mean")


def test_random_units_in_the_place_of_the_planted_ones_hold_nothing(backbone, fresh):
    others = [unit for unit in range(48) if unit not in PLANTED][:6]
    found = dna_probe.verify(detector_on(backbone, [LAYER], others, images(30, strength=1.5)), fresh, max_images=8)
    assert not any(holds(row) for row in found.summary if row["reader"] != "detector")
    assert "some draws cost as much" in "\n".join(found.verdicts) or "they cost nothing" in "\n".join(found.verdicts)


def test_labels_without_meaning_lead_to_no_claim(backbone, planted):
    pictures, _ = images(40, seed=3, strength=0)
    found = dna_probe.verify(planted, (pictures, np.random.default_rng(1).permutation(80) % 2), max_images=8, draws=4)
    assert not any(holds(row) for row in found.summary)
    assert "does not tell these images apart" in "\n".join(found.verdicts)
    assert all("nothing is claimed" in text for text in found.verdicts if " probe on " in text)


class TestReadout:
    """Against a slow reference that edits the matrix and judges it again."""

    @pytest.mark.parametrize("intervention", ["zero", "mean", "swap"])
    def test_every_curve_is_the_brute_force_one(self, backbone, planted, fresh, found, intervention):
        pictures = ImageSet(tuple(fresh[0]), fresh[1])
        readings = planted.unit_set.scores.readings
        values, labels = collect_features(backbone, pictures, readings).of(readings).astype(float), fresh[1]
        probes = [
            (test, linear_probe().fit(values[train], labels[train])) for train, test in folds(labels, pictures.groups)
        ]
        for k in (0, 2, 6, 12):
            masked = values.copy()
            for unit in planted.unit_set.scores.order[:k]:
                means = values[labels == 0, unit].mean(), values[labels == 1, unit].mean()
                if intervention == "swap":
                    masked[labels == 1, unit] += means[0] - means[1]
                    masked[labels == 0, unit] += means[1] - means[0]
                else:
                    masked[:, unit] = 0 if intervention == "zero" else values[:, unit].mean()
            told = np.zeros(len(labels))
            for test, probe in probes:
                told[test] = probe.decision_function(masked[test])
            self.compare(found, intervention, "all-units", k, labels, told, told >= 0)
            if k <= 6:
                own = masked[:, planted.unit_set.mask]
                decided = planted.anchor.predict(own)
                self.compare(found, intervention, "detector", k, labels, planted.anchor.decision_function(own), decided)

    def compare(self, found, intervention, reader, k, labels, scores, decided):
        (row,) = rows_of(found, place="readout", intervention=intervention, reader=reader, kind="fdu", k=k)
        assert row["auc"] == pytest.approx(auc(labels, scores), abs=2e-3)
        assert row["accuracy_real"] == pytest.approx(1 - np.mean(decided[labels == 0]), abs=0.03)
        assert row["accuracy_fake"] == pytest.approx(np.mean(decided[labels == 1]), abs=0.03)


class Echo(nn.Module):
    """Two maps of two channels each: the first holds a trace and a weaker copy of it, the second copies the copy, less
    a share of the trace. It grows when the trace is taken away: the network repairs itself."""

    SHARE = 0.4

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)])
        with torch.no_grad():
            self.stages[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0.0, 1, 0]])[..., None, None])
            self.stages[1].weight.copy_(torch.tensor([[-self.SHARE, 1.0], [0.0, 0.01]])[..., None, None])

    def forward(self, x):
        return self.stages[1](self.stages[0](x))


def echo_images(count, rng):
    """Red carries a trace; green the same trace and noise of its own."""
    labels = np.repeat([0, 1], count)
    trace = rng.normal(0, 25, 2 * count) + 40 * labels
    colours = np.stack([120 + trace, 120 + 0.8 * trace + rng.normal(0, 12, 2 * count), np.full(2 * count, 100)], -1)
    return [np.tile(np.clip(c, 0, 255).round().astype(np.uint8), (8, 8, 1)) for c in colours], labels


def test_self_repair_is_what_the_arithmetic_of_the_network_says(rng):
    plain = Preprocessing(input_size=(8, 8), crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = open_backbone(Echo(), preprocessing=plain)
    first, second = (site.name for site in model.layers)
    pictures, labels = echo_images(24, rng)
    detector = detector_on(model, [first, second], [0], (pictures, labels))
    found = dna_probe.verify(detector, (pictures, labels), max_images=48, interventions=("mean", "swap"), draws=2)

    red, green = ((np.stack(pictures)[:, 0, 0, :2] / 255 - 0.5) / 0.25).T
    values = np.stack([red, green, green - Echo.SHARE * red, 0.01 * green], 1)
    for intervention in ("mean", "swap"):
        move = np.where(labels == 1, 1, -1) * (red[labels == 0].mean() - red[labels == 1].mean())
        edited = np.full(len(red), red.mean()) if intervention == "mean" else red + move
        readout = np.column_stack([edited, values[:, 1:]])
        network = np.column_stack([edited, green, green - Echo.SHARE * edited, 0.01 * green])
        lost = []
        for masked in (values, readout, network):
            told = np.zeros(len(labels))
            for train, test in folds(labels, [str(i) for i in range(len(labels))]):
                told[test] = linear_probe().fit(values[train], labels[train]).decision_function(masked[test])
            lost.append(auc(labels, told))
        expected = 1 - (lost[0] - lost[2]) / (lost[0] - lost[1])
        row = summary_of(found, "network", "all-units", intervention)
        assert row["self_repair"] == pytest.approx(expected, abs=0.03) and row["self_repair"] > 0.05
        assert summary_of(found, "network", "last-layer", intervention)["self_repair"] is None
        assert summary_of(found, "readout", "all-units", intervention)["self_repair"] is None
    assert "less under mean" in "\n".join(found.verdicts)


class TestSentences:
    ROW: ClassVar = {
        "place": "network",
        "intervention": "mean",
        "reader": "last-layer",
        "unmasked": 0.9,
        "unmasked_low": 0.8,
        "loss": 0.2,
        "spearman": -1.0,
        "self_repair": None,
        "controls": {kind: {"loss": 0.05, "ratio": 4.0, "p": 0.04, "draws": 24} for kind in DRAWN},
    }

    def told(self, **changes):
        return "\n".join(masking_sentences([self.ROW | changes], 10, 100, 0))

    def test_what_holds(self):
        text = self.told()
        assert (
            "in 1 of 1 comparisons" in text and "more than every drawn control under mean (at least 4.0 times" in text
        )
        assert "falls steadily with the number masked under mean (-1.00)" in text and "Self-repair" not in text

    def test_what_does_not(self):
        weak = self.ROW["controls"] | {"weight-matched": {"loss": 0.19, "ratio": 1.05, "p": 0.4, "draws": 24}}
        text = self.told(controls=weak, spearman=-0.3)
        assert (
            "in 0 of 1" in text
            and "Under mean some draws cost as much, of weight-matched units (0.190 on average)." in text
        )
        assert "AUC does not fall steadily under mean (-0.30)" in text
        assert "Under mean they cost nothing." in self.told(loss=0.004)
        assert "AUC does not fall steadily under mean (flat)" in self.told(spearman=None)

    def test_few_draws_and_trained_on(self):
        few = {kind: one | {"draws": 4, "p": 0.2} for kind, one in self.ROW["controls"].items()}
        assert "4 draws of controls cannot give a p-value below 0.2: nothing can hold." in self.told(controls=few)
        text = masking_sentences([self.ROW], 10, 100, 7)[0]
        assert text.startswith("7 of 100 images were trained on: the detector's own curves are too good")

    def test_self_repair(self):
        assert "the units cost 30% less under mean" in self.told(self_repair=0.3)
        assert "the units cost 12% more under mean" in self.told(self_repair=-0.12)
        assert "Self-repair" not in self.told(reader="detector", self_repair=0.0), "equal by construction"


class TestControls:
    def pool(self, rng, units=60, selected=9):
        reading = np.repeat([0, 1, 2], units // 3)
        return UnitPool(
            rng.permutation(units), selected, reading, rng.lognormal(size=(units, 2)), rng.exponential(size=units)
        )

    def test_partners_lie_in_the_same_reading_once_and_are_not_selected(self, rng):
        pool = self.pool(rng)
        found = control_sequences(pool, 36, 20)
        for kind in DRAWN:
            assert len(found[kind]) == 20
            for one in found[kind]:
                held = one[one != ABSENT]
                assert len(set(held)) == len(held) and not set(held) & set(pool.ranked[:9])
                units = pool.ranked[: len(one)][one != ABSENT]
                assert (pool.reading[held] == pool.reading[units]).all()
        assert found["random"].shape[1] == 36
        assert found["next-ranked"].tolist() == [pool.ranked[9:18].tolist()]
        assert found["bottom"].tolist() == [pool.ranked[::-1][:9].tolist()]

    @pytest.mark.parametrize("kind", ["activation-matched", "weight-matched"])
    def test_matched_units_are_nearer_than_random_ones(self, rng, kind):
        pool = self.pool(rng, 600)
        trait = np.log(pool.activation) if kind == "activation-matched" else pool.weight[:, None]
        found = control_sequences(pool, 9, 20)
        units = pool.ranked[:9]
        near, far = (np.abs(trait[found[name][:, :9]] - trait[units]).mean() for name in (kind, "random"))
        assert near < 0.4 * far
        assert len({tuple(one) for one in found[kind]}) > 10, "they are drawn, not fixed"

    def test_a_reading_without_other_units(self, rng):
        reading = np.array([0, 0, 1, 1, 1, 1])
        pool = UnitPool(np.arange(6), 3, reading, np.ones((6, 2)), np.ones(6))
        found = control_sequences(pool, 6, 2)
        assert (found["random"][:, :2] == ABSENT).all() and (found["weight-matched"][:, 2] >= 3).all()
        assert control_units.ABSENT == -1

    def test_controls_that_are_too_few_are_told_and_not_compared(self, backbone, fresh):
        detector = detector_on(backbone, [LAYER], range(40), images(20))
        found = dna_probe.verify(detector, fresh, max_images=0, draws=2)
        assert "40 units are selected and 8 are random, so that these are not compared." in found.notes
        assert not any(row["controls"] for row in found.summary) and found.network_images == 0
        assert {row["place"] for row in found.rows} == {"readout"}


class TestData:
    def test_images_that_were_trained_on_are_told_and_not_edited(self, backbone):
        data = images(20)
        detector = dna_probe.fit(backbone, data, shots=8)
        found = dna_probe.verify(detector, data, max_images=8, draws=2, interventions=("mean",))
        assert len(found.trained_on) == 16 and "16 of 40 images were trained on" in found.verdicts[0]
        assert "image_hashes" not in found.provenance["fitted"]

    def test_images_are_treated_as_the_detector_treats_them(self, planted, fresh):
        treated = replace(planted, equalisation=Equalisation(24, 24, 50))
        found = dna_probe.verify(treated, fresh, max_images=0, draws=2, interventions=("mean",))
        judged = treated.predict_proba(list(fresh[0]))[:, 1]
        (row,) = rows_of(found, reader="detector", k=0)
        assert row["auc"] == pytest.approx(auc(fresh[1], judged), abs=2e-3)
        small = replace(planted, equalisation=Equalisation(40, 32, 50))
        with pytest.raises(DataError, match=r"No real image of .* is left after equalising"):
            dna_probe.verify(small, fresh)

    def test_unreadable_images_are_listed(self, planted, fresh, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        pictures = ImageSet((bad, *fresh[0]), np.array([0, *fresh[1]]))
        found = dna_probe.verify(planted, pictures, max_images=0, draws=2)
        assert [name for name, _ in found.skipped] == [str(bad)] and found.images == 80

    def test_errors(self, planted, fresh):
        bare = replace(planted, scores=None, unit_set=None)
        with pytest.raises(DnaProbeError, match=r"loaded without its scores. Without them it is not known which"):
            dna_probe.verify(bare, fresh)
        with pytest.raises(DnaProbeError, match=r"Unknown intervention 'swop'. Did you mean 'swap'"):
            dna_probe.verify(planted, fresh, interventions=("swop",))
        with pytest.raises(DnaProbeError, match=r"No intervention was named. Known: mean, zero, swap"):
            dna_probe.verify(planted, fresh, interventions=())
        with pytest.raises(DnaProbeError, match=r"draws and points must be at least 1, not 0 and 8"):
            dna_probe.verify(planted, fresh, draws=0)
        with pytest.raises(
            DnaProbeError, match=r"2 images are too few to edit inside the network. Give at least 4, or 0"
        ):
            dna_probe.verify(planted, fresh, max_images=2)
        with pytest.raises(DataError, match=r"holds no fake images"):
            dna_probe.verify(planted, (fresh[0][:5], [0] * 5))
        one_group = ImageSet(
            tuple(fresh[0]), fresh[1], groups=tuple("r" if y == 0 else str(i) for i, y in enumerate(fresh[1]))
        )
        with pytest.raises(DataError, match=r"A class of images in memory is one group of images"):
            dna_probe.verify(planted, one_group)


@pytest.mark.real
def test_a_real_network_and_real_images(shared_data):
    backbone = open_backbone(f"{shared_data / 'weights' / 'deit_tiny_q3.py'}:build")
    given = dna_probe.read_images(shared_data / "images" / "genai5")
    rng = np.random.default_rng(0)
    few = np.concatenate([rng.permutation(np.flatnonzero(given.labels == label))[:5] for label in (0, 1)])
    names = ["blocks.10.hook_resid_post", "blocks.10.hook_resid_post:mean"]
    data = given.subset(few)
    detector = detector_on(backbone, names, range(12), (data.images, data.labels))
    found = dna_probe.verify(detector, data, max_images=4, draws=2, interventions=("swap",))
    assert found.units == 384 and found.network_images == 4 and found.images == 10
    row = summary_of(found, "network", "detector", "swap")
    assert set(row["controls"]) == {*DRAWN, "next-ranked", "bottom"} and np.isfinite(row["loss"])
