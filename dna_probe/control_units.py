"""Units to compare the selected ones with: equal in number, in readings, in size or in weight, or next in rank.

A control of a drawn kind is a *partner* for each unit in the order of rank, so that masking the first k units compares
with masking their k partners. Partners lie in the same reading and are never selected units themselves.

``random``
    Any other unit of the same reading.
``activation-matched``
    One of the ten nearest in mean |activation| and standard deviation (logarithms, each in units of its spread).
``weight-matched``
    One of the ten nearest in |weight|, per standard deviation of the unit, of the probe on all units.
``next-ranked``, ``bottom``
    The units that follow the cut, and those of the lowest score; there is only one set of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWN = ("random", "activation-matched", "weight-matched")
RANKED = ("next-ranked", "bottom")
NEAR = 10
# Where a unit has no partner left in its reading.
ABSENT = -1


@dataclass(frozen=True, eq=False)
class UnitPool:
    """All units that were scored.

    Attributes:
        ranked: positions of the units, the selected ones by score and then the others by score, (units,).
        selected: how many are selected.
        reading: number of each unit's reading, (units,).
        activation: mean and standard deviation of each unit's size, (units, 2).
        weight: size of each unit's weight in the probe on all units, (units,).
    """

    ranked: np.ndarray
    selected: int
    reading: np.ndarray
    activation: np.ndarray
    weight: np.ndarray


def control_sequences(pool: UnitPool, length: int, draws: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Kind -> (sets, units): what to mask, in order, in the place of the ranked units.

    Random partners are for the first ``length`` ranked units, matched ones for the selected; the others hold as many
    units as are selected. ``ABSENT`` stands where a reading has no unit left.
    """
    rng = np.random.default_rng(seed)
    selected, others = pool.ranked[: pool.selected], pool.ranked[pool.selected :]
    logged = np.log(np.maximum(pool.activation, 1e-12))
    matched = {"activation-matched": logged, "weight-matched": pool.weight[:, None]}
    found = {"random": np.stack([_random_partners(pool, pool.ranked[:length], rng) for _ in range(draws)])}
    for kind, traits in matched.items():
        near = _neighbours(pool, selected, others, traits)
        found[kind] = np.stack([_near_partners(near, len(pool.ranked), rng) for _ in range(draws)])
    found["next-ranked"] = others[None, : pool.selected]
    found["bottom"] = others[None, ::-1][:, : pool.selected]
    return found


def _random_partners(pool: UnitPool, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    others = pool.ranked[pool.selected :]
    partners = np.full(len(units), ABSENT)
    for reading in np.unique(pool.reading[units]):
        wanting = np.flatnonzero(pool.reading[units] == reading)
        drawn = rng.permutation(others[pool.reading[others] == reading])[: len(wanting)]
        partners[wanting[: len(drawn)]] = drawn
    return partners


def _neighbours(pool: UnitPool, units: np.ndarray, others: np.ndarray, traits: np.ndarray) -> list[np.ndarray]:
    """For each unit the others of its reading, nearest first."""
    scaled = traits / np.maximum(traits.std(0), 1e-12)
    found = []
    for unit in units:
        own = others[pool.reading[others] == pool.reading[unit]]
        distance = ((scaled[own] - scaled[unit]) ** 2).sum(1)
        found.append(own[np.argsort(distance, kind="stable")])
    return found


def _near_partners(near: list[np.ndarray], units: int, rng: np.random.Generator) -> np.ndarray:
    """A partner for each unit from its nearest neighbours that no other has taken; units choose in random order."""
    free = np.ones(units, bool)
    partners = np.full(len(near), ABSENT)
    for place in rng.permutation(len(near)):
        candidates = near[place][free[near[place]]][:NEAR]
        if len(candidates):
            partners[place] = rng.choice(candidates)
            free[partners[place]] = False
    return partners
