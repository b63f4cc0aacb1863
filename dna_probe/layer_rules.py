"""Rules that take layers from curves over depth, by name, each with a reason for every layer.

``transition``
    The depth band where attention has turned from global to local and decoupling has risen. Default.
``intersection``, ``union``
    Layers whose cosine shift and (or) normalised shift pass mean + std over the layers (V-FIND, arXiv 2608.03008). The
    intersection may be empty, and says so.
``top_m``
    The ``m`` layers of best mean rank over cosine shift, normalised shift and attention divergence.
``all``, ``last``
    Every layer, or the last: the controls.
``3-7``, ``5``
    Two numbers, or one: the layers by their place, the first being 0, whatever the curves say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dna_probe.errors import DnaProbeError, unknown_name

# Layers by number: "5" or "3-7".
RANGE = re.compile(r"(\d+)(?:-(\d+))?")
Curves = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerChoice:
    taken: tuple[bool, ...]
    reasons: tuple[str, ...]


def choose_layers(rule: str, curves: Curves, **parameters: float) -> LayerChoice:
    """Apply a rule by name.

    Raises:
        DnaProbeError: unknown rule (with near matches) or a parameter that the rule does not have.
    """
    require_rule(rule)
    band = RANGE.fullmatch(rule)
    if band:
        return _named_band(band, len(curves["spread"]))
    try:
        taken, reasons = RULES[rule](curves, **parameters)
    except TypeError as error:
        raise DnaProbeError(f"Layer rule {rule!r} does not take {', '.join(parameters)}", str(error)) from error
    return LayerChoice(tuple(bool(t) for t in taken), tuple(reasons))


def require_rule(rule: str) -> None:
    if rule not in RULES and not RANGE.fullmatch(rule):
        raise unknown_name("layer rule", rule, RULES)


def transition(curves: Curves, turned: float = 0.5, risen: float = 0.2) -> tuple[np.ndarray, list[str]]:
    """Where attention has turned local and decoupling has risen.

    A layer is local once the spread of its map has come down by the share ``turned`` of the way from the most global
    layer to the most local layer behind it. Decoupling has risen where the cosine shift is at least ``risen`` of its
    largest value. The band is the run of layers that are both, from the first to the last; a single layer between two
    taken ones is kept, so that the band has no hole.

    Where attention never turns local (the most global layer is the last, or the spread hardly moves), or no local layer
    is decoupled, the rule falls back to the layers where decoupling has risen to half its maximum, and says so.
    """
    spread, shift = curves["spread"], curves["cosine_shift"]
    depth = len(spread)
    most_global = int(np.argmax(spread))
    behind = spread[most_global:]
    level = spread[most_global] - turned * (spread[most_global] - behind.min())
    threshold = risen * shift.max()
    if len(behind) < 2 or spread[most_global] - behind.min() < 0.01:
        return _half_decoupled(shift, "attention does not turn local")
    local = (np.arange(depth) > most_global) & (spread <= level)
    decoupled = shift >= threshold
    both = local & decoupled
    if not both.any():
        return _half_decoupled(shift, "no layer with local attention is decoupled")
    band = both.copy()
    band[1:-1] |= both[:-2] & both[2:]
    reasons = [
        "in the band: attention local, decoupling risen"
        if both[i]
        else "between two layers of the band"
        if band[i]
        else "; ".join(
            ([] if local[i] else ["attention is still global"]) + ([] if decoupled[i] else ["decoupling has not risen"])
        )
        for i in range(depth)
    ]
    return band, reasons


def _half_decoupled(shift: np.ndarray, why: str) -> tuple[np.ndarray, list[str]]:
    half = shift >= 0.5 * shift.max()
    return half, [f"{why}; decoupling is {'at least' if h else 'below'} half its maximum" for h in half]


def intersection(curves: Curves) -> tuple[np.ndarray, list[str]]:
    passed = _passed(curves)
    taken = passed["cosine_shift"] & passed["normalised_shift"]
    return taken, _threshold_reasons(passed)


def union(curves: Curves) -> tuple[np.ndarray, list[str]]:
    passed = _passed(curves)
    taken = passed["cosine_shift"] | passed["normalised_shift"]
    return taken, _threshold_reasons(passed)


def _passed(curves: Curves) -> dict[str, np.ndarray]:
    return {n: curves[n] >= curves[n].mean() + curves[n].std() for n in ("cosine_shift", "normalised_shift")}


def _threshold_reasons(passed: Mapping[str, np.ndarray]) -> list[str]:
    columns = [[f"{name} {'passes' if ok else 'below'} mean + std" for ok in flags] for name, flags in passed.items()]
    return ["; ".join(parts) for parts in zip(*columns, strict=True)]


def top_m(curves: Curves, m: float = 3) -> tuple[np.ndarray, list[str]]:
    from scipy.stats import rankdata

    names = ("cosine_shift", "normalised_shift", "attention_js")
    ranks = np.mean([rankdata(-curves[name], method="average") for name in names], axis=0)
    order = np.argsort(ranks, kind="stable")[: int(m)]
    taken = np.isin(np.arange(len(ranks)), order)
    return taken, [
        f"mean rank {rank:.1f}, {'among' if t else 'not among'} the best {int(m)}"
        for rank, t in zip(ranks, taken, strict=True)
    ]


def every(curves: Curves) -> tuple[np.ndarray, list[str]]:
    depth = len(curves["spread"])
    return np.ones(depth, bool), ["every layer is taken"] * depth


def _named_band(band: re.Match[str], depth: int) -> LayerChoice:
    first, final = int(band[1]), int(band[2] or band[1])
    if not first <= final < depth:
        raise DnaProbeError(
            f"Layers {band[0]} are not there", f"The backbone has layers 0 to {depth - 1}", "Name the lower one first"
        )
    taken = tuple(first <= i <= final for i in range(depth))
    return LayerChoice(taken, tuple(f"{'in' if t else 'outside'} the layers named, {band[0]}" for t in taken))


def last(curves: Curves) -> tuple[np.ndarray, list[str]]:
    depth = len(curves["spread"])
    taken = np.arange(depth) == depth - 1
    return taken, ["the last layer" if t else "not the last layer" for t in taken]


RULES: dict[str, Callable[..., tuple[np.ndarray, list[str]]]] = {
    "transition": transition,
    "intersection": intersection,
    "union": union,
    "top_m": top_m,
    "all": every,
    "last": last,
}
