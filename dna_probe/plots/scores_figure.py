"""The ranked scores of units and where they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dna_probe.plots import depth_panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.scoring import UnitScores
    from dna_probe.truncation import UnitSet

Corner = Literal["upper left", "upper right"]
# In shares of the axes: to the right of FREE_FROM and above FREE_ABOVE the inset and the key stand, and no curve.
FREE_FROM, FREE_ABOVE = 0.40, 0.36
CUT_NAMES = {
    "top_k": "top k",
    "fdr": "FDR",
    "local_fdr": "local FDR",
    "cumulative_knee": "cumulative knee",
}
KNEES = ("knee", "cumulative_knee")


def scores(scores_or_unit_set: UnitScores | UnitSet, ax: Axes | None = None, columns: int = 1) -> tuple[Figure, Axes]:
    """Scores from best to worst, with the range over resampled images; for a ``UnitSet`` also the cut.

    Each curve, of the scores and of every resample, is a share of its own best score: the cut ``knee`` looks for a bend
    in that curve, and what compares between resamples is its shape. ``table()`` has the scores themselves.

    The units kept are shaded, the knee (or other cut) is marked with its range over resampled images, the title counts
    the units, and an inset shows how many are kept in each layer. Both axes are linear: the knee is found on linear
    axes, and on others it would not be where the curve bends.

    Args:
        scores_or_unit_set: from ``dna_probe.score_units`` or ``dna_probe.truncate``. It is not changed.
        ax: draw into this axes instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.

    Returns:
        The figure and the axes of the curve; the inset is among its ``child_axes``.

    Raises:
        DataError: neither ``UnitScores`` nor a ``UnitSet``, or ``columns`` neither 1 nor 2.
    """
    from matplotlib.figure import Figure

    from dna_probe.scoring import UnitScores
    from dna_probe.truncation import UnitSet

    style.require_result(scores_or_unit_set, "scores", UnitScores, UnitSet)
    width = style.column_width(columns)
    units = scores_or_unit_set if isinstance(scores_or_unit_set, UnitSet) else None
    ranked = units.scores if units is not None else scores_or_unit_set
    assert isinstance(ranked, UnitScores)
    with style.paper_style():
        if ax is None:
            left, bottom, right, top = 0.50, 0.36, 0.10, 0.22 if units is None or not len(units) else 0.34
            height = 1.44 + bottom + top
            figure = Figure(figsize=(width, height))
            box = left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height
            ax = figure.add_axes(box, label="scores")
        style.dress(ax)
        _draw_ranking(ax, ranked)
        if units is None:
            style.entitle(ax, f"{len(ranked.score)} units by {ranked.scorer}")
            _draw_key(ax, False, len(ranked.resamples) > 0, (1.0, 1.0), "upper right")
            panels = [ax]
        else:
            panels = _draw_cut(ax, units)
        style.settle(*panels)
    return style.root_figure(ax), ax


def _draw_ranking(ax: Axes, ranked: UnitScores) -> None:
    from matplotlib.ticker import MaxNLocator

    curve, draws = _shares(ranked)
    rank = np.arange(1, len(curve) + 1)
    if len(draws):
        ax.fill_between(rank, draws.min(0), draws.max(0), facecolor=style.GREY_TINT, edgecolor="none", zorder=3.5)
    marker = "o" if len(curve) <= 30 else "none"
    ax.plot(rank, curve, color=style.BLUE, linewidth=1.1, zorder=4, marker=marker, markersize=2)
    depth_panels.number_ticks(ax, 0)
    ax.set_ylim(0, 1.04)
    pad = 0.02 * len(curve)
    ax.set_xlim(0.5 - pad, len(curve) + 0.5 + pad)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    ax.set_xlabel("unit, by rank", labelpad=1.5)
    ax.set_ylabel("score / best score", labelpad=2)


def _shares(ranked: UnitScores) -> tuple[np.ndarray, np.ndarray]:
    """The ranked scores (units,) and those of each resample (draws, units), as shares of the best of each."""

    def share(scores: np.ndarray) -> np.ndarray:
        best = scores[..., :1]
        return np.divide(scores, best, out=np.zeros_like(scores), where=best > 0)

    curve = ranked.score[ranked.order].astype(np.float64)
    return share(curve), share(-np.sort(-np.asarray(ranked.resamples, np.float64), axis=-1))


def _draw_cut(ax: Axes, units: UnitSet) -> list[Axes]:
    ranked = units.scores
    curve, draws = _shares(ranked)
    kept = units.mask[ranked.order]
    # One shaded block for a cut of the whole ranking, a comb where layers were cut one by one or by p-value.
    for first, last in depth_panels.runs(kept):
        edges = np.array([first + 0.5, last + 1.5])
        span = slice(first, last + 1)
        x = np.concatenate([edges[:1], np.arange(first, last + 1) + 1.0, edges[1:]])
        y = np.concatenate([curve[span][:1], curve[span], curve[span][-1:]])
        ax.fill_between(x, 0, y, facecolor=style.BLUE_TINT, edgecolor="none", zorder=3)
    count = len(units)
    prefix = count > 0 and bool(kept[:count].all())
    if prefix:
        _mark_cut(ax, units, count, float(curve[count - 1]))
    style.entitle(ax, _caption(units))
    if not count:
        return [ax]
    # Lift the ceiling where the curve would run into the inset.
    start = int(FREE_FROM * len(curve))
    behind = max([curve[start], *draws[:, start]])
    ax.set_ylim(top=max(ax.get_ylim()[1], float(behind) / FREE_ABOVE))
    _draw_key(ax, True, len(ranked.resamples) > 0, (0.52, 0.54), "upper left")
    return [ax, _draw_layers(ax, units)]


def _draw_key(ax: Axes, kept: bool, resampled: bool, place: tuple[float, float], corner: Corner) -> None:
    from matplotlib.patches import Patch

    entries = [("kept", style.BLUE_TINT)] * kept + [("range, resampled", style.GREY_TINT)] * resampled
    if entries:
        patches = [Patch(facecolor=colour, edgecolor="none") for _, colour in entries]
        ax.legend(
            patches,
            [name for name, _ in entries],
            loc=corner,
            bbox_to_anchor=place,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.4,
            handletextpad=0.5,
            labelspacing=0.3,
        )


def _mark_cut(ax: Axes, units: UnitSet, count: int, height: float) -> None:
    low, _, high = units.spread
    share = count / len(units.mask)
    top = 1.0 if share < FREE_FROM - 0.03 else FREE_ABOVE
    ax.axvline(count + 0.5, 0, top, color=style.VERMILLION, linewidth=0.8, linestyle=(0, (4, 1.5)), zorder=5)
    if high > low:
        # The range as it is: scores of resampled images may bend elsewhere, and then it does not hold the knee itself.
        (line,) = ax.plot([low, high], [height, height], color=style.VERMILLION, linewidth=1.0, zorder=6)
        line.set(marker="|", markersize=5, markeredgewidth=1.0, label="range of the cut")
    ax.plot(
        count, height, marker="D", markersize=3.6, color=style.VERMILLION, linestyle="none", zorder=7, clip_on=False
    )
    name = "knee" if units.cut in KNEES and units.found else "cut"
    right = share < 0.25
    ax.annotate(
        name,
        (count + 0.5, top),
        (3 if right else -3, -1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        ha="left" if right else "right",
        color=style.VERMILLION,
        zorder=8,
    )


def _caption(units: UnitSet) -> str:
    total = len(units.mask)
    if not len(units):
        return f"none of {total} units kept ({units.cut})"
    low, _, high = units.spread
    how = CUT_NAMES.get(units.cut, units.cut)
    if units.cut in KNEES and not units.found:
        how = "no knee" if units.scope == "global" else "not a knee in all"
    if units.scope == "layer":
        how += " per layer" if units.found else " layers"
    if high > low:
        how += f"; {low} to {high} over resamples"
    return f"{len(units)} of {total} units kept ({units.fraction:.1%})".replace("%", " %") + f"\n{how}"


def _draw_layers(ax: Axes, units: UnitSet) -> Axes:
    """How many units are kept in each layer scored."""
    from matplotlib.ticker import MaxNLocator

    ranked = units.scores
    names: dict[int, str] = {}
    for reading in ranked.readings:
        names.setdefault(reading.site.layer, reading.site.name)
    layers = sorted(names)
    counts = [int((units.mask & (ranked.layer == layer)).sum()) for layer in layers]
    inset = style.dress(ax.inset_axes((0.54, 0.66, 0.44, 0.24), label="kept in each layer"))
    inset.bar(np.arange(len(layers)), counts, width=0.8, color=style.BLUE, zorder=3)
    sites = [names[layer] for layer in layers]
    depth_panels.depth_ticks(inset, sites, 0.44 * style.inches(ax)[0])
    inset.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True, min_n_ticks=2))
    inset.set_ylim(0, max(counts) * 1.05)
    style.entitle(inset, f"kept in each {depth_panels.depth_name(sites)}")
    return inset
