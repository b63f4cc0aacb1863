"""What every unit of a detector responds to, and how some of them answer to nuisance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dna_probe.errors import DataError
from dna_probe.plots import method_lines, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.selectivity import Selectivity
    from dna_probe.tuning import Tuning

# Inches of the map of shares: its labels to the left, above (upright words) and below (with the colour bar), its least
# and its usual size.
LABELS, WORDS, BAR = 0.66, 0.72, 0.44
MAP_WIDTH, MAP_HEIGHT, LEAST_MAP = 1.45, 1.6, 0.7
# Of the tuning curves: left of a row, above a panel, below the lowest, above the uppermost, between panels, and sizes.
SIDE, TITLE, BELOW, HEAD, GAP = 0.40, 0.17, 0.34, 0.17, 0.10
LEAST_PANEL, PANEL_HEIGHT, LEAST_HEIGHT = 0.5, 0.56, 0.3
KEY = 0.2
# From this width the curves stand beside the map.
BESIDE = 5.0
LETTER = 0.058
TINTS = {"robust": style.INK, "fragile": "#8C8C8C", "unclear": style.GREY_TINT}
UNTOUCHED, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def units(result: Selectivity, ax: Axes | None = None, columns: int = 2, top: int = 4) -> tuple[Figure, np.ndarray]:
    """Shares of variance of all units, and the tuning curves of some.

    The map has one row per unit, by label and then by what generation explains, and one column for each thing that
    explains a share of its response: real against fake and generator of the untouched response, each nuisance of the
    response over its sweep. The curves are the mean responses of real and fake images at each level of each
    sweep, in standard deviations of the untouched responses; the bands are 95 % intervals of the shift from the
    untouched ones. Half of the units shown are the most robust ones, half the fragile ones of the largest contrast.

    Args:
        result: from ``dna_probe.measure_selectivity``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        top: how many units to show curves of.

    Returns:
        The figure and its axes: the map, then the panels of curves, row by row.

    Raises:
        DataError: not a ``Selectivity``, ``columns`` neither 1 nor 2, ``top`` below 1, or no room for its sweeps.
    """
    from dna_probe.selectivity import Selectivity

    style.require_result(result, "units", Selectivity)
    width = style.column_width(columns)
    if top < 1:
        raise DataError(f"top = {top} is not a number of units", "", "Give a whole number of at least 1")
    shown = shown_units(result, top)
    sweeps = len(result.tunings)
    with style.paper_style():
        size = (width, 0.0) if ax is None else style.inches(ax)
        beside = size[0] >= BESIDE
        curves = HEAD + len(shown) * (TITLE + PANEL_HEIGHT) + (len(shown) - 1) * GAP + BELOW
        if ax is None:
            tall = max(curves, WORDS + MAP_HEIGHT + BAR) if beside else curves + WORDS + MAP_HEIGHT + BAR
            size = width, tall + KEY
        _require_room(size, beside, sweeps, len(shown))
        host = style.Host.new(*size) if ax is None else style.Host.within(ax)
        body = size[1] - KEY
        if beside:
            place = method_lines.Box(0, 0, LABELS + MAP_WIDTH, body)
            rest = method_lines.Box(place.width + 0.12, 0, size[0] - place.width - 0.12, body)
        else:
            upper = WORDS + BAR + (body - WORDS - BAR) * MAP_HEIGHT / (MAP_HEIGHT + curves)
            place = method_lines.Box(0, 0, size[0], upper)
            rest = method_lines.Box(0, upper, size[0], body - upper)
        panels = [_draw_map(host, result, place), *_draw_curves(host, result, shown, rest)]
        _draw_key(host, method_lines.Box(0.05, body + 0.02, size[0] - 0.1, KEY - 0.04))
        style.settle(*panels)
    return style.root_figure(host.axes), np.array(panels, dtype=object)


def shown_units(result: Selectivity, top: int) -> list[int]:
    """Positions of ``top`` units: robust ones, then as many fragile ones; others where there are too few."""
    size = np.abs(result.contrast)
    robust = result.most_robust()
    others = {
        label: sorted((i for i, own in enumerate(result.labels) if own == label), key=lambda i: (-size[i], i))
        for label in ("fragile", "unclear")
    }
    few = min(len(others["fragile"]), top // 2)
    chosen = [*robust[: top - few], *others["fragile"]][:top]
    return [*chosen, *others["unclear"]][:top]


def _require_room(size: tuple[float, float], beside: bool, sweeps: int, rows: int) -> None:
    across = SIDE + sweeps * LEAST_PANEL + (sweeps - 1) * GAP + GAP
    down = HEAD + rows * (TITLE + LEAST_HEIGHT) + (rows - 1) * GAP + BELOW
    least_map = WORDS + LEAST_MAP + BAR
    if beside:
        needs = LABELS + MAP_WIDTH + 0.12 + across, max(down, least_map) + KEY
    else:
        needs = max(across, 2.9), down + least_map + KEY
    style.require_room("units", size, needs)


def _draw_map(host: style.Host, result: Selectivity, place: method_lines.Box) -> Axes:
    """One row per unit, one column per share, the labels at the side and the colours beneath."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    names = ["real / fake", "generator", *(tuning.sweep.name for tuning in result.tunings)]
    shares = np.stack([result.generation, result.generator, *(tuning.level for tuning in result.tunings)], axis=1)
    order = map_order(result)
    width, height = place.width - LABELS - 0.04, place.height - WORDS - BAR
    ax = host.panel(place.x + LABELS, place.y + WORDS, width, height, label="shares")
    top = max(0.1, np.ceil(shares.max() * 10 - 1e-9) / 10)
    # Most shares are small, so the colours follow their root.
    scale = PowerNorm(0.5, 0, top)
    ax.imshow(shares[order], cmap=colormaps[style.SEQUENTIAL], norm=scale, aspect="auto", interpolation="nearest")
    for edge in np.arange(len(names) - 1) + 0.5:
        # What nuisance explains stands apart from what generation does.
        ax.axvline(edge, color="white", linewidth=2.5 if edge == 1.5 else 0.6)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_yticks([])
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(names)), [_cut(name, int((WORDS - 0.08) / LETTER)) for name in names], rotation=90)
    ax.tick_params(length=0)
    _draw_labels(ax, result, width, height)
    bar = host.panel(place.x + LABELS, place.y + WORDS + height + 0.06, width, 0.07, label="colours")
    bar.imshow(top * np.linspace(0, 1, 256)[None] ** 2, cmap=colormaps[style.SEQUENTIAL], norm=scale, aspect="auto")
    bar.set_yticks([])
    marks = [0, 0.1, top] if top >= 0.3 else [0, top]
    ticks = bar.set_xticks([256 * (mark / top) ** 0.5 - 0.5 for mark in marks], [f"{mark:.1f}" for mark in marks])
    ticks[0].label1.set_horizontalalignment("left")
    ticks[-1].label1.set_horizontalalignment("right")
    bar.set_xlabel("share of variance", labelpad=1)
    for spine in bar.spines.values():
        spine.set_visible(False)
    style.settle(bar)
    return ax


