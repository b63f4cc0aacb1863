"""Methods that a benchmark compares, all on the same images, draws and features.

A method is fitted on labelled training images and then sees of the test images nothing but arrays (a ``View``): no
labels, no names, no paths, in an order that says nothing. A new one is a small class and a line in ``METHODS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dna_probe.anchor import CLASSIFIERS, AnchorClassifier, Calibration, require_resolvable
from dna_probe.collection import Features, Gradients
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.evaluation.file_features import metadata_probe
from dna_probe.fitting import FittedUnits, fit_units
from dna_probe.probing import PROBE_C, folds, linear_probe, out_of_fold_scores
from dna_probe.scoring import DEFAULT_KINDS, Evidence
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.images.sets import ImageSet

RANDOM_DRAWS = 20


@dataclass(frozen=True, eq=False)
class View:
    """Arrays of some images, in one order and without labels.

    Attributes:
        matrix: all readings side by side, (n, columns); ``spans`` are the columns of each reading by name.
        layers: name of the default reading of each layer, in depth order.
        tables: ``metadata`` and ``thumbnail`` -> (n, columns), what is known without the backbone.
        untrained: the same images through the same architecture with untrained weights.
    """

    matrix: np.ndarray
    spans: Mapping[str, slice]
    layers: tuple[str, ...]
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    untrained: View | None = None

    @classmethod
    def join(
        cls,
        values: Mapping[str, np.ndarray],
        layers: Sequence[str],
        tables: Mapping[str, np.ndarray] | None = None,
        untrained: View | None = None,
    ) -> View:
        """From one array (n, width) per reading."""
        ends = np.cumsum([part.shape[1] for part in values.values()])
        spans = {name: slice(end - part.shape[1], end) for (name, part), end in zip(values.items(), ends, strict=True)}
        matrix = np.concatenate(list(values.values()), axis=1)
        return cls(matrix, spans, tuple(layers), dict(tables or {}), untrained)

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Reading name -> (n, width)."""
        return {name: self.matrix[:, span] for name, span in self.spans.items()}

    def of(self, names: Sequence[str]) -> np.ndarray:
        """Some readings side by side, (n, units)."""
        return np.concatenate([self.matrix[:, self.spans[name]] for name in names], axis=1)

    def rows(self, index: np.ndarray) -> View:
        """The images at these positions, in that order."""
        tables = {name: values[index] for name, values in self.tables.items()}
        untrained = None if self.untrained is None else self.untrained.rows(index)
        return View(self.matrix[index], self.spans, self.layers, tables, untrained)


@dataclass(frozen=True)
class DnaSettings:
    """How the detector of the method ``dna`` is fitted; names as in ``dna_probe.fit``."""

    rule: str = "transition"
    kinds: tuple[str, ...] = DEFAULT_KINDS
    scorer: str = "triadic"
    cut: str = "knee"
    scope: str = "global"
    classifier: str = "logistic"


@dataclass(frozen=True)
class Located:
    """What the forward and backward passes over the training images gave: readings of the layers taken, gradients; or
    why no layer was taken."""

    readings: tuple[Reading, ...]
    gradients: Gradients | None
    failure: str = ""


@dataclass(frozen=True)
class Training:
    """What a method may look at when it is fitted.

    Attributes:
        images: labels and groups of the training images.
        view: their arrays.
        located: of the backbone, where a method asks for units; ``untrained`` likewise of the untrained one.
        target_fpr: operating point asked for, or None.
    """

    images: ImageSet
    view: View
    settings: DnaSettings = field(default_factory=DnaSettings)
    located: Located | None = None
    untrained: Located | None = None
    target_fpr: float | None = None
    seed: int = 0

    @cached_property
    def units(self) -> FittedUnits:
        """The detector's units; several methods compare with them."""
        assert self.located is not None
        return self.find_units(self.view, self.located)

    def find_units(self, view: View, located: Located) -> FittedUnits:
        """What ``dna_probe.fit`` does behind the forward passes; raises its errors."""
        if located.failure:
            raise DnaProbeError(located.failure)
        anchor = AnchorClassifier(self.settings.classifier, random_state=self.seed, target_fpr=self.target_fpr)
        return fit_units(
            self.features(view),
            located.readings,
            located.gradients,
            anchor,
            self.settings.scorer,
            self.settings.cut,
            self.settings.scope,
            resamples=0,
        )

    def features(self, view: View) -> Features:
        return Features(self.images, view.values, {})

    @cached_property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return folds(self.images.labels, self.images.groups, seed=self.seed)


