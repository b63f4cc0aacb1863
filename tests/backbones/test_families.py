"""From images to verdicts on every family of timm, with random weights and a trace that a random network can see."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import dna_probe

from ..planted import images
from .zoo import CASES, TIMM, backbone_of

SHOTS = 8


def darkened_fakes(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    pictures, labels = images(SHOTS, seed)
    return [picture // 3 if label else picture for picture, label in zip(pictures, labels, strict=True)], labels


@pytest.mark.parametrize("name", TIMM)
def test_locate_score_fit_predict(name):
    backbone, case, seen = backbone_of(name), CASES[name], darkened_fakes(seed=1)
    layers = dna_probe.locate_layers(backbone, seen, rule="all", resamples=10)
    assert layers.layers == tuple(site.name for site in backbone.layers)
    assert set(layers.attention_source) == {"attention" if case.pattern else "energy"}
    for kind in ("real", "fake"):
        np.testing.assert_allclose([one.sum() for one in layers.maps[kind]], 1, atol=1e-4)
    deepest = layers.layers[-1:]
    scores = dna_probe.score_units(backbone, seen, deepest, scorer="cohens_d")
    assert {unit.split("[")[0].partition(":")[0] for unit in scores.units} >= set(deepest)
    detector = dna_probe.fit(backbone, seen, SHOTS, layers, views=(), scorer="cohens_d", cut="top_k", k=8)
    pictures, labels = darkened_fakes(seed=2)
    probabilities = detector.predict_proba(pictures)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert roc_auc_score(labels, probabilities[:, 1]) > 0.9
