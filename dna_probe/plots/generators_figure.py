"""How well each method tells the fakes of each generator."""

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

ABOVE, BELOW, RIGHT = 0.20, 0.34, 0.08
# Inches between methods, between generators, and that a page has for all of them.
PITCH, GAP, LEAST, PAGE = 0.058, 0.10, 0.16, 8.0
LONGEST = 18
STRIPE = "#F2F2F2"


def generators(
    result: BenchmarkResult,
    ax: Axes | None = None,
    columns: int = 1,
    shots: int | str | None = None,
    methods: Sequence[str] | None = None,
    seen: bool | None = None,
) -> tuple[Figure, Axes]:
    """AUC on the fakes of each generator, methods side by side, with 95 % intervals; the hardest generator on top.

    A generator is as hard as it is for ``dna``, or for the first method shown. Its number of test fakes is in brackets.

    Args:
        result: of a benchmark. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        shots: labelled images per class, or ``"all"``; the largest measured, where left out.
        methods: those to show. Where left out, all for which there is room on a page; the head says if some are not.
        seen: on generators trained on (true) or on unseen ones, which are taken where left out and measured.

    Returns:
        The figure and the axes.

    Raises:
        DataError: not a ``BenchmarkResult``, it has nothing to show, a method or ``shots`` was not measured,
            ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.evaluation.results import BenchmarkResult

    style.require_result(result, "generators", BenchmarkResult)
    width = style.column_width(columns)
    rows, seen = selection.on_side(result.by_generator, seen)
    method_lines.require_rows(
        rows, "generators", result, "no results per generator", "Choose the other side by seen=, or run again"
    )
    rows, shots = selection.at_shots(rows, shots)
    rows, found = selection.of_methods(rows, methods)
    order = _hardest_first(rows, found[0])
    with style.paper_style():
        high = PAGE if ax is None else style.inches(ax)[1] - ABOVE - BELOW - 0.5
        room = max(2, int((high / len(order) - GAP) / PITCH))
        shown = found if methods else found[:room]
        look = method_lines.looks(shown)
        row_height = max(GAP + PITCH * len(shown), LEAST)
        labels = [_label(name, rows) for name in order]
        left = 0.10 + 0.062 * max(map(len, labels))
        host, body = method_lines.place(
            "generators",
            ax,
            width,
            ABOVE + BELOW + row_height * len(order),
            (left + 1.2, ABOVE + BELOW + LEAST * len(order)),
            method_lines.key_of(look),
        )
        panel = host.panel(left, ABOVE, body.width - left - RIGHT, body.height - ABOVE - BELOW, label="generators")
        _draw_dots(panel, rows, order, look)
        panel.set_yticks(range(len(order)), labels)
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel("AUC", labelpad=1.5)
        head = method_lines.told(seen, shots)
        if len(shown) < len(found):
            head += f"; {len(shown)} of {len(found)} methods"
        method_lines.head(panel, head, left - 0.06)
        style.settle(panel)
    return style.root_figure(host.axes), panel


def _hardest_first(rows: Sequence[selection.Row], method: str) -> list[str]:
    value = {row["test_on"]: selection.number(row["auc"]) for row in rows if row["method"] == method}
    names = list(dict.fromkeys(row["test_on"] for row in rows))
    return sorted(names, key=lambda name: np.nan_to_num(value.get(name, np.nan), nan=np.inf))


def _label(generator: str, rows: Sequence[selection.Row]) -> str:
    fakes = max(int(row.get("fake") or 0) for row in rows if row["test_on"] == generator)
    name = generator if len(generator) <= LONGEST else generator[: LONGEST - 1] + "…"
    return f"{name} ({fakes})" if fakes else name


def _draw_dots(
    ax: Axes, rows: Sequence[selection.Row], order: Sequence[str], look: dict[str, method_lines.Look]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for i in range(0, len(order), 2):
        ax.axhspan(i - 0.5, i + 0.5, facecolor=STRIPE, edgecolor="none", zorder=0)
    share = 0.8 / max(1, len(look))
    for position, name in enumerate(look):
        mine = [row for row in rows if row["method"] == name]
        y = np.array([order.index(row["test_on"]) + share * (position - (len(look) - 1) / 2) for row in mine])
        value, low, high = (
            np.array([selection.number(row["auc"], part) for row in mine]) for part in ("value", "low", "high")
        )
        ax.hlines(y, low, high, color=look[name].colour, linewidth=0.75 * look[name].width, zorder=3)
        ax.plot(value, y, label=name, zorder=4, **look[name].drawn(line="none"))
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=2))
    ax.axvline(0.5, zorder=1, **method_lines.NOTHING_FOUND.drawn())
    ax.set_xlim(right=min(ax.get_xlim()[1], 1.01))
