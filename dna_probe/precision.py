"""Collection in half precision, on request, and how near it comes to float32.

Autocast leaves the weights as they are and computes linear maps and convolutions in bfloat16, with three significant
digits. Readings are averaged in float32 and stored so. Gradients are always taken in float32, and a fitted detector
judges in float32 unless it is told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import BackboneError, DnaProbeError, unknown_name

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone
    from dna_probe.collection import Options
    from dna_probe.images.sets import ImageSet
    from dna_probe.sites import Reading

PRECISIONS = ("float32", "bfloat16")
# Enough to tell a unit's rank among images, and few enough to run twice.
COMPARED = 32


def require_precision(precision: str, compile: bool = False) -> None:
    """Raises ``DnaProbeError``, with near matches, for a mistyped name, and for one that is not compiled."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if compile and precision != "float32":
        raise DnaProbeError(
            f"{precision} and compiling exclude each other",
            "Compiled code rounds in other places, which autocast does not forgive",
            "Choose one",
        )


def autocast(backbone: Backbone, precision: str) -> AbstractContextManager:
    """A context in which the backbone runs at this precision; ``float32`` changes nothing.

    Raises:
        DnaProbeError: a mistyped name.
        BackboneError: the weights are not float32.
    """
    import torch

    require_precision(precision)
    if precision == "float32":
        return nullcontext()
    if backbone.dtype != torch.float32:
        raise BackboneError(
            f"{backbone.name} cannot be run in {precision}",
            f"Its weights are {str(backbone.dtype).removeprefix('torch.')}, and autocast is for float32",
            "Leave the precision out: the model runs in that of its weights",
        )
    return torch.autocast(backbone.device.type, getattr(torch, precision))


@dataclass(frozen=True)
class Agreement:
    """How near some units come, at a lower precision, to what they are in float32.

    Attributes:
        precision: the lower one.
        images: how many were compared.
        units: how many were compared; those that float32 gives the same value on every image have no correlation and
            are left out.
        correlation: between both, over the images: the median unit's.
        lowest_correlation: the same of the worst unit.
        probability: the largest change of a detector's probability; None where there is no detector.
    """

    precision: str
    images: int
    units: int
    correlation: float
    lowest_correlation: float
    probability: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.precision} against float32 on {self.images} samples: correlation {self.correlation:.4f} in the "
            f"median of {self.units} units, {self.lowest_correlation:.4f} in the worst"
            + ("" if self.probability is None else f"; no probability changes by more than {self.probability:.4f}")
        )


def agreement_of(
    backbone: Backbone,
    images: ImageSet,
    units_by_reading: Mapping[Reading, Sequence[int]],
    options: Options | None,
    judge: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """``measure_agreement`` for a provenance, as ``agreement``; nothing where the precision is float32."""
    if options is None or options.precision == "float32":
        return {}
    return {"agreement": measure_agreement(backbone, images, units_by_reading, options, judge).to_json()}


def measure_agreement(
    backbone: Backbone,
    images: ImageSet,
    units_by_reading: Mapping[Reading, Sequence[int]],
    options: Options,
    judge: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Agreement:
    """Collect units of some of the images at the precision of the options and in float32, and compare.

    Args:
        images: at most ``COMPARED`` of them, evenly spaced, are used.
        judge: units (n, units) -> probabilities of a detector.

    Raises:
        DataError: none of them could be read.
    """
    from dna_probe.collection import collect_features

    few = images.subset(np.unique(np.linspace(0, len(images) - 1, COMPARED).round().astype(int)))
    here = replace(options, cache=None, engine="local", progress=False, compile=False)

    def collect(precision: str) -> np.ndarray:
        found = collect_features(backbone, few, list(units_by_reading), options=replace(here, precision=precision))
        parts = (found.values[reading.name][:, list(units)] for reading, units in units_by_reading.items())
        return np.concatenate(list(parts), axis=1)

    low, full = collect(options.precision), collect("float32")
    change = None if judge is None else float(np.abs(judge(low) - judge(full)).max())
    return compare(options.precision, low, full, change)


def compare(precision: str, low: np.ndarray, full: np.ndarray, probability: float | None = None) -> Agreement:
    """The agreement of two tables of the same units, (images, units)."""
    low, full = (values - values.mean(0, dtype=np.float64) for values in (low, full))
    varying = np.linalg.norm(full, axis=0) > 0
    norms = np.linalg.norm(low, axis=0) * np.linalg.norm(full, axis=0)
    # A unit that no longer varies at the lower precision tells nothing of what it told.
    correlations = (low * full).sum(0)[varying] / np.where(norms > 0, norms, 1)[varying]
    middle, lowest = (float(np.median(correlations)), float(correlations.min())) if varying.any() else (nan, nan)
    return Agreement(precision, len(full), int(varying.sum()), middle, lowest, probability)
