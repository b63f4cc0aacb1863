"""Where each layer looks in real and in fake images, and how that shifts over depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.plots import depth_panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.location import LayerReport

ROWS = ("real", "fake", "fake \N{MINUS SIGN}\nreal")
SMALLEST_PITCH, LARGEST_PITCH, MOST_SHOWN = 0.40, 0.74, 12
SMALLEST_PITCH_DOWN, SMALL_PITCH_DOWN = 0.30, 0.42
MULTIPLICATION = "\N{MULTIPLICATION SIGN}"
LABELS, BAR, BESIDE = 0.40, 0.70, 3.35


def attention_shift(report: LayerReport, ax: Axes | None = None, columns: int = 2) -> tuple[Figure, np.ndarray]:
    """Mean attention of real, of fake and their difference in each layer, over the curves of the attention shift.

    Maps are in multiples of uniform attention, so that grids of different sizes compare. Real and fake of a layer
    share a scale from zero to the larger maximum of the two; the difference has one symmetric scale for all layers.
    Where the model is deeper than there is room, the layers taken are shown and others evenly between them, each under
    its number. Layers without attention are marked ``energy``. The curves carry 95 % bootstrap intervals (shaded) and
    the level that shuffled labels reach (dashed).

    Args:
        report: from ``dna_probe.locate_layers``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.

    Returns:
        The figure and its panels as one array: the maps row by row (real, fake, difference), then the four curves
        ``attention_js``, ``entropy_shift``, ``distance_shift``, ``spread``. ``axes[:-4].reshape(3, -1)`` is the grid of
        maps, ``axes[-4:]`` the curves; each axes is named by its ``get_label()``.

    Raises:
        DataError: not a ``LayerReport``, ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.location import ATTENTION, LayerReport

    style.require_result(report, "attention-shift", LayerReport)
    width = style.column_width(columns)
    with style.paper_style():
        if ax is None:
            plan = _Plan.of(report, width)
            host = style.Host.new(width, plan.height)
        else:
            plan = _Plan.of(report, *style.inches(ax))
            host = style.Host.within(ax)
        maps = _draw_maps(host, report, plan)
        curves = depth_panels.draw_curves(host, report, ATTENTION, *plan.curves, across=plan.across)
        depth_panels.draw_key(host, report, plan.key, energy="energy" in report.attention_source)
        style.settle(*curves)
    return style.root_figure(host.axes), np.array([*maps, *curves], dtype=object)


def shown_layers(taken: Sequence[bool], room: int) -> list[int]:
    """Positions of the layers to show: all if there is room, else those taken and others as far from them as can be.

    Where not even the layers taken have room, they are thinned evenly, first and last kept, and a third of the room
    stays for layers not taken.
    """
    depth = len(taken)
    if depth <= room:
        return list(range(depth))
    chosen = [int(i) for i in np.flatnonzero(taken)]
    if len(chosen) > room:
        kept = room - min(room // 3, depth - len(chosen))
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, kept).round().astype(int)]
    for end in (0, depth - 1):
        if end not in chosen and len(chosen) < room:
            chosen.append(end)
    while len(chosen) < room:
        gaps = np.abs(np.subtract.outer(np.arange(depth), chosen)).min(1)
        # A layer taken but thinned out comes after every layer that was not taken.
        chosen.append(int(np.argmax(np.where(taken, 0, gaps) if (gaps[~np.asarray(taken)] > 0).any() else gaps)))
    return sorted(chosen)


@dataclass(frozen=True)
class _Plan:
    """Where things go, in inches from the upper left corner of the host."""

    shown: tuple[int, ...]
    step: float
    pitch: float
    top: float
    curves: tuple[float, float, float, float]
    across: int
    key: float
    height: float

    @classmethod
    def of(cls, report: LayerReport, width: float, height: float | None = None) -> _Plan:
        energy = "energy" in report.attention_source
        key = depth_panels.key_lines(report, width, energy) * depth_panels.LINE + 0.06
        top = 0.30 if energy else 0.18
        room = min(MOST_SHOWN, max(1, int((width - LABELS - BAR) / SMALLEST_PITCH)))
        shown = tuple(shown_layers(report.taken, room))
        pitch = min(LARGEST_PITCH, (width - LABELS - BAR) / len(shown))
        wide = width >= depth_panels.WIDE
        # With few layers the curves stand beside the maps instead of leaving half the width empty.
        beside = wide and len(shown) <= 5
        if beside:
            pitch = min(pitch, (width - LABELS - BAR - BESIDE) / len(shown))
        across = 4 if wide and not beside else 2
        gap = 0.0 if beside else 0.12
        if height is not None:
            # In a place of a given size the maps shrink until the curves can be read.
            curves_need, maps_need = depth_panels.least_height(4, across) + 0.06, top + 3 * SMALLEST_PITCH_DOWN
            need = max(curves_need, maps_need + 0.12) if beside else curves_need + maps_need + gap
            style.require_room("attention-shift", (width, height), (depth_panels.LEAST_WIDTH, key + need))
            room_down = height - key - 0.12 if beside else min(0.55 * (height - key), height - key - curves_need - gap)
            pitch = min(pitch, (room_down - top) / 3)
        # Small maps still stand as far apart as the words over them.
        step = max(pitch, SMALLEST_PITCH) if energy else pitch
        maps = top + 3 * pitch
        if beside:
            height = height or max(maps + 0.12, 2.5) + key + 0.04
            x = LABELS + len(shown) * step + BAR
            curves = x, 0.02, width - x, height - key - 0.06
        else:
            height = height or maps + (1.50 if wide else 2.45) + key
            curves = 0.0, maps + gap, width, height - key - maps - gap - 0.04
        return cls(shown, step, pitch, top, curves, across, height - key + 0.02, height)


