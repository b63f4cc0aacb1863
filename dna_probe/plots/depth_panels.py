"""Panels over depth: a curve with its interval and null level, the layers taken, and the key."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dna_probe.location import LayerReport

# Curve -> (title, unit, whether its sign means something).
TITLES = {
    "cosine_shift": ("Cosine shift", "", False),
    "normalised_shift": ("Normalised shift", "", False),
    "fisher": ("Fisher criterion", "", False),
    "probe_auc": ("Probe AUC", "chance 0.5", False),
    "attention_js": ("Divergence", "nats", False),
    "entropy_shift": ("Entropy shift", "nats", True),
    "distance_shift": ("Distance shift", "patches", True),
    "spread": ("Spread", "of maximum", False),
}
LEFT, ABOVE, BELOW, GAP, LINE = 0.38, 0.19, 0.30, 0.08, 0.145
# Inches that two panels across need for the longest titles, and four.
LEAST_WIDTH, WIDE = 3.3, 6.4
TICK_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 50, 100)


def short_label(site: str) -> str:
    """``blocks.7.hook_resid_post`` -> ``7``; a name without a number is kept, cut to ten characters."""
    match = re.match(r"(?:.*?\.)?(\d+)(?:\.|$)", site)
    return match[1] if match else site if len(site) <= 10 else site[:9] + "…"


def depth_name(sites: Sequence[str]) -> str:
    """What a layer is called on an axis: block, stage, or layer where they are mixed or neither."""
    kinds = {site.partition(".")[0] for site in sites}
    return {"blocks": "block", "stages": "stage"}.get(kinds.pop(), "layer") if len(kinds) == 1 else "layer"


def runs(taken: Sequence[bool]) -> list[tuple[int, int]]:
    """First and last position of each unbroken run of layers taken."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(taken, int), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def scale_power(values: np.ndarray) -> int:
    """Power of ten, a multiple of three, to take out of an axis so that its tick labels stay short."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0 or 0.1 <= largest < 1000:
        return 0
    return 3 * math.floor(math.log10(largest) / 3)


def power_text(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def number_ticks(ax: Axes, power: int, nbins: int = 5) -> None:
    """At most ``nbins`` steps on the y axis, labelled in units of ten to the ``power``; the caller writes the power."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    ax.yaxis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 5, 10], min_n_ticks=2))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(power != 0)
    if power:
        formatter.set_powerlimits((power, power))
    ax.yaxis.set_major_formatter(formatter)
    ax.yaxis.get_offset_text().set_visible(False)


def depth_ticks(ax: Axes, sites: Sequence[str], width: float) -> None:
    """Layer labels under a panel ``width`` inches wide, thinned until they do not touch."""
    labels = [short_label(site) for site in sites]
    room = max(2, int(width / (0.075 * max(map(len, labels)) + 0.09)))
    step = next((s for s in TICK_STEPS if math.ceil(len(labels) / s) <= room), len(labels))
    positions = range(0, len(labels), step)
    ax.set_xticks(list(positions), [labels[i] for i in positions])
    ax.set_xlim(-0.6, len(labels) - 0.4)


def draw_curve(ax: Axes, report: LayerReport, name: str, width: float, height: float) -> None:
    """One curve of a report over depth, with all there is to know about it, in a panel of a size in inches."""
    curve = report.curves[name]
    title, unit, signed = TITLES.get(name, (name.replace("_", " ").capitalize(), "", True))
    depth = np.arange(len(report.layers))
    for first, last in runs(report.taken):
        ax.axvspan(first - 0.5, last + 0.5, facecolor=style.TAKEN_TINT, edgecolor="none", zorder=0)
    if signed:
        ax.axhline(0, color=style.INK, linewidth=0.5, zorder=1)
    if name == "probe_auc":
        ax.axhline(0.5, color=style.INK, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=1)
    # A single layer has no width to shade.
    at = depth if len(depth) > 1 else np.array([-0.2, 0.2])
    lower, upper = np.broadcast_to(curve.low, at.shape), np.broadcast_to(curve.high, at.shape)
    ax.fill_between(at, lower, upper, facecolor=style.BLUE_TINT, edgecolor="none", zorder=2)
    if curve.null is not None:
        for null in (curve.null, -curve.null) if signed else (curve.null,):
            level = np.broadcast_to(null, at.shape)
            ax.plot(at, level, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=3)
    ax.plot(depth, curve.value, color=style.BLUE, zorder=4)
    taken = np.asarray(report.taken, bool)
    size = 3.4 if len(depth) <= 16 else 2.4
    for chosen in (False, True):
        for source in sorted(set(report.attention_source)):
            here = (taken == chosen) & (np.asarray(report.attention_source) == source)
            # An energy map says something about attention curves alone.
            marker = "s" if source == "energy" and name in ATTENTION_CURVES else "o"
            if here.any() and (chosen or len(depth) <= 24):
                ax.plot(depth[here], curve.value[here], **_marker(marker, chosen, size), zorder=5)
    shown = np.concatenate([curve.value, curve.low, curve.high] + ([] if curve.null is None else [curve.null]))
    power = scale_power(shown)
    number_ticks(ax, power, min(5, max(2, int(height / 0.16))))
    ax.margins(y=0.08)
    if not np.ptp(shown) and not shown.any():
        ax.set_ylim(-0.1, 1)
    low, high = ax.get_ylim()
    # Without a floor a level curve would fill its panel with noise, under tick labels of many digits.
    short = 0.02 * float(np.abs(shown).max()) - (high - low)
    if short > 0:
        ax.set_ylim(low - short / 2, high + short / 2)
    depth_ticks(ax, report.layers, width)
    scale = " ".join(part for part in (power_text(power) if power else "", unit) if part)
    style.entitle(ax, f"{title} ({scale})" if scale else title)


