"""Which rows of a benchmark result a table or figure shows, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dna_probe.errors import DataError, unknown_name

Row = Mapping[str, Any]

OURS, BASELINE = "dna", "last-linear"
# What a method must beat to have found anything: chosen blindly, untrained, or without looking at the pixels.
CONTROLS = ("random-units", "random-weights", "metadata", "thumbnail")


def methods_in(rows: Iterable[Row]) -> list[str]:
    """Methods of some rows: ours, the linear probe on the last layer, the others as they come, the controls."""
    found = list(dict.fromkeys(row["method"] for row in rows))
    first = [name for name in (OURS, BASELINE) if name in found]
    last = [name for name in CONTROLS if name in found]
    return [*first, *(name for name in found if name not in (*first, *last)), *last]


def shots_in(rows: Iterable[Row]) -> list[int | str]:
    """Images per class of some rows, ascending, ``"all"`` last."""
    return sorted({row["shots"] for row in rows}, key=lambda n: (n == "all", n if n != "all" else 0))


def clean(rows: Iterable[Row]) -> list[Row]:
    """Rows measured on the images as they are."""
    return [row for row in rows if not row.get("transform")]


def transformed(rows: Iterable[Row]) -> list[Row]:
    """Rows measured on transformed images."""
    return [row for row in rows if row.get("transform")]


def on_side(rows: Sequence[Row], seen: bool | None = None) -> tuple[list[Row], bool]:
    """Rows on generators not trained on (``seen`` false) or trained on, and which of the two they are.

    Left out, ``seen`` is false wherever there are such rows: that is the test that counts.
    """
    if seen is None:
        seen = bool(rows) and all(row["seen"] for row in rows)
    return [row for row in rows if bool(row["seen"]) == seen], seen


def at_shots(rows: Sequence[Row], shots: int | str | None = None) -> tuple[list[Row], int | str]:
    """Rows at a number of images per class, the largest where left out, and that number.

    Raises:
        DataError: it was not measured.
    """
    known = shots_in(rows)
    if shots is None:
        shots = known[-1]
    if shots not in known:
        raise DataError(
            f"Nothing was measured with {shots!r} shots",
            f"This run has {', '.join(map(str, known))}",
            "Choose one of those",
        )
    return [row for row in rows if row["shots"] == shots], shots


def of_methods(rows: Sequence[Row], methods: Sequence[str] | None = None) -> tuple[list[Row], list[str]]:
    """Rows of the methods asked for, all of them where left out, and the methods in order.

    Raises:
        DataError: a method was not measured.
    """
    known = methods_in(rows)
    for name in methods or ():
        if name not in known:
            raise unknown_name("method", name, known, DataError)
    chosen = known if methods is None else list(dict.fromkeys(methods))
    return [row for row in rows if row["method"] in chosen], chosen


def number(measured: Any, part: str = "value") -> float:
    """A measured value, or an end of its interval with ``part`` ``"low"`` or ``"high"``; NaN where there is none."""
    if isinstance(measured, Mapping):
        measured = measured.get(part)
    elif part != "value":
        measured = None
    return float("nan") if measured is None else float(measured)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by method, in the order of ``methods_in``."""
    order = methods_in(rows)
    return sorted(rows, key=lambda row: order.index(row["method"]))


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Rows by AUC, the lowest first, those without one last."""
    return sorted(rows, key=lambda row: (math.isnan(number(row["metrics"]["auc"])), number(row["metrics"]["auc"])))
