"""Few-shot AUC on unseen generators: the detector, the last-layer probe, random units, and the same on untrained
weights.

For each generator of a data set: train on N of its images and N reals, test on the fakes of all other generators and
on the reals that were not trained on. Every method sees the same images and draws; nothing is chosen on test images.

    python benchmarks/few_shot.py DATA --backbone FILE.py:factory --shots 10,50 --draws 5
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import dna_probe
from dna_probe.cli.arguments import make_backbone
from dna_probe.collection import Features, Options, collect_features
from dna_probe.evaluation.baselines import detector_scores, last_layer_scores, random_unit_scores
from dna_probe.evaluation.metrics import auc
from dna_probe.images.sampling import draw_shots
from dna_probe.images.sets import ImageSet
from dna_probe.images.views import equalise_set
from dna_probe.scoring import readings_of


def main(
    data: Annotated[Path, typer.Argument(help="Folder with real/ and fake/<generator>/.")],
    backbone: Annotated[str, typer.Option()] = "nano",
    shots: Annotated[str, typer.Option(help="Images per class, by comma.")] = "10,50",
    draws: Annotated[int, typer.Option(min=1)] = 5,
    equalise: Annotated[bool, typer.Option(help="Same size, crop and JPEG quality for both classes.")] = True,
    random_weights: Annotated[bool, typer.Option("--random-weights")] = False,
    rule: Annotated[str, typer.Option()] = "transition",
    kinds: Annotated[str, typer.Option()] = "cls",
    scorer: Annotated[str, typer.Option()] = "triadic",
    cut: Annotated[str, typer.Option()] = "knee",
    cache: Annotated[Path | None, typer.Option(help="Folder for features.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the figures as JSON.")] = None,
) -> None:
    model = make_backbone(backbone, None, "auto", random_weights)
    images = dna_probe.read_images(data)
    if equalise:
        images = equalise_set(images)
    options = Options(cache=cache)
    generators = sorted(set(images.generators) - {"real"})
    names = [site.name for site in model.layers]
    everything = collect_features(model, images, readings_of(model, names, ["cls", *kinds.split(",")]), options=options)
    images = everything.images
    rows = []
    for n in [int(part) for part in shots.split(",")]:
        for position, generator in enumerate(generators):
            for draw in range(draws):
                seed = 1000 * position + draw
                train = draw_shots(images, n, seed, generators=[generator])
                fitted, held = rows_of(everything, train), rows_of(everything, held_out(images, train, generator))
                detector = dna_probe.fit(
                    model, train, rule=rule, kinds=kinds.split(","), scorer=scorer, cut=cut, seed=seed, options=options
                )
                drawn = random_unit_scores(detector, fitted, held, 20, seed)
                found = {
                    "detector": mean_auc(held.images, detector_scores(detector, held)),
                    "last-layer probe": mean_auc(held.images, last_layer_scores(model, fitted, held, seed)),
                    "random units": float(np.mean([mean_auc(held.images, scores) for scores in drawn])),
                }
                rows.append(
                    {
                        "shots": n,
                        "generator": generator,
                        "draw": draw,
                        **found,
                        "units": len(detector.units),
                        "layers": detector.provenance["layers"],
                    }
                )
    echo(rows, model.name + (" with random weights" if random_weights else ""), images)
    if out is not None:
        out.write_text(json.dumps({"schema": "dna_probe.benchmark.few_shot/1", "rows": rows}, indent=1))


def held_out(images: ImageSet, train: ImageSet, generator: str) -> ImageSet:
    """Fakes of the other generators, and reals not trained on."""
    used = {id(image) for image in train.images}
    return images.subset(
        [i for i, image in enumerate(images.images) if images.generators[i] != generator and id(image) not in used]
    )


def mean_auc(test: ImageSet, scores: np.ndarray) -> float:
    """AUC of each test generator against all test reals, averaged over generators."""
    made = np.asarray(test.generators)
    names = sorted(set(made) - {"real"})
    return float(np.mean([auc(test.labels[k], scores[k]) for k in ((made == "real") | (made == g) for g in names)]))


def rows_of(everything: Features, images: ImageSet) -> Features:
    """The rows of some of the images, without reading them again."""
    place = {id(image): i for i, image in enumerate(everything.images.images)}
    index = [place[id(image)] for image in images.images]
    return Features(images, {name: values[index] for name, values in everything.values.items()}, {})


def echo(rows: list[dict], name: str, images: ImageSet) -> None:
    table = Table("N", "method", "mean AUC", "worst training generator", "difference to last layer (95 %)", title=name)
    for n in sorted({row["shots"] for row in rows}):
        own = [row for row in rows if row["shots"] == n]
        generators = sorted({row["generator"] for row in own})
        base = np.array([row["last-layer probe"] for row in own])
        for method in ("detector", "last-layer probe", "random units"):
            values = np.array([row[method] for row in own])
            worst = min(np.mean([row[method] for row in own if row["generator"] == g]) for g in generators)
            difference = values - base
            drawn = np.random.default_rng(0).choice(difference, (2000, len(difference))).mean(1)
            low, high = np.percentile(drawn, [2.5, 97.5])
            table.add_row(
                str(n),
                method,
                f"{values.mean():.3f}",
                f"{worst:.3f}",
                f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
            )
        units = [row["units"] for row in own]
        table.add_row(str(n), f"units read: {min(units)} to {max(units)}, median {int(np.median(units))}", "", "", "")
    console = Console(width=120)
    console.print(images.describe())
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
