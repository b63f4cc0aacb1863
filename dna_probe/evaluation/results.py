"""The result of a benchmark: measures of every method in every cell, and what they say together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.errors import ArtefactError
from dna_probe.evaluation.methods import Judgement
from dna_probe.evaluation.metrics import (
    DRAWS,
    balanced_accuracy_at,
    bootstrap_weights,
    difference,
    interval,
    measure,
    rate_interval,
    reliability,
    roc,
    tpr_at,
    weighted_auc,
    weighted_balanced_accuracy,
)
from dna_probe.evaluation.outcomes import CellOutcome, Condition
from dna_probe.evaluation.selection import BASELINE

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
ROC_GRID = np.logspace(-3, 0, 61)
THRESHOLDS = np.linspace(0.01, 0.99, 99)
# What tells one row of the summary from another.
KEYS = ("method", "shots", "seen", "transform", "level", "severity")


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark measured.

    Attributes:
        info: protocol, settings, data with its audit, backbone, versions, methods and notes.
        summary: one mapping per method, number of shots, seen or unseen generators, and condition.
        by_generator: one per method, shots and tested generator, untransformed images.
        reliability, roc: curves per method and shots, untransformed images.
    """

    info: Mapping[str, Any]
    summary: Sequence[Mapping[str, Any]]
    by_generator: Sequence[Mapping[str, Any]]
    reliability: Sequence[Mapping[str, Any]]
    roc: Sequence[Mapping[str, Any]]

    def table(self) -> pd.DataFrame:
        """The summary, one row each, measures as columns."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.summary])

    def to_json(self) -> dict[str, Any]:
        parts = {name: list(getattr(self, name)) for name in ("summary", "by_generator", "reliability", "roc")}
        return dict(self.info) | parts

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchmarkResult:
        """The inverse of ``to_json``.

        Raises:
            ArtefactError: not a benchmark's result, or written by a newer version. KeyError: a part is missing.
        """
        kind, _, version = str(data.get("schema", "")).partition("/")
        if kind != "dna_probe.benchmark" or not version.isdigit():
            raise ArtefactError("This is not the result of a benchmark", f"Its schema is {data.get('schema')!r}")
        if int(version) > SCHEMA:
            raise ArtefactError("This result was written by a newer dna_probe", f"Its schema is {version}", "Upgrade")
        names = ("summary", "by_generator", "reliability", "roc")
        parts = {name: data[name] for name in names}
        return cls({name: value for name, value in data.items() if name not in parts}, **parts)

    def __repr__(self) -> str:
        lines = [f"BenchmarkResult: {self.info['protocol']} on {self.info['data']['origin']}"]
        for row in self.summary:
            if not row["transform"]:
                auc = row["metrics"]["auc"]
                where = "seen" if row["seen"] else "unseen"
                lines.append(
                    f"  N = {row['shots']:<4} {where:6} {row['method']:15} AUC {auc['value']:.3f} "
                    f"[{auc['low']:.3f}, {auc['high']:.3f}]"
                )
        return "\n".join(lines)


def read_results(folder: str | Path) -> BenchmarkResult:
    """The result in a folder that ``dna-probe benchmark`` wrote.

    Raises:
        ArtefactError: there is none, or it is damaged.
    """
    path = Path(folder) / "results.json"
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ArtefactError(
            f"{folder} holds no results.json", error.strerror or "", "Give a folder that 'benchmark' wrote"
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged", str(error), "Run the benchmark again") from error
    if not isinstance(data, dict):
        raise ArtefactError(f"{path} is damaged", "It is not an object", "Run the benchmark again")
    try:
        return BenchmarkResult.from_json(data)
    except KeyError as error:
        raise ArtefactError(f"{path} is damaged", f"It lacks {error}", "Run the benchmark again") from error


@dataclass(frozen=True, eq=False)
class Measured:
    """Measures of every method in every cell.

    Attributes:
        rows: one mapping per cell, condition, method and tested generator.
        auc, accuracy: bootstrap draws of AUC and balanced accuracy of each row, (rows, draws) float32, drawn alike for
            all rows so that differences are paired.
        by_threshold: balanced accuracy of each row at each of ``THRESHOLDS``, NaN without a probability.
    """

    rows: list[dict[str, Any]]
    auc: np.ndarray
    accuracy: np.ndarray
    by_threshold: np.ndarray

    @classmethod
    def join(cls, parts: Iterable[Measured]) -> Measured:
        parts = list(parts)
        return cls(
            [row for part in parts for row in part.rows],
            np.concatenate([part.auc for part in parts]),
            np.concatenate([part.accuracy for part in parts]),
            np.concatenate([part.by_threshold for part in parts]),
        )

    def where(self, wanted: Callable[[Mapping[str, Any]], bool]) -> Measured:
        """The rows that the function takes."""
        index = [number for number, row in enumerate(self.rows) if wanted(row)]
        return Measured(
            [self.rows[number] for number in index], self.auc[index], self.accuracy[index], self.by_threshold[index]
        )


@dataclass(frozen=True, eq=False)
class ImageTable:
    """What is known of the images of a run: labels, generators, data sets and groups, each (n,)."""

    labels: np.ndarray
    generators: np.ndarray
    sets: np.ndarray
    groups: np.ndarray

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> ImageTable:
        columns = (frame[name].to_numpy() for name in ("label", "generator", "set", "group"))
        return cls(*columns)

    def trained(self, positions: np.ndarray, generators: Sequence[str]) -> np.ndarray:
        """Which images are fakes of generators trained on; of another data set an equal name means nothing, (n,)."""
        own = (self.labels[positions] == 1) & (self.sets[positions] == self.sets[0])
        return own & np.isin(self.generators[positions].astype(str), list(generators))

    def targets(self, positions: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(name, places in ``positions``) of the fakes of each generator with the reals of its data set."""
        labels, made, sets = self.labels[positions], self.generators[positions], self.sets[positions]
        several = len(np.unique(self.sets[self.labels == 1])) > 1
        found = []
        for where in dict.fromkeys(sets):
            for generator in sorted(set(made[(sets == where) & (labels == 1)])):
                own = (sets == where) & ((labels == 0) | (made == generator))
                if (labels[own] == 0).any():
                    found.append((f"{where}/{generator}" if several else generator, np.flatnonzero(own)))
        return found


