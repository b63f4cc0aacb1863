"""Run the benchmarks on a data set and write their tables into RESULTS.md, between the marks of each section.

    python benchmarks/evaluation.py DATA --test OTHER --backbone FILE.py:factory --runs runs

A run that is there already is not made again, so the tables can be rewritten in seconds; one that was cut off goes on.
"""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import main as dna_probe_command
from dna_probe.evaluation import selection, wording
from dna_probe.evaluation.report import verdicts
from dna_probe.evaluation.results import BenchmarkResult, read_results

RESULTS = Path(__file__).with_name("RESULTS.md")
COMPARED = "dna,last-linear,best-layer,all-layers,random-units,metadata"
# Section -> options of dna-probe benchmark besides DATA, --backbone and --out.
RUNS = {
    "few-shot": ["--protocol", "few-shot", "--methods", COMPARED, "--shots", "10,50", "--draws", "10"],
    "few-shot-equalised": ["--protocol", "few-shot", "--equalise", "--shots", "1,5,10,20,50", "--draws", "10"],
    "few-shot-reals": [
        *("--protocol", "few-shot", "--equalise", "--reals", "all", "--shots", "10,50", "--draws", "10"),
        *("--methods", "dna,last-linear,all-units,all-layers,random-units,ica"),
    ],
    "operating-point": [
        *("--protocol", "few-shot", "--equalise", "--shots", "50", "--draws", "10", "--target-fpr", "0.05"),
        *("--methods", "dna,last-linear,all-layers,rine"),
    ],
    "leave-one-generator-out": [
        *("--protocol", "leave-one-generator-out", "--equalise", "--draws", "2"),
        *("--methods", "dna,last-linear,best-layer,all-layers,rine,random-units,metadata,thumbnail"),
    ],
    "cross-set": [
        *("--protocol", "cross-set", "--equalise", "--shots", "50", "--draws", "5"),
        *("--methods", "dna,last-linear,best-layer,all-layers,rine,knn,random-units,metadata,thumbnail"),
    ],
    "robustness": ["--protocol", "robustness", "--equalise", "--methods", "dna,last-linear,best-layer,all-layers,rine"],
}


def main(
    data: Annotated[Path, typer.Argument(help="Data set with several generators.")],
    test: Annotated[list[Path] | None, typer.Option(help="Data sets for the section cross-set.")] = None,
    backbone: Annotated[str, typer.Option()] = "nano",
    runs: Annotated[Path, typer.Option(help="Folder for the runs and their cached features.")] = Path("runs"),
    only: Annotated[str, typer.Option(help="Sections by comma; left out, all.")] = "",
) -> None:
    for name in only.split(",") if only else RUNS:
        out = runs / name
        if not (out / "results.json").exists():
            options = [*RUNS[name], "--backbone", backbone, "--out", str(out), "--cache", str(runs / "cache")]
            others = [part for one in test or [] for part in ("--test", str(one))] if name == "cross-set" else []
            # 3: done, but some images were left out, and named.
            if dna_probe_command(["benchmark", str(data), *options, *others]) not in (0, 3):
                raise typer.Exit(1)
        rewrite(name, section(read_results(out), f"{data.name} {' '.join(RUNS[name])}"))
        typer.echo(f"{name}: written into {RESULTS}")


def measured(info: dict, command: str) -> str:
    names = ("dna-probe", "torch", "timm", "scikit-learn")
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in names)
    when = f"Measured on {date.today().isoformat()}; {versions}; backbone {info['backbone']['name']}."
    return f"{when}\n\n    dna-probe benchmark {command}"


def section(result: BenchmarkResult, command: str) -> str:
    info = result.info
    parts = [
        measured(info, command),
        audited(info),
        "\n".join(f"- {line}" for line in verdicts(result)),
    ]
    for seen in (False, True):
        rows = [row for row in selection.clean(result.summary) if row["seen"] == seen]
        if rows:
            parts += [f"On {wording.side_name(seen)}:", ranking(rows), "At the stored threshold:", operation(rows)]
    if selection.transformed(result.summary):
        parts.append(robustness(result))
    return "\n\n".join(parts)


