"""What is known of a small model, for the tests of the backbone contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

# What is said of attention without patterns.
WINDOWS, POOLED = "within windows or grids", "to pooled patches"
CHANNELS, LINEAR, MIXED = "over channels", "of linear cost", "mixed between heads"
RESOLUTIONS, UNSEEN = "at several resolutions", "that shows no probabilities"


@dataclass(frozen=True)
class Case:
    """What a model is and what its backbone must look like.

    ``attention`` is what a note says of attention without patterns, ``attending`` in how many layers where it is not
    all; ``size`` is given as preprocessing where the model does not say it; ``heads`` is whether there are head sites,
    None where they go with the patterns; ``intermediates`` how many of the layers timm gives too, None for all.
    """

    make: Callable[[], nn.Module]
    layers: int
    layout: str
    prefix: int = 0
    class_token: bool = False
    mlp: bool = True
    pattern: bool = True
    grid: tuple[int, int] | None = None
    size: int | None = None
    heads: bool | None = None
    attention: tuple[str, ...] = ()
    attending: int | None = None
    intermediates: int | None = None

    @property
    def notes(self) -> list[str]:
        """What the backbone must say of its attention."""
        if not self.attention:
            return []
        where = f"in {self.attending} of {self.layers} layers " if self.attending else ""
        *others, last = self.attention
        ways = f"{', '.join(others)}, or {last}" if others else last
        return [f"{where}attention {ways} has no pattern over all patches: energy maps are used instead"]
