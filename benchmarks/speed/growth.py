"""How time and memory of ``collect_moments`` grow with images, sites and width."""

import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from collection import paired
from PIL import Image
from speed.measuring import Block, apart, peak_of
from speed.peers import OURS, TINY, all_sites, bare, collected, opened, peak_memory, pixels_for, readings_of

from dna_probe.backbones import open_backbone
from dna_probe.collection import Options, collect_moments
from dna_probe.content import StoredSample
from dna_probe.images.sets import ImageSet

COUNTS = (1_000, 5_000, 20_000)
SITES = (1, 6, 12, 24)
WIDTHS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")


def growth(model: str, batch: int, rounds: int) -> Iterator[Block]:
    yield with_images(batch)
    yield with_sites(model, batch, rounds)
    yield with_width(batch, rounds)


def with_images(batch: int) -> Block:
    """From JPEG files in memory, decoding and resizing included; each count in a process of its own."""
    rows = [apart(images_collected, count, batch) for count in COUNTS]
    smallest = rows[0]["peak of the process, MB"]
    rows = [{**row, "peak / that of the fewest": row["peak of the process, MB"] / smallest} for row in rows]
    return Block(f"Growth with images: {TINY}, all residual and MLP sites", rows)


def images_collected(count: int, batch: int, distinct: int = 64) -> dict[str, Any]:
    backbone = open_backbone(TINY, random_weights=True, device="cpu")
    readings = readings_of(backbone, all_sites(backbone))
    files = made_files(distinct)
    images = ImageSet(tuple(files[i % distinct] for i in range(count)), np.arange(count) % 2)
    took: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        collect_moments(backbone, images, readings, Options(batch_size=batch))
        took.append(time.perf_counter() - start)

    # Once is what a user does; and the first batches would hide growth in a second run.
    peak = peak_of(run, times=1)
    return {
        "images": f"{count:,}".replace(",", " "),
        "ms per image": 1000 * took[0] / count,
        "peak above what was loaded, MB": peak.above,
        "peak of the process, MB": peak.process,
    }


def made_files(count: int) -> list[StoredSample]:
    rng = np.random.default_rng(0)
    made = []
    for position in range(count):
        stream = BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((320, 240)).save(stream, "JPEG")
        made.append(StoredSample(f"{position}.jpg", stream.getvalue(), "image"))
    return made


def with_sites(model: str, batch: int, rounds: int) -> Block:
    """The deepest sites, so that the forward runs to its last block in all."""
    return Block(
        f"Growth with sites: {model}, batch {batch}", [measured(model, batch, rounds, count) for count in SITES]
    )


def with_width(batch: int, rounds: int) -> Block:
    rows = [{"model": model, **measured(model, batch, rounds)} for model in WIDTHS]
    return Block(f"Growth with width: all residual and MLP sites, batch {batch}", rows)


def measured(model: str, batch: int, rounds: int, last: int = 0) -> dict[str, Any]:
    backbone = opened(model)
    pixels, names = pixels_for(backbone, batch), all_sites(backbone)[-last:]
    base, run = bare(backbone, names), collected(backbone, names)
    least, peak = (apart(peak_memory, model, *way, batch, last) for way in (("bare", ""), ("statistics", OURS)))
    return {
        "sites": len(names),
        "units": sum(reading.width for reading in readings_of(backbone, names)),
        "time / bare": paired(lambda: base(pixels), lambda: run(pixels), rounds),
        "peak / bare": peak.over(least),
        "peak, MB": peak.above,
    }
