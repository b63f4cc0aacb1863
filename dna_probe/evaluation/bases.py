"""Other bases than single units, on the budget of the detector: independent components.

Whether what tells fakes lies along single units or along other directions of the same layers is seen by reading as many
of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dna_probe.probing import linear_probe
from dna_probe.scorers import Evidence


class ComponentProbe:
    """A linear probe on the independent components that differ most: a scikit-learn style classifier.

    Each image's reading is scaled to length one, the readings are whitened and turned into components by FastICA
    (Hyvarinen 1999), each reading by itself, and the components of all readings compete by Cohen's d. A reading has at
    most half as many components as there are images: among more of them, each singles out one image.

    Args:
        widths: columns of each reading, in order.
        count: most components kept.

    After ``fit``: ``kept_``, positions of the components kept among those of all readings.
    """

    def __init__(self, widths: Sequence[int], count: int, random_state: int = 0):
        self.widths, self.count, self.random_state = widths, count, random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"widths": self.widths, "count": self.count, "random_state": self.random_state}

    def set_params(self, **parameters: Any) -> ComponentProbe:
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    def fit(self, values: np.ndarray, labels: np.ndarray) -> ComponentProbe:
        self.bases_ = [_components(block, self.random_state) for block in self._normalised(values)]
        found = self.components(values)
        size = np.abs(Evidence((), found, np.asarray(labels)).contrast)
        self.kept_ = np.sort(np.argsort(-size, kind="stable")[: self.count])
        self.probe_ = linear_probe(random_state=self.random_state).fit(found[:, self.kept_], labels)
        self.classes_ = self.probe_.classes_
        return self

    def components(self, values: np.ndarray) -> np.ndarray:
        """All components of all readings, (n, components)."""
        pairs = zip(self._normalised(values), self.bases_, strict=True)
        return np.concatenate([(block - mean) @ basis for block, (mean, basis) in pairs], axis=1)

    def decision_function(self, values: np.ndarray) -> np.ndarray:
        return self.probe_.decision_function(self.components(values)[:, self.kept_])

    def _normalised(self, values: np.ndarray) -> list[np.ndarray]:
        """Each reading, every row at length one, (n, width)."""
        from sklearn.preprocessing import normalize

        parts = np.split(np.asarray(values, dtype=np.float64), np.cumsum(self.widths)[:-1], axis=1)
        return [normalize(part) for part in parts]


def _components(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (width,) and unmixing directions (width, components) of rows; one direction, zero, where all are equal."""
    import warnings

    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    mean = values.mean(0)
    rank = int(np.linalg.matrix_rank(values - mean, tol=1e-9 * np.sqrt(values.size)))
    if rank == 0:
        return mean, np.zeros((values.shape[1], 1))
    ica = FastICA(min(rank, max(1, len(values) // 2)), whiten_solver="svd", random_state=seed, tol=1e-3, max_iter=200)
    with warnings.catch_warnings():
        # A rotation that has not quite settled is as good a basis.
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(values)
    return mean, ica.components_.T
