"""What masking units showed, in sentences: also where nothing was shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dna_probe.control_units import DRAWN

Row = Mapping[str, Any]

PLACES = {"readout": "At the readout", "network": "Inside the network"}
READERS = {
    "detector": "the detector",
    "all-units": "a probe on all its units",
    "last-layer": "a probe on the last layer",
}
# From where a fall is called steady, a p-value small, and a loss of AUC one.
STEADY, SMALL_P, LEAST_LOSS = -0.9, 0.05, 0.01
# Ratios to next to nothing are not told by their figure.
MANY = 10


def masking_sentences(summary: Sequence[Row], knee: int, images: int, trained_on: int) -> list[str]:
    """Sentences on the summary of a ``Verification``; the first say what the others rest on."""
    compared = [row for row in summary if row["controls"]]
    found = []
    if trained_on:
        found.append(
            f"{trained_on} of {images} images were trained on: the detector's own curves are too good; "
            "the probes are fitted across folds all the same."
        )
    draws = min((one["draws"] for row in compared for kind, one in row["controls"].items() if kind in DRAWN), default=0)
    if draws and 1 / (1 + draws) > SMALL_P:
        found.append(f"{draws} draws of controls cannot give a p-value below {1 / (1 + draws):.2g}: nothing can hold.")
    if compared:
        held = sum(holds(row) for row in compared)
        found.append(
            f"Masking the {knee} selected units costs more than masking matched ones in {held} of {len(compared)} "
            "comparisons."
        )
    for place, reader in dict.fromkeys((row["place"], row["reader"]) for row in summary):
        own = [row for row in summary if (row["place"], row["reader"]) == (place, reader)]
        found.append(" ".join(_of_reader(own, knee)))
    # A detector whose units are all set reads the same at both places, whatever the network does.
    repaired = [row for row in summary if row["self_repair"] is not None and tells_apart(row) and not _all_set(row)]
    return [*found, *_on_repair(repaired)]


def _all_set(row: Row) -> bool:
    return row["reader"] == "detector" and row["intervention"] != "swap"


def tells_apart(row: Row) -> bool:
    """Whether the reader ranks fakes above reals at all, before anything is masked."""
    return row["unmasked_low"] > 0.5


def holds(row: Row) -> bool:
    """Whether the selected units cost the reader more than every drawn kind of control."""
    return tells_apart(row) and row["loss"] >= LEAST_LOSS and not _equals(row)


def _equals(row: Row) -> list[str]:
    """Drawn kinds of which too many draws cost as much."""
    return [kind for kind in DRAWN if kind in row["controls"] and row["controls"][kind]["p"] > SMALL_P]


def _of_reader(rows: Sequence[Row], knee: int) -> list[str]:
    first = rows[0]
    who = f"{PLACES[first['place']]}, {READERS[first['reader']]}"
    if not tells_apart(first):
        return [
            f"{who} does not tell these images apart (AUC {first['unmasked']:.3f} unmasked, "
            f"interval from {first['unmasked_low']:.3f}): nothing is claimed."
        ]
    costs = _listed(f"{row['loss']:.3f} under {row['intervention']}" for row in rows)
    found = [f"{who} (AUC {first['unmasked']:.3f} unmasked): masking the {knee} units costs {costs}."]
    if first["controls"]:
        found += _on_controls(rows)
    return [*found, _on_steadiness(rows)]


def _on_controls(rows: Sequence[Row]) -> list[str]:
    good = [row for row in rows if holds(row)]
    found = []
    if good:
        told = _listed(f"{row['intervention']} ({_times(row)})" for row in good)
        found.append(f"That is more than every drawn control under {told}.")
    for row in rows:
        if holds(row):
            continue
        if row["loss"] < LEAST_LOSS:
            found.append(f"Under {row['intervention']} they cost nothing.")
        else:
            costs = _listed(f"{kind} units ({row['controls'][kind]['loss']:.3f} on average)" for kind in _equals(row))
            found.append(f"Under {row['intervention']} some draws cost as much, of {costs}.")
    return found


def _times(row: Row) -> str:
    ratios = [row["controls"][kind]["ratio"] for kind in DRAWN if kind in row["controls"]]
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "they cost nothing"
    least = min(known)
    return f"at least {least:.1f} times their mean" if least < MANY else f"more than {MANY} times their mean"


def _on_steadiness(rows: Sequence[Row]) -> str:
    def told(row: Row) -> str:
        return f"{row['intervention']} ({'flat' if row['spearman'] is None else format(row['spearman'], '.2f')})"

    steady = [row for row in rows if row["spearman"] is not None and row["spearman"] <= STEADY]
    other = [row for row in rows if row not in steady]
    parts = [f"AUC falls steadily with the number masked under {_listed(map(told, steady))}"] if steady else []
    parts += (
        [f"{'but not' if steady else 'AUC does not fall steadily'} under {_listed(map(told, other))}"] if other else []
    )
    return f"{', '.join(parts)} by Spearman's rank correlation."


def _on_repair(rows: Sequence[Row]) -> list[str]:
    found = []
    for reader in dict.fromkeys(row["reader"] for row in rows):
        parts = _listed(
            f"{_more(row['self_repair'])} under {row['intervention']}" for row in rows if row["reader"] == reader
        )
        found.append(
            f"Self-repair: to {READERS[reader]}, with all that follows computed again, the units cost {parts}, set "
            "against the readout."
        )
    return found


def _more(repair: float) -> str:
    """How the loss inside the network compares."""
    if abs(repair) < 0.005:
        return "as much"
    return f"{abs(repair):.0%} {'less' if repair > 0 else 'more'}"


def _listed(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
