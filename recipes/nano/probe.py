"""Measure `nano` beside randomly initialised networks: `python recipes/nano/probe.py FOLDER --out FOLDER`.

FOLDER holds photographs in real/ and generated images in fake/<generator>/, the same prompts for every generator, the
prompt's number last in the file name. Nothing is tuned on these images: the numbers are reported as they come.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from formulas import draw
from PIL import Image, ImageOps
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from train import Plan

from dna_probe.backbones.nano import SIZE, build, network

console = Console()
READOUTS = ("cls", "patch mean")
Features = dict[str, np.ndarray]


@torch.no_grad()
def features(model: nn.Module, images: np.ndarray) -> Features:
    """Last-block features of uint8 images (n, SIZE, SIZE, 3)."""
    parts = []
    for batch in torch.from_numpy(images).split(64):
        tokens = model.forward_features(batch.permute(0, 3, 1, 2).float() / 127.5 - 1)
        parts.append(torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)]))
    return dict(zip(READOUTS, torch.cat(parts, dim=1).numpy(), strict=True))


def classifier(scoring: str, seed: int = 0, folds: int = 5) -> GridSearchCV:
    """Standardised logistic regression, its strength chosen inside the training data."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
    inner = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return GridSearchCV(pipeline, {"logisticregression__C": np.logspace(-4, 1, 6)}, cv=inner, scoring=scoring)


def formula_top1(model: nn.Module, plan: Plan) -> dict[str, float]:
    """Linear probe on the training categories: six known instances each to fit, two held-out ones to test.

    One fixed strength: 320 categories leave nothing to choose that would change the order of the networks.
    """
    fit = list(range(6))
    test = list(range(plan.instances, plan.instances + 2))
    images = np.stack([draw(c, i, seed=plan.seed, size=SIZE) for i in fit + test for c in range(plan.categories)])
    labels = np.tile(np.arange(plan.categories), len(fit) + len(test))
    cut = len(fit) * plan.categories
    scores = {}
    for name, values in features(model, images).items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        scores[name] = float(probe.fit(values[:cut], labels[:cut]).score(values[cut:], labels[cut:]))
    return scores


def digits_top1(model: nn.Module) -> dict[str, float]:
    """Accuracy on scikit-learn's 8 x 8 handwritten digits, enlarged; five outer folds."""
    data, labels = load_digits(return_X_y=True)
    grey = (data.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(g).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for g in grey])
    images = np.repeat(images[..., None], 3, axis=-1)
    outer = StratifiedKFold(5, shuffle=True, random_state=0)
    return {
        name: float(cross_val_score(classifier("accuracy", folds=3), values, labels, cv=outer).mean())
        for name, values in features(model, images).items()
    }


def matched(path: Path) -> Image.Image | None:
    """One pipeline for both classes, so that size and compression say nothing; None where the image is too small."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    short = min(image.size)
    if short < 256:
        return None
    size = (max(256, round(image.width * 256 / short)), max(256, round(image.height * 256 / short)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    buffer = io.BytesIO()
    image.crop((left, top, left + 224, top + 224)).save(buffer, "JPEG", quality=90)
    return Image.open(buffer).convert("RGB")


def views(image: Image.Image) -> dict[str, np.ndarray]:
    """Two ways into the network: the whole image made smaller, and its centre at native resolution."""
    edge = (image.width - SIZE) // 2
    return {
        "resized": np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)),
        "centre": np.asarray(image.crop((edge, edge, edge + SIZE, edge + SIZE))),
    }


def collect(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """All usable images by view, with the generator ("" for a photograph) and the prompt number of each."""
    stacks: dict[str, list[np.ndarray]] = {"resized": [], "centre": []}
    sources, prompts = [], []
    for path in sorted(folder.glob("real/*")) + sorted(folder.glob("fake/*/*")):
        image = matched(path)
        if image is None:
            continue
        for view, pixels in views(image).items():
            stacks[view].append(pixels)
        fake = path.parent.parent.name == "fake"
        sources.append(path.parent.name if fake else "")
        prompts.append(int(path.stem.rsplit("_", 1)[1]) if fake else -1)
    return {view: np.stack(stack) for view, stack in stacks.items()}, np.array(sources), np.array(prompts)


def transfer_auc(
    values: np.ndarray, sources: np.ndarray, prompts: np.ndarray, draws: int, count: int = 50
) -> Iterator[float]:
    """AUC of every (training generator, draw, test generator).

    Fit on `count` fakes of one generator and `count` photographs; test on another generator's images of prompts that
    were not in training (the prompts are shared, so the same subject would otherwise be on both sides) and on all other
    photographs. One plan of draws serves every network and read-out.
    """
    generators = sorted(set(sources) - {""})
    for generator in generators:
        for number in range(draws):
            rng = np.random.default_rng([number, generators.index(generator)])
            real = rng.permutation(np.flatnonzero(sources == ""))
            fake = rng.permutation(np.flatnonzero(sources == generator))[:count]
            rows = np.concatenate([real[:count], fake])
            probe = classifier("neg_log_loss", seed=number).fit(values[rows], np.repeat([0, 1], count))
            unseen = ~np.isin(prompts, prompts[fake])
            for other in generators:
                if other != generator:
                    test = np.concatenate([real[count:], np.flatnonzero((sources == other) & unseen)])
                    yield float(roc_auc_score(sources[test] != "", probe.decision_function(values[test])))


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with real/ and fake/<generator>/.")],
    out: Annotated[Path, typer.Option(help="Folder for probe.csv.")],
    weights: Annotated[Path | None, typer.Option(help="Other weights than the packaged ones.")] = None,
    draws: Annotated[int, typer.Option(help="Draws per training generator.")] = 5,
    controls: Annotated[int, typer.Option(help="Randomly initialised networks to compare with.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Measure and write one row per network, task and read-out."""
    torch.set_num_threads(threads)
    if weights is None:
        trained = build()
    else:
        trained = network().eval()
        trained.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    networks = {"nano": trained}
    for number in range(controls):
        torch.manual_seed(100 + number)
        networks[f"random {number}"] = network().eval()

    stacks, sources, prompts = collect(folder)
    console.log(f"{(sources == '').sum()} photographs, {(sources != '').sum()} generated images")
    rows = []

    def record(**row: object) -> None:
        rows.append(row)
        console.log(row)

    for name, model in networks.items():
        for view, images in stacks.items():
            for readout, values in features(model, images).items():
                scores = list(transfer_auc(values, sources, prompts, draws))
                facts = {"network": name, "readout": readout, "task": f"other generators, {view}"}
                record(**facts, value=round(np.mean(scores), 4), worst=round(min(scores), 4))
        for task, scores in (("digits", digits_top1(model)), ("formulas", formula_top1(model, Plan()))):
            for readout, value in scores.items():
                record(network=name, readout=readout, task=task, value=round(value, 4), worst="")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "probe.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
