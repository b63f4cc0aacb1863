"""Figures for papers, as functions of results.

    figure, axes = dna_probe.plots.attention_shift(report)      # a LayerReport
    figure, axes = dna_probe.plots.layers(report)               # a LayerReport
    figure, axes = dna_probe.plots.scores(units)                # UnitScores or a UnitSet
    figure, axes = dna_probe.plots.audit(found)                 # an Audit
    figure, axes = dna_probe.plots.few_shot(result)             # a BenchmarkResult; so do the next four
    figure, axes = dna_probe.plots.generators(result)
    figure, axes = dna_probe.plots.robustness(result)
    figure, axes = dna_probe.plots.reliability(result)
    figure, axes = dna_probe.plots.roc(result)
    figure, axes = dna_probe.plots.masking(found)               # a Verification
    figure, axes = dna_probe.plots.stability(found)             # a Stability
    figure, axes = dna_probe.plots.units(found)                 # a Selectivity
    dna_probe.plots.save(figure, "shift.pdf")

Each takes ``ax=``, to draw in the place of an axes of the caller's own figure, and ``columns=``, the width in columns
of a paper. The caller's matplotlib settings are neither used nor changed and pyplot is never touched.

The modules here are called after things and the functions after figures, so that importing one never hides the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dna_probe.plots.attention_shift_figure import attention_shift
    from dna_probe.plots.audit_figure import audit
    from dna_probe.plots.few_shot_figure import few_shot
    from dna_probe.plots.generators_figure import generators
    from dna_probe.plots.layers_figure import layers
    from dna_probe.plots.masking_figure import masking
    from dna_probe.plots.reliability_figure import reliability
    from dna_probe.plots.robustness_figure import robustness
    from dna_probe.plots.roc_figure import roc
    from dna_probe.plots.run_results import read_result
    from dna_probe.plots.saving import save
    from dna_probe.plots.scores_figure import scores
    from dna_probe.plots.stability_figure import stability
    from dna_probe.plots.units_figure import units

__all__ = [
    "FIGURES",
    "PaperFigure",
    "attention_shift",
    "audit",
    "few_shot",
    "generators",
    "layers",
    "masking",
    "read_result",
    "reliability",
    "robustness",
    "roc",
    "save",
    "scores",
    "stability",
    "units",
]

_HOMES = {
    "attention_shift": "attention_shift_figure",
    "audit": "audit_figure",
    "few_shot": "few_shot_figure",
    "generators": "generators_figure",
    "layers": "layers_figure",
    "masking": "masking_figure",
    "read_result": "run_results",
    "reliability": "reliability_figure",
    "robustness": "robustness_figure",
    "roc": "roc_figure",
    "save": "saving",
    "scores": "scores_figure",
    "stability": "stability_figure",
    "units": "units_figure",
}


@dataclass(frozen=True)
class PaperFigure:
    """A figure by name: called, it draws.

    Attributes:
        function: name of the function in ``dna_probe.plots``.
        reads: file of a run that holds its result.
    """

    function: str
    reads: str

    def __call__(self, result: Any, ax: Any = None, **options: Any) -> tuple[Figure, Any]:
        return _load(self.function)(result, ax=ax, **options)


FIGURES: dict[str, PaperFigure] = {
    "attention-shift": PaperFigure("attention_shift", "layers.json"),
    "layers": PaperFigure("layers", "layers.json"),
    "scores": PaperFigure("scores", "scores.json"),
    "audit": PaperFigure("audit", "audit.json"),
    "few-shot": PaperFigure("few_shot", "results.json"),
    "generators": PaperFigure("generators", "results.json"),
    "robustness": PaperFigure("robustness", "results.json"),
    "reliability": PaperFigure("reliability", "results.json"),
    "roc": PaperFigure("roc", "results.json"),
    "masking": PaperFigure("masking", "verification.json"),
    "stability": PaperFigure("stability", "stability.json"),
    "units": PaperFigure("units", "selectivity.json"),
}


def _load(name: str) -> Any:
    return getattr(import_module(f"dna_probe.plots.{_HOMES[name]}"), name)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return _load(name)
    raise AttributeError(f"module 'dna_probe.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
