"""Methods that a benchmark compares, all on the same images, draws and features.

A method is fitted on labelled training images and then sees of the test images nothing but arrays (a ``View``): no
labels, no names, no paths, in an order that says nothing. A new one is a small class and a line in ``METHODS``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dna_probe.anchor import AnchorClassifier, Calibration, require_resolvable
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.evaluation.bases import ComponentProbe
from dna_probe.evaluation.file_features import metadata_probe
from dna_probe.evaluation.training import Training, View, weights_of
from dna_probe.fitting import DEFAULTS, DnaSettings, stack
from dna_probe.probing import linear_probe, out_of_fold_scores
from dna_probe.scorers import Evidence

RANDOM_DRAWS = 20
SETTINGS = ("rule", "kinds", "scorer", "cut", "scope", "classifier", "views")


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
    """The detector itself: what ``dna_probe.fit`` finds, with its settings or with others."""

    description = "the detector"
    needs_units = True

    def __init__(self, changes: Mapping[str, Any] | None = None):
        self.changes = dict(changes or {})

    def settings(self, settings: DnaSettings) -> DnaSettings:
        """How this one is fitted, where the run fits its detector with these settings."""
        return replace(settings, **self.changes)

    def fit(self, train: Training) -> Dna:
        settings, untrained = self.settings(train.settings), self.needs_untrained
        same = settings == train.settings and not untrained
        self.fitted = train.units if same else train.find_units(settings, untrained)
        self.names = [reading.name for reading in train.locate(settings, untrained).readings]
        return self

    def judge(self, test: View) -> Judgement:
        anchor = self.fitted.anchor
        values = weights_of(test, self.needs_untrained).of(self.names)[:, self.fitted.unit_set.mask]
        return _judgement(anchor.decision_function(values), anchor.calibration_, values.shape[1])


class AllUnits(Dna):
    description = "the detector on every unit of the layers it located"

    def __init__(self):
        super().__init__({"cut": "fraction", "parameters": (("fraction", 1.0),)})


class RandomWeights(Dna):
    """The whole pipeline on the same architecture, the values of its weights shuffled: what colour and content give."""

    description = "the whole pipeline on the same architecture, its weights shuffled"
    needs_untrained = True


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


class OneLayer(Probe):
    description = "linear probe on one layer"

    def __init__(self, layer: int):
        self.layer = layer

    def columns(self, view: View) -> np.ndarray:
        if self.layer >= len(view.layers):
            raise DnaProbeError(f"There is no layer {self.layer}", f"The last one is {len(view.layers) - 1}")
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
        return AnchorClassifier("prototype", random_state=train.seed).build(1.0)


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
        return anchor.build(c)


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

        self.count = min(len(train.units.unit_set), self.columns(train.view).shape[1])
        return make_pipeline(SelectKBest(_contrast, k=self.count), linear_probe(random_state=train.seed))

    def reads(self, values: np.ndarray) -> int:
        return self.count


class RandomUnits(Method):
    """Random units, as many of each reading as the detector reads; drawn twenty times."""

    description = f"as many random units of the same layers, {RANDOM_DRAWS} draws"
    needs_units = True

    def fit(self, train: Training) -> RandomUnits:
        rng = np.random.default_rng(train.seed)
        unit_set, readings = train.units.unit_set, train.locate(train.settings).readings
        rows = stack(train.features(), train.views(train.settings))
        self.names = [reading.name for reading in readings]
        values, labels = rows.of(readings), rows.images.labels
        starts = np.cumsum([0, *(reading.width for reading in readings)])
        self.drawn = [
            np.concatenate(
                [
                    start + rng.choice(reading.width, count, replace=False)
                    for reading, start, count in zip(readings, starts[:-1], unit_set.widths, strict=True)
                ]
            )
            for _ in range(RANDOM_DRAWS)
        ]
        self.fitted = [train.units.anchor.build().fit(values[:, own], labels) for own in self.drawn]
        return self

    def judge(self, test: View) -> Judgement:
        values = test.of(self.names)
        pairs = zip(self.fitted, self.drawn, strict=True)
        scores = np.stack([_decide(fitted, values[:, own]) for fitted, own in pairs])
        return Judgement(scores, None, 0.0, None, len(self.drawn[0]))


class LocatedLayers(Method):
    """A probe on each layer that the detector located, by itself; what is measured is the mean over them."""

    description = "linear probe on each located layer by itself, their mean"
    needs_units = True

    def fit(self, train: Training) -> LocatedLayers:
        layers = sorted({reading.site.layer for reading in train.locate(train.settings).readings})
        self.probes = [OneLayer(layer).fit(train) for layer in layers]
        return self

    def judge(self, test: View) -> Judgement:
        scores = np.concatenate([probe.judge(test).scores for probe in self.probes])
        return Judgement(scores, None, 0.0, None, test.of(test.layers[-1:]).shape[1])


class Ica(Probe):
    """As many independent components of the readings that the detector located as it reads units (RGE, arXiv
    2610.08639, with our budget in place of its share of the components)."""

    description = "as many independent components of the same layers (RGE)"
    needs_units = True

    def prepare(self, train: Training) -> None:
        self.names = [reading.name for reading in train.locate(train.settings).readings]

    def columns(self, view: View) -> np.ndarray:
        return view.of(self.names)

    def estimator(self, train: Training) -> ComponentProbe:
        widths = tuple(reading.width for reading in train.locate(train.settings).readings)
        return ComponentProbe(widths, len(train.units.unit_set), train.seed)

    def reads(self, values: np.ndarray) -> int:
        return self.fitted.kept_.size


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
    "all-units": AllUnits,
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
    "located-layers": LocatedLayers,
    "ica": Ica,
    "metadata": Metadata,
    "thumbnail": Thumbnail,
    "random-weights": RandomWeights,
}


def make_method(name: str) -> Method:
    """A method, unfitted, by name; ``layer[3]``, a linear probe on the layer of that number, the first being 0; or a
    variant of the detector: ``dna[scorer=weight,cut=top_k,k=50,views=]``.

    A variant names what differs from the detector of the run: ``rule``, ``kinds`` and ``views`` (joined by ``+``),
    ``scorer``, ``cut``, ``scope``, ``classifier``, and numbers for the cut.

    Raises:
        DnaProbeError: a mistyped name.
    """
    layer = re.fullmatch(r"layer\[(?P<number>\d+)\]", name)
    if layer:
        return OneLayer(int(layer["number"]))
    variant = re.fullmatch(r"dna\[(?P<changes>.*)\]", name)
    if variant:
        return Dna(_changes(variant["changes"]))
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]()


def _changes(text: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    numbers = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise DnaProbeError(f"{part!r} changes nothing", fix="Write it as name=value, for example scorer=weight")
        if name in ("kinds", "views"):
            changes[name] = tuple(filter(None, value.split("+")))
        elif name in ("rule", "scorer", "cut", "scope", "classifier"):
            changes[name] = value
        else:
            try:
                numbers.append((name, float(value)))
            except ValueError:
                raise unknown_name("setting", name, SETTINGS) from None
    if numbers or "cut" in changes:
        changes["parameters"] = tuple(numbers)
    replace(DEFAULTS, **changes).check()
    return changes


def _contrast(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Size of Cohen's d of each column, for scikit-learn's selection."""
    return np.abs(Evidence((), values, labels).contrast)


def _decide(estimator: Any, values: np.ndarray) -> np.ndarray:
    return np.asarray(estimator.decision_function(values), dtype=np.float64)


def _judgement(scores: np.ndarray, calibration: Calibration, units: int) -> Judgement:
    return Judgement(
        scores[None], calibration.probability(scores), calibration.threshold, (calibration.low, calibration.high), units
    )
