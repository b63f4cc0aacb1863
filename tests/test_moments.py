import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dna_probe.errors import NumericalError
from dna_probe.moments import ClassMoments, Moments

VALUES = arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-1e4, 1e4))


def same(a: Moments, b: Moments) -> bool:
    return a.count == b.count and all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-6) for name in ("mean", "m2", "low", "high")
    )


def of_all(values: np.ndarray) -> Moments:
    """The slow reference: two passes over the full matrix."""
    mean = values.sum(0) / len(values)
    return Moments(len(values), mean, ((values - mean) ** 2).sum(0), values.min(0), values.max(0))


@given(VALUES, st.integers(1, 7))
def test_batches_of_any_size_equal_the_full_matrix(values, size):
    total = Moments.empty(3)
    for start in range(0, len(values), size):
        total = total.merged(Moments.of(values[start : start + size]))
    assert same(total, of_all(values))


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative(a, b, c):
    x, y, z = (Moments.of(v) for v in (a, b, c))
    assert same(x.merged(y).merged(z), x.merged(y.merged(z)))
    assert same(x.merged(y), y.merged(x))


def test_large_offsets_do_not_lose_the_variance(rng):
    values = rng.normal(1e8, 1.0, (1000, 2))
    total = Moments.empty(2)
    for row in np.array_split(values, 13):
        total = total.merged(Moments.of(row))
    assert np.allclose(total.variance, values.var(0), rtol=1e-6)


def test_classes_are_kept_apart_and_merge(rng):
    values, labels = rng.normal(size=(20, 4)), rng.integers(0, 2, 20)
    whole, left, right = ClassMoments(4), ClassMoments(4), ClassMoments(4)
    whole.update(values, labels)
    left.update(values[:9], labels[:9])
    right.update(values[9:], labels[9:])
    left.merge(right)
    for label in (0, 1):
        assert same(whole.classes[label], of_all(values[labels == label]))
        assert same(whole.classes[label], left.classes[label])


def test_nan_is_an_error_that_counts():
    values = np.array([[1.0, np.nan], [np.inf, 2.0]])
    with pytest.raises(NumericalError, match=r"2 of 4 activation values are NaN or infinite"):
        ClassMoments(2).update(values, np.array([0, 1]))
