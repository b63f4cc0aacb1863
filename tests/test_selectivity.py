import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dna_probe
from dna_probe.anchor import AnchorClassifier
from dna_probe.backbones import open_backbone
from dna_probe.detector import Detector
from dna_probe.errors import DataError
from dna_probe.images.reading import content_hash
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import Equalisation
from dna_probe.selectivity import LABELS, Selectivity, measure_selectivity
from dna_probe.tuning import SWEEPS, Sweep

SIDE = 32
TRACE, COLOUR, CONTENT, DEAD = range(4)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


class Filters(nn.Module):
    """Units with known answers: energy of the finest detail, red, green, and nothing."""

    def __init__(self):
        super().__init__()
        self.image_size = SIDE
        conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[TRACE] = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 4
            conv.weight[COLOUR, 0, 1, 1] = 1
            conv.weight[CONTENT, 1, 1, 1] = 1
        self.stages = nn.ModuleList([nn.Sequential(conv, Absolute()), nn.Conv2d(4, 4, 1, stride=2)])

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))


def pictures(count=24, seed=0, generators=("a", "b")):
    """Fakes are redder, which no nuisance here takes away, and carry a faint checkerboard, which blur does."""
    rng = np.random.default_rng(seed)
    board = np.where(np.indices((SIDE, SIDE)).sum(0) % 2 == 0, 1.0, -1.0)[..., None]
    images, labels, made = [], [], []
    for i in range(2 * count):
        fake = i % 2
        base = rng.normal((150 + 30 * fake, 150, 150), (12, 12, 12))
        image = base + rng.normal(0, 1, (SIDE, SIDE, 3)) + fake * rng.uniform(6, 10) * board
        images.append(np.clip(image, 0, 255).round().astype(np.uint8))
        labels.append(fake)
        made.append(generators[i // 2 % len(generators)] if fake else "real")
    return ImageSet(tuple(images), np.array(labels), generators=tuple(made))


@pytest.fixture(scope="module")
def detector():
    backbone = open_backbone(Filters())
    site = next(iter(backbone.sites))
    return Detector(backbone, tuple(f"{site}[{unit}]" for unit in range(4)), AnchorClassifier())


@pytest.fixture(scope="module")
def result(detector):
    return measure_selectivity(detector, pictures(), max_images=48)


class TestKnownUnits:
    def test_labels(self, result):
        assert result.labels == ("fragile", "robust", "unclear", "unclear")
        assert result.units[COLOUR] in repr(result) and "robust 1, fragile 1, unclear 2" in repr(result)

    def test_reasons(self, result):
        assert result.reasons[TRACE].startswith("keeps ") and " of its contrast at " in result.reasons[TRACE]
        assert result.reasons[COLOUR].startswith("keeps at least ")
        assert "not told from zero (q = " in result.reasons[CONTENT]
        assert result.reasons[DEAD] == "the same on every untouched image"

    def test_blur_takes_the_trace_and_leaves_the_colour(self, result):
        blur = next(tuning for tuning in result.tunings if tuning.sweep.name == "blur")
        assert blur.shift[1, -1, TRACE] < -0.8 and blur.high[1, -1, TRACE] < 0
        assert blur.level[TRACE] > 0.1 and blur.level[COLOUR] < 0.01
        assert abs(blur.contrast[-1, TRACE]) < abs(result.contrast[TRACE]) / 2
        assert blur.contrast[-1, COLOUR] == pytest.approx(result.contrast[COLOUR], rel=0.1)
        np.testing.assert_allclose((blur.level + blur.image + blur.interaction)[:DEAD], 1)
        assert (blur.generation <= blur.image).all()
        assert blur.auc[-1, COLOUR] > 0.9 and result.auc[COLOUR] > 0.9
        table = result.table().set_index("unit")
        assert table.loc[result.units[TRACE], "worst_retained"] < 0.5
        assert table.loc[result.units[COLOUR], "worst_auc"] > 0.9

    def test_a_dead_unit_has_no_shares(self, result):
        row = result.table().iloc[DEAD]
        shares = row[[name for name in row.index if name.startswith("share_")]]
        assert row["d"] == 0 and row["auc"] == 0.5 and not shares.to_numpy(dtype=float).any()

    def test_a_unit_that_nuisance_moves_more_than_generation_is_fragile(self, detector):
        """Its contrast stays: only what moves it says so."""
        lighter = Sweep("lightness", "exponent", (0.8, 0.6, 0.4), "gamma")
        found = measure_selectivity(detector, pictures(), sweeps=[lighter], max_images=48)
        assert found.labels[COLOUR] == "fragile"
        assert found.reasons[COLOUR].startswith("lightness explains ") and "generation" in found.reasons[COLOUR]
        assert "lightness explains more of the response than generation in" in " ".join(found.verdicts)

    def test_shuffled_labels_leave_no_robust_unit(self, detector):
        images = pictures()
        shuffled = np.random.default_rng(1).permutation(images.labels)
        assert set(measure_selectivity(detector, (images.images, shuffled)).labels) == {"unclear"}


class TestResult:
    def test_verdicts(self, result):
        assert result.verdicts[0] == "1 of 4 units are robust, 1 fragile and 2 unclear."
        assert any(text.startswith("At ") and "most is lost" in text for text in result.verdicts)

    def test_table_and_curves(self, result):
        table, curves = result.table(), result.curves()
        assert list(table["unit"]) == list(result.units) and set(table["label"]) <= set(LABELS)
        assert {f"share_{name}" for name in SWEEPS} <= set(table) and {"d", "worst_retained", "reason"} <= set(table)
        assert len(curves) == 4 * len(SWEEPS) * 5 * 2
        assert not curves.query("level == 0")[["shift", "low", "high"]].to_numpy().any()
        row = curves.query(f"sweep == 'blur' and level == 4 and `class` == 'fake' and unit == '{result.units[TRACE]}'")
        assert row["shift"].item() == result.tunings[2].shift[1, 3, TRACE] and row["value"].item() == 3
        assert row["contrast"].item() == result.tunings[2].contrast[3, TRACE]

    def test_json_round_trip(self, result):
        data = json.loads(json.dumps(result.to_json()))
        assert data["schema"] == "dna_probe.selectivity/1"
        again = Selectivity.from_json(data)
        assert again.to_json() == data and repr(again) == repr(result)
        assert again.table().equals(result.table()) and again.curves().equals(result.curves())

    def test_the_same_seed_gives_the_same(self, detector, result):
        again = measure_selectivity(detector, pictures(), max_images=48)
        assert again.to_json() == result.to_json()

    def test_it_is_public(self):
        assert dna_probe.measure_selectivity is measure_selectivity and dna_probe.Selectivity is Selectivity


class TestImages:
    def test_classes_are_balanced_and_fakes_spread(self, detector):
        found = measure_selectivity(detector, pictures(40), sweeps=["blur"], max_images=21)
        assert found.counts == {"real": 10, "a": 5, "b": 5}

    def test_a_group_gives_one_image_before_any_gives_two(self, detector):
        images = pictures(20)
        grouped = replace(images, groups=tuple(str(i // 4) for i in range(40)))
        found = measure_selectivity(detector, grouped, sweeps=["blur"], max_images=20)
        assert sum(found.counts.values()) == 20

    def test_an_unreadable_image_is_listed_and_the_others_are_kept(self, detector, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        images = pictures(8)
        with_bad = replace(images, images=(bad, *images.images[1:]))
        found = measure_selectivity(detector, with_bad, sweeps=["noise"])
        assert [(name, "not an image" in reason) for name, reason in found.skipped] == [(str(bad), True)]
        assert sum(found.counts.values()) == 14
        assert "1 image could not be used." in found.verdicts

    def test_trained_on_images_are_taken_last_and_told(self, detector):
        images = pictures(12)
        hashes = [content_hash(image)[:16] for image in images.images[:12]]
        fitted = replace(detector, provenance={"image_hashes": hashes})
        assert not measure_selectivity(fitted, images, sweeps=["blur"], max_images=12).trained_on
        found = measure_selectivity(fitted, images, sweeps=["blur"], max_images=16)
        assert len(found.trained_on) == 4 and set(found.trained_on) <= {f"images[{i}]" for i in range(12)}
        assert "4 of 16 images were trained on" in found.verdicts[-1]

    def test_equalised_detectors_treat_first_and_degrade_then(self, detector, tmp_path):
        """A degraded picture is not shrunk any more: it is what the treatment left, at the treatment's size."""
        images = pictures(8)
        large = [
            Image.fromarray(image).resize((SIDE * 3, SIDE * 2), Image.Resampling.NEAREST) for image in images.images
        ]
        small = Image.fromarray(images.images[0]).resize((20, 20))
        given = replace(images, images=(small, *large[1:]))
        treated = replace(detector, equalisation=Equalisation(SIDE, SIDE, 95))
        found = measure_selectivity(treated, given, sweeps=["jpeg"])
        assert found.skipped[0][1].startswith("short side below 32") and sum(found.counts.values()) == 14
        assert found.provenance["equalisation"] == {"side": 32, "crop": 32, "quality": 95}


class TestErrors:
    def test_one_class_only(self, detector):
        with pytest.raises(DataError, match="holds no fake images"):
            measure_selectivity(detector, pictures(6).of_label(0))

    def test_unknown_sweep_with_a_near_match(self, detector):
        with pytest.raises(DataError, match=r"Unknown sweep 'blurr'. Did you mean 'blur'\?"):
            measure_selectivity(detector, pictures(6), sweeps=["blurr"])

    def test_sweeps_that_cannot_go_together(self, detector):
        with pytest.raises(DataError, match="Two sweeps are called 'blur'"):
            measure_selectivity(detector, pictures(6), sweeps=["blur", "blur"])
        with pytest.raises(DataError, match="No sweep was named"):
            measure_selectivity(detector, pictures(6), sweeps=[])

    def test_too_few_images(self, detector):
        with pytest.raises(DataError, match=r"Only 3 real and 3 fake images .* can be used.* need 5 of each"):
            measure_selectivity(detector, pictures(3))
        with pytest.raises(DataError, match="max_images = 6 is too few"):
            measure_selectivity(detector, pictures(6), max_images=6)


@pytest.mark.real
def test_on_real_weights_and_images(shared_data):
    from dna_probe.images.layouts import read_images

    backbone = open_backbone(f"{shared_data / 'weights'}/deit_tiny_q3.py:build")
    units = tuple(f"blocks.{layer}.hook_resid_post[{unit}]" for layer in (1, 3) for unit in range(0, 192, 8))
    detector = Detector(backbone, units, AnchorClassifier(), equalisation=Equalisation())
    images = read_images(shared_data / "images" / "genai5")
    sweeps = Sweep("jpeg", "quality", (70,)), Sweep("blur", "sigma", (3,), "gaussian_blur")
    found = measure_selectivity(detector, images, sweeps=sweeps, max_images=12)
    assert found.counts["real"] == 6 and sum(found.counts.values()) == 12 and len(found.counts) == 6
    shares = found.table()[["share_generation", "share_generator", "share_jpeg", "share_blur"]].to_numpy()
    assert (shares >= 0).all() and (shares <= 1).all()
    # Early layers see edges: blur moves them far more than mild compression.
    jpeg, blur = found.tunings
    assert np.median(np.abs(blur.shift)) > np.median(np.abs(jpeg.shift))