@dataclass(frozen=True)
class Judgement:
    """What a method says of the test images, in their order.

    Attributes:
        scores: decision values, larger is more fake, (draws, n); one row but for methods that are drawn many times.
        probability: of fake, (n,), or None where the method is not calibrated.
        threshold: of the probability; of the score where there is no probability.
        band: probabilities between which the verdict is *unsure*.
        units: how many numbers per image it reads.
        note: why it says nothing, if so.
    """

    scores: np.ndarray
    probability: np.ndarray | None
    threshold: float
    band: tuple[float, float] | None
    units: int
    note: str = ""


class Method(ABC):
    """A way from labelled training images to scores of others."""

    description: ClassVar[str]
    # What has to be computed before the method can be fitted.
    needs_units: ClassVar[bool] = False
    needs_untrained: ClassVar[bool] = False
    needs_table: ClassVar[str] = ""

    @abstractmethod
    def fit(self, train: Training) -> Method: ...

    @abstractmethod
    def judge(self, test: View) -> Judgement: ...


class Undecided(Method):
    """In place of a method that could not be fitted: every image scores alike, and nothing is sure."""

    description = "no decision"

    def __init__(self, note: str):
        self.note = note

    def fit(self, train: Training) -> Undecided:
        return self

    def judge(self, test: View) -> Judgement:
        count = len(test.matrix)
        return Judgement(np.zeros((1, count)), np.full(count, 0.5), 0.5, (0.0, 1.0), 0, self.note)


class Dna(Method):
    """The detector itself: what ``dna_probe.fit`` finds."""

    description = "forgery-discriminative units, cut at the knee"
    needs_units = True

    def fit(self, train: Training) -> Dna:
        self.fitted, self.located = train.units, train.located
        return self

    def judge(self, test: View) -> Judgement:
        assert self.located is not None
        anchor = self.fitted.anchor
        values = test.of([reading.name for reading in self.located.readings])[:, self.fitted.unit_set.mask]
        scores = anchor.decision_function(values)
        return _judgement(scores, anchor.calibration_, values.shape[1])


class RandomWeights(Dna):
    """The whole pipeline on the same architecture, the values of its weights shuffled: what colour and content give."""

    description = "the whole pipeline on the same architecture, its weights shuffled"
    needs_untrained = True

    def fit(self, train: Training) -> RandomWeights:
        assert train.view.untrained is not None and train.untrained is not None
        self.fitted, self.located = train.find_units(train.view.untrained, train.untrained), train.untrained
        return self

    def judge(self, test: View) -> Judgement:
        assert test.untrained is not None
        return super().judge(test.untrained)