def map_order(result: Selectivity) -> np.ndarray:
    """Positions of the units from the top of the map: by label, then by what generation explains."""
    from dna_probe.selectivity import LABELS as KNOWN

    return np.lexsort((-result.generation, np.array([KNOWN.index(label) for label in result.labels])))


def _draw_labels(ax: Axes, result: Selectivity, width: float, height: float) -> None:
    """A strip beside the rows of each label, and its name with the number of units, moved where two would touch."""
    from matplotlib.patches import Rectangle

    counts = {label: result.count(label) for label in TINTS}
    present = [label for label in TINTS if counts[label]]
    ends = np.cumsum([counts[label] for label in present]) / len(result)
    starts = np.concatenate([[0.0], ends[:-1]])
    least = 0.27 / height
    middles = (starts + ends) / 2
    for i in range(1, len(middles)):
        middles[i] = max(middles[i], middles[i - 1] + least)
    middles[-1] = min(middles[-1], 1 - least / 2)
    for i in range(len(middles) - 2, -1, -1):
        middles[i] = min(middles[i], middles[i + 1] - least)
    for label, start, end, middle in zip(present, starts, ends, middles, strict=True):
        strip = Rectangle(
            (-0.1 / width, 1 - end), 0.06 / width, end - start, transform=ax.transAxes, facecolor=TINTS[label]
        )
        strip.set(edgecolor="none", clip_on=False)
        ax.add_patch(strip)
        ax.text(
            -0.13 / width,
            1 - middle,
            f"{label}\n{counts[label]}",
            transform=ax.transAxes,
            ha="right",
            va="center",
            linespacing=1.05,
        )


def _draw_curves(host: style.Host, result: Selectivity, shown: list[int], place: method_lines.Box) -> list[Axes]:
    """One row of panels per unit, one column per sweep, one scale in a row."""
    rows, across = len(shown), len(result.tunings)
    width = (place.width - SIDE - GAP * across) / across
    height = (place.height - HEAD - BELOW - GAP * (rows - 1)) / rows - TITLE
    panels = []
    for row, unit in enumerate(shown):
        low, high = _limits(result, unit)
        for column, tuning in enumerate(result.tunings):
            x = place.x + SIDE + column * (width + GAP)
            y = place.y + HEAD + row * (TITLE + height + GAP) + TITLE
            ax = host.panel(x, y, width, height, label=f"{tuning.sweep.name} {result.units[unit]}")
            _draw_tuning(ax, result, tuning, unit)
            ax.set_ylim(low, high)
            _level_ticks(ax, tuning, width, named=row == rows - 1)
            _value_ticks(ax, height, named=column == 0)
            if row == 0:
                ax.annotate(
                    _cut(tuning.sweep.name, int(width / LETTER)),
                    (0.5, 1),
                    (0, 72 * TITLE + 2),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                )
            panels.append(ax)
        method_lines.head(panels[-across], _caption(result, unit, place.width), SIDE - 0.05)
    return panels


