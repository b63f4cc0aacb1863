"""The anchor classifier: light, few-shot, on selected units, with calibrated probabilities and an unsure band.

Everything is chosen inside the training images: the strength of the shrinkage by grouped cross-validation, the
calibration, the threshold and the band on scores of images that the scoring classifier did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.moments import require_finite
from dna_probe.probing import PROBE_C, folds, linear_probe, out_of_fold_scores
from dna_probe.whitening import WhitenedProbes

ERROR_RATE = 0.1
STRENGTHS = (0.0005, 0.002, 0.01, 0.05, 0.2)


Widths = Sequence[int] | None


def _svm(kernel: str, c: float, seed: int) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(C=c, kernel=kernel, class_weight="balanced", random_state=seed))


def _lda() -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=(0.5, 0.5))
    return make_pipeline(StandardScaler(), lda)


def _prototype() -> Any:
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    class NearestMean(NearestCentroid):
        def fit(self, values: np.ndarray, labels: np.ndarray) -> NearestMean:
            # The spread within the classes is not used, and with one image of each it is 0 / 0.
            with np.errstate(invalid="ignore"):
                return super().fit(values, labels)

        def decision_function(self, values: np.ndarray) -> np.ndarray:
            """Squared distance to the real mean minus that to the fake mean, without scikit-learn's division."""
            real, fake = euclidean_distances(values, self.centroids_, squared=True).T
            return real - fake

    return make_pipeline(StandardScaler(), NearestMean(priors="uniform"))


# Name -> how to build it from a strength, a seed and the units of each reading, and the strengths to choose from (none
# where there is nothing to choose).
CLASSIFIERS: dict[str, tuple[Callable[[float, int, Widths], Any], tuple[float, ...]]] = {
    "whitened": (lambda c, seed, widths: WhitenedProbes(widths, c, seed), ()),
    "logistic": (lambda c, seed, widths: linear_probe(c, seed), STRENGTHS),
    "linear_svm": (lambda c, seed, widths: _svm("linear", c, seed), STRENGTHS),
    "rbf_svm": (lambda c, seed, widths: _svm("rbf", c, seed), (0.1, 0.5, 2.0, 8.0)),
    "lda": (lambda c, seed, widths: _lda(), ()),
    "prototype": (lambda c, seed, widths: _prototype(), ()),
}