class Probe(Method):
    """A classifier on some columns, calibrated on cross-fitted scores as the detector is."""

    def columns(self, view: View) -> np.ndarray:
        """What the classifier reads of each image, (n, columns)."""
        return view.of(view.layers[-1:])

    def prepare(self, train: Training) -> None:
        """Choose what is to be chosen, on the training images alone."""

    def estimator(self, train: Training) -> Any:
        """An unfitted scikit-learn estimator with a decision function."""
        return linear_probe(random_state=train.seed)

    def fit(self, train: Training) -> Probe:
        self.prepare(train)
        values, labels = self.columns(train.view), train.images.labels
        estimator = self.estimator(train)
        self.fitted = estimator.fit(values, labels)
        if train.folds:
            crossed = out_of_fold_scores(values, labels, train.folds, estimator)
            self.calibration = Calibration.on_cross_fitted(crossed, labels, target_fpr=train.target_fpr)
        else:
            if train.target_fpr is not None:
                require_resolvable(train.target_fpr, 0)
            self.calibration = Calibration.on_own_scores(_decide(self.fitted, values), labels)
        return self

    def judge(self, test: View) -> Judgement:
        values = self.columns(test)
        return _judgement(_decide(self.fitted, values), self.calibration, self.reads(values))

    def reads(self, values: np.ndarray) -> int:
        return values.shape[1]


class LastLinear(Probe):
    description = "linear probe on the last layer"


class BestLayer(Probe):
    """The layer of best cross-validated AUC within the training images; the last one where they are too few."""

    description = "linear probe on the layer of best inner cross-validation"

    def prepare(self, train: Training) -> None:
        from sklearn.metrics import roc_auc_score

        self.layer = len(train.view.layers) - 1
        if not train.folds:
            return
        labels = train.images.labels
        scores = [out_of_fold_scores(train.view.of([name]), labels, train.folds) for name in train.view.layers]
        auc = [roc_auc_score(labels, part) for part in scores]
        # Of equals the deepest, as with the last layer.
        self.layer = len(auc) - 1 - int(np.argmax(auc[::-1]))

    def columns(self, view: View) -> np.ndarray:
        return view.of(view.layers[self.layer : self.layer + 1])


class AllLayers(Probe):
    description = "linear probe on all layers side by side"

    def columns(self, view: View) -> np.ndarray:
        return view.of(view.layers)


class Rine(AllLayers):
    """Learned layer importance over all blocks (RINE, Koutlis and Papadopoulos, arXiv 2402.19091)."""

    description = "learned importance of all layers (RINE)"

    def estimator(self, train: Training) -> Any:
        from dna_probe.evaluation.estimators import LayerImportance

        widths = tuple(train.view.of([name]).shape[1] for name in train.view.layers)
        return LayerImportance(widths, random_state=train.seed)


class Prototype(Probe):
    description = "nearest class mean, last layer"

    def estimator(self, train: Training) -> Any:
        return CLASSIFIERS["prototype"][0](PROBE_C, train.seed)


class NearestNeighbours(Probe):
    description = "cosine distance to the nearest real and fake images, last layer"

    def estimator(self, train: Training) -> Any:
        from dna_probe.evaluation.estimators import NeighbourContrast

        return NeighbourContrast()


class RbfSvm(Probe):
    description = "support vector machine with RBF kernel, last layer"

    def estimator(self, train: Training) -> Any:
        anchor = AnchorClassifier("rbf_svm", random_state=train.seed)
        c = anchor.choose_strength(self.columns(train.view), train.images.labels, train.images.groups)
        return CLASSIFIERS["rbf_svm"][0](c, train.seed)


class L1(AllLayers):
    """Units selected by an L1 penalty, its strength by cross-validation within the training images."""

    description = "units of all layers selected by an L1 penalty"
    strengths = (0.01, 0.03, 0.1, 0.3)

    def estimator(self, train: Training) -> Any:
        from sklearn.metrics import roc_auc_score

        values, labels = self.columns(train.view), train.images.labels
        if not train.folds:
            return self._build(self.strengths[-1], train.seed)
        built = [self._build(c, train.seed) for c in self.strengths]
        return max(built, key=lambda e: roc_auc_score(labels, out_of_fold_scores(values, labels, train.folds, e)))

    def reads(self, values: np.ndarray) -> int:
        return int((self.fitted[-1].coef_ != 0).sum())

    @staticmethod
    def _build(c: float, seed: int) -> Any:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        return make_pipeline(
            StandardScaler(),
            LinearSVC(
                penalty="l1", dual=False, C=c, class_weight="balanced", random_state=seed, tol=1e-3, max_iter=5000
            ),
        )


