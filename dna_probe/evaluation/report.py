"""A benchmark's result in words and tables for people: ``summary.md``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dna_probe.evaluation import selection, wording
from dna_probe.evaluation.audit_sentences import LIMIT
from dna_probe.evaluation.latex import latex_tables as latex_tables
from dna_probe.evaluation.selection import BASELINE, CONTROLS, OURS, Row, number

if TYPE_CHECKING:
    from dna_probe.evaluation.results import BenchmarkResult

Columns = Mapping[str, Callable[[Row], str]]


def summary_markdown(result: BenchmarkResult) -> str:
    """What was measured, on what, and what came out, as Markdown; numbers are those of the result to three decimals."""
    rows, seen = selection.on_side(selection.clean(result.summary))
    parts = [
        f"# Benchmark: {result.info['protocol']} on {_text(result.info['data']['origin'])}",
        _listed(verdicts(result)),
        "## What was measured",
        _described(result.info),
        f"## On {wording.side_name(seen)}",
        *_main_tables(rows),
        *_other_side(result, seen),
        *_generator_table(result),
        *_robustness_tables(result),
        *_notes(result.info),
        "## Settings",
        f"```json\n{json.dumps(result.info['settings'], indent=1, ensure_ascii=False)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(result: BenchmarkResult) -> list[str]:
    """In plain words, for every number of shots: whether ``dna`` beats ``last-linear``, ties with it or loses to it.

    It wins or loses where the 95 % interval of the paired difference in AUC leaves out 0. Controls that come as far as
    ``dna`` are named: whatever it found, they have without it.
    """
    rows, seen = selection.on_side(selection.clean(result.summary))
    ours = [row for row in rows if row["method"] == OURS]
    if not any(row["difference"] for row in ours):
        return [f"{OURS} was not compared with {BASELINE} in this run."]
    said = []
    for shots in selection.shots_in(ours):
        at = {row["method"]: row for row in rows if row["shots"] == shots}
        reached = number(at[OURS]["metrics"]["auc"])
        level = [name for name in CONTROLS if name in at and number(at[name]["metrics"]["auc"]) >= reached]
        sentence = f"{wording.shots_name(shots)}: {_judged(at[OURS], wording.side_name(seen))}"
        if level:
            told = ", ".join(f"{name} {wording.decimal(at[name]['metrics']['auc'])}" for name in level)
            sentence += f" **Controls reach as much as its AUC of {reached:.3f}: {told}.**"
        said.append(sentence)
    return said


def _judged(ours: Row, where: str) -> str:
    found = ours["difference"]
    if not found:
        return f"{OURS} was not compared with {BASELINE}."
    told = f"AUC {wording.difference(ours)}, p {wording.p_value(ours, '= ')}"
    if number(found, "low") > 0:
        return f"{OURS} beats {BASELINE} on {where}: {told}."
    if number(found, "high") < 0:
        return f"{OURS} loses to {BASELINE} on {where}: {told}."
    return f"{OURS} and {BASELINE} tie on {where}: {told}; the interval includes 0."


def _described(info: Mapping[str, Any]) -> str:
    data, backbone = info["data"], info["backbone"]
    sets = data.get("sets") or [{"name": data["origin"], "describe": data["describe"], "audit": info.get("audit")}]
    counts = ", ".join(f"{_text(name)} {count}" for name, count in data["counts"].items())
    return _listed(
        [
            f"Protocol: {info['protocol']}",
            *(f"Data: {_text(one['describe'])}" for one in sets),
            f"Images: {counts}; fingerprint `{data['fingerprint'][:12]}`",
            f"Backbone: {_text(backbone['name'])}, weights `{str(backbone['weight_hash'])[:12]}`",
            f"Versions: {', '.join(f'{name} {version}' for name, version in info['versions'].items())}",
            *(_audited(one["name"], one.get("audit")) for one in sets),
        ]
    )


def _audited(name: str, audit: Mapping[str, Any] | None) -> str:
    """What a classifier that never looks at the picture scores on the data, its flags in bold where that is much."""
    if not audit:
        return f"Audit of {_text(name)}: not done"
    metadata, thumbnail = number(audit["metadata_auc"]), number(audit["thumbnail_auc"])
    flagged = metadata > LIMIT
    bold = "**" if flagged else ""
    told = f"metadata alone AUC {wording.decimal(metadata)}, 16-pixel thumbnail alone AUC {wording.decimal(thumbnail)}"
    if flagged:
        told = f"**{told}: the numbers below may measure the files, not the pictures**"
    flags = (f"\n  - {bold}{_text(flag)}{bold}" for flag in audit.get("flags", ()))
    return f"Audit of {_text(name)}: {told}. {_text(audit.get('verdict', ''))}".rstrip() + "".join(flags)


def _measured(name: str) -> Callable[[Row], str]:
    return lambda row: wording.interval(row["metrics"][name])


def _worst(name: str) -> Callable[[Row], str]:
    def told(row: Row) -> str:
        found = row[name]
        return f"{_text(found['generator'])} ({wording.decimal(found['auc'])})" if found else wording.NONE

    return told


def _method(name: str) -> str:
    return _text(wording.method_name(name))


RANKING: Columns = {
    "method": lambda row: _method(row["method"]),
    "AUC [95 %]": _measured("auc"),
    "difference to last-linear [95 %]": wording.difference,
    "p": wording.p_value,
    "worst generator": _worst("worst_test"),
    "worst to train on": _worst("worst_train"),
    "average precision": _measured("average_precision"),
    "TPR at 1 % FPR": _measured("tpr_at_1"),
    "TPR at 5 % FPR": _measured("tpr_at_5"),
    "EER": _measured("eer"),
    "units": lambda row: wording.count(row["units"]),
}
OPERATION: Columns = {
    "method": lambda row: _method(row["method"]),
    "balanced accuracy [95 %]": _measured("balanced_accuracy"),
    "best common threshold (oracle)": _measured("common_oracle_balanced_accuracy"),
    "best threshold each (oracle)": _measured("oracle_balanced_accuracy"),
    "on real": _measured("accuracy_real"),
    "on fake": _measured("accuracy_fake"),
    "FPR": _measured("fpr"),
    "ECE": _measured("ece"),
    "Brier": _measured("brier"),
    "unsure": _measured("unsure_share"),
    "accuracy outside unsure": _measured("accuracy_sure"),
}
OTHER_SIDE: Columns = {
    "shots": lambda row: str(row["shots"]),
    **{name: RANKING[name] for name in ("method", "AUC [95 %]", "difference to last-linear [95 %]", "p")},
    **{
        name: OPERATION[name]
        for name in ("balanced accuracy [95 %]", "best common threshold (oracle)", "FPR", "ECE", "Brier")
    },
}
TRANSFORMED: Columns = {
    "transform": lambda row: _text(row["transform"]),
    "severity": lambda row: _text(row["severity"]),
    "AUC [95 %]": _measured("auc"),
    "AUC lost": lambda row: wording.decimal(row["auc_drop"]),
    "verdicts flipped": lambda row: wording.decimal(row["flips"]),
}
EXPLAINED = (
    "AUC is the mean over fits (training sets and draws), and in each of them over generators; intervals are 95 % of a "
    "bootstrap over images and draws; differences are paired, on the same images.",
    "Accuracies, FPR and *unsure* are at the threshold and band that each method stored before it saw a test image. "
    "*Oracle* balanced accuracy is at the threshold that is best on the test images, one for all fits or one for each "
    "test set: **no method can know it**. One for all shows what the stored thresholds lose; one for each also fits "
    "the chance in every test set.",
)


def _main_tables(rows: Sequence[Row]) -> list[str]:
    parts = [*EXPLAINED]
    for shots in selection.shots_in(rows):
        mine = selection.in_order(selection.at_shots(rows, shots)[0])
        fits = " or ".join(map(str, sorted({row["cells"] for row in mine})))
        parts += [
            f"### {wording.shots_name(shots)}",
            f"How well fakes rank above reals, over {fits} fits:",
            _row_table(RANKING, mine),
            "At the stored threshold:",
            _row_table(OPERATION, mine),
        ]
    return parts


def _other_side(result: BenchmarkResult, shown: bool) -> list[str]:
    """The side that the main tables do not show, where both were measured."""
    rows = [row for row in selection.clean(result.summary) if bool(row["seen"]) != shown]
    if not rows:
        return []
    ordered = [
        row for shots in selection.shots_in(rows) for row in selection.in_order(selection.at_shots(rows, shots)[0])
    ]
    return [f"## On {wording.side_name(not shown)}, images held out", _row_table(OTHER_SIDE, ordered)]


def _generator_table(result: BenchmarkResult) -> list[str]:
    rows, seen = selection.on_side(result.by_generator)
    if not rows:
        return []
    rows, shots = selection.at_shots(rows)
    methods = selection.methods_in(rows)
    found = {(row["test_on"], row["method"]): row["auc"] for row in rows}
    lines = [
        [_text(name), str(fakes), *(wording.interval(found.get((name, method))) for method in methods)]
        for name, fakes in {row["test_on"]: row["fake"] for row in rows}.items()
    ]
    return [
        f"## Per generator: AUC [95 %] on {wording.side_name(seen)}, {wording.shots_name(shots).lower()}",
        _table(["generator", "fakes", *map(_method, methods)], lines),
    ]


def _robustness_tables(result: BenchmarkResult) -> list[str]:
    """An overview of all methods, and every cell of ours and of the baseline, the worst first."""
    rows, seen = selection.on_side(selection.transformed(result.summary))
    parts = [f"## Robustness: transformed images, {wording.side_name(seen)}"] if rows else []
    for shots in selection.shots_in(rows):
        at, _ = selection.at_shots(rows, shots)
        worst = selection.worst_first(at)
        cells = {name: [row for row in worst if row["method"] == name] for name in selection.methods_in(at)}
        lines = [
            [
                _method(name),
                wording.decimal(own[0]["metrics"]["auc"]),
                _text(f"{own[0]['transform']} {own[0]['severity']}"),
                wording.decimal(_mean(own, "auc_drop")),
                wording.decimal(_mean(own, "flips")),
            ]
            for name, own in cells.items()
        ]
        head = ["method", "worst AUC", "where", "mean AUC lost", "mean verdicts flipped"]
        parts += [f"### {wording.shots_name(shots)}: all methods", _table(head, lines)]
        for name in [name for name in (OURS, BASELINE) if name in cells] or list(cells)[:1]:
            parts += [
                f"### {wording.shots_name(shots)}: {_text(name)}, worst first",
                _row_table(TRANSFORMED, cells[name]),
            ]
    return parts


def _notes(info: Mapping[str, Any]) -> list[str]:
    notes = [
        *info["notes"],
        *(f"Left out: {name}: {reason}" for name, reason in info["data"].get("skipped", ())),
        *(f"{name}: {what}" for name, what in info["methods"].items()),
    ]
    return ["## Notes", _listed(map(_text, notes))] if notes else []


def _row_table(columns: Columns, rows: Iterable[Row]) -> str:
    return _table(list(columns), [[told(row) for told in columns.values()] for row in rows])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [value for value in (number(row[name]) for row in rows) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _text(value: Any) -> str:
    """Text in which Markdown and HTML read nothing, on one line."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(str(value).split()))
