"""Find in the folder of a finished run what a figure is drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.errors import ArtefactError, unknown_name
from dna_probe.plots import FIGURES

if TYPE_CHECKING:
    from dna_probe.evaluation.audit import Audit
    from dna_probe.evaluation.results import BenchmarkResult
    from dna_probe.location import LayerReport
    from dna_probe.scoring import UnitScores
    from dna_probe.selectivity import Selectivity
    from dna_probe.stability import Stability
    from dna_probe.truncation import UnitSet
    from dna_probe.verification import Verification

    Result = LayerReport | UnitScores | UnitSet | BenchmarkResult | Audit | Verification | Stability | Selectivity


def read_result(figure: str, run: str | Path) -> Result | None:
    """The result that a figure shows, from a folder that a command wrote.

    Scores that lie beside a detector's manifest come as the ``UnitSet`` that the detector uses.

    Returns:
        The result, or None where the folder holds none.

    Raises:
        DnaProbeError: no such figure.
        ArtefactError: no such folder, or its file is damaged.
    """
    if figure not in FIGURES:
        raise unknown_name("figure", figure, FIGURES)
    run = Path(run)
    if not run.is_dir():
        raise ArtefactError(
            f"{run} is not a folder",
            "There is no run to draw from",
            "Give a folder that 'locate', 'fit', 'benchmark', 'audit' or 'verify' wrote",
        )
    # 'demo' keeps its detector one folder down.
    for folder in (run, run / "detector"):
        path = folder / FIGURES[figure].reads
        if path.is_file():
            return READERS[path.name](path)
    return None


def _read_layers(path: Path) -> LayerReport:
    from dna_probe.location import LayerReport

    return _parsed(path, "dna_probe.layers", LayerReport.from_json)


def _read_benchmark(path: Path) -> BenchmarkResult:
    from dna_probe.evaluation.results import BenchmarkResult

    return _parsed(path, "dna_probe.benchmark", BenchmarkResult.from_json)


def _read_scores(path: Path) -> UnitScores | UnitSet:
    from dna_probe.detector import read_manifest
    from dna_probe.scoring import UnitScores
    from dna_probe.truncation import UnitSet

    scores: UnitScores = _parsed(path, "dna_probe.scores", UnitScores.from_json)
    if not (path.parent / "manifest.json").is_file():
        return scores
    stored = read_manifest(path.parent).get("unit_set")
    if stored is None:
        return scores
    return UnitSet.from_json(stored, scores)


def _read_audit(path: Path) -> Audit:
    from dna_probe.evaluation.audit import Audit

    return _parsed(path, "dna_probe.audit", Audit.from_json)


def _read_verification(path: Path) -> Verification:
    from dna_probe.verification import Verification

    return _parsed(path, "dna_probe.verification", Verification.from_json)


def _read_stability(path: Path) -> Stability:
    from dna_probe.stability import Stability

    return _parsed(path, "dna_probe.stability", Stability.from_json)


def _read_selectivity(path: Path) -> Selectivity:
    from dna_probe.selectivity import Selectivity

    return _parsed(path, "dna_probe.selectivity", Selectivity.from_json)


READERS: dict[str, Callable[[Path], Any]] = {
    "layers.json": _read_layers,
    "scores.json": _read_scores,
    "results.json": _read_benchmark,
    "audit.json": _read_audit,
    "verification.json": _read_verification,
    "stability.json": _read_stability,
    "selectivity.json": _read_selectivity,
}


def _parsed(path: Path, schema: str, read: Any) -> Any:
    try:
        data = json.loads(path.read_text())
        if str(data["schema"]).partition("/")[0] != schema:
            raise ValueError(f"its schema is {data['schema']!r}, not {schema!r}")
        return read(data)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtefactError(f"{path} is damaged", f"{type(error).__name__}: {error}", "Copy it or run again") from error
