"""Whether a probability means what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.evaluation import selection, wording
from dna_probe.plots import method_lines, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.evaluation.results import BenchmarkResult

LEFT, ABOVE, BELOW, RIGHT, BETWEEN = 0.46, 0.20, 0.36, 0.10, 0.06
SQUARE, STRIP = 2.2, 0.11


def reliability(
    result: BenchmarkResult,
    ax: Axes | None = None,
    columns: int = 1,
    shots: int | str | None = None,
    methods: Sequence[str] | None = None,
    seen: bool | None = None,
) -> tuple[Figure, np.ndarray]:
    """Share of fakes against the probability given, in bins of equal mass, beside the diagonal of perfect calibration.

    Beneath, one row of strokes per method shows where its bins lie, each as high as its weight. The key has the
    expected calibration error (ECE).

    Args:
        result: of a benchmark. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        shots: labelled images per class, or ``"all"``; the largest measured, where left out.
        methods: those to show; ``dna`` and ``last-linear``, where left out and measured, else all.
        seen: on generators trained on (true) or on unseen ones, which are taken where left out and measured.

    Returns:
        The figure and its two panels: the curves and the strokes.

    Raises:
        DataError: not a ``BenchmarkResult``, it has nothing to show, a method or ``shots`` was not measured,
            ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.evaluation.results import BenchmarkResult

    style.require_result(result, "reliability", BenchmarkResult)
    width = style.column_width(columns)
    rows, seen = selection.on_side(result.reliability, seen)
    method_lines.require_rows(
        rows, "reliability", result, "no calibration curves", "Choose the other side by seen=, or run again"
    )
    rows, shots = selection.at_shots(rows, shots)
    if methods is None:
        measured = selection.methods_in(rows)
        methods = [name for name in (selection.OURS, selection.BASELINE) if name in measured] or measured
    rows, methods = selection.of_methods(rows, methods)
    look = method_lines.looks(methods)
    curves = {name: next(row for row in rows if row["method"] == name) for name in methods}
    names = [
        (f"{wording.method_name(name)}, ECE {selection.number(row['ece']):.3f}", look[name])
        for name, row in curves.items()
    ] + [("perfect calibration", method_lines.NOTHING_FOUND)]
    strip = STRIP * len(methods)
    taken = ABOVE + BELOW + BETWEEN + strip
    with style.paper_style():
        host, body = method_lines.place("reliability", ax, width, SQUARE + taken, (1.8, taken + 0.8), names)
        across, down = body.width - LEFT - RIGHT, body.height - taken
        above = host.panel(LEFT, ABOVE, across, down, label="reliability")
        below = host.panel(LEFT, ABOVE + down + BETWEEN, across, strip, label="bins")
        _draw_curves(above, curves, look)
        _draw_bins(below, curves, look)
        style.entitle(above, method_lines.told(seen, shots))
        style.settle(above, below)
    return style.root_figure(host.axes), np.array([above, below], dtype=object)


def _draw_curves(ax: Axes, curves: dict[str, selection.Row], look: dict[str, method_lines.Look]) -> None:
    ax.plot([0, 1], [0, 1], zorder=1, **method_lines.NOTHING_FOUND.drawn())
    for name, curve in reversed(curves.items()):
        # A point on the edge is a point to be seen whole.
        ax.plot(*_points(curve), label=name, zorder=3, clip_on=False, **look[name].drawn())
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    ax.tick_params(labelbottom=False)
    ax.set_ylabel("share of fakes", labelpad=2)


def _draw_bins(ax: Axes, curves: dict[str, selection.Row], look: dict[str, method_lines.Look]) -> None:
    """A row of strokes per method, from the top in the order of the key."""
    heaviest = max(float(np.nanmax(np.array(curve["weight"], float))) for curve in curves.values())
    for line, (name, curve) in enumerate(curves.items()):
        predicted, weight = np.array(curve["predicted"], float), np.array(curve["weight"], float)
        foot = np.full(len(predicted), len(curves) - 1.0 - line)
        ax.vlines(predicted, foot, foot + 0.85 * weight / heaviest, color=look[name].colour, linewidth=1.0)
    ax.set(xlim=(0, 1), ylim=(0, len(curves)), xticks=np.linspace(0, 1, 6), yticks=[])
    ax.set_xlabel("probability of fake", labelpad=1.5)
    ax.set_ylabel("bins", labelpad=2, rotation=0, ha="right", va="center")
    ax.spines["left"].set_visible(False)


def _points(curve: selection.Row) -> tuple[np.ndarray, np.ndarray]:
    predicted, observed = np.array(curve["predicted"], float), np.array(curve["observed"], float)
    kept = np.isfinite(predicted) & np.isfinite(observed)
    return predicted[kept], observed[kept]
