"""Two finished benchmarks side by side, method by method, with paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import DataError
from dna_probe.evaluation.metrics import DRAWS, bootstrap_weights, difference, weighted_auc
from dna_probe.evaluation.outcomes import CellOutcome
from dna_probe.evaluation.results import ImageTable, draw_weights, read_results
from dna_probe.evaluation.run_folder import read_images_table, read_outcomes

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, Any, int]


@dataclass(frozen=True, repr=False)
class Comparison:
    """The AUC of two runs and their difference, the second minus the first.

    Attributes:
        runs: the two folders.
        rows: one mapping per method, number of shots, and seen or unseen generators; ``paired`` tells whether the same
            cells were tested on the same images, without which there is no interval.
        notes: what differs between the runs besides what was meant to.
    """

    runs: tuple[str, str]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    def table(self) -> pd.DataFrame:
        """One row each, measures as columns."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "dna_probe.comparison/1",
            "runs": list(self.runs),
            "results": list(self.rows),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        lines = [f"Comparison of {self.runs[0]} and {self.runs[1]}"]
        for row in self.rows:
            lines.append(
                f"  N = {row['shots']} {row['method']}: {row['first']:.3f}, {row['second']:.3f}, {row['change']:+.3f}"
            )
        return "\n".join([*lines, *(f"  ! {note}" for note in self.notes)])


def compare(first: str | Path, second: str | Path, seed: int = 0) -> Comparison:
    """Compare two runs of ``dna-probe benchmark`` on the images as they are.

    Where both runs tested all cells of a number of shots on the same images, the difference has a bootstrap over images
    and draws, drawn alike for both.

    Raises:
        ArtefactError: a folder is no benchmark. DataError: the runs have no method and number of shots in common.
    """
    folders = (Path(first), Path(second))
    results = [read_results(folder) for folder in folders]
    tables = [read_images_table(folder) for folder in folders]
    rows = []
    for mine in results[0].summary:
        if mine["transform"]:
            continue
        key = (mine["method"], mine["shots"], mine["seen"])
        other = next((r for r in results[1].summary if not r["transform"] and _key(r) == key), None)
        if other is not None:
            before, after = mine["metrics"]["auc"]["value"], other["metrics"]["auc"]["value"]
            rows.append(
                {
                    "method": key[0],
                    "shots": key[1],
                    "seen": key[2],
                    "first": before,
                    "second": after,
                    "change": after - before,
                }
            )
    if not rows:
        raise DataError(
            f"{first} and {second} have nothing in common",
            "No method was run with the same number of shots in both",
            "Compare runs of one protocol",
        )
    notes = _notes(results, tables)
    drawn = _paired(folders, tables[0], seed) if _same(tables) else {}
    if _same(tables) and not drawn:
        notes.append("The images are the same, but no cells were drawn alike, so nothing is paired.")
    for row in rows:
        test = drawn.get((row["method"], str(row["shots"]), row["seen"]))
        found = None if test is None else difference(row["change"], test)
        row["paired"] = found is not None
        low, high, p = (None, None, None) if found is None else found[1:]
        row |= {"low": low, "high": high, "p": p}
    return Comparison((str(first), str(second)), rows, notes)


def _key(row: Mapping[str, Any]) -> Key:
    return row["method"], row["shots"], row["seen"]


def _same(tables: Sequence[pd.DataFrame]) -> bool:
    columns = ["sha256", "label", "group"]
    return tables[0][columns].equals(tables[1][columns])


def _notes(results: Sequence[Any], tables: Sequence[pd.DataFrame]) -> list[str]:
    one, two = (result.info for result in results)
    notes = []
    if one["protocol"] != two["protocol"]:
        notes.append(f"The protocols differ: {one['protocol']} and {two['protocol']}.")
    if not _same(tables):
        notes.append("The images, their labels or their groups differ, so nothing is paired.")
    if one["backbone"]["weight_hash"] != two["backbone"]["weight_hash"]:
        notes.append(f"The backbones differ: {one['backbone']['name']} and {two['backbone']['name']}.")
    changed = [name for name, version in one["versions"].items() if two["versions"].get(name) != version]
    if changed:
        notes.append(f"The versions of {', '.join(changed)} differ.")
    return notes


def _paired(folders: Sequence[Path], table: pd.DataFrame, seed: int) -> dict[tuple[str, str, bool], np.ndarray]:
    """Bootstrap draws of the difference, for what was tested in equal cells on equal images."""
    images = ImageTable.from_frame(table)
    weights = bootstrap_weights(images.labels, images.groups, seed=seed)
    pairs = _cells(read_outcomes(folders[0])), _cells(read_outcomes(folders[1]))
    first, second = pairs
    alike = {cell for cell in first if cell in second and np.array_equal(first[cell].test, second[cell].test)}
    apart = {cell[1] for cell in (*first, *second) if cell not in alike}
    shared = [cell for cell in first if cell[1] not in apart]
    if not shared:
        return {}
    per_draw = draw_weights(1 + max(cell[2] for cell in shared), DRAWS, seed)
    total: dict[tuple[str, str, bool], list[np.ndarray]] = {}
    for cell in shared:
        one, two = (part[cell] for part in pairs)
        for (method, seen), drawn in _differences(one, two, images, weights).items():
            sums = total.setdefault((method, str(cell[1]), seen), [np.zeros(DRAWS), np.zeros(DRAWS)])
            held = np.isfinite(drawn)
            sums[0] += np.where(held, per_draw[:, cell[2]] * drawn, 0)
            sums[1] += np.where(held, per_draw[:, cell[2]], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {key: summed / mass for key, (summed, mass) in total.items()}


def _cells(outcomes: Any) -> dict[tuple[str, Any, int], CellOutcome]:
    return {(one.cell["train_on"], one.cell["shots"], one.cell["draw"]): one for one in outcomes}


def _differences(
    one: CellOutcome, two: CellOutcome, images: ImageTable, weights: np.ndarray
) -> dict[tuple[str, bool], np.ndarray]:
    """(method, seen) -> AUC of the second minus the first in each bootstrap draw, averaged over generators."""
    parts: dict[tuple[str, bool], list[np.ndarray]] = {}
    trained = images.trained(one.test, one.trained)
    for _, index in images.targets(one.test):
        where = one.test[index]
        for (condition, method), judged in one.judged.items():
            other = two.judged.get((condition, method))
            if condition or other is None:
                continue
            auc = [
                weighted_auc(images.labels[where], part.scores[:, index], weights[:, where]) for part in (judged, other)
            ]
            parts.setdefault((method, bool(trained[index].any())), []).append(auc[1] - auc[0])
    return {key: np.ma.masked_invalid(drawn).mean(0).filled(np.nan) for key, drawn in parts.items()}
