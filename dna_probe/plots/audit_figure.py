"""What real and fake files are like: format, quality, size, and whether that tells them apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.evaluation.audit import Audit
    from dna_probe.evaluation.file_histograms import Histogram

# Inches around a panel, for its labels and title, and the line of the key at the foot.
LEFT, RIGHT, ABOVE, BELOW, KEY = 0.36, 0.10, 0.22, 0.34, 0.22
LEAST_WIDTH, LEAST_HEIGHT, PANEL_HEIGHT, WIDE = 3.2, 0.9, 1.3, 6.2
CATEGORIES = 4
COLOURS = {"real": style.BLUE_TINT, "fake": style.VERMILLION}


def audit(result: Audit, ax: Axes | None = None, columns: int = 2) -> tuple[Figure, np.ndarray]:
    """Histograms of format, EXIF, JPEG quality, width, height, aspect and bytes per pixel, and both AUCs.

    Filled are real files, outlined fake ones, each as shares of their class, so that classes of different size compare.
    Widths, heights, aspects and bytes per pixel are on logarithmic axes. The last panel has the metadata and the
    thumbnail AUC with 95 % bootstrap intervals, chance (dotted) and the level above which they are flagged (dashed).

    Args:
        result: from ``dna_probe.evaluation.audit.audit``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.

    Returns:
        The figure and its panels, (8,), in the order above.

    Raises:
        DataError: not an ``Audit``, ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.evaluation.audit import Audit
    from dna_probe.evaluation.file_histograms import TITLES

    style.require_result(result, "audit", Audit)
    width = style.column_width(columns)
    with style.paper_style():
        if ax is not None:
            width, height = style.inches(ax)
        across = 4 if width >= WIDE else 2
        down = math.ceil((len(TITLES) + 1) / across)
        if ax is None:
            host = style.Host.new(width, down * PANEL_HEIGHT + KEY)
        else:
            style.require_room("audit", (width, height), (LEAST_WIDTH, down * LEAST_HEIGHT + KEY))
            host = style.Host.within(ax)
        step = host.width / across, (host.height - KEY) / down
        panels = []
        for i, name in enumerate((*TITLES, "auc")):
            row, column = divmod(i, across)
            panel = host.panel(
                column * step[0] + LEFT, row * step[1] + ABOVE, step[0] - LEFT - RIGHT, step[1] - ABOVE - BELOW, name
            )
            if name == "auc":
                _draw_aucs(panel, result)
            else:
                _draw_histogram(panel, result.histograms[name], TITLES[name])
            panels.append(panel)
        _draw_key(host, result)
        style.settle(*panels)
    return style.root_figure(host.axes), np.array(panels, dtype=object)


def _draw_histogram(ax: Axes, histogram: Histogram, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    style.entitle(ax, title)
    shares = {
        name: np.array(counts) / max(1, sum(counts) + histogram.missing[name])
        for name, counts in (("real", histogram.real), ("fake", histogram.fake))
    }
    if not any(share.any() for share in shares.values()):
        ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        ax.text(0.5, 0.5, "none", ha="center", va="center")
        return
    if histogram.numeric:
        _draw_bins(ax, histogram, shares)
    else:
        _draw_categories(ax, [str(name) for name in histogram.bins], shares)
    ax.margins(y=0.08)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))


def _draw_bins(ax: Axes, histogram: Histogram, shares: dict[str, np.ndarray]) -> None:
    edges = np.array(histogram.bins, dtype=float)
    ax.stairs(shares["real"], edges, fill=True, color=COLOURS["real"], zorder=2)
    ax.stairs(shares["fake"], edges, color=COLOURS["fake"], linewidth=1.0, zorder=3)
    if histogram.logarithmic:
        ax.set_xscale("log")
        ticks = plain_ticks(edges)
        ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        # The outline of the outermost bins stays inside.
        margin = (edges[-1] / edges[0]) ** 0.02
        ax.set_xlim(edges[0] / margin, edges[-1] * margin)
    else:
        ax.set_xticks([0, 50, 100])
        ax.set_xlim(-2, 102)
    missing = [f"{count} {name}" for name, count in histogram.missing.items() if count]
    if missing:
        ax.set_xlabel(f"without: {', '.join(missing)}", labelpad=1)


def _draw_categories(ax: Axes, names: list[str], shares: dict[str, np.ndarray]) -> None:
    if len(names) > CATEGORIES:
        # They come with the most frequent first.
        names = [*names[: CATEGORIES - 1], "other"]
        shares = {
            one: np.append(share[: CATEGORIES - 1], share[CATEGORIES - 1 :].sum()) for one, share in shares.items()
        }
    place = np.arange(len(names))
    ax.bar(place - 0.19, shares["real"], 0.36, color=COLOURS["real"], zorder=2)
    ax.bar(place + 0.19, shares["fake"], 0.36, facecolor="none", edgecolor=COLOURS["fake"], linewidth=1.0, zorder=3)
    ax.set_xticks(place, labels=[name if len(name) <= 8 else f"{name[:7]}…" for name in names])
    ax.set_xlim(-0.6, len(names) - 0.4)


def plain_ticks(edges: np.ndarray) -> list[float]:
    """Round numbers for a logarithmic axis between the outermost edges; the value itself where there is one bin."""
    from matplotlib.ticker import MaxNLocator

    low, high = float(edges[0]), float(edges[-1])
    if len(edges) == 2:
        return [float(f"{math.sqrt(low * high):.4g}")]
    if high / low < 4:
        ticks = list(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]).tick_values(low, high))
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if high / low > 100 else (1, 3)
        ticks = [step * 10.0**power for power in powers for step in steps]
    return [float(f"{tick:.6g}") for tick in ticks if low <= tick <= high]


def _draw_aucs(ax: Axes, result: Audit) -> None:
    from dna_probe.evaluation.audit_sentences import LIMIT

    style.entitle(ax, "AUC, all generators")
    ax.axvline(0.5, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    ax.axvline(LIMIT, color=style.GREY, linewidth=0.8, linestyle=(0, (4, 1.5)), zorder=1)
    for height, name in ((1.0, "metadata"), (0.0, "thumbnail")):
        measured = getattr(result.overall, name)
        said = f"{name}: not measured" if measured is None else f"{name} {measured.value:.2f}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        ax.text(0.02, height + 0.28, said, va="bottom", ha="left", bbox=box, zorder=2)
        if measured is not None:
            ax.plot([measured.low, measured.high], [height, height], color=style.INK, linewidth=1.0, zorder=3)
            ax.plot(measured.value, height, marker="o", markersize=3.5, color=style.INK, linestyle="none", zorder=4)
    ax.set(xlim=(0, 1.03), ylim=(-0.5, 1.9), yticks=[])
    ax.set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"])


def _draw_key(host: style.Host, result: Audit) -> None:
    from matplotlib.patches import Patch

    ax = host.panel(0, host.height - KEY, host.width, KEY, label="key")
    ax.set_axis_off()
    patches = [
        Patch(facecolor=COLOURS["real"], edgecolor="none", label=f"share of {result.overall.real} real"),
        Patch(facecolor="none", edgecolor=COLOURS["fake"], label=f"share of {result.overall.fake} fake"),
    ]
    ax.legend(
        handles=patches,
        loc="center",
        ncols=2,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.5,
    )
