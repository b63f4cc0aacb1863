"""How each method of a benchmark looks, the same in every figure, and the key that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dna_probe.errors import DataError
from dna_probe.evaluation import selection, wording
from dna_probe.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dna_probe.evaluation.results import BenchmarkResult

GREEN, PURPLE, ORANGE, SKY = "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
SOLID, DASHED, DOTTED = "-", (0, (4, 1.5)), (0, (1, 1.5))
# Inches: a line of the key, a letter, a handle with the space beside it, and the width from which the key has a place
# of its own beside the panels.
LINE, LETTER, HANDLE, BESIDE = 0.145, 0.0525, 0.34, 4.5


@dataclass(frozen=True)
class Look:
    """Colour, style and marker of a method; controls are thin, grey and dotted."""

    colour: str
    line: Any
    marker: str
    filled: bool = True
    width: float = 0.7
    size: float = 2.6

    def drawn(self, line: Any = None) -> dict[str, Any]:
        """Arguments of ``plot`` with line and markers; ``line`` in the place of the look's own style."""
        return {
            "color": self.colour,
            "linestyle": self.line if line is None else line,
            "linewidth": self.width,
            "marker": self.marker,
            "markersize": self.size,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 0.7,
        }


OURS = Look(style.BLUE, SOLID, "o", width=1.6, size=3.6)
BASELINE = Look(style.VERMILLION, DASHED, "s", filled=False, width=1.3, size=3.4)
CONTROLS = tuple(
    Look(style.GREY, DOTTED, marker, size=size) for marker, size in zip("x+12", (3, 3.6, 4.4, 4.4), strict=True)
)
NOTHING_FOUND = Look(style.INK, DOTTED, "none", width=0.6)
# In the order in which methods take them: neighbours differ in colour, line and marker.
OTHERS = (
    Look(GREEN, SOLID, "^"),
    Look(PURPLE, DASHED, "v", filled=False),
    Look(ORANGE, SOLID, "D", size=2.3),
    Look(SKY, DASHED, "P", size=3.0),
    Look(GREEN, DASHED, "<", filled=False),
    Look(PURPLE, SOLID, "X", size=3.0),
    Look(ORANGE, DASHED, "h", filled=False),
    Look(SKY, SOLID, ">"),
)
USUAL = ("best-layer", "all-layers", "rine", "prototype", "knn", "rbf-svm", "l1", "top-d")


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Look of each method. Well-known methods have their own; others take those left over, in turn."""
    fixed = {selection.OURS: OURS, selection.BASELINE: BASELINE}
    fixed |= dict(zip(selection.CONTROLS, CONTROLS, strict=True))
    fixed |= dict(zip(USUAL, OTHERS, strict=True))
    free = [look for name, look in zip(USUAL, OTHERS, strict=True) if name not in methods] or list(OTHERS)
    new = [name for name in methods if name not in fixed]
    taken = {name: free[i % len(free)] for i, name in enumerate(new)}
    return {name: fixed.get(name) or taken[name] for name in methods}


def key_of(look: Mapping[str, Look]) -> list[tuple[str, Look]]:
    """Words of the key and their looks: the methods, and what nothing found looks like."""
    return [*((wording.method_name(name), own) for name, own in look.items()), ("chance", NOTHING_FOUND)]


def told(seen: bool, shots: int | str | None = None) -> str:
    """What was tested on, and how many images per class were learnt from, for the head of a figure."""
    where = wording.side_name(seen)
    if shots is None:
        return where
    return f"{where}, {'all images' if shots == 'all' else f'{shots} shots'}"


def head(ax: Axes, text: str, left: float) -> None:
    """A title that begins ``left`` inches left of the axes, over its labels: the axes alone may be narrow."""
    ax.annotate(
        text,
        (0, 1),
        (-72 * left, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        linespacing=1.15,
    )


def require_rows(rows: Sequence[Any], figure: str, result: BenchmarkResult, lacks: str, fix: str) -> None:
    """Refuse a result that has nothing for the figure.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError(
            f"The figure {figure!r} has nothing to show",
            f"This run of the protocol {result.info.get('protocol')!r} holds {lacks}",
            fix,
        )


class Box(NamedTuple):
    """A rectangle in inches from the upper left corner of the host."""

    x: float
    y: float
    width: float
    height: float


def place(
    figure: str,
    ax: Any,
    width: float,
    height: float,
    least: tuple[float, float],
    names: Sequence[tuple[str, Look]],
) -> tuple[style.Host, Box]:
    """A host with its key drawn, and the room left for the panels.

    The key stands beside the panels where the host is wide, beneath them where it is narrow.

    Args:
        width, height: inches of a new figure's body, without a key beneath; not used where ``ax`` is given.
        least: inches that the panels need.
        names: words of the key and their looks.

    Raises:
        DataError: ``ax`` is too small.
    """
    if ax is not None:
        width, height = style.inches(ax)
    entry = HANDLE + LETTER * max((len(text) for text, _ in names), default=0)
    beside = width >= BESIDE and bool(names)
    across = 1 if beside else max(1, min(3, int((width - 0.05) / entry)))
    lines = math.ceil(len(names) / across)
    tall = lines * LINE + 0.06 if names else 0.0
    if beside:
        needs = least[0] + entry + 0.1, max(least[1], tall)
        body = Box(0, 0, width - entry - 0.1, max(height, tall) if ax is None else height)
    else:
        needs = least[0], least[1] + tall
        body = Box(0, 0, width, height if ax is None else height - tall)
    if ax is None:
        host = style.Host.new(width, body.height if beside else body.height + tall)
    else:
        style.require_room(figure, (width, height), needs)
        host = style.Host.within(ax)
    if names:
        where = (
            Box(body.width + 0.05, 0.05, entry + 0.05, body.height - 0.1)
            if beside
            else Box(0.05, body.height + 0.02, width - 0.1, tall - 0.04)
        )
        _draw_key(host, where, across, names)
    return host, body


def _draw_key(host: style.Host, where: Box, across: int, names: Sequence[tuple[str, Look]]) -> None:
    from matplotlib.lines import Line2D

    ax = host.panel(*where, label="key")
    ax.set_axis_off()
    ax.legend(
        [Line2D([], [], **look.drawn()) for _, look in names],
        [text for text, _ in names],
        ncols=across,
        loc="center left" if across == 1 else "center",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.2,
        handletextpad=0.5,
        columnspacing=0.9,
        labelspacing=0.35,
    )