def measure_outcome(
    outcome: CellOutcome, images: ImageTable, conditions: Sequence[Condition], draws: int = DRAWS, seed: int = 0
) -> Measured:
    """Every method of a cell on every generator and condition."""
    weights = bootstrap_weights(images.labels, images.groups, draws, seed)[:, outcome.test]
    rows, auc_draws, accuracy_draws, by_threshold = [], [], [], []
    trained = images.trained(outcome.test, outcome.trained)
    for name, index in images.targets(outcome.test):
        labels, own = images.labels[outcome.test[index]], weights[:, index]
        for number, condition in enumerate(conditions):
            said = {method: judged for (at, method), judged in outcome.judged.items() if at == number}
            for method, judged in said.items():
                clean = outcome.judged.get((0, method))
                row = _measure(labels, judged, index)
                if number and clean is not None:
                    row["flips"] = float(np.mean(_decided(clean)[:, index] != _decided(judged)[:, index]))
                rows.append(
                    {
                        **outcome.cell,
                        "method": method,
                        "test_on": name,
                        "seen": bool(trained[index].any()),
                        "transform": condition.transform,
                        "level": condition.level,
                        "severity": condition.severity,
                        "real": int((labels == 0).sum()),
                        "fake": int((labels == 1).sum()),
                        "units": judged.units,
                        "threshold": judged.threshold,
                        **row,
                    }
                )
                auc_draws.append(weighted_auc(labels, judged.scores[:, index], own))
                accuracy_draws.append(weighted_balanced_accuracy(labels, _decided(judged)[:, index], own))
                by_threshold.append(_by_threshold(labels, judged, index))
    drawn = np.array(auc_draws, np.float32), np.array(accuracy_draws, np.float32)
    return Measured(rows, *drawn, np.array(by_threshold, np.float32))


def _by_threshold(labels: np.ndarray, judged: Judgement, index: np.ndarray) -> np.ndarray:
    if judged.probability is None:
        return np.full(len(THRESHOLDS), np.nan)
    return balanced_accuracy_at(THRESHOLDS, labels, judged.probability[index])


