"""How far selections of units agree, and how many units they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import DataError
from dna_probe.plots import depth_panels, method_lines, style
from dna_probe.plots.method_lines import DASHED, SOLID, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.stability import Stability

Row = Mapping[str, Any]

LEFT, ABOVE, BELOW, RIGHT, HEIGHT = 0.46, 0.20, 0.34, 0.10, 1.5
LEAST, WIDE = 1.7, 3.3
LOOKS = {
    "draws": Look(style.BLUE, SOLID, "o", width=1.4, size=3.4),
    "generators": Look(style.VERMILLION, DASHED, "s", filled=False, width=1.2, size=3.2),
}
NAMES = {"draws": "other draw", "generators": "other generator"}
CHANCE = Look(style.GREY, method_lines.DOTTED, "none", width=0.9)
SIZES = Look(style.INK, SOLID, "o", width=1.0, size=3.0)
# Share of the step between numbers by which kinds stand beside each other.
ASIDE = 0.08


def stability(result: Stability, ax: Axes | None = None, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Jaccard index of selections against the images per class that they were made from; and units selected.

    Left, pairs of selections that differ in the draw alone and in the generator: means, with 95 % of the pairs as bars,
    beside the level of random sets of the same sizes. Right, the median number of units selected, with its quartiles.

    Args:
        result: from ``dna_probe.measure_stability``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.

    Returns:
        The figure and its two panels, in an array.

    Raises:
        DataError: not a ``Stability``, it has no pair to compare, ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.stability import Stability

    style.require_result(result, "stability", Stability)
    width = style.column_width(columns)
    kinds = [kind for kind in LOOKS if any(row["comparison"] == kind for row in result.pairs)]
    if not kinds:
        raise DataError(
            "The figure 'stability' has nothing to show",
            "No two selections were made with the same number of images",
            "Make at least two draws",
        )
    key = [(NAMES[kind], LOOKS[kind]) for kind in kinds] + [("chance", CHANCE)]
    with style.paper_style():
        inner = width if ax is None else style.inches(ax)[0]
        across = 2 if inner >= WIDE else 1
        tall = ABOVE + HEIGHT + BELOW
        down = 3 - across
        host, body = method_lines.place("stability", ax, width, down * tall, (across * LEAST, down * (tall - 0.5)), key)
        cell = body.width / across, body.height / down
        panels = []
        for number, title in enumerate(("agreement", "units selected")):
            x, y = (number % across) * cell[0], (number // across) * cell[1]
            size = cell[0] - LEFT - RIGHT, cell[1] - ABOVE - BELOW
            panels.append(host.panel(x + LEFT, y + ABOVE, *size, label=title))
        _draw_agreement(panels[0], result.pairs, kinds)
        _draw_sizes(panels[1], [row for row in result.sizes if row["generator"] == "all"])
        style.settle(*panels)
    return style.root_figure(host.axes), np.array(panels)


def _draw_agreement(ax: Axes, pairs: Sequence[Row], kinds: Sequence[str]) -> None:
    shots = sorted({int(row["shots"]) for row in pairs if row["comparison"] in kinds})
    for order, kind in enumerate(kinds):
        mine = sorted((row for row in pairs if row["comparison"] == kind), key=lambda row: int(row["shots"]))
        x = np.array([shots.index(int(row["shots"])) for row in mine]) + ASIDE * (2 * order - len(kinds) + 1)
        value, low, high, chance = (
            np.array([row[part] for row in mine]) for part in ("jaccard", "jaccard_low", "jaccard_high", "chance")
        )
        ax.vlines(x, low, high, color=LOOKS[kind].colour, linewidth=0.9, zorder=3)
        ax.plot(x, value, label=NAMES[kind], zorder=4, **LOOKS[kind].drawn())
        ax.plot(x, chance, label=f"chance, {NAMES[kind]}", zorder=2, **CHANCE.drawn())
    _shots_axis(ax, shots)
    depth_panels.number_ticks(ax, 0)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Jaccard index", labelpad=2)
    style.entitle(ax, "same units again")


def _draw_sizes(ax: Axes, sizes: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    rows = sorted(sizes, key=lambda row: row["shots"])
    x = np.arange(len(rows))
    median, low, high = (np.array([row[part] for row in rows]) for part in ("median", "low", "high"))
    ax.vlines(x, low, high, color=SIZES.colour, linewidth=0.9, zorder=3)
    ax.plot(x, median, label="median", zorder=4, **SIZES.drawn())
    _shots_axis(ax, [row["shots"] for row in rows])
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=2))
    ax.set_ylim(bottom=0)
    ax.set_ylabel("units selected", labelpad=2)
    style.entitle(ax, "quartiles over draws")


def _shots_axis(ax: Axes, shots: Sequence[int]) -> None:
    ax.set_xlim(-0.4, len(shots) - 0.6)
    ax.set_xticks(range(len(shots)), [str(n) for n in shots])
    ax.set_xlabel("images per class", labelpad=1.5)
