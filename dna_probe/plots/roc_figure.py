"""How many fakes are found for how many false alarms, with the end of few false alarms spread out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.evaluation import selection
from dna_probe.plots import method_lines, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.evaluation.results import BenchmarkResult

LEFT, ABOVE, BELOW, RIGHT = 0.46, 0.20, 0.36, 0.18
HEIGHT = 2.4
LOWEST = 0.001
MARKED = (0.01, 0.05)
TICKS = {0.001: "0.1 %", 0.01: "1 %", 0.05: "5 %", 0.2: "20 %", 1.0: "100 %"}
BANDS = {selection.OURS: style.BLUE_TINT, selection.BASELINE: "#F6D3BE"}


def roc(
    result: BenchmarkResult,
    ax: Axes | None = None,
    columns: int = 1,
    shots: int | str | None = None,
    methods: Sequence[str] | None = None,
    seen: bool | None = None,
) -> tuple[Figure, Axes]:
    """Share of fakes found against the share of reals called fake, from 0.1 % to 100 % on a logarithmic axis.

    False-alarm rates of 1 % and 5 % are marked, and what chance gives is dotted. The bands of ``dna`` and
    ``last-linear`` hold 95 % of the fits (draws of training images); their edges are drawn so that one can be seen
    through the other.

    Args:
        result: of a benchmark. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        shots: labelled images per class, or ``"all"``; the largest measured, where left out.
        methods: those to show. All, where left out.
        seen: on generators trained on (true) or on unseen ones, which are taken where left out and measured.

    Returns:
        The figure and the axes.

    Raises:
        DataError: not a ``BenchmarkResult``, it has nothing to show, a method or ``shots`` was not measured,
            ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.evaluation.results import BenchmarkResult

    style.require_result(result, "roc", BenchmarkResult)
    width = style.column_width(columns)
    rows, seen = selection.on_side(result.roc, seen)
    method_lines.require_rows(rows, "roc", result, "no ROC curves", "Choose the other side by seen=, or run again")
    rows, shots = selection.at_shots(rows, shots)
    rows, methods = selection.of_methods(rows, methods)
    look = method_lines.looks(methods)
    with style.paper_style():
        host, body = method_lines.place("roc", ax, width, HEIGHT, (2.2, 1.4), method_lines.key_of(look))
        panel = host.panel(LEFT, ABOVE, body.width - LEFT - RIGHT, body.height - ABOVE - BELOW, label="roc")
        panel.set_xscale("log")
        _draw_marks(panel)
        for order, name in reversed(list(enumerate(methods))):
            curve = next(row for row in rows if row["method"] == name)
            _draw_curve(panel, curve, look[name], order)
        _dress(panel)
        style.entitle(panel, method_lines.told(seen, shots))
        style.settle(panel)
    return style.root_figure(host.axes), panel


def _draw_marks(ax: Axes) -> None:
    chance = np.geomspace(LOWEST, 1, 200)
    ax.plot(chance, chance, label="chance", zorder=1, **method_lines.NOTHING_FOUND.drawn())
    for rate in MARKED:
        ax.axvline(rate, color=style.GREY, linewidth=0.5, zorder=1)


def _draw_curve(ax: Axes, curve: selection.Row, look: method_lines.Look, order: int) -> None:
    name = curve["method"]
    fpr, tpr, low, high = (np.array(curve[part], float) for part in ("fpr", "tpr", "low", "high"))
    if name in BANDS:
        top = 2.5 if name == selection.OURS else 2.4
        ax.fill_between(fpr, low, high, facecolor=BANDS[name], edgecolor="none", zorder=top)
        for edge in (low, high):
            ax.plot(fpr, edge, color=look.colour, linewidth=0.4, linestyle=look.line, zorder=2.6)
    # Markers at points of its own for each method, or they would cover each other.
    every = max(1, len(fpr) // 8)
    ax.plot(fpr, tpr, label=name, zorder=4 - 0.05 * order, markevery=(order % every, every), **look.drawn())


def _dress(ax: Axes) -> None:
    from matplotlib.ticker import NullFormatter

    ax.set(xlim=(LOWEST, 1), ylim=(0, 1), yticks=np.linspace(0, 1, 6))
    ax.set_xticks(list(TICKS), list(TICKS.values()))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("false-positive rate", labelpad=1.5)
    ax.set_ylabel("true-positive rate", labelpad=2)
