"""Fit a detector on a Ray cluster, and with --check once more in this process, and compare the two.

On this machine, with two workers, the built-in images and the built-in backbone:
    python recipes/ray/run.py --cores 2 --check
On the cluster at RAY_ADDRESS:
    python recipes/ray/run.py s3://bucket/set --backbone vit_base_patch16_224 --out runs/det-ray
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options, collect_moments
from dna_probe.engines import open_engine
from dna_probe.images.layouts import read_images
from dna_probe.images.probe_set import probe_set
from dna_probe.location import layer_reading
from dna_probe.storage import require_free


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="folder, manifest or URL; left out, the built-in images")
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--shots", type=int, help="images per class; left out, all")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="folder for the detector")
    parser.add_argument("--cores", type=int, help="so many workers on this machine; left out, see docs/scaling.md")
    parser.add_argument("--check", action="store_true", help="do the same in this process, and compare")
    given = parser.parse_args(arguments)
    if given.out:
        require_free(given.out)

    if given.cores:
        ray.init("local", num_cpus=given.cores, include_dashboard=False, log_to_driver=False)
    open_engine("ray")
    print(f"{len(ray.nodes())} machines, {ray.cluster_resources().get('CPU', 0):g} cores")
    backbone = open_backbone(given.backbone)
    images = read_images(given.data) if given.data else probe_set()
    far = Options(batch_size=given.batch_size, engine="ray")
    detector = dna_probe.fit(backbone, images, given.shots, options=far)
    print(detector)
    if given.out:
        detector.save(given.out)
    if given.check:
        check(backbone, images, detector, given.shots, far)


def check(backbone, images, detector, shots: int | None, far: Options) -> None:
    """Raises ``SystemExit`` where this process finds anything else than the cluster."""
    near = replace(far, engine="local")
    same = dna_probe.fit(backbone, images, shots, options=near)
    some = images.subset(slice(0, 200))
    probabilities = [np.array([one.probability for one in found.judge(some)]) for found in (detector, same)]
    readings = [layer_reading(site) for site in backbone.layers]
    moments = [collect_moments(backbone, images, readings, options) for options in (far, near)]
    pairs = [
        (one.classes[label], moments[1][name].classes[label]) for name, one in moments[0].items() for label in (0, 1)
    ]
    apart = max(
        float(np.max(np.abs(getattr(one, part) - getattr(other, part)) / np.maximum(np.abs(getattr(other, part)), 1)))
        for one, other in pairs
        for part in ("mean", "m2", "low", "high")
    )
    found = {
        "units": detector.units == same.units,
        "probabilities": bool((probabilities[0] == probabilities[1]).all()),
        "counts": all(one.count == other.count for one, other in pairs),
        "moments to 1e-12": apart <= 1e-12,
    }
    for what, equal in found.items():
        print(f"{what}: {'equal' if equal else 'DIFFERENT'}")
    print(f"moments differ by {apart:.1e}")
    if not all(found.values()):
        raise SystemExit("The cluster and this process differ; see 'What is exact' in the README beside this file")


if __name__ == "__main__":
    main()
