"""What a method of a benchmark may look at: arrays of images, and what the passes over the training images gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.anchor import AnchorClassifier
from dna_probe.collection import Features
from dna_probe.errors import DnaProbeError
from dna_probe.fitting import DEFAULTS, DnaSettings, FittedUnits, fit_units
from dna_probe.probing import folds
from dna_probe.scorers import SCORERS, Sensitivity
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.images.sets import ImageSet


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
class Located:
    """What the forward and backward passes over the training images gave: readings of the layers taken, gradients or
    attributions; or why no layer was taken."""

    readings: tuple[Reading, ...]
    sensitivity: Sensitivity | None
    failure: str = ""


Locator = tuple[str, tuple[str, ...], str]


def locator(settings: DnaSettings) -> Locator:
    """What ``Located`` depends on: layer rule, unit kinds, and the scorer where it needs more than features."""
    needs = SCORERS[settings.scorer].needs
    return settings.rule, settings.kinds, "" if needs == "features" else settings.scorer


@dataclass(frozen=True)
class Training:
    """What a method may look at when it is fitted.

    Attributes:
        images: labels and groups of the training images.
        view: their arrays.
        settings: of the detector.
        processed: name of a processed view of the images -> their arrays under it.
        located: by ``locator`` of the settings that ask for it, of the backbone; ``untrained`` likewise of the
            untrained one.
        found: the units of the detector, where they are known already.
        target_fpr: operating point asked for, or None.
        calibrate: whether the probabilities and thresholds of detectors are wanted.
    """

    images: ImageSet
    view: View
    settings: DnaSettings = DEFAULTS
    processed: Mapping[str, View] = field(default_factory=dict)
    located: Mapping[Locator, Located] = field(default_factory=dict)
    untrained: Mapping[Locator, Located] = field(default_factory=dict)
    found: FittedUnits | None = None
    target_fpr: float | None = None
    calibrate: bool = True
    seed: int = 0

    @cached_property
    def units(self) -> FittedUnits:
        """The detector's units; several methods compare with them."""
        return self.found or self.find_units(self.settings)

    def find_units(self, settings: DnaSettings, untrained: bool = False) -> FittedUnits:
        """What ``dna_probe.fit`` does behind the forward passes; raises its errors."""
        located = self.locate(settings, untrained)
        return fit_units(
            self.features(untrained),
            located.readings,
            located.sensitivity,
            AnchorClassifier(settings.classifier, random_state=self.seed, target_fpr=self.target_fpr),
            settings,
            self.views(settings, untrained),
            calibrate=self.calibrate,
        )

    def locate(self, settings: DnaSettings, untrained: bool = False) -> Located:
        """Raises ``DnaProbeError`` where no layer was taken."""
        located = (self.untrained if untrained else self.located)[locator(settings)]
        if located.failure:
            raise DnaProbeError(located.failure)
        return located

    def features(self, untrained: bool = False) -> Features:
        return Features(self.images, weights_of(self.view, untrained).values, {})

    def views(self, settings: DnaSettings, untrained: bool = False) -> list[Features]:
        """Features of the processed views that the settings name."""
        return [
            Features(self.images, weights_of(self.processed[name], untrained).values, {}) for name in settings.views
        ]

    @cached_property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return folds(self.images.labels, self.images.groups, seed=self.seed)


def weights_of(view: View, untrained: bool) -> View:
    """The view itself, or that of the untrained weights."""
    if not untrained:
        return view
    assert view.untrained is not None
    return view.untrained
