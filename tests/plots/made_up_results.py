"""Made-up results in every shape that a figure has to hold; no model is run."""

from dataclasses import replace

import numpy as np

from dna_probe.evaluation.results import BenchmarkResult
from dna_probe.location import ATTENTION, DECOUPLING, Curve, LayerReport
from dna_probe.scoring import UnitScores
from dna_probe.sites import Reading, Site


def make_report(
    depth=12,
    taken=None,
    side=14,
    kind="blocks",
    energy=(),
    seed=0,
    rule="transition",
    zero=False,
    shapes=None,
    scale=1.0,
) -> LayerReport:
    """Curves and maps that look like a transformer's: broad maps that turn local, decoupling that rises."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, depth)
    rise = 1 / (1 + np.exp(-10 * (ramp - 0.55)))
    shapes = shapes or [(side, side)] * depth
    hook = "hook_resid_post" if kind == "blocks" else "hook_out"
    if taken is None:
        taken = [0.55 < r < 0.9 for r in ramp]
    size = {
        "cosine_shift": 0.3,
        "normalised_shift": 1.2,
        "fisher": 0.15,
        "attention_js": 0.006,
        "entropy_shift": -0.2,
        "distance_shift": -0.6,
    }
    curves = {}
    for name in (*DECOUPLING, *ATTENTION):
        if name == "spread":
            value = 0.97 - 0.25 * rise
        elif name == "probe_auc":
            value = 0.55 + 0.4 * rise
        else:
            value = scale * size[name] * (rise + 0.05 * rng.normal(size=depth))
        width = 0.08 * np.abs(value).max() * (0.5 + rng.random(depth))
        null = None if name in ("spread", "probe_auc") else 0.15 * np.abs(value).max() * (0.9 + 0.2 * rng.random(depth))
        if zero and name not in ("spread", "probe_auc"):
            value, width, null = np.zeros(depth), np.zeros(depth), np.zeros(depth)
        curves[name] = Curve(value, value - width, value + width, null)
    maps = {"real": [], "fake": []}
    for layer, (rows, cols) in enumerate(shapes):
        y, x = (
            np.mgrid[0 : 1 : rows * 1j, 0 : 1 : cols * 1j]
            if rows > 1
            else np.meshgrid([0.5], np.linspace(0, 1, cols), indexing="ij")
        )
        sharp = 0.5 - 0.3 * rise[layer]
        for label, (cy, cx) in {"real": (0.5, 0.5), "fake": (0.5, 0.5 + (0 if zero else 0.2 * rise[layer]))}.items():
            noise = np.random.default_rng(layer if zero else layer + 100 * (label == "fake")).random((rows, cols))
            values = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sharp**2)) + 0.15 * noise
            maps[label].append(values / values.sum())
    return LayerReport(
        layers=tuple(f"{kind}.{i}.{hook}" for i in range(depth)),
        curves=curves,
        maps={label: tuple(m) for label, m in maps.items()},
        attention_source=tuple("energy" if i in energy else "attention" for i in range(depth)),
        rule=rule,
        taken=tuple(bool(t) for t in taken),
        reasons=("made up",) * depth,
        provenance={"images": {"real": 4, "fake": 4}},
    )


def make_level() -> LayerReport:
    """A network without weights: attention uniform to five digits everywhere."""
    report = make_report(12, [True] * 12)
    flat = [m * 0 + (1 + 1e-5 * m) / m.size for m in report.maps["real"]]
    tilted = [m + 1e-7 * np.linspace(-1, 1, m.size).reshape(m.shape) for m in flat]
    level = 0.9999 + 5e-5 * np.sin(np.arange(12))
    curves = report.curves | {"spread": Curve(level, level - 2e-5, level + 2e-5)}
    return replace(report, curves=curves, maps={"real": tuple(flat), "fake": tuple(tilted)})


def make_cnn(depth=4, one_row=False) -> LayerReport:
    """Stages of a CNN: a map half the size at each, taken from the energy."""
    sides = [56, 28, 14, 7, 4][:depth]
    shapes = [(1, 30) if one_row and i == 0 else (s, s) for i, s in enumerate(sides)]
    return make_report(depth, [i >= depth - 2 for i in range(depth)], kind="stages", energy=range(depth), shapes=shapes)


def make_scores(layers=(5, 6, 7), width=128, seed=0, draws=10, kind="heavy") -> UnitScores:
    """Scores with a heavy tail, as products of factors have, or flat, or falling in a straight line."""
    rng = np.random.default_rng(seed)
    count = len(layers) * width
    score = {
        "heavy": lambda: np.abs(np.prod(rng.normal(size=(3, count)), axis=0)) * 1e-3,
        "flat": lambda: np.full(count, 0.5),
        "line": lambda: rng.permutation(np.linspace(0, 1, count)),
        "zero": lambda: np.zeros(count),
    }[kind]()
    sites = [
        Site(f"blocks.{i}.hook_resid_post", "residual", i, f"blocks.{i}", "output", "tokens", width, 1, True)
        for i in layers
    ]
    return UnitScores(
        readings=tuple(Reading(site, "cls") for site in sites),
        scorer="triadic",
        score=score,
        factors={"gradient": score},
        p_value=np.clip(rng.random(count) ** 6, 1e-12, 1),
        resamples=np.abs(score * rng.normal(1, 0.2, size=(draws, count))) if draws else np.empty((0, count)),
    )


METHODS = (
    "dna",
    "last-linear",
    "best-layer",
    "all-layers",
    "rine",
    "prototype",
    "knn",
    "rbf-svm",
    "l1",
    "random-units",
    "top-d",
    "metadata",
    "thumbnail",
    "random-weights",
)
TRANSFORMS = {
    "jpeg": (95, 90, 75, 50, 30),
    "double_jpeg": ("first quality 90, second quality 95", "first quality 60, second quality 70"),
    "webp": (90, 60, 30),
    **{f"resize_{kernel}": (0.75, 0.5, 0.25) for kernel in ("nearest", "box", "bilinear", "hamming", "lanczos")},
    **{name: (1, 2, 3) for name in ("gaussian_blur", "median", "gaussian_noise", "poisson_noise", "sharpen")},
    **{name: (0.9, 0.75, 0.5) for name in ("crop", "pad", "gamma", "colour_jitter", "grey", "screenshot")},
    "print_scan": ("mild", "strong"),
    "social": ("longest side 1280, quality 80", "longest side 768, quality 60"),
}


def make_benchmark(
    methods=("dna", "last-linear", "metadata"),
    shots=(1, 5, 10, 20, 50, "all"),
    generators=("midjourney", "stylegan2", "sdxl", "flux", "glide"),
    sides=(False, True),
    transforms=None,
    protocol=None,
    ahead=0.03,
    metadata_auc=0.55,
    seed=0,
) -> BenchmarkResult:
    """Methods that get better with images, ``dna`` ahead by ``ahead``; controls hardly better than chance."""
    rng = np.random.default_rng(seed)
    sizes = {n: 200 if n == "all" else n for n in shots}

    def level(method, n, seen):
        control = method in ("random-units", "random-weights", "metadata", "thumbnail")
        top = 0.58 + 0.1 * (method == "random-units") if control else 0.9
        gained = (top - 0.5) * (1 - np.exp(-0.9 * sizes[n] ** 0.4))
        return 0.5 + gained + ahead * (method == "dna") + 0.02 * seen + 0.012 * rng.normal()

    def interval(value, half=0.025):
        low, high = max(0.0, value - half), min(1.0, value + half)
        return {"value": float(np.clip(value, 0, 1)), "low": float(low), "high": float(high)}

    summary, by_generator, reliability, roc = [], [], [], []
    for seen in sides:
        for n in shots:
            for method in methods:
                value = level(method, n, seen)
                row = _summary_row(method, n, seen, interval(value, 0.08 / sizes[n] ** 0.3), generators, rng)
                if method != "last-linear" and "last-linear" in methods:
                    gap = (ahead if method == "dna" else -0.02) + 0.001 * rng.normal()
                    row["difference"] = {"value": gap, "low": gap - 0.012, "high": gap + 0.012, "p": 0.004}
                summary.append(row)
                for name, steps in (transforms or {}).items():
                    for i, step in enumerate(steps):
                        fallen = max(0.3, value - 0.07 * i - 0.02 - 0.03 * rng.random())
                        summary.append(
                            row
                            | {"transform": name, "severity": str(step), "level": i + 1, "difference": None}
                            | {"metrics": row["metrics"] | {"auc": interval(fallen)}}
                            | {"auc_drop": value - fallen, "flips": 0.03 * (i + 1)}
                        )
                for i, name in enumerate(generators):
                    by_generator.append(
                        {"method": method, "shots": n, "seen": seen, "test_on": name, "fake": 100}
                        | {"auc": interval(value + 0.04 - 0.03 * i), "balanced_accuracy": interval(value - 0.1)}
                    )
                predicted = np.sort(rng.beta(0.6, 0.6, 15))
                observed = np.clip(predicted + 0.15 * (value - 0.9) + 0.06 * rng.normal(size=15), 0, 1)
                reliability.append(
                    {"method": method, "shots": n, "seen": seen, "ece": float(np.abs(predicted - observed).mean())}
                    | {"predicted": predicted.tolist(), "observed": observed.tolist(), "weight": [1 / 15] * 15}
                )
                fpr = np.geomspace(0.001, 1, 61)
                tpr = fpr ** ((1 - value) / value)
                roc.append(
                    {"method": method, "shots": n, "seen": seen, "fpr": fpr.tolist(), "tpr": tpr.tolist()}
                    | {
                        "low": (tpr - 0.1 * (1 - fpr)).clip(0).tolist(),
                        "high": (tpr + 0.1 * (1 - fpr)).clip(0, 1).tolist(),
                    }
                )
    info = {
        "schema": "dna_probe.benchmark/1",
        "protocol": protocol or ("robustness" if transforms else "few-shot"),
        "settings": {"shots": list(shots), "draws": 10, "seed": 0},
        "data": {
            "origin": "photos_and_fakes",
            "describe": "600 images, 100 real, 500 fake by 5 generators",
            "fingerprint": "0123456789abcdef" * 4,
            "counts": {"real": 100, **dict.fromkeys(generators, 100)},
        },
        "audit": {
            "metadata_auc": metadata_auc,
            "thumbnail_auc": 0.61,
            "flags": ["fakes are saved at another JPEG quality"] if metadata_auc > 0.6 else [],
            "verdict": "Real and fake differ in their files." if metadata_auc > 0.6 else "No giveaway found.",
        },
        "backbone": {"name": "deit_tiny_q3", "weight_hash": "fedcba9876543210" * 4},
        "versions": {"dna_probe": "0.1.0", "torch": "2.9.0"},
        "methods": {name: f"what {name} does" for name in methods},
        "notes": ["3 images could not be read."],
    }
    return BenchmarkResult(info=info, summary=summary, by_generator=by_generator, reliability=reliability, roc=roc)


def _summary_row(method, shots, seen, auc, generators, rng):
    value = auc["value"]
    plain = {
        "average_precision": value - 0.01,
        "accuracy_real": 0.82,
        "accuracy_fake": 0.71,
        "tpr_at_1": max(0.0, value - 0.6),
        "tpr_at_5": max(0.0, value - 0.4),
        "eer": 1 - value,
        "ece": 0.2 - 0.15 * value,
        "brier": 0.35 - 0.2 * value,
        "oracle_balanced_accuracy": value - 0.05,
        "common_oracle_balanced_accuracy": value - 0.07,
        "unsure_share": 0.2,
        "accuracy_sure": value,
        "fpr": 0.062,
    }
    half = 0.02 + 0.01 * rng.random()
    balanced = {"value": value - 0.1, "low": value - 0.1 - half, "high": value - 0.1 + half}
    return {
        "method": method,
        "shots": shots,
        "seen": seen,
        "transform": "",
        "severity": "",
        "level": 0,
        "cells": 50,
        "units": 84.0 if method == "dna" else None,
        "metrics": {"auc": auc, "balanced_accuracy": balanced} | {name: {"value": v} for name, v in plain.items()},
        "worst_test": {"generator": generators[-1], "auc": value - 0.08},
        "worst_train": {"generator": generators[0], "auc": value - 0.05},
        "difference": None,
        "auc_drop": None,
        "flips": None,
    }
