"""What masking units costs, against masking other units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.plots import depth_panels, method_lines, style
from dna_probe.plots.method_lines import DASHED, GREEN, ORANGE, PURPLE, SKY, SOLID, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.verification import Verification

Row = Mapping[str, Any]

# Inches around a panel, its height, what it needs across and down with all around it, and the width that three need.
LEFT, ABOVE, BELOW, RIGHT, HEIGHT = 0.44, 0.36, 0.34, 0.12, 1.25
LEAST, SHORT, WIDE = 1.6, 1.5, 5.4
LOOKS = {
    "fdu": Look(style.BLUE, SOLID, "o", width=1.6, size=3.4),
    "random": Look(style.GREY, DASHED, "x", size=3.2, width=0.9),
    "activation-matched": Look(GREEN, DASHED, "^", filled=False, size=3.0),
    "weight-matched": Look(PURPLE, SOLID, "v", filled=False, size=3.0),
    "next-ranked": Look(ORANGE, SOLID, "D", size=2.4),
    "bottom": Look(SKY, DASHED, "s", filled=False, size=2.8),
}
NAMES = {"fdu": "selected units"}
TITLES = {
    "readout": "readout",
    "network": "in the network",
    "detector": "detector",
    "all-units": "probe on all units",
    "last-layer": "probe on last layer",
}
UNITS = {"mean": "units set to mean", "zero": "units set to zero", "swap": "units swapped"}
KNEE = Look(style.VERMILLION, DASHED, "none", width=0.8)
BANDS = {"fdu": style.BLUE_TINT, "random": style.GREY_TINT}
# Steps between kinds at one number of units, in points.
STEP = 1.6


def masking(
    result: Verification, ax: Axes | None = None, columns: int = 2, intervention: str | None = None
) -> tuple[Figure, np.ndarray]:
    """AUC against the number of units masked: the selected units, best first, and equally many controls.

    One panel for each place (readout, inside the network) and reader. Bands are 95 % intervals: for the selected units
    over groups of images, of the AUC and not of its fall; for random ones over draws, and so are the bars of the other
    drawn controls. The dashed line is the knee, where the selected units end; what is masked beyond is next in rank.
    Numbers of units stand by their square root.

    Args:
        result: from ``dna_probe.verify``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        intervention: which to show; the first that was measured, where left out.

    Returns:
        The figure and its panels, in an array.

    Raises:
        DataError: not a ``Verification``, it holds no rows, the intervention was not measured, ``columns`` neither 1
            nor 2, or ``ax`` too small.
    """
    from dna_probe.verification import Verification

    style.require_result(result, "masking", Verification)
    width = style.column_width(columns)
    intervention, rows = _of_intervention(result, intervention)
    places = list(dict.fromkeys((row["place"], row["reader"]) for row in rows))
    kinds = [kind for kind in LOOKS if any(row["kind"] == kind for row in rows)]
    key = [(NAMES.get(kind, kind), LOOKS[kind]) for kind in kinds]
    key += [("knee", KNEE), ("chance", method_lines.NOTHING_FOUND)]
    with style.paper_style():
        tall = ABOVE + HEIGHT + BELOW
        inner = width if ax is None else style.inches(ax)[0]
        across = 3 if inner >= WIDE else 2 if inner >= 2 * LEAST else 1
        # The key takes the place beside the panels of the readout, or the one behind the last.
        before = [place for place in places if place[0] == "readout"]
        behind = before if len(before) % across else places
        cells = [*behind, None, *places[len(behind) :]]
        down = math.ceil(len(cells) / across)
        if ax is None:
            host = style.Host.new(width, down * tall)
        else:
            style.require_room("masking", style.inches(ax), (across * LEAST, down * SHORT))
            host = style.Host.within(ax)
        cell = host.width / across, host.height / down
        panels = []
        for number, one in enumerate(cells):
            x, y = (number % across) * cell[0], (number // across) * cell[1]
            if one is None:
                _draw_key(host.panel(x, y, *cell, label="key"), key)
                continue
            place, reader = one
            panel = host.panel(
                x + LEFT, y + ABOVE, cell[0] - LEFT - RIGHT, cell[1] - ABOVE - BELOW, label=f"{place} {reader}"
            )
            own = [row for row in rows if (row["place"], row["reader"]) == one]
            _draw(panel, own, result.knee, cell[0] - LEFT - RIGHT)
            panel.set_xlabel(UNITS[intervention], labelpad=1.5)
            if not number % across:
                panel.set_ylabel("AUC", labelpad=2)
            method_lines.head(panel, f"{TITLES[place]},\n{TITLES[reader]}", LEFT - 0.2)
            panels.append(panel)
        style.settle(*panels)
    return style.root_figure(host.axes), np.array(panels)


def _of_intervention(result: Verification, wanted: str | None) -> tuple[str, list[Row]]:
    known = list(dict.fromkeys(row["intervention"] for row in result.rows))
    if not known:
        raise DataError("The figure 'masking' has nothing to show", "This verification holds no rows", "Run it again")
    if wanted is not None and wanted not in known:
        raise unknown_name("intervention", wanted, known, DataError)
    chosen = wanted or known[0]
    return chosen, [row for row in result.rows if row["intervention"] == chosen]


def _draw_key(ax: Axes, names: Sequence[tuple[str, Look]]) -> None:
    from matplotlib.lines import Line2D

    ax.set_axis_off()
    ax.legend(
        [Line2D([], [], **look.drawn()) for _, look in names],
        [text for text, _ in names],
        loc="center left",
        bbox_to_anchor=(0.1, 0.5),
        frameon=False,
        borderpad=0,
        handlelength=2.2,
        labelspacing=0.35,
    )


def _draw(ax: Axes, rows: Sequence[Row], knee: int, width: float) -> None:
    ax.set_xscale("function", functions=(_root, np.square))
    most = max(row["k"] for row in rows)
    kinds = [kind for kind in LOOKS if any(row["kind"] == kind for row in rows)]
    start = next(row["auc"] for row in rows if row["k"] == 0)
    points = width * 72
    # What is masked first lies on top.
    for order, kind in reversed(list(enumerate(kinds))):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["k"])
        look = LOOKS[kind]
        # Kinds that are measured at one number stand beside each other there.
        shift = 0.0 if kind in BANDS else STEP * (order - 3.5) / points * math.sqrt(most)
        x = np.array([row["k"] for row in mine], float)
        if shift:
            x = np.square(np.maximum(np.sqrt(x) + shift, 0))
        value, low, high = (np.array([row[part] for row in mine]) for part in ("auc", "auc_low", "auc_high"))
        if kind != "fdu":
            x, value, low, high = (
                np.insert(v, 0, at) for v, at in ((x, 0), (value, start), (low, start), (high, start))
            )
        if kind in BANDS:
            ax.fill_between(x, low, high, facecolor=BANDS[kind], edgecolor="none", zorder=2 - order / 10)
        elif mine[0]["draws"] > 1:
            ax.vlines(x, low, high, color=look.colour, linewidth=0.75 * look.width, zorder=3)
        ax.plot(x, value, label=NAMES.get(kind, kind), zorder=5 - order / 10, **look.drawn())
    ax.axhline(0.5, zorder=1, **method_lines.NOTHING_FOUND.drawn())
    ax.axvline(knee, zorder=1.5, **KNEE.drawn())
    _number_axis(ax, knee, most, width)
    depth_panels.number_ticks(ax, 0)
    # Chance is shown where it is reached: elsewhere it would flatten the curves.
    least = min(row["auc_low"] for row in rows)
    ax.set_ylim(max(least - 0.05 * (1 - least) - 0.01, -0.02), min(ax.get_ylim()[1], 1.02))


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(values, 0))


def _number_axis(ax: Axes, knee: int, most: int, width: float) -> None:
    """Ticks at none, the knee and its parts and multiples, as far as their labels do not touch."""
    from matplotlib.ticker import NullLocator

    high = most * 1.12
    ax.set_xlim(0, high)
    kept: dict[int, str] = {}
    # The knee first, then the ends: what is named first stays.
    for number in (knee, 0, most, round(knee / 4), 2 * knee, round(knee / 2)):
        text = str(number) if number < 10000 else f"{number / 1000:.0f}k"
        at, half = width * math.sqrt(number / high), _half(text)
        free = all(abs(at - width * math.sqrt(other / high)) > half + _half(label) for other, label in kept.items())
        if free and number <= most:
            kept[number] = text
    ax.set_xticks(list(kept), list(kept.values()))
    ax.xaxis.set_minor_locator(NullLocator())


def _half(label: str) -> float:
    """Half the inches that a tick label needs."""
    return 0.035 * len(label) + 0.02
