"""Which images each protocol trains and tests on, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from dna_probe.errors import DataError, DnaProbeError
from dna_probe.evaluation.protocols import PROTOCOLS, Cell, Plan, plan_cells, require_apart
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import EncodedImage


def make_set(reals=40, prompts=20, generators=("a", "b", "c"), origin="made up", start=0) -> ImageSet:
    """Reals one by one, and fakes of every prompt by every generator, grouped by prompt."""
    labels = [0] * reals + [1] * prompts * len(generators)
    made = ["real"] * reals + [name for name in generators for _ in range(prompts)]
    groups = [f"photo {start + i}" for i in range(reals)] + [
        f"prompt {start + i}" for _ in generators for i in range(prompts)
    ]
    images = tuple(EncodedImage(f"{origin}/{i}", b"") for i in range(len(labels)))
    return ImageSet(images, np.array(labels), tuple(made), tuple(groups), origin=origin)


def cells_of(protocol, images=None, sets=None, **plan) -> list[Cell]:
    images = make_set() if images is None else images
    sets = np.zeros(len(images), int) if sets is None else sets
    return plan_cells(protocol, images, sets, Plan(**{"shots": (5,), "draws": 2} | plan))


def makers(images, positions):
    return {images.generators[i] for i in positions if images.labels[i] == 1}


def test_few_shot_trains_on_each_generator_and_tests_on_all_with_unseen_reals():
    images = make_set()
    cells = cells_of("few-shot", images, shots=(1, 5))
    assert len(cells) == 2 * 3 * 2
    for cell in cells:
        assert makers(images, cell.train) == {cell.train_on}
        assert makers(images, cell.test) == {"a", "b", "c"}
        assert (images.labels[cell.train] == 0).sum() == cell.shots == (images.labels[cell.train] == 1).sum()
        assert not set(cell.train) & set(cell.test)
        groups = np.array(images.groups)
        assert not set(groups[cell.train]) & set(groups[cell.test]), "a prompt lies on both sides"


def test_every_number_of_shots_of_a_draw_has_the_same_test_images():
    by_draw = {}
    for cell in cells_of("few-shot", shots=(1, 3, 5, "all")):
        by_draw.setdefault(cell.draw, []).append(cell.test)
    for tests in by_draw.values():
        assert all(np.array_equal(tests[0], other) for other in tests)
    assert not np.array_equal(by_draw[0][0], by_draw[1][0]), "draws hold out different images"


def test_all_takes_everything_that_is_not_held_out():
    images = make_set()
    cell = cells_of("few-shot", images, shots=("all",))[0]
    own = [i for i in range(len(images)) if images.generators[i] in ("real", cell.train_on)]
    assert sorted([*cell.train, *(set(own) & set(cell.test))]) == own


def test_a_mix_trains_on_all_and_names_mix_those():
    images = make_set()
    assert {c.train_on for c in cells_of("few-shot", images, train_on="mix")} == {"mix"}
    cell = cells_of("few-shot", images, train_on="a, c")[0]
    assert makers(images, cell.train) == {"a", "c"} and cell.train_on == "a+c"


def test_leave_one_out_never_trains_on_the_one():
    images = make_set()
    cells = cells_of("leave-one-generator-out", images, shots=("all",))
    assert {cell.train_on for cell in cells} == {"all but a", "all but b", "all but c"}
    for cell in cells:
        left = cell.train_on.removeprefix("all but ")
        assert left not in makers(images, cell.train) and left in makers(images, cell.test)


def test_cross_set_tests_on_the_others_and_drops_what_is_in_both():
    own, other = make_set(origin="own"), make_set(origin="other", start=10)
    images = ImageSet(
        (*own.images, *other.images),
        np.r_[own.labels, other.labels],
        (*own.generators, *other.generators),
        (*own.groups, *other.groups),
    )
    sets = np.repeat([0, 1], [len(own), len(other)])
    for cell in cells_of("cross-set", images, sets):
        assert (sets[cell.train] == 0).all() and (sets[cell.test] == 1).all()
        assert not set(np.array(images.groups)[cell.test]) & set(own.groups)


def test_train_test_takes_the_split_of_the_data():
    images = make_set()
    numbers = [int(group.split()[1]) for group in images.groups]
    images = replace(images, splits=tuple("train" if n % 2 else "test" for n in numbers))
    (cell,) = cells_of("train-test", images, shots=("all",), draws=3)
    assert {images.splits[i] for i in cell.train} == {"train"} and {images.splits[i] for i in cell.test} == {"test"}


def test_temporal_trains_on_the_past():
    images = make_set()
    dates = {"a": "2022-05-01", "b": "2023-05-01", "c": "2024-05-01", "real": ""}
    images = replace(images, dates=tuple(dates[name] for name in images.generators))
    cells = cells_of("temporal", images, draws=1)
    assert [(c.train_on, makers(images, c.train)) for c in cells] == [
        ("up to 2022-05-01", {"a"}),
        ("up to 2023-05-01", {"a", "b"}),
    ]


def test_robustness_has_one_test_set_for_all_draws():
    cells = cells_of("robustness", draws=3)
    assert all(np.array_equal(cells[0].test, cell.test) for cell in cells)
    assert len({tuple(cell.train) for cell in cells}) == len(cells)


@pytest.mark.parametrize("protocol", ["few-shot", "leave-one-generator-out", "robustness"])
def test_the_same_seed_plans_the_same_cells(protocol):
    one, two, other = cells_of(protocol), cells_of(protocol), cells_of(protocol, seed=1)
    assert all(np.array_equal(a.train, b.train) and a.seed == b.seed for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a.train, b.train) for a, b in zip(one, other, strict=True))


class TestMoreReals:
    """Real images beyond the shots: cheap, for every method, and never one that is tested on."""

    @staticmethod
    def beside(protocol, **plan):
        """The images, and the cells without and with more reals, in pairs."""
        images = make_set()
        plain = cells_of(protocol, images, **{**plan, "reals": None})
        return images, list(zip(plain, cells_of(protocol, images, **plan), strict=True))

    @pytest.mark.parametrize("protocol", ["few-shot", "leave-one-generator-out", "robustness"])
    @pytest.mark.parametrize("reals", [12, "all"])
    def test_they_join_the_same_shots_and_the_test_stays_the_same(self, protocol, reals):
        images, pairs = self.beside(protocol, shots=(1, 5), reals=reals)
        for plain, cell in pairs:
            added = np.setdiff1d(cell.train, plain.train)
            assert set(plain.train) <= set(cell.train) and (images.labels[added] == 0).all()
            assert np.array_equal(plain.test, cell.test) and plain.seed == cell.seed
            assert (np.diff(cell.train) > 0).all()
            held = images.labels[cell.test] == 0
            expected = 40 - held.sum() if reals == "all" else 12
            assert (images.labels[cell.train] == 0).sum() == expected
            groups = np.array(images.groups)
            assert not set(groups[cell.train]) & set(groups[cell.test])

    def test_a_number_is_that_of_all_reals_so_that_fewer_than_the_shots_add_none(self):
        _, pairs = self.beside("few-shot", shots=(5, 10), reals=5)
        assert all(np.array_equal(plain.train, cell.train) for plain, cell in pairs)

    def test_all_shots_leave_no_more_to_add(self):
        _, pairs = self.beside("few-shot", shots=("all",), reals="all")
        assert all(np.array_equal(plain.train, cell.train) for plain, cell in pairs)

    def test_a_photograph_and_its_copy_stay_on_one_side(self):
        images = make_set()
        images = replace(images, groups=tuple("copied" if i < 6 else group for i, group in enumerate(images.groups)))
        for cell in cells_of("few-shot", images, reals="all", draws=6):
            assert {*range(6)} <= set(cell.train) or {*range(6)} <= set(cell.test)

    def test_draws_take_others_and_the_same_seed_the_same(self):
        one, two = (cells_of("few-shot", reals=12, draws=2) for _ in range(2))
        assert all(np.array_equal(a.train, b.train) for a, b in zip(one, two, strict=True))
        assert not np.array_equal(one[0].train, next(cell for cell in one if cell.draw == 1).train)

    def test_in_cross_set_they_are_of_the_data_set_and_in_train_test_of_its_training_part(self):
        own, other = make_set(origin="own"), make_set(origin="other", start=100)
        both = ImageSet(
            (*own.images, *other.images),
            np.r_[own.labels, other.labels],
            (*own.generators, *other.generators),
            (*own.groups, *other.groups),
        )
        for cell in cells_of("cross-set", both, np.repeat([0, 1], [len(own), len(other)]), reals="all"):
            assert cell.train.max() < len(own) and (both.labels[cell.train] == 0).sum() == 40
        splits = tuple("train" if int(group.split()[1]) % 2 else "test" for group in own.groups)
        for cell in cells_of("train-test", replace(own, splits=splits), reals="all"):
            assert {splits[i] for i in cell.train} == {"train"} and (own.labels[cell.train] == 0).sum() == 20


class TestLeaks:
    def test_a_planted_leak_is_caught(self):
        images = make_set()
        cell = cells_of("few-shot", images)[0]
        planted = replace(cell, test=np.sort(np.r_[cell.test, cell.train[0]]))
        with pytest.raises(DataError, match=r"Leak: 1 groups lie in the training and in the test images"):
            require_apart(images, planted)

    def test_where_the_datas_own_split_tears_a_group_its_test_images_are_left_out(self):
        """The same photograph under two names, one in train and one in test."""
        images = make_set()
        splits = np.array(["train" if int(g.split()[1]) % 2 else "test" for g in images.groups])
        splits[0], splits[1] = "train", "test"
        groups = ("copied", "copied", *images.groups[2:])
        (cell,) = cells_of("train-test", replace(images, splits=tuple(splits), groups=groups), shots=("all",))
        assert 0 in cell.train and 1 not in cell.test


class TestRefusals:
    def test_more_shots_than_there_are_names_the_most(self):
        with pytest.raises(DataError, match=r"leaves 10 to train on.*Ask for at most 10"):
            cells_of("few-shot", shots=(50,))

    def test_unknown_protocol_and_generator(self):
        with pytest.raises(DnaProbeError, match="Did you mean 'few-shot'"):
            cells_of("fewshot")
        with pytest.raises(DataError, match="Unknown generator 'd'"):
            cells_of("few-shot", train_on="d")

    def test_one_generator_cannot_be_left_out(self):
        with pytest.raises(DataError, match="needs at least two"):
            cells_of("leave-one-generator-out", make_set(generators=("a",)))

    def test_no_other_protocol_takes_another_set(self):
        images = make_set()
        with pytest.raises(DataError, match="tests on one data set"):
            cells_of("few-shot", images, np.r_[np.zeros(60, int), np.ones(40, int)])

    def test_cross_set_needs_another_set(self):
        with pytest.raises(DataError, match="Name them with --test"):
            cells_of("cross-set")

    def test_train_test_needs_a_split(self):
        with pytest.raises(DataError, match="defines no train and test split"):
            cells_of("train-test")

    def test_temporal_needs_dates_and_a_later_generator(self):
        with pytest.raises(DataError, match="release date of a, b, c is not known"):
            cells_of("temporal")
        images = make_set()
        same = replace(images, dates=("2024-01-01",) * len(images))
        with pytest.raises(DataError, match="no later one"):
            cells_of("temporal", same)
        with pytest.raises(DataError, match="No generator was released after 2025"):
            dated = replace(images, dates=tuple({"a": "2023-01-01"}.get(g, "2024-01-01") for g in images.generators))
            cells_of("temporal", dated, cutoffs=("2025-01-01",))

    def test_a_split_that_leaves_a_class_empty(self):
        images = make_set()
        splits = tuple("train" if label else "test" for label in images.labels)
        with pytest.raises(DataError, match=r"training part .* holds no real images"):
            cells_of("train-test", replace(images, splits=splits), shots=("all",))


def test_every_protocol_is_described():
    import dna_probe.evaluation.protocols as module

    assert all(f"``{name}``" in module.__doc__ for name in PROTOCOLS)