def audited(info: dict) -> str:
    told = [
        f"{one['name']}: metadata AUC {wording.decimal(one['audit']['metadata_auc'])}, "
        f"thumbnail AUC {wording.decimal(one['audit']['thumbnail_auc'])}"
        for one in info["data"]["sets"]
    ]
    return f"Audit of the images as measured: {'; '.join(told)}."


def ranking(rows: list) -> str:
    """Methods by number of shots: AUC with its interval, and the worst generator trained on (or tested)."""

    def cell(row: dict) -> str:
        worst = row["worst_train"] or row["worst_test"]
        return f"{wording.interval(row['metrics']['auc'])} ({wording.decimal(worst['auc'])})"

    shots = selection.shots_in(rows)
    lines = by_method(rows, cell)
    changes = by_method([row for row in rows if row["difference"]], wording.difference)
    first = table(["AUC [95 %] (worst)", *(f"N = {n}" for n in shots)], lines)
    return f"{first}\n\n{table(['minus last-linear [95 %]', *(f'N = {n}' for n in shots)], changes)}"


def by_method(rows: list, cell: Callable[[dict], str]) -> list[list[str]]:
    shots = selection.shots_in(rows)
    found = {(row["method"], row["shots"]): row for row in rows}
    return [
        [f"`{name}`", *(cell(found[name, n]) if (name, n) in found else "" for n in shots)]
        for name in selection.methods_in(rows)
    ]


def operation(rows: list) -> str:
    """Calibrated methods at the largest number of shots."""
    columns = {
        "balanced_accuracy": "balanced accuracy [95 %]",
        "common_oracle_balanced_accuracy": "best common threshold (oracle)",
        "oracle_balanced_accuracy": "best threshold each (oracle)",
        "fpr": "FPR",
        "ece": "ECE",
        "brier": "Brier",
        "unsure_share": "unsure",
        "accuracy_sure": "accuracy outside",
    }
    last, shots = selection.at_shots(rows)
    chosen = [row for row in selection.in_order(last) if row["metrics"]["ece"]["value"] is not None]
    lines = [[f"`{row['method']}`", *(wording.interval(row["metrics"][name]) for name in columns)] for row in chosen]
    return table([f"N = {shots}", *columns.values()], lines)


def robustness(result: BenchmarkResult) -> str:
    """AUC at the mildest and the most severe setting of every transform, detector and last-layer probe."""
    rows = [row for row in selection.transformed(result.summary) if not row["seen"]]
    lines = []
    for name in dict.fromkeys(row["transform"] for row in rows):
        line = [f"`{name}`"]
        for method in (selection.OURS, selection.BASELINE):
            own = [row for row in rows if row["transform"] == name and row["method"] == method]
            own.sort(key=lambda row: row["level"])
            ends = (own[0], own[-1])
            line += [" to ".join(wording.decimal(row["metrics"]["auc"]["value"]) for row in ends)]
            line += [f"{wording.decimal(own[-1]['auc_drop'])}, {own[-1]['flips']:.0%}"]
        lines.append([*line[:1], f"{own[0]['severity']} to {own[-1]['severity']}", *line[1:]])
    head = ["transform", "from, to"]
    for method in (selection.OURS, selection.BASELINE):
        head += [f"`{method}` AUC", "worst: drop, verdicts flipped"]
    return f"Under transforms, generators not trained on:\n\n{table(head, lines)}"


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def rewrite(name: str, text: str) -> None:
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = RESULTS.read_text()
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    if not pattern.search(old):
        raise typer.BadParameter(f"{RESULTS} has no section {marks[0]} ... {marks[1]}")
    RESULTS.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", old))


if __name__ == "__main__":
    typer.run(main)
