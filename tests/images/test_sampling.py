from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dna_probe.errors import DataError
from dna_probe.images.sampling import draw_shots, require_two_classes, split_by_group
from dna_probe.images.sets import ImageSet


def build(labels, generators=(), groups=()):
    return ImageSet(tuple(range(len(labels))), np.array(labels), tuple(generators), tuple(groups), origin="the set")


def prompts(count=12, makers=("a", "b", "c"), reals=20):
    labels = [0] * reals + [1] * count * len(makers)
    generators = ["real"] * reals + [maker for maker in makers for _ in range(count)]
    groups = [f"r{n}" for n in range(reals)] + [f"p{n}" for _ in makers for n in range(count)]
    return build(labels, generators, groups)


def test_two_classes_are_required():
    require_two_classes(build([0, 1]))
    with pytest.raises(DataError, match=r"the set holds no fake images\. it holds 3 that are real, and both classes"):
        require_two_classes(build([0, 0, 0]))
    with pytest.raises(DataError, match="holds no real images"):
        require_two_classes(build([1]))


def test_shots_are_even_over_generators_and_groups():
    drawn = draw_shots(prompts(), shots=10, seed=1)
    assert (drawn.labels == 0).sum() == (drawn.labels == 1).sum() == 10
    assert sorted(Counter(drawn.of_label(1).generators).values()) == [3, 3, 4]
    # Twelve prompts are enough for ten fakes: none is used twice.
    assert len(set(drawn.of_label(1).groups)) == 10
    more = draw_shots(prompts(), shots=18, seed=1).of_label(1)
    assert max(Counter(more.groups).values()) == 2 and len(set(more.groups)) == 12


def test_shots_are_reproducible_and_differ_between_seeds():
    image_set = prompts()
    assert draw_shots(image_set, 5, 3).images == draw_shots(image_set, 5, 3).images
    assert len({draw_shots(image_set, 5, seed).images for seed in range(10)}) == 10
    assert list(draw_shots(image_set, 5, 3).images) == sorted(draw_shots(image_set, 5, 3).images)


def test_shots_of_chosen_generators():
    assert set(draw_shots(prompts(), 4, generators=["b"]).of_label(1).generators) == {"b"}
    assert set(draw_shots(prompts(), 4, generators="b").of_label(1).generators) == {"b"}
    with pytest.raises(DataError, match="Unknown generator 'bb'"):
        draw_shots(prompts(), 4, generators=["bb"])


def test_a_small_generator_gives_what_it_has():
    image_set = build([0] * 9 + [1] * 9, ["real"] * 9 + ["big"] * 8 + ["small"])
    assert Counter(draw_shots(image_set, 8).of_label(1).generators) == {"big": 7, "small": 1}


def test_pairs_are_not_drawn_twice_while_others_are_left():
    image_set = build([0] * 6 + [1] * 6, groups=[str(n) for n in range(6)] * 2)
    assert len(set(draw_shots(image_set, 3).groups)) == 6


def test_too_few_images_are_told():
    with pytest.raises(
        DataError, match="30 images of each class were asked for, but the set holds 20 real and 36 fake"
    ):
        draw_shots(prompts(), 30)
    with pytest.raises(DataError, match="20 real and 12 fake"):
        draw_shots(prompts(), 15, generators=["a"])
    with pytest.raises(DataError, match="at least 1"):
        draw_shots(prompts(), 0)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 8)), min_size=4, max_size=60),
    st.floats(0.1, 0.9),
    st.integers(0, 5),
)
def test_no_group_straddles_a_split_and_nothing_is_lost(rows, fraction, seed):
    image_set = build([label for label, _ in rows], groups=[str(group) for _, group in rows])
    try:
        train, test = split_by_group(image_set, fraction, seed)
    except DataError as error:
        assert "cannot be split" in str(error)
        return
    assert not set(train.groups) & set(test.groups)
    assert sorted([*train.images, *test.images]) == list(image_set.images)
    assert set(train.labels) == set(test.labels) == set(image_set.labels)


def test_splits_are_stratified_and_reproducible():
    image_set = prompts(reals=40)
    train, test = split_by_group(image_set, 0.25, seed=4)
    assert (test.labels == 0).sum() == 10 and (test.labels == 1).sum() == 9
    assert split_by_group(image_set, 0.25, seed=4)[1].images == test.images
    assert split_by_group(image_set, 0.25, seed=5)[1].images != test.images
    assert len(train) + len(test) == len(image_set)


def test_splits_that_cannot_be():
    with pytest.raises(DataError, match="all fake images form one group"):
        split_by_group(build([0, 0, 1, 1], groups="abcc"))
    with pytest.raises(DataError, match="between 0 and 1"):
        split_by_group(build([0, 1]), 1.0)