def _limits(result: Selectivity, unit: int) -> tuple[float, float]:
    """The lowest and highest response in any sweep, bands included, with a margin."""
    base = result.response[:, unit]
    ends = [base]
    for tuning in result.tunings:
        ends += [(base[:, None] + part[:, :, unit]).ravel() for part in (tuning.low, tuning.high)]
    found = np.concatenate(ends)
    margin = 0.08 * max(float(np.ptp(found)), 0.1)
    return float(found.min()) - margin, float(found.max()) + margin


def _draw_tuning(ax: Axes, result: Selectivity, tuning: Tuning, unit: int) -> None:
    levels = np.arange(len(tuning.sweep.values) + 1)
    ax.axhline(0, color=style.INK, linewidth=0.4, zorder=1)
    for code, look in enumerate((REAL_LOOK, FAKE_LOOK)):
        base = result.response[code, unit]
        value, low, high = (
            base + np.concatenate([[0.0], part[code, :, unit]]) for part in (tuning.shift, tuning.low, tuning.high)
        )
        ax.fill_between(levels, low, high, facecolor=BANDS[code], edgecolor="none", zorder=2 + 0.1 * code)
        ax.plot(levels, value, **look.drawn(), zorder=4 + code)
    ax.set_xlim(-0.35, levels[-1] + 0.35)


REAL_LOOK = method_lines.Look(style.BLUE, "-", "o", width=1.0, size=2.2)
FAKE_LOOK = method_lines.Look(style.VERMILLION, (0, (4, 1.5)), "s", filled=False, width=1.0, size=2.4)
BANDS = (style.BLUE_TINT, "#F3CDB4")


def _level_ticks(ax: Axes, tuning: Tuning, width: float, named: bool) -> None:
    """The values of a sweep under its lowest panel, as many as there is room for, the last one always."""
    texts = [UNTOUCHED, *(f"{value:g}".removeprefix("0") or "0" for value in tuning.sweep.values)]
    room = width / (len(texts) - 0.3)
    step = int(np.ceil((LETTER * max(map(len, texts)) + 0.03) / room))
    last = len(texts) - 1
    kept = [i for i in range(len(texts)) if (last - i) % step == 0]
    ax.set_xticks(range(len(texts)), [text if named and i in kept else "" for i, text in enumerate(texts)])
    if named:
        ax.set_xlabel(_cut(tuning.sweep.unit, int(width / LETTER)), labelpad=1.5)


def _value_ticks(ax: Axes, height: float, named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(nbins=max(2, int(height / 0.17)), steps=[1, 2, 5, 10], min_n_ticks=2))
    if not named:
        ax.tick_params(labelleft=False)


def _caption(result: Selectivity, unit: int, width: float) -> str:
    contrast = result.contrast[unit]
    told = f"{result.labels[unit]}, d {contrast:+.2f}, at worst {contrast * result.retained[:, unit].min():+.2f}"
    room = int((width - 0.1) / LETTER) - len(told) - 2
    return f"{_cut(result.units[unit], room)}: {told.replace('-', MINUS)}"


def _cut(text: str, room: int) -> str:
    """A text in a number of letters, without its middle: of a unit's name the two ends tell most."""
    if len(text) <= room:
        return text
    head = max(room - 1, 2) // 2
    return f"{text[:head]}…{text[len(text) - max(room - 1 - head, 1) :]}"


def _draw_key(host: style.Host, where: method_lines.Box) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ax = host.panel(*where, label="key")
    ax.set_axis_off()
    told = f"SD, 95 % of shift, {UNTOUCHED} untouched"
    if where.width >= BESIDE:
        told = f"mean response in standard deviations, 95 % interval of its shift; {UNTOUCHED} untouched"
    lines = [
        (Patch(facecolor=BANDS[i], edgecolor="none"), Line2D([], [], **look.drawn()))
        for i, look in enumerate((REAL_LOOK, FAKE_LOOK))
    ]
    ax.legend(
        [*lines, Line2D([], [], linestyle="none")],
        ["real", "fake", told],
        ncols=3,
        loc="center right",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.2,
        handletextpad=0.5,
        columnspacing=0.9,
    )
