"""From files to features: decoding, resizing and the model, against the model alone on pixels in memory."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from speed.measuring import Block
from speed.peers import all_sites, bare, pixels_for, readings_of

from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.collection import Options, collect_features
from dna_probe.images.sets import ImageSet

PHOTOGRAPH, LARGE = (500, 375), (4000, 3000)
CHUNKS = 10


def end_to_end(model: str, batch: int, count: int = 1000, large_share: float = 0.1) -> list[Block]:
    """Throughput from files over that of the bare forward, in chunks that take turns; the median of their ratios."""
    backbone = open_backbone(model, random_weights=True, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder) / "small", count, PHOTOGRAPH, distinct=count)
        some = round(count * large_share)
        large = photographs(Path(folder) / "large", some, LARGE, distinct=min(10, some))
        mixed = [large[i * some // count] if is_large(i, some, count) else file for i, file in enumerate(files)]
        small, big = (" x ".join(map(str, size)) for size in (PHOTOGRAPH, LARGE))
        told = (f"{count} JPEG files of {small}", f"the same, {large_share:.0%} of them {big}")
        rows = [
            {"photographs": what, **throughput(backbone, chosen, batch)}
            for what, chosen in zip(told, (files, mixed), strict=True)
        ]
    return [Block(f"From files to features: {model}, batch {batch}, all residual and MLP sites", rows)]


def is_large(position: int, some: int, count: int) -> bool:
    """True at ``some`` of ``count`` positions, evenly spread."""
    return (position + 1) * some // count > position * some // count


def throughput(backbone: Backbone, files: Sequence[Path], batch: int) -> dict[str, Any]:
    readings = readings_of(backbone, all_sites(backbone))
    pixels, alone = pixels_for(backbone, batch), bare(backbone, ())
    size = len(files) // CHUNKS

    def model_only() -> None:
        for start in range(0, size, batch):
            alone(pixels[: min(batch, size - start)])

    def from_files(chunk: Sequence[Path]) -> None:
        images = ImageSet(tuple(chunk), np.arange(len(chunk)) % 2)
        collect_features(backbone, images, readings, options=Options(batch_size=batch))

    model_only()
    took = []
    for i in range(CHUNKS):
        chunk = files[i * size : (i + 1) * size]
        turns = [model_only, lambda chunk=chunk: from_files(chunk)]
        pair = {}
        for turn in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            turns[turn]()
            pair[turn] = time.perf_counter() - start
        took.append((pair[0], pair[1]))
    seconds = np.array(took)
    return {
        "end-to-end / model only": float(np.median(seconds[:, 0] / seconds[:, 1])),
        "images per second, end-to-end": float(size / np.median(seconds[:, 1])),
        "model only": float(size / np.median(seconds[:, 0])),
    }


def photographs(folder: Path, count: int, size: tuple[int, int], distinct: int) -> list[Path]:
    """JPEG files that decode and compress like photographs; those beyond ``distinct`` are copies."""
    folder.mkdir(parents=True)
    paths = [folder / f"{position}.jpg" for position in range(count)]
    for position, path in enumerate(paths):
        if position < distinct:
            photograph(size, position).save(path, quality=90)
        else:
            shutil.copy(paths[position % distinct], path)
    return paths


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """A gradient under noise whose power falls with frequency, as it does in photographs, and some grain."""
    rng = torch.Generator().manual_seed(seed)
    height, width = size[1], size[0]
    scene = torch.linspace(-1, 1, height)[None, None, :, None] * torch.randn(1, 3, 1, 1, generator=rng)
    scene = scene.expand(1, 3, height, width).clone()
    for cells in (4, 8, 16, 32, 64, 128):
        noise = torch.randn(1, 3, cells, cells, generator=rng)
        scene += torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear") * (2 / cells**0.7)
    scene += 0.03 * torch.randn(1, 1, height, width, generator=rng)
    return Image.fromarray((128 + 50 * scene[0]).clamp(0, 255).byte().permute(1, 2, 0).numpy())
