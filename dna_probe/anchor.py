"""The anchor classifier: light, few-shot, on selected units, with calibrated probabilities and an unsure band.

Everything is chosen inside the training images: the strength of the shrinkage by grouped cross-validation, the
calibration, the threshold and the band on scores of images that the scoring classifier did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.moments import require_finite
from dna_probe.probing import PROBE_C, folds, linear_probe, out_of_fold_scores

if TYPE_CHECKING:
    pass

ERROR_RATE = 0.1
STRENGTHS = (0.0005, 0.002, 0.01, 0.05, 0.2)


def _svm(kernel: str, c: float, seed: int) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(C=c, kernel=kernel, class_weight="balanced", random_state=seed))


def _lda(c: float, seed: int) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=(0.5, 0.5))
    return make_pipeline(StandardScaler(), lda)


def _prototype(c: float, seed: int) -> Any:
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), NearestCentroid(priors="uniform"))


# Name -> how to build it from a strength, and the strengths to choose from (none where there is nothing to choose).
CLASSIFIERS: dict[str, tuple[Callable[[float, int], Any], tuple[float, ...]]] = {
    "logistic": (linear_probe, STRENGTHS),
    "linear_svm": (lambda c, seed: _svm("linear", c, seed), STRENGTHS),
    "rbf_svm": (lambda c, seed: _svm("rbf", c, seed), (0.1, 0.5, 2.0, 8.0)),
    "lda": (_lda, ()),
    "prototype": (_prototype, ()),
}


class AnchorClassifier:
    """A scikit-learn style classifier whose fitted state is a handful of arrays, so that it is stored without pickle.

    Args:
        kind: ``logistic`` (standardised logistic regression), ``linear_svm``, ``rbf_svm``, ``lda`` (Ledoit-Wolf
            shrinkage) or ``prototype`` (nearest class mean).
        strength: inverse shrinkage C; None chooses it by grouped cross-validation.
        error_rate: share of each class that the band of confident verdicts may get wrong; sets the unsure band.

    After ``fit``: ``classes_``, ``strength_``, ``threshold_``, ``band_`` (probabilities between which the verdict is
    *unsure*), ``calibrated_`` (False where there were too few groups to cross-fit), ``out_of_fold_`` (calibrated
    probabilities of the training images, each from a classifier that did not see its group).
    """

    def __init__(
        self,
        kind: str = "logistic",
        strength: float | None = None,
        error_rate: float = ERROR_RATE,
        random_state: int = 0,
    ):
        if kind not in CLASSIFIERS:
            raise unknown_name("classifier", kind, CLASSIFIERS)
        self.kind, self.strength, self.error_rate, self.random_state = kind, strength, error_rate, random_state
        self.classes_ = np.array([0, 1])

    def fit(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        groups: Sequence[str] | None = None,
        cross_fitted: np.ndarray | None = None,
    ) -> AnchorClassifier:
        """Fit on (n, units).

        Args:
            groups: images of one group share a fold; None makes every image its own group.
            cross_fitted: decision values of the training images from classifiers that did not see them, where the
                caller cross-fitted more than this classifier (the selection of units, say); None cross-fits here.

        Raises:
            DataError: one class only. NumericalError: a value is not finite.
        """
        values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
        groups = [str(i) for i in range(len(labels))] if groups is None else groups
        if set(np.unique(labels)) != {0, 1}:
            raise DataError("The classifier needs images of both classes", fix="Give real (0) and fake (1) images")
        require_finite(values, "activation")
        self.strength_ = self.choose_strength(values, labels, groups)
        self._arrays = _export(self._build(self.strength_).fit(values, labels))
        if cross_fitted is None:
            cross_fitted = self.cross_fit(values, labels, groups)
        self.calibrated_ = cross_fitted is not None
        if cross_fitted is None:
            # Nothing to calibrate on: halfway between the class means, scaled so that a mean sits at three to one.
            own = self.decision_function(values)
            real, fake = own[labels == 0].mean(), own[labels == 1].mean()
            slope = 2 * np.log(3) / max(fake - real, 1e-12)
            self._slope, self._offset = float(slope), float(-slope * (real + fake) / 2)
            self.threshold_, self.band_ = 0.5, (0.25, 0.75)
            self.out_of_fold_ = np.full(len(labels), np.nan)
            return self
        self._slope, self._offset = _platt(cross_fitted, labels)
        self.out_of_fold_ = self._probability(cross_fitted)
        self.threshold_ = 0.5
        self.band_ = _unsure_band(self.out_of_fold_, labels, self.threshold_, self.error_rate)
        return self

    def choose_strength(self, values: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> float:
        """The C of best out-of-fold AUC; the strongest shrinkage within one standard error of the best."""
        from sklearn.metrics import roc_auc_score

        _, strengths = CLASSIFIERS[self.kind]
        if self.strength is not None or not strengths:
            return self.strength if self.strength is not None else PROBE_C
        pairs = folds(labels, groups, seed=self.random_state)
        if len(pairs) < 2:
            return PROBE_C if self.kind != "rbf_svm" else 2.0
        auc = np.zeros((len(strengths), len(pairs)))
        for i, strength in enumerate(strengths):
            for j, (train, test) in enumerate(pairs):
                scores = self._build(strength).fit(values[train], labels[train]).decision_function(values[test])
                auc[i, j] = roc_auc_score(labels[test], scores) if len(np.unique(labels[test])) == 2 else np.nan
        mean = np.nanmean(auc, axis=1)
        best = int(np.argmax(mean))
        margin = np.nanstd(auc[best]) / np.sqrt(len(pairs))
        return strengths[int(np.argmax(mean >= mean[best] - margin))]

    def fit_decision(self, values: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Decision values of other images from the bare classifier, without calibration, (m,)."""
        return np.asarray(self._build(self.strength or PROBE_C).fit(values, labels).decision_function(others))

    def cross_fit(self, values: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray | None:
        """Out-of-fold decision values, (n,), or None where a class has fewer than two groups."""
        pairs = folds(labels, groups, seed=self.random_state)
        return out_of_fold_scores(values, labels, pairs, self._build(self.strength_)) if pairs else None

    def decision_function(self, values: np.ndarray) -> np.ndarray:
        """Signed distance, larger is more fake, (n,)."""
        a = self._arrays
        z = (np.asarray(values, dtype=np.float64) - a["mean"]) / a["scale"]
        if "support" not in a:
            return z @ a["weight"] + a["bias"][0]
        squared = (z**2).sum(1)[:, None] + (a["support"] ** 2).sum(1) - 2 * z @ a["support"].T
        return np.exp(-a["gamma"][0] * np.maximum(squared, 0)) @ a["dual"] + a["bias"][0]

    def predict_proba(self, values: np.ndarray) -> np.ndarray:
        """Probabilities of real and fake, (n, 2), calibrated for classes that are equally common."""
        fake = self._probability(self.decision_function(values))
        return np.column_stack([1 - fake, fake])

    def predict(self, values: np.ndarray) -> np.ndarray:
        return (self.predict_proba(values)[:, 1] >= self.threshold_).astype(int)

    def verdict(self, probability: float) -> str:
        """``real``, ``fake``, or ``unsure`` inside the band."""
        low, high = self.band_
        if low < high and low < probability < high:
            return "unsure"
        return "fake" if probability >= self.threshold_ else "real"

    def to_arrays(self) -> dict[str, np.ndarray]:
        return dict(self._arrays)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "strength": self.strength_,
            "slope": self._slope,
            "offset": self._offset,
            "threshold": self.threshold_,
            "band": list(self.band_),
            "calibrated": self.calibrated_,
            "error_rate": self.error_rate,
            "random_state": self.random_state,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> AnchorClassifier:
        """The fitted classifier from ``to_json`` and ``to_arrays``."""
        anchor = cls(state["kind"], state["strength"], state["error_rate"], state["random_state"])
        anchor.strength_ = state["strength"]
        anchor._slope, anchor._offset = state["slope"], state["offset"]
        anchor.threshold_, anchor.band_ = state["threshold"], (state["band"][0], state["band"][1])
        anchor.calibrated_ = state["calibrated"]
        anchor._arrays = dict(arrays)
        return anchor

    def _build(self, strength: float) -> Any:
        return CLASSIFIERS[self.kind][0](strength, self.random_state)

    def _probability(self, scores: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(self._slope * scores + self._offset)


def _export(pipeline: Any) -> dict[str, np.ndarray]:
    """The fitted pipeline as arrays: a linear map on standardised units, or the support vectors of an RBF machine."""
    scaler, model = pipeline[0], pipeline[-1]
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_}
    if hasattr(model, "centroids_"):
        # Nearest mean is linear: |z - r|^2 - |z - f|^2 = 2 z.(f - r) + |r|^2 - |f|^2.
        real, fake = model.centroids_
        return arrays | {"weight": 2 * (fake - real), "bias": np.array([real @ real - fake @ fake])}
    if getattr(model, "kernel", "linear") == "rbf":
        return arrays | {
            "support": np.ascontiguousarray(model.support_vectors_),
            "dual": np.ascontiguousarray(model.dual_coef_[0]),
            "gamma": np.array([model._gamma]),
            "bias": np.array([model.intercept_[0]]),
        }
    return arrays | {"weight": np.ascontiguousarray(model.coef_[0]), "bias": np.array([model.intercept_[0]])}


def _platt(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the sigmoid of Platt (1999), with his smoothed targets and both classes weighted alike."""
    from sklearn.linear_model import LogisticRegression

    spread = float(np.std(scores)) or 1.0
    count = np.array([(labels == 0).sum(), (labels == 1).sum()])
    smoothed = np.where(labels == 1, (count[1] + 1) / (count[1] + 2), 1 / (count[0] + 2))
    share = 1 / count[labels]
    column = (scores / spread)[:, None]
    model = LogisticRegression(C=1e4, max_iter=1000)
    model.fit(
        np.concatenate([column, column]),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([smoothed * share, (1 - smoothed) * share]) * len(labels) / 2,
    )
    # Scores that rank backwards out of fold carry no evidence: a negative slope would turn the classifier over.
    slope = max(float(model.coef_[0, 0]), 0.0) / spread
    return slope, float(model.intercept_[0])


def _unsure_band(
    probability: np.ndarray, labels: np.ndarray, threshold: float, error_rate: float
) -> tuple[float, float]:
    """Probabilities between which neither verdict is safe.

    Class-conditional split conformal bounds (Vovk 2012): above the band at most ``error_rate`` of real images are
    expected, below it at most ``error_rate`` of fake ones. With fewer images than the rate can resolve, the extreme
    score is the bound.
    """
    real, fake = np.sort(probability[labels == 0]), np.sort(probability[labels == 1])
    at = min(int(np.ceil((len(real) + 1) * (1 - error_rate))), len(real)) - 1
    high = float(real[at])
    at = max(int(np.floor((len(fake) + 1) * error_rate)), 1) - 1
    low = float(fake[at])
    return min(low, threshold), max(high, threshold)