ATTENTION_CURVES = ("attention_js", "entropy_shift", "distance_shift", "spread")


def _marker(shape: str, taken: bool, size: float) -> dict:
    edge = style.VERMILLION if taken else style.BLUE
    return {
        "linestyle": "none",
        "marker": shape,
        "markersize": size if taken else size * 0.8,
        "markerfacecolor": edge if taken else "white",
        "markeredgecolor": edge,
        "markeredgewidth": 0.7,
    }


def draw_curves(
    host: style.Host,
    report: LayerReport,
    names: Sequence[str],
    x: float,
    y: float,
    width: float,
    height: float,
    across: int,
) -> list[Axes]:
    """A grid of curve panels, labels included, in a rectangle of the host (inches from its upper left)."""
    down = math.ceil(len(names) / across)
    panels = []
    for i, name in enumerate(names):
        row, column = divmod(i, across)
        last_row = row == down - 1
        w = width / across - LEFT - GAP
        # Only the lowest row names the depth axis; the others need room for their tick labels alone.
        h = (height - BELOW - 0.16 * (down - 1)) / down - ABOVE
        ax = host.panel(x + column * width / across + LEFT, y + row * (h + ABOVE + 0.16) + ABOVE, w, h, label=name)
        draw_curve(ax, report, name, w, h)
        if last_row:
            ax.set_xlabel(depth_name(report.layers), labelpad=1.5)
        panels.append(ax)
    return panels


def least_height(panels: int, across: int) -> float:
    """Inches that a grid of panels needs for its curves to be read."""
    down = math.ceil(panels / across)
    return down * (ABOVE + 0.36) + 0.16 * (down - 1) + BELOW


def key_lines(report: LayerReport, width: float, energy: bool) -> int:
    """Lines the key takes in a width in inches."""
    return math.ceil(len(_key_entries(report, energy)) / _key_columns(width))


def draw_key(host: style.Host, report: LayerReport, y: float, energy: bool) -> None:
    """What line, shading and markers mean, over the whole width of the host."""
    entries = _key_entries(report, energy)
    lines = key_lines(report, host.width, energy)
    ax = host.panel(0.05, y, host.width - 0.1, lines * LINE, label="key")
    ax.set_axis_off()
    ax.legend(
        *zip(*entries, strict=True),
        ncols=_key_columns(host.width),
        loc="center",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.0,
        handletextpad=0.5,
        columnspacing=1.4,
        labelspacing=0.35,
    )


def _key_columns(width: float) -> int:
    return 4 if width >= WIDE else 2


def _key_entries(report: LayerReport, energy: bool) -> list[tuple]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tint = Patch(facecolor=style.BLUE_TINT, edgecolor="none")
    line = Line2D([], [], color=style.BLUE)
    null = Line2D([], [], color=style.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    entries: list[tuple] = [((tint, line), "value, 95 % interval"), (null, "shuffled labels, 95 %")]
    if any(report.taken):
        band = Patch(facecolor=style.TAKEN_TINT, edgecolor="none")
        shape = "s" if energy and "attention" not in report.attention_source else "o"
        entries.append(((band, Line2D([], [], **_marker(shape, True, 3.4))), f"taken ({report.rule})"))
    else:
        entries.append((Line2D([], [], linestyle="none"), f"none taken ({report.rule})"))
    if energy:
        entries.append((Line2D([], [], **_marker("s", False, 3.4)), "from energy map"))
    return entries
