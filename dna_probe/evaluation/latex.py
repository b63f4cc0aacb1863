"""A benchmark's result as LaTeX tables for papers (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dna_probe.evaluation import selection, wording
from dna_probe.evaluation.selection import BASELINE, Row

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.evaluation.results import BenchmarkResult

MEASURES = {
    "Bal. acc.": "balanced_accuracy",
    "Oracle": "common_oracle_balanced_accuracy",
    "FPR": "fpr",
    "TPR at 1 %": "tpr_at_1",
    "TPR at 5 %": "tpr_at_5",
    "ECE": "ece",
    "Brier": "brier",
    "Unsure": "unsure_share",
    "Acc. sure": "accuracy_sure",
}
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    wording.NONE: "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex_tables(result: BenchmarkResult) -> dict[str, str]:
    """Tables by file name; numbers are those of the result to three decimals, intervals 95 %.

    ``auc.tex`` and ``differences.tex`` (methods by shots), ``operating_point.tex`` (measures at the stored threshold),
    ``generators.tex`` (generators by methods, at the largest number of shots), ``other_side.tex`` where generators
    trained on were tested beside unseen ones, and, where images were transformed, ``robustness.tex`` (transforms by
    severity, for ``dna`` or the first method, the worst cell bold).
    """
    rows, seen = selection.on_side(selection.clean(result.summary))
    where = wording.side_name(seen)
    tables = {
        "auc": (_by_shots(rows, _auc), f"AUC on {where} with 95 % intervals."),
        "operating_point": (
            _operating_points(rows),
            f"At the stored threshold, on {where}. The oracle's, one for all fits, is chosen on the test images.",
        ),
    }
    compared = [row for row in rows if row["difference"]]
    if compared:
        told = f"AUC minus that of {BASELINE} on {where}, paired, with 95 % intervals."
        tables["differences"] = _by_shots(compared, _difference), told
    others = [row for row in selection.clean(result.summary) if bool(row["seen"]) != seen]
    if others:
        told = f"AUC on {wording.side_name(not seen)}, images held out, with 95 % intervals."
        tables["other_side"] = _by_shots(others, _auc), told
    if result.by_generator:
        tables["generators"] = _generators(result)
    if selection.transformed(result.summary):
        tables["robustness"] = _robustness(result)
    return {f"{name}.tex": _written(frame, caption, name) for name, (frame, caption) in tables.items()}


def _auc(row: Row) -> str:
    return wording.interval(row["metrics"]["auc"])


def _difference(row: Row) -> str:
    return f"{wording.difference(row)}, p {wording.p_value(row, '= ')}"


def _by_shots(rows: Sequence[Row], told: Callable[[Row], str]) -> pd.DataFrame:
    """Methods by shots."""
    import pandas as pd

    found = {(row["method"], row["shots"]): _escaped(told(row)) for row in rows}
    shots = selection.shots_in(rows)
    lines = [
        [_escaped(method), *(found.get((method, n), "--") for n in shots)] for method in selection.methods_in(rows)
    ]
    return pd.DataFrame(lines, columns=["Method", *(f"$N = {n}$" if n != "all" else "all" for n in shots)])


def _operating_points(rows: Sequence[Row]) -> pd.DataFrame:
    import pandas as pd

    lines = [
        [_escaped(row["method"]), str(shots)]
        + [_escaped(wording.decimal(row["metrics"][measure])) for measure in MEASURES.values()]
        for shots in selection.shots_in(rows)
        for row in selection.in_order(selection.at_shots(rows, shots)[0])
    ]
    return pd.DataFrame(lines, columns=["Method", "$N$", *map(_escaped, MEASURES)])


def _generators(result: BenchmarkResult) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    rows, seen = selection.on_side(result.by_generator)
    rows, shots = selection.at_shots(rows)
    found = {(row["test_on"], row["method"]): row["auc"] for row in rows}
    methods = selection.methods_in(rows)
    lines = [
        [_escaped(name), *(_escaped(wording.decimal(found.get((name, method)))) for method in methods)]
        for name in dict.fromkeys(row["test_on"] for row in rows)
    ]
    frame = pd.DataFrame(lines, columns=["Generator", *map(_escaped, methods)])
    return frame, f"AUC by generator, {wording.side_name(seen)}, {wording.shots_name(shots).lower()}."


def _robustness(result: BenchmarkResult) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    rows, seen = selection.on_side(selection.transformed(result.summary))
    rows, shots = selection.at_shots(rows)
    method = selection.methods_in(rows)[0]
    rows = [row for row in rows if row["method"] == method]
    worst = selection.worst_first(rows)[0]
    cells = {}
    for row in rows:
        value = _escaped(wording.decimal(row["metrics"]["auc"]))
        shown = rf"\textbf{{{value}}}" if row is worst else value
        cells[row["transform"], int(row["level"])] = f"{shown} ({_escaped(row['severity'])})"
    levels = sorted({level for _, level in cells})
    lines = [
        [_escaped(name), *(cells.get((name, level), "") for level in levels)]
        for name in dict.fromkeys(row["transform"] for row in rows)
    ]
    frame = pd.DataFrame(lines, columns=["Transform", *(f"Severity {level}" for level in levels)])
    about = f"{wording.side_name(seen)}, {wording.shots_name(shots).lower()}"
    return frame, f"AUC of {method} on transformed images (parameter in brackets), {about}."


def _written(frame: pd.DataFrame, caption: str, name: str) -> str:
    """A table whose cells and heads are LaTeX already."""
    return frame.style.hide(axis="index").to_latex(
        hrules=True,
        caption=_escaped(caption),
        label=f"tab:{name}",
        position="t",
        position_float="centering",
        column_format="l" + "r" * (len(frame.columns) - 1),
    )


def _escaped(value: Any) -> str:
    """Text in which LaTeX reads nothing; a sign before a number is set as one."""
    text = "".join(ESCAPED.get(sign, sign) for sign in " ".join(str(value).split()))
    # A bracket at the start of a row would be read as an argument of the line break before it.
    return re.sub(r"(?<![\w-])([+-])(?=\d)", r"$\1$", re.sub(r"^\[", "{[}", text))
