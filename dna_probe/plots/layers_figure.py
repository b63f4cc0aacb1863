"""How far apart real and fake are in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dna_probe.plots import depth_panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dna_probe.location import LayerReport


def layers(report: LayerReport, ax: Axes | None = None, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Decoupling of real and fake over depth: cosine shift, normalised shift, Fisher criterion, probe AUC.

    Shaded around each curve its 95 % bootstrap interval, dashed the level that shuffled labels reach, dotted chance;
    layers taken carry a band and filled markers.

    Args:
        report: from ``dna_probe.locate_layers``. It is not changed.
        ax: draw in the place of this axes, whose own lines are hidden, instead of on a new figure.
        columns: width of a new figure, one or two columns of a paper.

    Returns:
        The figure and its four panels, (4,), in the order above.

    Raises:
        DataError: not a ``LayerReport``, ``columns`` neither 1 nor 2, or ``ax`` too small.
    """
    from dna_probe.location import DECOUPLING, LayerReport

    style.require_result(report, "layers", LayerReport)
    width = style.column_width(columns)
    with style.paper_style():
        if ax is not None:
            width, height = style.inches(ax)
        key = depth_panels.key_lines(report, width, energy=False) * depth_panels.LINE + 0.06
        across = 4 if width >= depth_panels.WIDE else 2
        if ax is None:
            host = style.Host.new(width, (1.55 if columns == 2 else 2.6) + key)
        else:
            least = depth_panels.least_height(4, across) + key + 0.04
            style.require_room("layers", (width, height), (depth_panels.LEAST_WIDTH, least))
            host = style.Host.within(ax)
        panels = depth_panels.draw_curves(
            host, report, DECOUPLING, 0, 0.02, host.width, host.height - key - 0.04, across
        )
        depth_panels.draw_key(host, report, host.height - key + 0.02, energy=False)
        style.settle(*panels)
    return style.root_figure(host.axes), np.array(panels, dtype=object)