def _measure(labels: np.ndarray, judged: Judgement, index: np.ndarray) -> dict[str, float]:
    """Measures of one judgement, averaged over its draws."""
    probability = None if judged.probability is None else judged.probability[index]
    each = [measure(labels, scores[index], probability, judged.threshold, judged.band) for scores in judged.scores]
    return {name: float(np.mean([part[name] for part in each])) for name in each[0]}


def _decided(judged: Judgement) -> np.ndarray:
    """Where the verdict is fake, (draws, n)."""
    values = judged.scores if judged.probability is None else judged.probability[None]
    return values >= judged.threshold


def summarise(
    info: Mapping[str, Any],
    measured: Measured,
    curves: tuple[list, list],
    seed: int = 0,
    baseline: str = BASELINE,
) -> BenchmarkResult:
    """What the measures say together: every cell counts alike, and in a cell every generator.

    Args:
        baseline: the method that the others are compared with, draw by draw.
    """
    import pandas as pd

    frame = pd.DataFrame(measured.rows)
    frame["shots"] = frame["shots"].astype(object)
    cells = frame.groupby(["train_on", "shots", "draw", *KEYS[0:1], *KEYS[2:]], sort=False)["auc"].transform("size")
    frame["_share"] = 1 / cells
    per_draw = draw_weights(int(frame["draw"].max()) + 1, measured.auc.shape[1], seed)
    groups = {key: part for key, part in frame.groupby(list(KEYS), sort=False)}
    summary = [
        _summary_row(dict(zip(KEYS, key, strict=True)), part, groups, measured, per_draw, baseline)
        for key, part in groups.items()
    ]
    by_generator = []
    clean = frame[frame["transform"] == ""]
    for key, part in clean.groupby(["method", "shots", "seen", "test_on"], sort=False):
        row = dict(zip(("method", "shots", "seen", "test_on"), key, strict=True))
        metrics = _metrics(part, measured, per_draw)
        row |= {name: metrics[name] for name in ("auc", "balanced_accuracy")} | {"fake": int(part["fake"].max())}
        by_generator.append(plain(row))
    return BenchmarkResult(info, summary, by_generator, *curves)


