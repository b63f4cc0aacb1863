"""How the parts of a benchmark's result are written, the same in every table."""

from __future__ import annotations

import math
from typing import Any

from dna_probe.evaluation.selection import CONTROLS, Row, number

NONE = "\N{EN DASH}"


def method_name(method: str) -> str:
    """A method's name, told apart where it is a control."""
    return f"{method} (control)" if method in CONTROLS else method


def side_name(seen: bool) -> str:
    return "generators trained on" if seen else "unseen generators"


def shots_name(shots: int | str) -> str:
    if shots == "all":
        return "All training images"
    return f"{shots} {'shot' if shots == 1 else 'shots'} per class"


def decimal(measured: Any) -> str:
    """A value to three decimals."""
    value = number(measured)
    return NONE if math.isnan(value) else f"{value:.3f}"


def interval(measured: Any) -> str:
    """A value with its interval, where it has one."""
    low, high = number(measured, "low"), number(measured, "high")
    return decimal(measured) if math.isnan(low + high) else f"{decimal(measured)} [{low:.3f}, {high:.3f}]"


def difference(row: Row) -> str:
    """How far the AUC of a row lies above that of the baseline, with the interval."""
    found = row["difference"]
    if not found or math.isnan(number(found)):
        return NONE
    return f"{number(found):+.3f} [{number(found, 'low'):+.3f}, {number(found, 'high'):+.3f}]"


def p_value(row: Row, equals: str = "") -> str:
    """The p-value of that difference; ``equals`` stands before it where it is given as such."""
    value = number(row["difference"], "p") if row["difference"] else math.nan
    if math.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def count(units: float | None) -> str:
    return NONE if units is None or math.isnan(units) else f"{units:g}"
