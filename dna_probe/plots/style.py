"""One look for all figures: column widths, type sizes, colours, and where panels go.

Everything is drawn under matplotlib's own defaults plus the settings here, inside a context that puts the caller's
settings back; what matplotlib would look up later, when the figure is saved, is fixed on the artists at once.

Panels are placed in inches inside a *host* axes, which fills the figure or is the caller's own. They are insets of the
host, so they follow it wherever a layout engine moves it, and their labels stay inside its box.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dna_probe.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

COLUMN_INCHES = {1: 3.35, 2: 6.9}
TEXT = 7.0
FONT = "DejaVu Sans"

# Okabe and Ito's colours for the colour-blind. Lines differ in style and marker too: none is told by colour alone.
BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#666666", "#222222"
# Plain tints, not transparency, which some printers and journals flatten badly.
BLUE_TINT, TAKEN_TINT, GREY_TINT = "#A9CFE6", "#F3E6CE", "#D9D9D9"
SEQUENTIAL = "cividis"

SETTINGS: Any = {
    "font.family": FONT,
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.0,
    "mathtext.fontset": "dejavusans",
    # TrueType outlines: publishers refuse the Type 3 fonts that matplotlib embeds by default.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "dna_probe",
    "savefig.bbox": "standard",
    "savefig.facecolor": "white",
    "savefig.dpi": 600,
    "figure.dpi": 150,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib's defaults with ``SETTINGS`` on top; the caller's settings come back at the end."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def difference_map() -> LinearSegmentedColormap:
    """A diverging map whose lightness rises all the way: in grey, below zero is darker and above zero lighter."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "dna_probe_difference", ["#001C4D", "#1F5FA8", "#A0A0A0", "#FFC56B", "#FFF6C8"], N=255
    )


def column_width(columns: int) -> float:
    """Width in inches.

    Raises:
        DataError: neither one nor two columns.
    """
    if columns not in COLUMN_INCHES:
        raise DataError(
            f"A figure cannot be {columns!r} columns wide", "A page has two columns", "Use columns=1 or columns=2"
        )
    return COLUMN_INCHES[columns]


@dataclass(frozen=True)
class Host:
    """An axes without axis lines in which panels are placed, in inches from its upper left corner."""

    axes: Axes
    width: float
    height: float

    @classmethod
    def new(cls, width: float, height: float) -> Host:
        """A host that fills a figure of its own."""
        from matplotlib.figure import Figure

        return cls._on(Figure(figsize=(width, height)).add_axes((0, 0, 1, 1), label="host"), width, height)

    @classmethod
    def within(cls, ax: Axes) -> Host:
        """A host in the place of the caller's axes."""
        return cls._on(ax, *inches(ax))

    @classmethod
    def _on(cls, ax: Axes, width: float, height: float) -> Host:
        ax.set_axis_off()
        return cls(ax, width, height)

    def panel(self, x: float, y: float, width: float, height: float, label: str, **options: Any) -> Axes:
        left, bottom = x / self.width, 1 - (y + height) / self.height
        ax = self.axes.inset_axes((left, bottom, width / self.width, height / self.height), label=label, **options)
        return dress(ax)


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of an axes as it stands."""
    engine = root_figure(ax).get_layout_engine()
    if engine is not None:
        # Until it is drawn, a figure with a layout engine has its axes where they will not stay.
        engine.execute(root_figure(ax))
    locator = ax.get_axes_locator()
    # An inset's own position is stale until it is drawn; its locator knows the true one.
    place = locator(ax, None) if locator is not None else ax.get_position(original=True)  # type: ignore[arg-type]
    # Both are shares of the subfigure, where the axes lies in one.
    dpi = root_figure(ax).dpi
    return float(place.width * ax.figure.bbox.width / dpi), float(place.height * ax.figure.bbox.height / dpi)


def root_figure(ax: Axes) -> Figure:
    """The figure at the top, also where the axes lies in a subfigure."""
    canvas = ax.figure.canvas
    return canvas.figure


def dress(ax: Axes) -> Axes:
    """Fix on an axes what matplotlib would otherwise look up when ticks are made, at the first draw."""
    ax.tick_params(
        which="both", labelsize=TEXT, labelfontfamily=FONT, width=0.6, length=2.2, pad=1.8, color=INK, labelcolor=INK
    )
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set(fontsize=TEXT, fontfamily=FONT, color=INK)
    ax.set_facecolor("white")
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set(linewidth=0.6, edgecolor=INK, visible=name in ("left", "bottom"))
    return ax


def entitle(ax: Axes, text: str) -> None:
    """A title over the left edge, also on an axes that was made under other settings."""
    ax.set_title(text, loc="left", pad=4, fontsize=TEXT, fontfamily=FONT, color=INK, linespacing=1.15)


def settle(*panels: Axes) -> None:
    """Make the ticks now, under this style, so that saving under other settings draws the same."""
    for ax in panels:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels(which="both")


def require_room(figure: str, has: tuple[float, float], needs: tuple[float, float]) -> None:
    """Refuse an axes that is too small for the figure; sizes are (width, height) in inches.

    Raises:
        DataError: it is.
    """
    if has[0] < needs[0] or has[1] < needs[1]:
        raise DataError(
            f"The axes is too small for the figure {figure!r}",
            f"It is {has[0]:.1f} by {has[1]:.1f} inches and needs {needs[0]:.1f} by {needs[1]:.1f}",
            "Give it a larger axes, or leave ax out",
        )


def require_result(result: Any, figure: str, *kinds: type) -> None:
    """Refuse a result that the figure does not show.

    Raises:
        DataError: it is of another type.
    """
    if not isinstance(result, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(
            f"The figure {figure!r} cannot show a {type(result).__name__}", f"It shows {wanted}", "Pass one of those"
        )