@dataclass(frozen=True)
class Calibration:
    """From decision values to probabilities, and from probabilities to verdicts.

    Attributes:
        slope, offset: the probability of fake is ``expit(slope * score + offset)``, for classes equally common.
        threshold: probability from which the verdict is fake: one half, or the point asked for with ``target_fpr``.
        low, high: between these probabilities the verdict is *unsure*.
        measured: False where there were no out-of-fold scores to calibrate on.
    """

    slope: float
    offset: float
    threshold: float = 0.5
    low: float = 0.5
    high: float = 0.5
    measured: bool = True

    @classmethod
    def on_cross_fitted(
        cls, scores: np.ndarray, labels: np.ndarray, error_rate: float = ERROR_RATE, target_fpr: float | None = None
    ) -> Calibration:
        """From decision values of images that the scoring classifier did not see, (n,).

        Raises:
            DataError: ``target_fpr`` cannot be resolved with so few real images.
        """
        slope, offset = _platt(scores, labels)
        plain = cls(slope, offset)
        probability = plain.probability(scores)
        threshold = 0.5 if target_fpr is None else _threshold_at(probability[labels == 0], target_fpr)
        # Without evidence nothing is sure.
        low, high = _unsure_band(probability, labels, threshold, error_rate) if slope else (0.0, 1.0)
        return cls(slope, offset, threshold, low, high)

    @classmethod
    def on_own_scores(cls, scores: np.ndarray, labels: np.ndarray) -> Calibration:
        """Where there is nothing to calibrate on: halfway between the class means, scaled so that a mean sits at three
        to one."""
        real, fake = scores[labels == 0].mean(), scores[labels == 1].mean()
        slope = 2 * np.log(3) / max(fake - real, 1e-12)
        return cls(float(slope), float(-slope * (real + fake) / 2), 0.5, 0.25, 0.75, measured=False)

    def probability(self, scores: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(self.slope * scores + self.offset)

    def verdict(self, probability: float) -> str:
        """``real``, ``fake``, or ``unsure`` inside the band."""
        if self.low < probability < self.high:
            return "unsure"
        return "fake" if probability >= self.threshold else "real"


def require_rate(target_fpr: float) -> None:
    if not 0 < target_fpr < 1:
        raise DataError(f"A false positive rate of {target_fpr:g} was asked for", "It must lie between 0 and 1")


def require_resolvable(target_fpr: float, reals: int) -> None:
    """Refuse an operating point that so few real images cannot set.

    With n calibration reals the smallest false positive rate that a split-conformal threshold guarantees is 1/(n + 1).

    Raises:
        DataError: a rate outside 0..1, or too few reals; the message has the number needed.
    """
    require_rate(target_fpr)
    needed = int(np.ceil(1 / target_fpr - 1 - 1e-9))
    if reals < needed:
        raise DataError(
            f"A false positive rate of {target_fpr:g} needs at least {needed} real training samples, "
            f"and there are {reals}",
            "The threshold is set on them, each scored by a classifier that did not see it",
            f"Give {needed - reals} more, or ask for {1 / (reals + 1):.2g} or above",
        )


class AnchorClassifier:
    """A scikit-learn style classifier whose fitted state is a handful of arrays, so that it is stored without pickle.

    Args:
        kind: ``whitened`` (one logistic probe per reading, content discounted, averaged; see ``whitening``),
            ``logistic`` (standardised logistic regression), ``linear_svm``, ``rbf_svm``, ``lda`` (Ledoit-Wolf
            shrinkage) or ``prototype`` (nearest class mean).
        strength: inverse shrinkage C; None chooses it by grouped cross-validation.
        error_rate: share of each class that the band of confident verdicts may get wrong; sets the unsure band.
        target_fpr: false positive rate that the threshold is set for; None puts it at a probability of one half.
        widths: how many of the units belong to each reading, in order, which ``whitened`` asks for; None takes them as
            one.

    After ``fit``: ``classes_``, ``strength_``, ``calibration_``, ``out_of_fold_`` (calibrated probabilities of the
    training images, each from a classifier that did not see its group; NaN where there were too few groups).
    """

    def __init__(
        self,
        kind: str = "whitened",
        strength: float | None = None,
        error_rate: float = ERROR_RATE,
        random_state: int = 0,
        target_fpr: float | None = None,
        widths: Widths = None,
    ):
        if kind not in CLASSIFIERS:
            raise unknown_name("classifier", kind, CLASSIFIERS)
        self.kind, self.strength, self.error_rate, self.random_state = kind, strength, error_rate, random_state
        self.target_fpr, self.widths = target_fpr, widths
        self.classes_ = np.array([0, 1])

    @property
    def threshold_(self) -> float:
        return self.calibration_.threshold

    @property
    def band_(self) -> tuple[float, float]:
        """Probabilities between which the verdict is *unsure*."""
        return self.calibration_.low, self.calibration_.high

    @property
    def calibrated_(self) -> bool:
        """False where there were too few groups to cross-fit."""
        return self.calibration_.measured

    def fit(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        groups: Sequence[str] | None = None,
        cross_fitted: np.ndarray | None = None,
        counted: np.ndarray | None = None,
    ) -> AnchorClassifier:
        """Fit on (n, units).

        Args:
            groups: images of one group share a fold; None makes every image its own group.
            counted: which rows the calibration counts, (n,) bool; views of an image are not images of their own.
            cross_fitted: decision values of the training images from classifiers that did not see them, where the
                caller cross-fitted more than this classifier (the selection of units, say); None cross-fits here.

        Raises:
            DataError: one class only, or too few reals for ``target_fpr``. NumericalError: a value is not finite.
        """
        values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
        groups = [str(i) for i in range(len(labels))] if groups is None else groups
        counted = np.ones(len(labels), bool) if counted is None else counted
        if set(np.unique(labels)) != {0, 1}:
            raise DataError("The classifier needs samples of both classes", fix="Give real (0) and fake (1) ones")
        require_finite(values, "activation")
        self.strength_ = self.choose_strength(values, labels, groups)
        self._arrays = _export(self.build().fit(values, labels))
        if cross_fitted is None:
            cross_fitted = self.cross_fit(values, labels, groups)
        if cross_fitted is None:
            if self.target_fpr is not None:
                require_resolvable(self.target_fpr, 0)
            self.calibration_ = Calibration.on_own_scores(self.decision_function(values), labels)
            self.out_of_fold_ = np.full(len(labels), np.nan)
            return self
        self.calibration_ = Calibration.on_cross_fitted(
            cross_fitted[counted], labels[counted], self.error_rate, self.target_fpr
        )
        self.out_of_fold_ = self.calibration_.probability(cross_fitted)
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
                scores = self.build(strength).fit(values[train], labels[train]).decision_function(values[test])
                auc[i, j] = roc_auc_score(labels[test], scores) if len(np.unique(labels[test])) == 2 else np.nan
        mean = np.nanmean(auc, axis=1)
        best = int(np.argmax(mean))
        margin = np.nanstd(auc[best]) / np.sqrt(len(pairs))
        return strengths[int(np.argmax(mean >= mean[best] - margin))]

    def fit_decision(self, values: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Decision values of other images from the bare classifier, without calibration, (m,)."""
        return np.asarray(self.build(self.strength or PROBE_C).fit(values, labels).decision_function(others))

    def cross_fit(self, values: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray | None:
        """Out-of-fold decision values, (n,), or None where a class has fewer than two groups."""
        pairs = folds(labels, groups, seed=self.random_state)
        return out_of_fold_scores(values, labels, pairs, self.build()) if pairs else None

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
        fake = self.calibration_.probability(self.decision_function(values))
        return np.column_stack([1 - fake, fake])

    def predict(self, values: np.ndarray) -> np.ndarray:
        return (self.predict_proba(values)[:, 1] >= self.threshold_).astype(int)

    def verdict(self, probability: float) -> str:
        """``real``, ``fake``, or ``unsure`` inside the band."""
        return self.calibration_.verdict(probability)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return dict(self._arrays)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "strength": self.strength_,
            "calibration": asdict(self.calibration_),
            "error_rate": self.error_rate,
            "target_fpr": self.target_fpr,
            "random_state": self.random_state,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> AnchorClassifier:
        """The fitted classifier from ``to_json`` and ``to_arrays``."""
        anchor = cls(state["kind"], state["strength"], state["error_rate"], state["random_state"], state["target_fpr"])
        anchor.strength_ = state["strength"]
        anchor.calibration_ = Calibration(**state["calibration"])
        anchor._arrays = dict(arrays)
        return anchor

    def build(self, strength: float | None = None) -> Any:
        """An unfitted estimator of this kind; the strength is the one chosen, unless another is given."""
        return CLASSIFIERS[self.kind][0](strength or self.strength_, self.random_state, self.widths)


def _export(pipeline: Any) -> dict[str, np.ndarray]:
    """The fitted pipeline as arrays: a linear map on standardised units, or the support vectors of an RBF machine."""
    if isinstance(pipeline, WhitenedProbes):
        linear = {"mean": pipeline.mean_, "scale": pipeline.scale_, "weight": pipeline.coef_[0]}
        return {name: np.ascontiguousarray(values) for name, values in linear.items()} | {"bias": pipeline.intercept_}
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
    slope = float(model.coef_[0, 0]) / spread
    # Scores that rank backwards out of fold carry no evidence: a negative slope would turn the classifier over.
    return (slope, float(model.intercept_[0])) if slope > 0 else (0.0, 0.0)


def _threshold_at(real: np.ndarray, target_fpr: float) -> float:
    """The lowest threshold whose expected false positive rate is at most the target (split conformal, Vovk 2012)."""
    require_resolvable(target_fpr, len(real))
    at = int(np.ceil((len(real) + 1) * (1 - target_fpr) - 1e-9)) - 1
    return float(np.nextafter(np.sort(real)[at], 1))


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
