"""The estimators of the benchmark that scikit-learn does not have, on data with a known answer."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from dna_probe.evaluation.estimators import LayerImportance, NeighbourContrast


@pytest.fixture
def layered(rng):
    """Four layers of eight columns; the classes differ in the third alone."""

    def draw(count):
        labels = np.repeat([0, 1], count)
        values = rng.normal(size=(2 * count, 32))
        values[:, 16:24] += 1.2 * labels[:, None]
        return values, labels

    return draw


class TestLayerImportance:
    def test_it_learns_from_the_layer_that_tells_the_classes_apart(self, layered):
        values, labels = layered(40)
        new, truth = layered(200)
        fitted = LayerImportance((8, 8, 8, 8)).fit(values, labels)
        assert roc_auc_score(truth, fitted.decision_function(new)) > 0.9

    def test_the_same_seed_gives_the_same_scores_and_leaves_torchs_own_seed_alone(self, layered):
        import torch

        values, labels = layered(10)
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        one, two = (clone(LayerImportance((8,) * 4)).fit(values, labels).decision_function(values) for _ in range(2))
        np.testing.assert_array_equal(one, two)
        assert torch.equal(torch.random.get_rng_state(), before)
        other = LayerImportance((8,) * 4, random_state=1).fit(values, labels).decision_function(values)
        assert not np.allclose(one, other)

    def test_layers_of_different_width(self, layered):
        values, labels = layered(20)
        fitted = LayerImportance((16, 8, 8)).fit(values, labels)
        assert np.isfinite(fitted.decision_function(values)).all()

    def test_one_image_of_each_class(self, layered):
        values, labels = layered(1)
        assert np.isfinite(LayerImportance((8,) * 4).fit(values, labels).decision_function(values)).all()


class TestNeighbourContrast:
    def test_it_is_the_difference_of_mean_cosine_distances(self, rng):
        values, labels = rng.normal(size=(12, 5)), np.repeat([0, 1], 6)
        new = rng.normal(size=(3, 5))
        fitted = NeighbourContrast(2).fit(values, labels)
        scaled, others = ((part - values.mean(0)) / values.std(0) for part in (values, new))

        def distances(one, label):
            own = scaled[labels == label]
            cosine = own @ one / np.linalg.norm(own, axis=1) / np.linalg.norm(one)
            return np.sort(1 - cosine)[:2].mean()

        expected = [distances(one, 0) - distances(one, 1) for one in others]
        np.testing.assert_allclose(fitted.decision_function(new), expected)

    def test_fewer_images_than_neighbours(self, rng):
        values, labels = rng.normal(size=(4, 3)), np.repeat([0, 1], 2)
        assert np.isfinite(NeighbourContrast(5).fit(values, labels).decision_function(values)).all()
