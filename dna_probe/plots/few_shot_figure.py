"""How well each method ranks fakes above reals, over the number of images it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.evaluation import selection
from dna_probe.plots import depth_panels, method_lines, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.evaluation.results import BenchmarkResult

LEFT, ABOVE, BELOW, RIGHT = 0.42, 0.20, 0.34, 0.08
HEIGHT = 2.2
# How far "all images" stands to the right of the largest number, and the widest step between methods, as factors.
ALL_AFTER, WIDEST_STEP = 2.2, 1.06


def few_shot(
    result: BenchmarkResult,
    ax: Axes | None = None,
    columns: int = 1,
    methods: Sequence[str] | None = None,
    seen: bool | None = None,
) -> tuple[Figure, Axes]:
    """AUC against the number of labelled images per class, one line per method, with 95 % intervals as bars.

    The axis of numbers is logarithmic; ``all`` stands after the largest number, joined by the same line but at no
    true distance. Methods stand a little beside each other so that their intervals can be told apart.

    Args:
        result: of a benchmark. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        methods: those to show. All, where left out.
        seen: on generators trained on (true) or on unseen ones, which are taken where left out and measured.

    Returns:
        The figure and the axes of the curves.

    Raises:
        DataError: not a ``BenchmarkResult``, it has nothing to show, a method was not measured, ``columns`` neither 1
            nor 2, or ``ax`` too small.
    """
    from dna_probe.evaluation.results import BenchmarkResult

    style.require_result(result, "few-shot", BenchmarkResult)
    width = style.column_width(columns)
    rows, seen = selection.on_side(selection.clean(result.summary), seen)
    method_lines.require_rows(
        rows, "few-shot", result, f"no results on {method_lines.told(seen)}", "Choose the other by seen=, or run again"
    )
    rows, methods = selection.of_methods(rows, methods)
    look = method_lines.looks(methods)
    with style.paper_style():
        host, body = method_lines.place("few-shot", ax, width, HEIGHT, (2.0, 1.3), method_lines.key_of(look))
        size = body.width - LEFT - RIGHT, body.height - ABOVE - BELOW
        panel = host.panel(LEFT, ABOVE, *size, label="few-shot")
        panel.set_xscale("log")
        _draw_lines(panel, rows, look)
        _number_axis(panel, selection.shots_in(rows), size[0])
        panel.axhline(0.5, zorder=1, **method_lines.NOTHING_FOUND.drawn())
        depth_panels.number_ticks(panel, 0, nbins=8)
        panel.set_ylim(top=min(panel.get_ylim()[1], 1.01))
        panel.set_ylabel("AUC", labelpad=2)
        style.entitle(panel, method_lines.told(seen))
        style.settle(panel)
    return style.root_figure(host.axes), panel


def _draw_lines(ax: Axes, rows: Sequence[selection.Row], look: dict[str, method_lines.Look]) -> None:
    places = _places(selection.shots_in(rows))
    at = np.array(list(places.values()))
    closest = float((at[1:] / at[:-1]).min()) if len(at) > 1 else 2.0
    step = min(WIDEST_STEP, closest ** (0.4 / len(look)))
    # Those that matter most are drawn last, over the others.
    for order, name in reversed(list(enumerate(look))):
        mine = sorted((row for row in rows if row["method"] == name), key=lambda row: places[row["shots"]])
        x = [places[row["shots"]] * step ** (order - (len(look) - 1) / 2) for row in mine]
        value, low, high = (
            np.array([selection.number(row["metrics"]["auc"], part) for row in mine])
            for part in ("value", "low", "high")
        )
        ax.vlines(x, low, high, color=look[name].colour, linewidth=0.75 * look[name].width, zorder=3)
        ax.plot(x, value, label=name, zorder=4 + (name in (selection.OURS, selection.BASELINE)), **look[name].drawn())


def _places(shots: Sequence[int | str]) -> dict[int | str, float]:
    """Where each number of images stands on the axis."""
    numbers = [float(n) for n in shots if n != "all"]
    return {n: float(n) if n != "all" else ALL_AFTER * max(numbers, default=1.0) for n in shots}


def _number_axis(ax: Axes, shots: Sequence[int | str], width: float) -> None:
    """Ticks at the numbers measured, thinned from the right until their labels do not touch."""
    from matplotlib.ticker import NullLocator

    places = _places(shots)
    low, high = min(places.values()) / 1.25, max(places.values()) * 1.25
    labelled: list[int | str] = []
    edge = math.inf
    for n in reversed(shots):
        inches = width * math.log(places[n] / low) / math.log(high / low)
        half = 0.035 * len(str(n)) + 0.02
        if inches + half < edge:
            labelled.append(n)
            edge = inches - half
    ax.set_xlim(low, high)
    ax.set_xticks([places[n] for n in labelled], [str(n) for n in labelled])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("labelled images per class", labelpad=1.5)
