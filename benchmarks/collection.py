"""What the passes cost beside the bare forward, as ratios measured side by side in one run.

python benchmarks/collection.py                     passes, early stop, memory (random-weight vit_small_patch16_224)
python benchmarks/collection.py --fit-data DATA --fit-backbone FILE.py:factory      fit against the passes it needs
"""

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options, collect_moments
from dna_probe.gradients import LinearHead, collect_gradients, site_gradients
from dna_probe.images.sampling import draw_shots
from dna_probe.images.sets import ImageSet
from dna_probe.location import collect_layer_features, layer_reading
from dna_probe.moments import ClassMoments
from dna_probe.scoring import reference_head
from dna_probe.sites import Reading


def main(
    model: Annotated[str, typer.Option()] = "vit_small_patch16_224",
    batch: Annotated[int, typer.Option()] = 16,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians of the paired ratios are printed.")] = 7,
    fit_data: Annotated[Path | None, typer.Option()] = None,
    fit_backbone: Annotated[str | None, typer.Option()] = None,
) -> None:
    torch.set_num_threads(2)
    rows: list[tuple[str, float, str]] = []
    backbone = open_backbone(model, random_weights=True)
    rows += passes(backbone, batch, rounds)
    rows += early_stop(backbone, batch, rounds)
    rows.append(memory(backbone, batch))
    if fit_data and fit_backbone:
        rows += fitting(open_backbone(fit_backbone), fit_data)
    table = Table("what", "measured", "to reach", title=f"{model}, random weights, batch {batch}, two threads")
    for what, value, goal in rows:
        table.add_row(what, f"{value:.2f}", goal)
    Console(width=120).print(table)


def paired(base: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Median over rounds of time(other) / time(base), measured alternately, so that drift of the machine cancels."""
    base(), other()
    ratios = []
    for i in range(rounds):
        order = (base, other) if i % 2 == 0 else (other, base)
        took = {}
        for function in order:
            start = time.perf_counter()
            function()
            took[function] = time.perf_counter() - start
        ratios.append(took[other] / took[base])
    return float(np.median(ratios))


def passes(backbone, batch: int, rounds: int) -> list[tuple[str, float, str]]:
    """Streaming statistics and the triadic pass over every residual and MLP site against the bare forward."""
    pixels = torch.randn(batch, 3, *backbone.preprocessing.input_size)
    labels = np.arange(batch) % 2
    sites = [s for s in backbone.sites.values() if s.kind in ("residual", "stage", "mlp")]
    readings = [Reading(s, s.default_reduction) for s in sites]
    width = sum(r.width for r in readings)

    def bare() -> None:
        with torch.inference_mode():
            backbone.module(pixels)

    def statistics() -> None:
        moments, kept = ClassMoments(width), {}
        visit = {r.site.name: (lambda a, r=r: kept.__setitem__(r.name, r.reduce(a))) for r in readings}
        with torch.inference_mode(), backbone.visiting(visit, stop=False) as run:
            run(pixels)
            moments.update(torch.cat([kept[r.name] for r in readings], 1).numpy(), labels)

    last = layer_reading(backbone.layers[-1])
    ones = np.ones(last.width)
    head = LinearHead(last, 0 * ones, ones, ones, 0.0)

    def triadic() -> None:
        with site_gradients(backbone, sites, [head]) as differentiate:
            list(differentiate(pixels, [0]))

    return [
        ("statistics of all residual and MLP sites / bare forward", paired(bare, statistics, rounds), "<= 1.15"),
        ("triadic pass over all sites / bare forward", paired(bare, triadic, rounds), "<= 2.6"),
    ]


def early_stop(backbone, batch: int, rounds: int) -> list[tuple[str, float, str]]:
    """``predict_proba`` of detectors whose deepest unit lies at several depths, against the whole backbone."""
    rng = np.random.default_rng(0)
    side = backbone.preprocessing.input_size
    images = [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for _ in range(batch)]
    labels = np.arange(batch) % 2
    pixels = torch.randn(batch, 3, *side)

    def bare() -> None:
        with torch.inference_mode():
            backbone.module(pixels)

    rows = []
    for layer in (backbone.depth // 2 - 1, backbone.depth - 3, backbone.depth - 1):
        detector = dna_probe.fit(backbone, (images, labels), layers=[backbone.layers[layer].name], scorer="cohens_d")
        options = Options(batch_size=batch)
        ratio = paired(bare, lambda d=detector, o=options: d.predict_proba(images, o), rounds)
        limit = (layer + 1) / backbone.depth + 0.05
        rows.append((f"predict_proba, deepest unit in layer {layer + 1} of {backbone.depth}", ratio, f"<= {limit:.2f}"))
    return rows


def memory(backbone, batch: int) -> tuple[str, float, str]:
    """Growth of resident memory, in MB, from 200 to 2 000 images of streaming statistics (small model)."""
    small = open_backbone("vit_tiny_patch16_224", random_weights=True)
    readings = [Reading(s, s.default_reduction) for s in small.sites.values() if s.kind in ("residual", "mlp")]
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), 200)
        seen = []
        for count in (200, 2000):
            chosen = tuple(files[i % 200] for i in range(count))
            collect_moments(small, ImageSet(chosen, np.arange(count) % 2), readings, Options(batch_size=batch))
            gc.collect()
            seen.append(resident())
    return "resident memory from 200 to 2 000 images, MB", seen[1] - seen[0], "<= 30"


def photographs(folder: Path, count: int) -> list[Path]:
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((300, 260)).save(path)
    return paths


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def fitting(backbone, data: Path) -> list[tuple[str, float, str]]:
    """``fit`` on 50 + 50 images against its two passes alone, and again from the cache."""
    images = dna_probe.read_images(data)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        detector = dna_probe.fit(backbone, images, shots=50, options=Options(cache=cache))
        whole = time.perf_counter() - start
        start = time.perf_counter()
        dna_probe.fit(backbone, images, shots=50, options=Options(cache=cache))
        again = time.perf_counter() - start
    train = draw_shots(images, 50, 0)
    start = time.perf_counter()
    features = collect_layer_features(backbone, train)
    first = time.perf_counter() - start
    last = layer_reading(backbone.layers[-1])
    head = reference_head(features, last)
    start = time.perf_counter()
    collect_gradients(backbone, train, detector.scores.readings, head)
    second = time.perf_counter() - start
    return [
        (f"fit, 50 + 50 images on {backbone.name} / its passes", whole / (first + second), "<= 1.5"),
        ("the same again from the cache, seconds", again, "<= 2"),
    ]


if __name__ == "__main__":
    typer.run(main)
