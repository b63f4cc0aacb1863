"""What dna_probe costs beside the tools that do the same: time, memory, and whether the numbers are right.

    python benchmarks/speed/run.py --out runs/speed                  all sections; some 40 minutes on two cores
    python benchmarks/speed/run.py --out runs/speed --only growth    one of them
    python benchmarks/speed/run.py --out runs/speed --only "" --write    what was measured, into RESULTS.md

Times are medians of ratios to a bare forward measured in turns with it (`paired` in benchmarks/collection.py). Memory
is measured for each tool in a process of its own: with libraries, model, tool and pixels loaded, the kernel's
high-water mark of resident memory is set back, three batches run, and what was resident before is taken off.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import trimming
import typer
from collection import paired
from evaluation import RESULTS, rewrite, table
from rich.console import Console
from rich.table import Table
from speed.end_to_end import end_to_end
from speed.growth import growth
from speed.measuring import THREADS, Block
from speed.peers import all_sites, collected, labels_for, opened, peers, pixels_for, readings_of

from dna_probe.backbones import open_backbone
from dna_probe.collection import Options
from dna_probe.images.sets import ImageSet
from dna_probe.precision import measure_agreement

LIBRARIES = ("torch", "timm", "torchvision", "captum", "nnsight", "transformer-lens", "transformers")


def main(
    out: Annotated[Path, typer.Option(help="Folder for what was measured, one file for each section.")],
    models: Annotated[str, typer.Option(help="timm names by comma.")] = "vit_small_patch16_224,vit_base_patch16_224",
    batch: Annotated[int, typer.Option()] = 16,
    rounds: Annotated[int, typer.Option(help="Turns; medians of the paired ratios are given.")] = 7,
    only: Annotated[str | None, typer.Option(help="Sections by comma; left out, all.")] = None,
    write: Annotated[bool, typer.Option(help="Write all that was measured into RESULTS.md.")] = False,
) -> None:
    torch.set_num_threads(THREADS)
    names = models.split(",")
    sections: dict[str, Callable[[], Iterable[Block]]] = {
        "peers": lambda: peers(names, batch, rounds),
        "growth": lambda: growth(names[0], batch, rounds),
        "end-to-end": lambda: end_to_end(names[0], batch),
        "on-request": lambda: [on_request(name, batch, rounds) for name in names],
        "trimmed": lambda: [trimmed(name, batch, rounds) for name in names],
    }
    wanted = list(sections) if only is None else [name for name in only.split(",") if name]
    unknown = [name for name in wanted if name not in sections]
    if unknown:
        raise typer.BadParameter(f"no section {unknown[0]!r}; there are {', '.join(sections)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        blocks = []
        for block in sections[name]():
            show(block)
            blocks.append(asdict(block))
        (out / f"{name}.json").write_text(json.dumps(blocks, indent=1))
    if write:
        stored = [json.loads(path.read_text()) for path in (out / f"{name}.json" for name in sections) if path.exists()]
        rewrite("speed", section([Block(**block) for blocks in stored for block in blocks]))
        typer.echo(f"written into {RESULTS}")


def on_request(model: str, batch: int, rounds: int) -> Block:
    """The statistics of all sites in half precision and compiled, by the time of the plain ones."""
    backbone = opened(model)
    pixels, names = pixels_for(backbone, batch), all_sites(backbone)
    plain, readings, rows = collected(backbone, names), readings_of(backbone, names), []
    units = {reading: range(reading.width) for reading in readings}
    images = ImageSet(tuple(pixels.numpy()), labels_for(pixels))
    for what, how in {
        "`--precision bfloat16`": {"precision": "bfloat16"},
        "`--compile`": {"compile": True},
    }.items():
        asked = collected(backbone, names, **how)
        start = time.perf_counter()
        asked(pixels)
        first = time.perf_counter() - start
        row = {"asked for": what, "time / plain": paired(lambda: plain(pixels), lambda run=asked: run(pixels), rounds)}
        row |= {"first batch, s": first, "median correlation": None, "lowest": None}
        if "precision" in how:
            found = measure_agreement(backbone, images, units, Options(**how))
            row |= {"median correlation": found.correlation, "lowest": found.lowest_correlation}
        rows.append(row)
    return Block(f"Statistics of all residual and MLP sites, on request: {model}, batch {batch}", rows)


def trimmed(model: str, batch: int, rounds: int) -> Block:
    """What a detector costs by the whole forward, by its deepest layer: as benchmarks/trimming.py measures it."""
    backbone = open_backbone(model, random_weights=True, device="cpu")
    rows = []
    for layer in (backbone.depth // 2, 3 * backbone.depth // 4, backbone.depth):
        *ratios, change = trimming.measure(backbone, layer, batch, rounds)
        times = dict(zip(("stopped early", "trimmed", "compiled"), ratios, strict=True))
        rows.append({"deepest layer": f"{layer} of {backbone.depth}", **times})
        rows[-1] |= {"share of the layers": layer / backbone.depth, "change of probability": f"{change:.0g}"}
    return Block(f"A detector, time by the whole forward's: {model}, batch {batch}", rows)


def show(block: Block) -> None:
    drawn = Table(*block.head, title=f"{block.title}, random weights, two threads", title_justify="left")
    for line in block.lines:
        drawn.add_row(*line)
    Console(width=180).print(drawn)


def section(blocks: list[Block]) -> str:
    versions = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
    parts = [f"Measured on {date.today().isoformat()}, random weights, two threads; {versions}."]
    for block in blocks:
        parts += [f"{block.title}:", table(block.head, block.lines)]
    return "\n\n".join(parts)


def installed(name: str) -> str:
    """The version of a library; a peer that is not there is told in its row."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    typer.run(main)
