"""What reading deeper layers gains on the generators at hand and costs on another data set.

    python benchmarks/tradeoff.py DATA/images/genai5 --test DATA/images/mixed --reals DATA/images/reals-bsds \\
        --backbone DATA/weights/deit_tiny_q3.py:build --out runs/tradeoff

The detector is fitted on bands of layers named beforehand, on one generator at a time, and tested on the other
generators of its data set, on another data set, and on real images of a third source.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import joblib
import numpy as np
import typer
from evaluation import rewrite, table

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options
from dna_probe.evaluation import wording
from dna_probe.evaluation.harness import benchmark
from dna_probe.evaluation.preparation import Settings
from dna_probe.evaluation.protocols import Plan
from dna_probe.images.layouts import read_images
from dna_probe.images.views import Equalisation

SHOTS = 50


def main(
    data: Annotated[Path, typer.Argument(help="Data set with several generators.")],
    test: Annotated[Path, typer.Option(help="Another data set.")],
    reals: Annotated[Path, typer.Option(help="Real images of a third source.")],
    out: Annotated[Path, typer.Option(help="Folder for the figure, the runs and their cached features.")],
    backbone: str = "nano",
    draws: int = 2,
    width: Annotated[int, typer.Option(help="Layers of each band.")] = 5,
) -> None:
    opened, options = open_backbone(backbone), Options(cache=out / "cache", progress=False)
    bands = [f"{first}-{first + width - 1}" for first in range(len(opened.layers) - width + 1)]
    methods = ("last-linear", "dna", *(f"dna[rule={band}]" for band in bands))
    auc: dict[str, dict[str, Any]] = {}
    for protocol, tests in (("few-shot", []), ("cross-set", [test])):
        settings = Settings(
            protocol=protocol,
            methods=methods,
            plan=Plan(shots=(SHOTS,), draws=draws),
            equalisation=Equalisation(),
            calibrate=False,
        )
        run = benchmark(
            opened, data, tests, settings=settings, state=out / "state", jobs=joblib.cpu_count(), options=options
        )
        auc[protocol] = {row["method"]: row for row in run.result.summary if not row["seen"]}
    rules = {"dna": dna_probe.fitting.DEFAULTS.rule, **{f"dna[rule={band}]": band for band in bands}}
    alarms = {name: false_alarms(opened, data, reals, rule, options) for name, rule in rules.items()}

    def cells(name: str) -> list[str]:
        inside, outside = auc["few-shot"][name], auc["cross-set"][name]
        return [
            f"`{name}`",
            wording.interval(inside["metrics"]["auc"]),
            wording.interval(outside["metrics"]["auc"]),
            wording.decimal(outside["worst_test"]["auc"]),
            wording.decimal(alarms.get(name)),
        ]

    head = [
        f"N = {SHOTS}",
        "AUC, other generators [95 %]",
        f"AUC on {test.name} [95 %]",
        "worst generator there",
        f"called fake of {reals.name}",
    ]
    told = f"Measured on {date.today().isoformat()}: fitted on `{data.name}`, equalised; draws per generator: {draws}."
    rewrite("trade-off", f"{told}\n\n{table(head, [cells(name) for name in methods])}")
    draw([(name, *(auc[p][name]["metrics"]["auc"]["value"] for p in auc)) for name in methods], test.name, out)


def false_alarms(backbone: Any, data: Path, reals: Path, rule: str, options: Options) -> float:
    """Share of the real images called fake at the stored threshold, mean over detectors of one generator each."""
    images = read_images(data)
    made = np.asarray(images.generators)
    called = []
    for generator in sorted(set(made[images.labels == 1])):
        own = images.subset((images.labels == 0) | (made == generator))
        detector = dna_probe.fit(backbone, own, SHOTS, rule=rule, equalisation=Equalisation(), options=options)
        called.append(detector.predict(reals, options).mean())
    return float(np.mean(called))


def draw(points: Sequence[tuple[str, float, float]], test: str, out: Path) -> None:
    """The curve over bands, and the two that are judged by it, as a figure in ``out``."""
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(4, 3.2), layout="constrained")
    bands = [point for point in points if "rule" in point[0]]
    ax.plot([x for _, x, _ in bands], [y for *_, y in bands], color="#0072B2", marker="o", markersize=4)
    for name, x, y in points:
        is_band = "rule" in name
        if not is_band:
            ax.plot(x, y, "D", color="#D55E00", markersize=5)
        label = name.removeprefix("dna[rule=").removesuffix("]")
        place, side = ((5, 3), "left") if is_band else ((-2, -11), "right")
        ax.annotate(label, (x, y), place, textcoords="offset points", fontsize=7, ha=side)
    ax.margins(0.1)
    ax.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    ax.set(xlabel="AUC on other generators of the set", ylabel=f"AUC on {test}")
    for ending in ("png", "pdf"):
        figure.savefig(out / f"tradeoff.{ending}", dpi=200)


if __name__ == "__main__":
    typer.run(main)
