"""Linear probes with honest folds: standardised logistic regression, groups kept together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

PROBE_C = 0.02
Folds = Sequence[tuple[np.ndarray, np.ndarray]]


def linear_probe(c: float = PROBE_C, random_state: int = 0) -> Any:
    """Standardised logistic regression. The strong default shrinkage suits hundreds of units and tens of images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegression(C=c, max_iter=300, class_weight="balanced", random_state=random_state)
    return make_pipeline(StandardScaler(), classifier)


@contextmanager
def small_fits() -> Iterator[None]:
    """For hundreds of small fits: linear algebra on one thread, since waking others costs more than it saves, and no
    second check of values that were checked when they were collected."""
    from sklearn import config_context
    from threadpoolctl import threadpool_limits

    with (
        threadpool_limits(limits=1, user_api="blas"),
        config_context(assume_finite=True, skip_parameter_validation=True),
    ):
        yield


def folds(
    labels: np.ndarray, groups: Sequence[str], count: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds that never split a group; fewer where a class has few groups, none where a class has only one.

    Each fold's training part holds both classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.asarray(groups)
    smallest = min(len(np.unique(names[labels == label])) for label in (0, 1))
    if smallest < 2:
        return []
    splitter = StratifiedGroupKFold(min(count, smallest), shuffle=True, random_state=seed)
    pairs = splitter.split(np.zeros(len(labels)), labels, names)
    return [(train, test) for train, test in pairs if len(np.unique(labels[train])) == 2]


def out_of_fold_scores(
    values: np.ndarray, labels: np.ndarray, pairs: Folds, probe: ClassifierMixin | None = None, seed: int = 0
) -> np.ndarray:
    """Decision values of each image from a probe that did not see its group, (n,).

    Args:
        pairs: from ``folds``. Where there are none every score is 0, which makes an AUC of one half.
    """
    from sklearn.base import clone

    probe = linear_probe(random_state=seed) if probe is None else probe
    scores = np.zeros(len(labels))
    for train, test in pairs:
        fitted = clone(probe).fit(values[train], labels[train])
        scores[test] = fitted.decision_function(values[test])
    return scores
