"""How a method stands up to what happens to images in use."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from dna_probe.errors import unknown_name
from dna_probe.evaluation import selection
from dna_probe.plots import method_lines, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.evaluation.results import BenchmarkResult

ABOVE, BELOW, RIGHT = 0.32, 0.34, 0.08
ONE_LINE, TWO_LINES, LETTER = 0.16, 0.28, 0.058
LONGEST, LONGEST_WORD = 18, 10
SHOWN = {"auc": "AUC", "drop": "AUC lost"}


def robustness(
    result: BenchmarkResult,
    ax: Axes | None = None,
    columns: int = 1,
    method: str | None = None,
    show: Literal["auc", "drop"] = "auc",
    shots: int | str | None = None,
    seen: bool | None = None,
) -> tuple[Figure, Axes]:
    """AUC of one method on transformed images, each kind of transform over its severities; darker is worse.

    Each cell has the value and, in italics, the parameter of the transform; the worst cell is framed.

    Args:
        result: of a benchmark with the protocol ``robustness``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.
        method: ``dna``, or the first measured, where left out.
        show: ``"auc"``, or ``"drop"``: how far the AUC falls from that on clean images.
        shots: labelled images per class, or ``"all"``; the largest measured, where left out.
        seen: on generators trained on (true) or on unseen ones, which are taken where left out and measured.

    Returns:
        The figure and the axes of the map, one row per kind of transform and one column per severity.

    Raises:
        DataError: not a ``BenchmarkResult``, it has no transforms, the method or ``shots`` was not measured,
            ``columns`` neither 1 nor 2, or ``ax`` too small.
        DnaProbeError: ``show`` is neither.
    """
    from dna_probe.evaluation.results import BenchmarkResult

    style.require_result(result, "robustness", BenchmarkResult)
    if show not in SHOWN:
        raise unknown_name("value to show", show, SHOWN)
    width = style.column_width(columns)
    measured = [row for row in selection.transformed(result.summary) if not math.isnan(_value(row, show))]
    rows, seen = selection.on_side(measured, seen)
    method_lines.require_rows(
        rows, "robustness", result, "no transformed images", "Run 'dna-probe benchmark --protocol robustness'"
    )
    rows, shots = selection.at_shots(rows, shots)
    rows, (method, *_) = selection.of_methods(rows, [method] if method else None)
    rows = [row for row in rows if row["method"] == method]
    transforms = list(dict.fromkeys(row["transform"] for row in rows))
    levels = max(int(row["level"]) for row in rows)
    labels = [_name(name) for name in transforms]
    left = 0.08 + LETTER * max(map(len, labels))
    with style.paper_style():
        if ax is not None:
            width = style.inches(ax)[0]
        cell = (width - left - RIGHT) / levels
        words = max(len(_severity(row)) for row in rows)
        beside = LETTER * (words + 5) + 0.1 <= cell
        pitch = ONE_LINE if beside else TWO_LINES
        needs = left + RIGHT + levels * max(LETTER * max(words, 5), 0.3), ABOVE + BELOW + pitch * len(transforms)
        host, body = method_lines.place("robustness", ax, width, needs[1], needs, ())
        panel = host.panel(left, ABOVE, body.width - left - RIGHT, body.height - ABOVE - BELOW, label="robustness")
        values = np.full((len(transforms), levels), np.nan)
        for row in rows:
            values[transforms.index(row["transform"]), int(row["level"]) - 1] = _value(row, show)
        _draw_map(panel, values, show)
        _write_cells(panel, rows, transforms, show, beside)
        panel.set_xticks(range(levels), [str(i + 1) for i in range(levels)])
        panel.set_yticks(range(len(transforms)), labels)
        panel.tick_params(length=0)
        panel.set_xlabel("severity", labelpad=1.5)
        clean = [
            row
            for row in selection.clean(result.summary)
            if (row["method"], row["shots"], bool(row["seen"])) == (method, shots, seen)
        ]
        head = _head(method, show, rows, clean, method_lines.told(seen, shots))
        method_lines.head(panel, head, left - 0.06)
        style.settle(panel)
    return style.root_figure(host.axes), panel


def _value(row: selection.Row, show: str) -> float:
    return selection.number(row["metrics"]["auc"] if show == "auc" else row["auc_drop"])


def _draw_map(ax: Axes, values: np.ndarray, show: str) -> None:
    from matplotlib import colormaps

    if show == "auc":
        colours, low, high = style.SEQUENTIAL, min(0.5, float(np.nanmin(values))), 1.0
    else:
        colours, low, high = f"{style.SEQUENTIAL}_r", 0.0, max(0.05, float(np.nanmax(values)))
    ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colormaps[colours].with_extremes(bad="white"),
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    # White lines between cells.
    for edge in np.arange(values.shape[0] - 1) + 0.5:
        ax.axhline(edge, color="white", linewidth=0.6)
    for edge in np.arange(values.shape[1] - 1) + 0.5:
        ax.axvline(edge, color="white", linewidth=0.6)


def _write_cells(ax: Axes, rows: Sequence[selection.Row], transforms: Sequence[str], show: str, beside: bool) -> None:
    from matplotlib.patches import Rectangle

    (image,) = ax.images
    for row in rows:
        x, y = int(row["level"]) - 1, transforms.index(row["transform"])
        value = _value(row, show)
        red, green, blue, _ = image.to_rgba(np.array(value))
        colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else style.INK
        number, parameter = ((0.47, 0), (-0.47, 0)) if beside else ((0, -0.22), (0, 0.24))
        ax.text(
            x + number[0],
            y + number[1],
            f"{value:.2f}".replace("-", "\N{MINUS SIGN}"),
            ha="right" if beside else "center",
            va="center_baseline",
            color=colour,
        )
        ax.text(
            x + parameter[0],
            y + parameter[1],
            _severity(row),
            ha="left" if beside else "center",
            va="center_baseline",
            color=colour,
            style="italic",
        )
    worst = selection.worst_first(rows)[0]
    corner = int(worst["level"]) - 1.5, transforms.index(worst["transform"]) - 0.5
    ax.add_patch(
        Rectangle(corner, 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=1.6, zorder=5, clip_on=False)
    )


def _name(transform: str) -> str:
    return transform if len(transform) <= LONGEST else transform[: LONGEST - 1] + "…"


def _severity(row: selection.Row) -> str:
    """The numbers of a parameter alone: ``quality 75`` -> ``75``; the text itself, cut, where it has none."""
    text = str(row["severity"])
    numbers = re.findall(r"\d+(?:\.\d+)?", text)
    return "/".join(numbers) or (text if len(text) <= LONGEST_WORD else text[: LONGEST_WORD - 1] + "…")


def _head(method: str, show: str, rows: Sequence[selection.Row], clean: Sequence[selection.Row], where: str) -> str:
    worst = selection.worst_first(rows)[0]
    told = f"worst {selection.number(worst['metrics']['auc']):.2f} ({_name(worst['transform'])} {_severity(worst)})"
    if clean:
        told = f"AUC on clean images {selection.number(clean[0]['metrics']['auc']):.2f}, {told}"
    return f"{method}: {SHOWN[show]}, {where}\n{told}"
