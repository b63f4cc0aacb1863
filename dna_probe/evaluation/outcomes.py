"""What methods said in each cell, kept on disk so that a run goes on where it stopped, and can be judged again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dna_probe.errors import ArtefactError
from dna_probe.evaluation.methods import Judgement
from dna_probe.storage import write_atomically


@dataclass(frozen=True)
class Condition:
    """How the test images were treated: a transform at a severity, or not at all.

    Attributes:
        transform: name in ``dna_probe.images.degradations``, or empty.
        level: number of the severity, mildest 1; 0 where nothing was done.
        severity: the parameter's value, for tables.
    """

    transform: str = ""
    level: int = 0
    severity: str = ""


@dataclass(frozen=True, eq=False)
class CellOutcome:
    """All judgements of one cell.

    Attributes:
        cell: ``train_on``, ``shots``, ``draw``, ``seed``, for tables.
        trained: generators whose fakes were trained on.
        test: positions of the test images in the run's image table, (n,).
        judged: (condition number, method) -> what the method said of the test images, in the order of ``test``.
        notes: on methods that could not be fitted here.
    """

    cell: Mapping[str, Any]
    trained: tuple[str, ...]
    test: np.ndarray
    judged: Mapping[tuple[int, str], Judgement]
    notes: Sequence[str] = ()

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        from safetensors.numpy import save

        arrays, notes = {"test": self.test.astype(np.int32)}, {}
        for (condition, method), said in self.judged.items():
            key = f"{condition}/{method}"
            # Contiguous: safetensors writes the memory as it lies.
            arrays[f"{key}/scores"] = np.ascontiguousarray(said.scores, dtype=np.float64)
            if said.probability is not None:
                arrays[f"{key}/probability"] = np.ascontiguousarray(said.probability, dtype=np.float64)
            notes[key] = {"threshold": said.threshold, "band": said.band, "units": said.units}
        meta = {"cell": dict(self.cell), "trained": list(self.trained), "judged": notes, "notes": list(self.notes)}
        write_atomically(path, save(arrays, metadata={"outcome": json.dumps(meta)}))

    @classmethod
    def read(cls, path: Path) -> CellOutcome:
        """The inverse of ``write``.

        Raises:
            ArtefactError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                meta = json.loads(file.metadata()["outcome"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            judged = {}
            for key, note in meta["judged"].items():
                condition, _, method = key.partition("/")
                judged[int(condition), method] = Judgement(
                    scores=arrays[f"{key}/scores"],
                    probability=arrays.get(f"{key}/probability"),
                    threshold=note["threshold"],
                    band=None if note["band"] is None else tuple(note["band"]),
                    units=note["units"],
                )
            return cls(meta["cell"], tuple(meta["trained"]), arrays["test"], judged, tuple(meta["notes"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{path} is damaged", f"{type(error).__name__}: {error}", "Delete it and run the benchmark again"
            ) from error
