import json

import numpy as np
import pytest
import torch

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import Equalisation
from dna_probe.stability import Stability, chance_jaccard, measure_stability

from .planted import PLANTED, Planted, images


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Waking a second thread for such small tensors costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_set(count=40, strength=3.0):
    """Two generators that leave the same trace."""
    pictures, labels = images(count, strength=strength)
    made = ["real" if not label else ("odd" if i % 2 else "even") for i, label in enumerate(labels)]
    return ImageSet(tuple(pictures), labels, generators=tuple(made))


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def found(backbone):
    return measure_stability(backbone, make_set(), shots=(3, 5), draws=3, scorer="cohens_d", kinds=("cls",), views=())


def pair(found, comparison, shots):
    (row,) = (row for row in found.pairs if (row["comparison"], row["shots"]) == (comparison, shots))
    return row


def test_planted_units_are_found_again_in_every_comparison(found):
    assert found.fits == 2 * 2 * 3
    assert [row["comparison"] for row in found.pairs] == ["draws", "draws", "shots", "generators", "generators"]
    assert pair(found, "draws", "5")["pairs"] == 2 * 3 and pair(found, "generators", "5")["pairs"] == 9
    assert pair(found, "shots", "3 and 5")["pairs"] == 2 * 9
    for row in found.pairs:
        assert row["jaccard"] > row["chance"] + 0.15 and row["jaccard_low"] <= row["jaccard"] <= row["jaccard_high"]
        assert row["rank_correlation"] > 0.1
    assert pair(found, "draws", "5")["jaccard"] > 0.5
    best = [row["unit"] for row in found.frequency if row["selected"] == 1]
    assert best and all(int(unit.partition("[")[2][:-1]) in PLANTED for unit in best)


def test_sizes_and_frequencies_are_those_of_the_selections(found):
    (all_of_5,) = (row for row in found.sizes if row["shots"] == 5 and row["generator"] == "all")
    assert all_of_5["fits"] == 6 and all_of_5["low"] <= all_of_5["median"] <= all_of_5["high"]
    assert {row["generator"] for row in found.sizes} == {"all", "even", "odd"}
    shares = [row["selected"] for row in found.frequency]
    assert shares == sorted(shares, reverse=True) and all(
        s <= row["scored"] <= 1 for s, row in zip(shares, found.frequency, strict=True)
    )
    assert len(found.frequency_table()) == len(shares) and len(found.table()) == 5


def test_sentences_and_json(found):
    text = repr(found)
    assert "Two draws of 5 images per class agree on units by a Jaccard index of" in text and "more than chance" in text
    assert "With 3 images per class" in text
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema"] == "dna_probe.stability/1" and Stability.from_json(data).verdicts == found.verdicts


def test_the_selections_are_those_of_fit(backbone, monkeypatch):
    """Cell by cell, what ``fit`` finds on the same images."""
    from dna_probe import stability
    from dna_probe.evaluation.protocols import Plan, plan_cells

    kept, real = [], stability._compare
    monkeypatch.setattr(stability, "_compare", lambda chosen: kept.extend(chosen) or real(chosen))
    data = make_set()
    names = {"scorer": "cohens_d", "kinds": ("cls",), "cut": "knee", "rule": "transition"}
    measure_stability(backbone, data, shots=(4,), draws=2, **names)
    cells = plan_cells("few-shot", data, np.zeros(len(data), int), Plan((4,), 2))
    assert len(cells) == len(kept) == 4
    for cell, selection in zip(cells, kept, strict=True):
        detector = dna_probe.fit(backbone, data.subset(cell.train), seed=cell.seed, **names)
        assert selection.names == detector.units and selection.generator == cell.train_on


def test_random_scores_agree_by_chance(backbone):
    found = measure_stability(
        backbone, make_set(), shots=(4,), draws=8, scorer="random", kinds=("cls",), cut="fraction", rule="all"
    )
    for row in found.pairs:
        assert row["jaccard"] == pytest.approx(row["chance"], abs=0.03) and abs(row["rank_correlation"]) < 0.06
        assert row["jaccard_low"] <= row["chance"]
    assert ", more than chance (" not in "\n".join(found.verdicts)


@pytest.mark.parametrize(
    ("sizes", "pools", "common"), [((10, 10), (100, 100), 100), ((30, 8), (60, 60), 60), ((12, 12), (48, 96), 48)]
)
def test_the_chance_level_is_that_of_simulated_sets(sizes, pools, common, rng):
    first, second = np.arange(pools[0]), np.arange(pools[1])
    drawn = []
    for _ in range(4000):
        a, b = rng.choice(first, sizes[0], replace=False), rng.choice(second, sizes[1], replace=False)
        shared = len(np.intersect1d(a, b))
        drawn.append(shared / (sum(sizes) - shared))
    assert chance_jaccard(*sizes, *pools, common) == pytest.approx(np.mean(drawn), abs=0.005)


def test_the_chance_level_at_its_ends():
    assert chance_jaccard(5, 5, 5, 5, 5) == pytest.approx(1)
    assert chance_jaccard(5, 5, 50, 50, 0) == 0


def test_shots_that_the_images_cannot_give_are_told(backbone):
    found = measure_stability(backbone, make_set(8), shots=(2, 50), draws=2, scorer="cohens_d")
    assert found.notes[0].startswith("50 shots were left out. 50 shots per class were asked for, but")
    assert {row["shots"] for row in found.sizes} == {2}
    with pytest.raises(DataError, match=r"50 shots per class were asked for"):
        measure_stability(backbone, make_set(8), shots=(50,), draws=2)


def test_parameters_go_to_the_cut(backbone):
    found = measure_stability(backbone, images(12), shots=(3,), draws=2, scorer="cohens_d", cut="top_k", k=6)
    assert found.sizes[0]["median"] == 6 and dict(found.provenance["settings"]["parameters"]) == {"k": 6}


def test_one_generator_has_no_other(backbone):
    found = measure_stability(backbone, images(12), shots=(3,), draws=2, scorer="cohens_d")
    assert [row["comparison"] for row in found.pairs] == ["draws"]


def test_unreadable_and_too_small_images(backbone, tmp_path):
    data = make_set(10)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    small = data.images[0][:16]
    odd = ImageSet((bad, small, *data.images), np.array([0, 0, *data.labels]), ("real", "real", *data.generators))
    found = measure_stability(
        backbone, odd, shots=(2,), draws=2, scorer="cohens_d", equalisation=Equalisation(24, 24, 90)
    )
    assert [name for name, _ in found.skipped] == [str(bad)]
    assert found.notes[0] == "Left out, being too small for the equalisation: 1 images."


def test_errors(backbone):
    with pytest.raises(DnaProbeError, match=r"Unknown scorer 'cohen_d'. Did you mean 'cohens_d'"):
        measure_stability(backbone, make_set(8), scorer="cohen_d")
    with pytest.raises(DataError, match=r"holds no fake images"):
        measure_stability(backbone, (images(4)[0][:4], [0] * 4))
    with pytest.raises(DnaProbeError, match=r"No units are left in any draw. No unit is left: no unit differs"):
        measure_stability(backbone, make_set(8, strength=0), shots=(2,), draws=2, scorer="cohens_d", cut="fdr")
