"""Made-up results in every shape that a figure has to hold; no model is run."""

from dataclasses import replace

import numpy as np

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
