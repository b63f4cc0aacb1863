"""Throughput of an exported detector in onnxruntime, next to the detector in PyTorch, plain and compiled.

python benchmarks/export.py [--backbone vit_small_patch16_224] [--int8] [--images 32] [--rounds 7] [--threads 2]

Weights are random; the fakes carry a faint checkerboard. Images are 256 x 256 and lie decoded in memory, so that
preprocessing counts and decoding does not. Each round runs all of them in turn, and ratios are taken within a round:
what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SIZE, STRENGTH = 256, 24


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--int8", action="store_true", help="the file with weights of 8 bits as well")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_images(count: int) -> tuple[list[np.ndarray], list[int]]:
    """Crops of photographs, and each again with the trace."""
    from dna_probe.images.probe_set import probe_set

    photographs = [image for image, label in zip(probe_set().images, probe_set().labels, strict=True) if label == 0]
    y, x = np.mgrid[:SIZE, :SIZE]
    trace = np.where((x // 2 + y // 2) % 2 == 0, STRENGTH, -STRENGTH)[..., None]
    reals = [np.asarray(photographs[i % len(photographs)].resize((SIZE, SIZE))) for i in range(count // 2)]
    fakes = [np.clip(real.astype(int) + trace, 0, 255).astype(np.uint8) for real in reals]
    return reals + fakes, [0] * len(reals) + [1] * len(fakes)


def seconds(detector: Any, images: list[np.ndarray], options: Any) -> float:
    start = time.perf_counter()
    detector.judge(images, options)
    return time.perf_counter() - start


def main() -> None:
    arguments = read_arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    import dna_probe
    from dna_probe.collection import Options
    from dna_probe.exported import ExportedDetector

    torch.set_num_threads(arguments.threads)
    images, labels = make_images(arguments.images)
    backbone = dna_probe.open_backbone(arguments.backbone, random_weights=True, device="cpu")
    plain = dna_probe.fit(backbone, (images, labels), views=())
    compared = {"PyTorch": plain, "PyTorch, compiled": plain.compile()}
    with tempfile.TemporaryDirectory() as folder:
        for name, int8 in {"onnxruntime": False, "onnxruntime, int8": True}.items():
            if int8 and not arguments.int8:
                continue
            report = dna_probe.export(plain, Path(folder, f"{int8}.onnx"), int8=int8, agree=images)
            Console(stderr=True).print(repr(report))
            compared[name] = ExportedDetector.open(report.path, arguments.threads)
    table = Table("batch", "detector", "images / s", "times PyTorch", "times compiled", "largest difference")
    for batch_size in (16, 1):
        options = Options(batch_size=batch_size, workers=0)
        expected = plain.predict_proba(images, options)[:, 1]
        gaps = {k: np.abs(d.predict_proba(images, options)[:, 1] - expected).max() for k, d in compared.items()}
        times = [{k: seconds(d, images, options) for k, d in compared.items()} for _ in range(arguments.rounds)]
        for name in compared:
            against = [
                f"{statistics.median(one[other] / one[name] for one in times):.2f}"
                for other in ("PyTorch", "PyTorch, compiled")
            ]
            rate = len(images) / min(one[name] for one in times)
            table.add_row(str(batch_size), name, f"{rate:.1f}", *against, f"{gaps[name]:.1e}")
    Console(width=120).print(repr(plain))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
