"""The built-in set: content-matched, split by photograph, and nothing in it tells the classes apart but the trace."""

import socket
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images import probe_set as module
from dna_probe.images.forge import FORGERS
from dna_probe.images.probe_set import ATTRIBUTIONS, photographs, probe_set


def test_what_is_in_it():
    built = probe_set()
    assert 70 <= (built.labels == 0).sum() <= 130 and (built.labels == 1).sum() == 2 * (built.labels == 0).sum()
    assert set(built.generators) == {"real", *FORGERS}
    assert {image.size for image in built.images} == {(160, 160)} and {image.mode for image in built.images} == {"RGB"}
    assert all(image.info == {} for image in built.images)
    per_forger = Counter(built.of_label(1).generators)
    assert min(per_forger.values()) >= 15
    assert built is probe_set()


def test_no_photograph_is_on_both_sides():
    built = probe_set()
    fit, test = built.of_split("fit"), built.of_split("test")
    assert len(fit) + len(test) == len(built) and len(fit) > len(test) > 60
    assert not set(fit.groups) & set(test.groups)
    assert set(fit.generators) == set(test.generators) == set(built.generators)
    # Every real crop is followed by its two forgeries.
    assert built.labels.reshape(-1, 3).tolist() == [[0, 1, 1]] * (len(built) // 3)


def test_it_is_reproducible_and_seeds_differ():
    small = {"size": 96, "per_photograph": 1}
    first = probe_set(**small).fingerprint()
    probe_set.cache_clear()
    assert probe_set(**small).fingerprint() == first
    assert probe_set(**small, seed=1).fingerprint() != first


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert len(photographs()) >= 12


def test_every_photograph_is_attributed():
    assert set(photographs()) <= set(ATTRIBUTIONS)
    for credit in ATTRIBUTIONS.values():
        assert credit.author and credit.licence and credit.package in ("skimage", "sklearn", "matplotlib")
        assert credit.split in ("fit", "test")


def test_missing_photographs_are_told(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Only 0 of the 15 built-in photographs are installed"):
        photographs()
    for size, words in ((40, "too small to forge"), (5000, "do not fit")):
        monkeypatch.undo()
        with pytest.raises(DataError, match=words):
            probe_set(size=size)


def content_features(kind):
    def thumbnail(image):
        return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=float).ravel() / 255

    def colours(image):
        flat = np.asarray(image, dtype=float).reshape(-1, 3)
        return np.concatenate([flat.mean(0), flat.std(0)])

    return np.stack([{"thumbnail": thumbnail, "colours": colours}[kind](image) for image in probe_set().images])


@pytest.mark.parametrize("kind", ["thumbnail", "colours"])
@pytest.mark.parametrize("model", ["linear", "forest"])
def test_content_does_not_tell_real_from_fake(kind, model):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    built = probe_set()
    if model == "linear":
        judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
    else:
        judge = RandomForestClassifier(100, random_state=0, class_weight="balanced", min_samples_leaf=3)
    score = cross_val_predict(
        judge, content_features(kind), built.labels, groups=built.groups, cv=GroupKFold(5), method="predict_proba"
    )[:, 1]
    assert roc_auc_score(built.labels, score) <= 0.6


def test_the_traces_can_be_found():
    """A simple detector of traces (co-occurrence of the high-pass residual) does what the thumbnail cannot."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def traces(image):
        grey = np.asarray(image.convert("L"), dtype=float)
        residual = np.clip(np.rint(np.diff(grey, n=2, axis=1) / 2), -2, 2).astype(int) + 2
        joint = np.zeros((5, 5, 5))
        np.add.at(joint, (residual[:, :-2], residual[:, 1:-1], residual[:, 2:]), 1)
        return np.log1p(joint.ravel() / joint.sum() * 1e4)

    built = probe_set()
    values = np.stack([traces(image) for image in built.images])
    fit = np.array([split == "fit" for split in built.splits])
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
    # In each triple the second is the forgery of the whole image; it is compared with its own photograph.
    used = fit & (np.arange(len(built)) % 3 < 2)
    judge.fit(values[used], built.labels[used])
    scores = judge.decision_function(values).reshape(-1, 3)[~fit[::3]]
    assert (scores[:, 1] > scores[:, 0]).mean() > 0.75
