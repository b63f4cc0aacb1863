"""What each ingredient of the detector is worth: variants side by side, on every backbone, and a nested choice.

    python benchmarks/ablation.py --data DATA/images/genai5 --out runs/ablation

Every variant is fitted on the same images in the same draws, so that differences to the default are paired. The default
is not to be judged on the generators that it was chosen with: the last table of a backbone chooses the best variant on
some generators and reports it on the others.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import joblib
import numpy as np
import typer
from evaluation import rewrite, table

from dna_probe.backbones import open_backbone
from dna_probe.collection import Options
from dna_probe.evaluation import wording
from dna_probe.evaluation.harness import BenchmarkRun, benchmark
from dna_probe.evaluation.preparation import Settings
from dna_probe.evaluation.protocols import Plan
from dna_probe.evaluation.results import summarise
from dna_probe.images.views import Equalisation

FACTORIES = ("deit_tiny_q3.py:build", "cnns.py:mobilenetv2", "cnns.py:squeezenet1_1")
CONTROLS = ("last-linear", "all-layers", "random-units", "ica", "located-layers")


@dataclass(frozen=True)
class Question:
    """An open choice, and the variants that answer it otherwise than the default."""

    asked: str
    variants: tuple[str, ...]
    # Only where the backbone is small: captum needs seventeen passes for every site and image.
    costly: bool = False


def scorers(*names: str) -> tuple[str, ...]:
    return tuple(f"dna[scorer={name}]" for name in names)


QUESTIONS = (
    Question(
        "one ingredient taken out",
        (
            "dna[views=]",
            "dna[classifier=logistic]",
            "dna[scorer=weight]",
            "dna[scorer=weight,classifier=logistic]",
            "dna[scorer=weight,classifier=logistic,views=]",
            "all-units",
        ),
    ),
    Question(
        "the first version of the detector", ("dna[scorer=triadic,cut=knee,classifier=logistic,kinds=cls,views=]",)
    ),
    Question(
        "how many units",
        (
            "dna[scope=layer]",
            "dna[cut=knee]",
            "dna[cut=knee,scope=layer]",
            "dna[cut=stable]",
            "dna[scorer=elimination,cut=knee]",
            "dna[cut=fdr]",
            "dna[cut=local_fdr]",
            *(f"dna[cut=fraction,fraction={share}]" for share in (0.02, 0.05, 0.1, 0.5)),
            "dna[scorer=elimination,cut=fraction,fraction=0.05]",
        ),
    ),
    Question(
        "scorer, without gradients",
        scorers(
            *("elimination", "real_whitened", "moderated_t", "invariance", "cohens_d", "auroc"),
            *("triadic_own", "activation", "real_variance", "random"),
        ),
    ),
    Question(
        "scorer, with the gradient of a head or with forged pairs",
        scorers("triadic", "triadic_raw", "triadic_loss", "triadic_absolute", "triadic_depths", "triadic_invariant")
        + scorers("gradient", "gradient_x_activation", "forged_pairs"),
    ),
    Question(
        "scorer, by captum",
        scorers("conductance", "triadic_conductance", "integrated_gradients", "internal_influence"),
        costly=True,
    ),
    Question(
        "what a unit is",
        tuple(
            f"dna[kinds={kinds}]"
            for kinds in ("cls", "mean", "max", "std", "top", "cls+mean+std", "mlp_mean", "mlp_max", "heads_mean")
        ),
    ),
    Question("layer rule", tuple(f"dna[rule={rule}]" for rule in ("all", "last", "top_m", "union", "intersection"))),
    Question(
        "views", tuple(f"dna[views={views}]" for views in ("jpeg", "noise", "resize", "blur+jpeg", "blur+noise+jpeg"))
    ),
    Question("classifier", tuple(f"dna[classifier={kind}]" for kind in ("lda", "prototype", "linear_svm"))),
)


def main(
    data: Annotated[Path, typer.Option(help="Data set with several generators.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and cached features.")],
    backbone: Annotated[list[str] | None, typer.Option(help="Left out, nano and those beside DATA.")] = None,
    shots: str = "10,50",
    draws: int = 2,
    reals: Annotated[str, typer.Option(help="More real images than shots: a number, or all.")] = "",
    costly: Annotated[bool, typer.Option(help="Captum's attributions too, on every backbone.")] = False,
    section: Annotated[str, typer.Option(help="Section of RESULTS.md that is written.")] = "ablation",
) -> None:
    weights = data.resolve().parents[1] / "weights"
    names = backbone or [*(str(weights / one) for one in FACTORIES if (weights / one.split(":")[0]).exists()), "nano"]
    plan = Plan(
        shots=tuple(map(int, shots.split(","))),
        draws=draws,
        reals=int(reals) if reals.isdigit() else reals or None,
    )
    told = [
        f"Measured on {date.today().isoformat()}: `{data.name}`, equalised; draws per generator trained on: {draws}."
    ]
    for name in names:
        opened = open_backbone(name)
        layers = tuple(f"layer[{number}]" for number in range(len(opened.layers)))
        asked = [question for question in QUESTIONS if costly or not question.costly]
        methods = tuple(
            dict.fromkeys(["dna", *(v for question in asked for v in question.variants), *CONTROLS, *layers])
        )
        run = benchmark(
            opened,
            data,
            settings=Settings(methods=methods, plan=plan, equalisation=Equalisation(), calibrate=False),
            state=out / "state",
            jobs=joblib.cpu_count(),
            options=Options(cache=out / "cache"),
            say=lambda line: typer.echo(line, err=True),
        )
        short = Path(name.split(":")[0]).name + (":" + name.split(":")[1] if ":" in name else "")
        (out / f"{short.replace(':', '-')}.json").write_text(json.dumps(run.result.to_json()))
        told += [f"### {short}", report(run, asked), depths(run, layers), nested(run)]
    rewrite(section, "\n\n".join(told))


def report(run: BenchmarkRun, asked: list[Question]) -> str:
    """AUC on unseen generators, and what each variant gains or loses against the default."""
    compared = summarise(run.result.info, run.measured, ([], []), baseline="dna")
    rows = {(row["method"], row["shots"]): row for row in compared.summary if not row["seen"]}
    shots = sorted({n for _, n in rows})

    def line(method: str) -> list[str]:
        cells = [f"`{method}`", f"{rows[method, shots[-1]]['units']:.0f}"]
        for n in shots:
            row = rows[method, n]
            change = "" if method == "dna" else wording.difference(row)
            cells += [f"{wording.decimal(row['metrics']['auc']['value'])} ({row['worst_train']['auc']:.3f})", change]
        return cells

    head = ["", "units", *(part for n in shots for part in (f"N = {n} (worst)", "minus dna [95 %]"))]
    lines = [line("dna"), *(line(name) for name in CONTROLS)]
    for question in asked:
        lines += [[f"*{question.asked}*", *[""] * (len(head) - 1)], *(line(name) for name in question.variants)]
    return table(head, lines)


def depths(run: BenchmarkRun, layers: tuple[str, ...]) -> str:
    """A probe on each layer by itself: those located, the best in hindsight, the median, and how often it is missed."""
    lines = []
    for n in sorted({row["shots"] for row in run.measured.rows}):
        found: dict[str, dict[tuple[str, int], list[float]]] = {}
        for row in run.measured.where(lambda row, n=n: row["shots"] == n and not row["seen"]).rows:
            by_fit = found.setdefault(row["method"], {})
            by_fit.setdefault((row["train_on"], row["draw"]), []).append(row["auc"])
        auc = {name: np.array([np.mean(fit) for fit in fits.values()]) for name, fits in found.items()}
        each = np.array([auc[name] for name in layers])
        best, located = each.mean(1).argmax(), auc["located-layers"]
        numbers = (located.mean(), each[best].mean(), np.median(each.mean(1)), each[-1].mean())
        below = f"{(located < np.median(each, axis=0)).sum()} of {located.size}"
        told = [wording.decimal(float(number)) for number in numbers]
        lines.append([f"N = {n}", told[0], f"{told[1]} (layer {best})", *told[2:], below])
    head = ["", "located, mean", "best in hindsight", "median layer", "last layer", "fits below their median layer"]
    return f"A linear probe on each layer by itself, mean AUC:\n\n{table(head, lines)}"


def nested(run: BenchmarkRun) -> str:
    """The best variant on one half of the generators, measured on fits and tests of the other half alone."""
    made = sorted({row["train_on"] for row in run.measured.rows})
    halves = made[: len(made) // 2], made[len(made) // 2 :]
    lines = []
    for inside, outside in (halves, halves[::-1]):
        means = _means(run, inside)
        candidates = [name for name in means if name.startswith(("dna", "all-units"))]
        best = max(candidates, key=lambda name: means[name])
        there = _means(run, outside)
        told = [f"{wording.decimal(there[name])}" for name in (best, "dna", "last-linear")]
        lines.append(
            [", ".join(inside), f"`{best}`", wording.decimal(means[best]), wording.decimal(means["dna"]), *told]
        )
    head = ["tuned on", "best there", "its AUC there", "dna there", "best on the others", "dna", "last-linear"]
    return f"Nested choice, mean AUC over the numbers of shots:\n\n{table(head, lines)}"


def _means(run: BenchmarkRun, generators: list[str]) -> dict[str, float]:
    """Mean AUC of each method where both the generator trained on and the one tested on are among these."""
    held = run.measured.where(
        lambda row: not row["seen"] and row["train_on"] in generators and row["test_on"] in generators
    )
    found: dict[str, list[float]] = {}
    for row in held.rows:
        found.setdefault(row["method"], []).append(row["auc"])
    return {name: sum(values) / len(values) for name, values in found.items()}


if __name__ == "__main__":
    typer.run(main)
