"""What a detector costs as a share of its whole backbone: stopped early, trimmed, and compiled, side by side.

python benchmarks/trimming.py                       random-weight vit_small_patch16_224 and vit_base_patch16_224
python benchmarks/trimming.py --models NAME,NAME --batch 1
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from collection import paired
from rich.console import Console
from rich.table import Table

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.detector import Detector
from dna_probe.trimming import trim

# How much less than its share of the layers a compiled detector may cost.
GOAL = 0.95
LAYERS = 5
UNITS = 600


def main(
    models: Annotated[str, typer.Option(help="timm names by comma.")] = "vit_small_patch16_224,vit_base_patch16_224",
    batch: Annotated[int, typer.Option()] = 16,
    rounds: Annotated[int, typer.Option(help="Turns; medians of the paired ratios are printed.")] = 9,
    deepest: Annotated[str, typer.Option(help="Deepest layers of the detectors, counted from 1.")] = "6,9,12",
) -> None:
    torch.set_num_threads(2)
    for model in models.split(","):
        backbone = open_backbone(model, random_weights=True, device="cpu")
        columns = ["deepest layer", "stopped early", "trimmed", "compiled", "to reach", "largest change of probability"]
        table = Table(*columns, title=f"{model}, random weights, batch {batch}, two threads; the whole forward is 1")
        for layer in map(int, deepest.split(",")):
            *ratios, change = measure(backbone, layer, batch, rounds)
            share = GOAL * layer / backbone.depth
            times = [f"{ratio:.3f}" for ratio in ratios]
            table.add_row(f"{layer} of {backbone.depth}", *times, f"<= {share:.3f}", f"{change:.0e}")
        Console(width=130).print(table)


def measure(backbone: Backbone, layer: int, batch: int, rounds: int) -> tuple[float, float, float, float]:
    """Time of the three readers by that of the whole forward, and how far the last moves probabilities."""
    detector = fitted(backbone, layer)
    compiled = detector.compile()
    if compiled.trimmed is None or compiled.trimmed.reader is None:
        raise RuntimeError(repr(compiled))
    trimmed, reader = trim(backbone, detector.units_by_reading), compiled.trimmed.reader
    pixels = torch.randn(batch, 3, *backbone.preprocessing.input_size)
    wanted = detector.units_by_reading

    def whole() -> None:
        backbone.module(pixels)

    def stopped() -> np.ndarray:
        found = {}

        def visit(name: str) -> Callable[[torch.Tensor], None]:
            own = [reading for reading in wanted if reading.site.name == name]
            return lambda activation: found.update({reading: reading.reduce(activation) for reading in own})

        with backbone.visiting({reading.site.name: visit(reading.site.name) for reading in wanted}) as run:
            run(pixels)
        return judged(torch.cat([found[reading][:, units] for reading, units in wanted.items()], 1))

    def judged(units: torch.Tensor) -> np.ndarray:
        return detector.anchor.predict_proba(units.numpy())[:, 1]

    with torch.inference_mode():
        readers = (stopped, lambda: judged(trimmed(pixels)), lambda: judged(reader(pixels)))
        ratios = [paired(whole, read, rounds) for read in readers]
        change = float(np.abs(readers[-1]() - stopped()).max())
    return ratios[0], ratios[1], ratios[2], change


def fitted(backbone: Backbone, layer: int) -> Detector:
    """A detector on the class token and the mean of five layers, the last of them given, some 600 units in all."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*backbone.preprocessing.input_size, 3), dtype=np.uint8) for _ in range(12)]
    names = [site.name for site in backbone.layers[max(layer - LAYERS, 0) : layer]]
    labels = np.arange(12) % 2
    return dna_probe.fit(backbone, (images, labels), layers=names, scorer="cohens_d", views=(), cut="top_k", k=UNITS)


if __name__ == "__main__":
    typer.run(main)