def _draw_maps(host: style.Host, report: LayerReport, plan: _Plan) -> list[Axes]:
    """The grid of maps with its two colour bars; returns the maps row by row."""
    real, fake = (
        [report.maps[label][i] * report.maps[label][i].size for i in plan.shown] for label in ("real", "fake")
    )
    difference = [f - r for r, f in zip(real, fake, strict=True)]
    limit = max(float(np.abs(d).max()) for d in difference) or 1.0
    cell = plan.pitch * 0.93
    grid: list[list[Axes]] = []
    for row, images in enumerate((real, fake, difference)):
        line = []
        for column, (layer, image) in enumerate(zip(plan.shown, images, strict=True)):
            label = f"{('real', 'fake', 'difference')[row]} {report.layers[layer]}"
            ax = host.panel(LABELS + column * plan.step, plan.top + row * plan.pitch, cell, cell, label=label)
            if row == 2:
                last = ax.imshow(image, cmap=style.difference_map(), vmin=-limit, vmax=limit, interpolation="nearest")
            else:
                largest = max(float(real[column].max()), float(fake[column].max()))
                first = ax.imshow(image, cmap=style.SEQUENTIAL, vmin=0, vmax=largest or 1.0, interpolation="nearest")
            _frame(ax, image.shape, report.taken[layer])
            line.append(ax)
        line[0].annotate(
            "diff." if row == 2 and plan.pitch < SMALL_PITCH_DOWN else ROWS[row],
            (0, 0.5),
            (-5, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            linespacing=1.0,
        )
        grid.append(line)
    _head(host, report, plan, cell)
    x = LABELS + (len(plan.shown) - 1) * plan.step + plan.pitch + 0.03
    _bar(host, first, x, plan.top, plan.pitch + cell, {0.0: "0", first.get_clim()[1]: "layer\nmax."})
    power = depth_panels.scale_power(np.array([limit]))
    ends = {end: _signed(end / 10.0**power) for end in (-limit, 0.0, limit)}
    if plan.pitch < SMALL_PITCH_DOWN:
        del ends[0.0]
    bar = _bar(host, last, x, plan.top + 2 * plan.pitch, cell, ends)
    bar.annotate(
        f"{depth_panels.power_text(power) if power else MULTIPLICATION} uniform",
        (0, 0),
        (0, -3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        ha="left",
    )
    return [ax for line in grid for ax in line]


def _frame(ax: Axes, shape: tuple[int, ...], taken: bool) -> None:
    ax.set(xticks=[], yticks=[])
    rows, columns = shape
    if not 0.25 <= rows / columns <= 4:
        # A one-row map drawn to scale would be a hair line.
        ax.set_aspect("auto")
        ax.set_box_aspect(0.25 if rows < columns else 4)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=1.1 if taken else 0.4, edgecolor=style.VERMILLION if taken else style.GREY)


def _head(host: style.Host, report: LayerReport, plan: _Plan, cell: float) -> None:
    """The number of each layer over its column, and what its map is where it is no attention."""
    ax = host.panel(0, 0, host.width, plan.top, label="head")
    ax.set_axis_off()
    ax.set(xlim=(0, host.width), ylim=(plan.top, 0))
    first = plan.top - (0.17 if "energy" in report.attention_source else 0.045)
    ax.text(LABELS - 0.06, first, depth_panels.depth_name(report.layers), ha="right", va="baseline")
    for column, layer in enumerate(plan.shown):
        centre = LABELS + column * plan.step + cell / 2
        number = depth_panels.short_label(report.layers[layer])
        ax.text(centre, first, number, ha="center", va="baseline", weight="bold" if report.taken[layer] else "normal")
        if report.attention_source[layer] == "energy":
            ax.text(centre, plan.top - 0.045, "energy", ha="center", va="baseline", style="italic")


def _bar(host: style.Host, image, x: float, y: float, height: float, ticks: dict[float, str]) -> Axes:
    ax = host.panel(x, y, 0.07, height, label="colour bar")
    bar = host.axes.figure.colorbar(image, cax=ax)
    bar.outline.set_linewidth(0.4)
    style.dress(ax)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    ax.tick_params(length=1.5, pad=1.5)
    # Labels at the ends lie beside the bar, not beyond it, clear of the other bar's.
    for text, where in zip(ax.get_yticklabels(), ticks, strict=True):
        text.set_verticalalignment(
            "bottom" if where == min(ticks) else "top" if where == max(ticks) else "center_baseline"
        )
    style.settle(ax)
    return ax


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "\N{MINUS SIGN}") if value else "0"