class TopD(AllLayers):
    """As many units as the detector reads, by Cohen's d over all layers; chosen again in each fold."""

    description = "as many units of all layers, by Cohen's d alone"
    needs_units = True

    def estimator(self, train: Training) -> Any:
        from sklearn.feature_selection import SelectKBest
        from sklearn.pipeline import make_pipeline

        self.count = len(train.units.unit_set)
        return make_pipeline(SelectKBest(_contrast, k=self.count), linear_probe(random_state=train.seed))

    def reads(self, values: np.ndarray) -> int:
        return self.count


class RandomUnits(Method):
    """Random units, as many of each reading as the detector reads; drawn twenty times."""

    description = f"as many random units of the same layers, {RANDOM_DRAWS} draws"
    needs_units = True

    def fit(self, train: Training) -> RandomUnits:
        assert train.located is not None
        rng = np.random.default_rng(train.seed)
        anchor, mask = train.units.anchor, train.units.unit_set.mask
        self.names = [reading.name for reading in train.located.readings]
        values, labels = train.view.of(self.names), train.images.labels
        ends = np.cumsum([reading.width for reading in train.located.readings])
        parts = [np.arange(end - reading.width, end) for reading, end in zip(train.located.readings, ends, strict=True)]
        self.drawn = [
            np.concatenate([rng.choice(part, mask[part].sum(), replace=False) for part in parts])
            for _ in range(RANDOM_DRAWS)
        ]
        build = CLASSIFIERS[anchor.kind][0]
        self.fitted = [build(anchor.strength_, train.seed).fit(values[:, own], labels) for own in self.drawn]
        return self

    def judge(self, test: View) -> Judgement:
        values = test.of(self.names)
        pairs = zip(self.fitted, self.drawn, strict=True)
        scores = np.stack([_decide(fitted, values[:, own]) for fitted, own in pairs])
        return Judgement(scores, None, 0.0, None, len(self.drawn[0]))


class Metadata(Probe):
    """A random forest on what the files say without their pixels."""

    description = "what the files say without their pixels"
    needs_table = "metadata"

    def columns(self, view: View) -> np.ndarray:
        return view.tables["metadata"]

    def estimator(self, train: Training) -> Any:
        return metadata_probe(train.seed, trees=30)


class Thumbnail(Probe):
    description = "linear probe on 16 x 16 pixels: colour and layout"
    needs_table = "thumbnail"

    def columns(self, view: View) -> np.ndarray:
        return view.tables["thumbnail"]


METHODS: dict[str, type[Method]] = {
    "dna": Dna,
    "last-linear": LastLinear,
    "best-layer": BestLayer,
    "all-layers": AllLayers,
    "rine": Rine,
    "prototype": Prototype,
    "knn": NearestNeighbours,
    "rbf-svm": RbfSvm,
    "l1": L1,
    "random-units": RandomUnits,
    "top-d": TopD,
    "metadata": Metadata,
    "thumbnail": Thumbnail,
    "random-weights": RandomWeights,
}


def require_methods(names: Sequence[str]) -> list[type[Method]]:
    """The methods of these names.

    Raises:
        DnaProbeError: a mistyped name.
    """
    for name in names:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    return [METHODS[name] for name in names]


def _contrast(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Size of Cohen's d of each column, for scikit-learn's selection."""
    return np.abs(Evidence((), values, labels).contrast)


def _decide(estimator: Any, values: np.ndarray) -> np.ndarray:
    return np.asarray(estimator.decision_function(values), dtype=np.float64)


def _judgement(scores: np.ndarray, calibration: Calibration, units: int) -> Judgement:
    return Judgement(
        scores[None], calibration.probability(scores), calibration.threshold, (calibration.low, calibration.high), units
    )