def draw_weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each draw of training images is taken in each bootstrap draw, (draws, count)."""
    if count == 1:
        return np.ones((draws, 1))
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


MEASURES = (
    "auc",
    "average_precision",
    "balanced_accuracy",
    "oracle_balanced_accuracy",
    "accuracy_real",
    "accuracy_fake",
    "fpr",
    "tpr_at_1",
    "tpr_at_5",
    "eer",
    "ece",
    "brier",
    "unsure_share",
    "accuracy_sure",
)


def _metrics(part: pd.DataFrame, measured: Measured, per_draw: np.ndarray) -> dict[str, dict[str, float]]:
    share = part["_share"].to_numpy()
    metrics = {}
    for name in MEASURES:
        values = part[name].to_numpy(float)
        held = np.isfinite(values)
        mean = float(np.average(values[held], weights=share[held])) if held.any() else float("nan")
        metrics[name] = {"value": mean}
    # Exact, on as many reals as one fit is tested on; pooled over fits it would count every image several times.
    around = rate_interval(round(metrics["fpr"]["value"] * part["real"].mean()), round(part["real"].mean()))
    metrics["fpr"] |= {"low": around.low, "high": around.high}
    # The best on every single test set is far above what any threshold reaches on new images of the same kind.
    common = np.average(measured.by_threshold[part.index.to_numpy()], axis=0, weights=share)
    metrics["common_oracle_balanced_accuracy"] = {"value": float(common.max())}
    for name, drawn in (("auc", measured.auc), ("balanced_accuracy", measured.accuracy)):
        around = interval(metrics[name]["value"], _drawn_means(part, drawn, per_draw))
        metrics[name] |= {"low": around.low, "high": around.high}
    return metrics


def _drawn_means(part: pd.DataFrame, drawn: np.ndarray, per_draw: np.ndarray) -> np.ndarray:
    """The mean over rows in each bootstrap draw, (draws,); NaN where it holds none of them."""
    weight = per_draw[:, part["draw"].to_numpy()] * part["_share"].to_numpy()
    values = drawn[part.index.to_numpy()].T
    weight = np.where(np.isfinite(values), weight, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight * np.nan_to_num(values)).sum(1) / weight.sum(1)


def _summary_row(
    key: dict[str, Any],
    part: pd.DataFrame,
    groups: Mapping[tuple, pd.DataFrame],
    measured: Measured,
    per_draw: np.ndarray,
    baseline: str,
) -> dict[str, Any]:
    metrics = _metrics(part, measured, per_draw)
    row: dict[str, Any] = {
        **key,
        "cells": len(part[["train_on", "draw"]].drop_duplicates()),
        "units": float(part["units"].median()),
        "metrics": metrics,
        "worst_test": _worst(part, "test_on", "generator"),
        "worst_train": _worst(part, "train_on", "generator") if part["train_on"].nunique() > 1 else None,
        "difference": None,
    }
    beside = groups.get((baseline, *list(key.values())[1:]))
    if beside is not None and key["method"] != baseline:
        drawn = _drawn_means(part, measured.auc, per_draw) - _drawn_means(beside, measured.auc, per_draw)
        mean = metrics["auc"]["value"] - _metrics(beside, measured, per_draw)["auc"]["value"]
        row["difference"] = difference(mean, drawn)._asdict()
    if key["transform"]:
        clean = groups[(key["method"], key["shots"], key["seen"], "", 0, "")]
        row["auc_drop"] = _metrics(clean, measured, per_draw)["auc"]["value"] - metrics["auc"]["value"]
        row["flips"] = float(np.average(part["flips"], weights=part["_share"]))
    return plain(row)


def _worst(part: pd.DataFrame, column: str, name: str) -> dict[str, Any]:
    means = part.groupby(column, sort=True)["auc"].mean()
    return {name: str(means.idxmin()), "auc": float(means.min())}


def curves_of(outcomes: Iterable[CellOutcome], images: ImageTable) -> tuple[list[dict], list[dict]]:
    """Reliability and ROC curves of every method and number of shots on the images as they are.

    Reliability pools the test images of all cells; the ROC is the mean over cells, with the range in which 95 % of them
    lie.
    """
    pooled: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
    rates: dict[tuple, list[np.ndarray]] = {}
    for outcome in outcomes:
        labels, known = images.labels[outcome.test], images.trained(outcome.test, outcome.trained)
        for seen in (False, True):
            own = (labels == 0) | (known == seen)
            if not (labels[own] == 1).any():
                continue
            for (condition, method), judged in outcome.judged.items():
                if condition:
                    continue
                key = (method, outcome.cell["shots"], seen)
                drawn = [tpr_at(ROC_GRID, *roc(labels[own], scores[own])) for scores in judged.scores]
                rates.setdefault(key, []).append(np.mean(drawn, axis=0))
                if judged.probability is not None:
                    pooled.setdefault(key, []).append((labels[own], judged.probability[own]))
    reliabilities, rocs = [], []
    for key, parts in pooled.items():
        curve = reliability(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
        row = dict(zip(("method", "shots", "seen"), key, strict=True))
        reliabilities.append(plain({**row, **curve._asdict(), "ece": curve.error}))
    for key, stack in rates.items():
        low, high = np.percentile(stack, [2.5, 97.5], axis=0)
        row = dict(zip(("method", "shots", "seen"), key, strict=True))
        rocs.append(plain({**row, "fpr": ROC_GRID, "tpr": np.mean(stack, axis=0), "low": low, "high": high}))
    return reliabilities, rocs


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as columns ``auc``, ``auc_low``, ``difference_p``, ``worst_test_generator``..."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "metrics":
            for metric, parts in value.items():
                flat |= {metric if part == "value" else f"{metric}_{part}": v for part, v in parts.items()}
        elif isinstance(value, Mapping):
            flat |= {name if part == "value" else f"{name}_{part}": v for part, v in value.items()}
        else:
            flat[name] = value
    return flat


def plain(value: Any) -> Any:
    """Plain JSON: numbers, strings, lists and mappings; NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return [plain(part) for part in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
