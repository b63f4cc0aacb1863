"""Locate the layers where attention turns from global semantics to local anomalies and real and fake come apart.

Two families of curves over depth:

* *feature decoupling* between the real and the fake class, on each layer's default reading: ``cosine_shift``
  1 - cos(mu_fake, mu_real) and ``normalised_shift`` ||mu_fake - mu_real|| / sqrt(width * mean variance) (V-FIND,
  arXiv 2608.03008), ``fisher`` (the Fisher criterion (mu_fake - mu_real)^2 / (var_fake + var_real), mean over units)
  and ``probe_auc`` (out-of-fold AUC of a linear probe, folds by group);
* *attention shift*, on the head-averaged CLS-to-patch attention, or the spatial energy map of a layer without
  attention: ``attention_js`` (Jensen-Shannon divergence of the class-mean maps, in nats), ``entropy_shift`` and
  ``distance_shift`` (fake minus real of the map's entropy in nats and of the mean attention distance in patches), and
  the label-free ``spread``, the map's entropy as a share of its maximum: 1 looks everywhere, 0 at one patch.

Every curve carries a bootstrap interval over groups, and the class-comparing ones the level that shuffled labels reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Features, Options, collect_features
from dna_probe.errors import DataError
from dna_probe.images.probe_set import probe_set
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import ImageSet
from dna_probe.layer_rules import LayerChoice, choose_layers, require_rule
from dna_probe.precision import agreement_of
from dna_probe.probing import folds, out_of_fold_scores, small_fits
from dna_probe.samples import read_samples
from dna_probe.sites import Reading, Site

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.backbones.contract import Backbone

DECOUPLING = ("cosine_shift", "normalised_shift", "fisher", "probe_auc")
ATTENTION = ("attention_js", "entropy_shift", "distance_shift", "spread")
NOT_COMPARING_CLASSES = ("spread",)
MAX_IMAGES = 4000


@dataclass(frozen=True)
class Curve:
    """One number per layer with its 95 % bootstrap interval.

    ``null`` is the 95th percentile of the size of the value under shuffled labels.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null: np.ndarray | None = None


@dataclass(frozen=True)
class LayerReport:
    """Curves over depth and the layers a rule took from them.

    Attributes:
        layers: site name of each layer, shallow to deep.
        curves: curve name -> ``Curve``.
        maps: ``real`` and ``fake`` -> the class-mean map of each layer, (rows, cols), summing to one.
        attention_source: ``attention`` or ``energy``, what each layer's map was taken from.
        skipped: images that could not be read, with the reason.
        rule: name of the layer rule. ``taken`` and ``reasons`` are its verdict on each layer.
        provenance: backbone, weights, data fingerprint and parameters.
    """

    layers: tuple[str, ...]
    curves: Mapping[str, Curve]
    maps: Mapping[str, tuple[np.ndarray, ...]]
    attention_source: tuple[str, ...]
    rule: str
    taken: tuple[bool, ...]
    reasons: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def selected(self) -> list[str]:
        """Site names of the layers taken, shallow to deep."""
        return [name for name, taken in zip(self.layers, self.taken, strict=True) if taken]

    def with_rule(self, rule: str, **parameters: float) -> LayerReport:
        """The same curves under another layer rule."""
        choice = choose_layers(rule, {name: curve.value for name, curve in self.curves.items()}, **parameters)
        return replace(self, rule=rule, taken=choice.taken, reasons=choice.reasons)

    def table(self) -> pd.DataFrame:
        """One row per layer: site, taken, reason and every curve with its interval."""
        import pandas as pd

        columns: dict[str, Any] = {"site": self.layers, "taken": self.taken, "reason": self.reasons}
        for name, curve in self.curves.items():
            columns |= {name: curve.value, f"{name}_low": curve.low, f"{name}_high": curve.high}
        return pd.DataFrame(columns)

    def to_json(self) -> dict[str, Any]:
        def curves_at(i: int) -> dict[str, Any]:
            return {
                name: {"value": float(c.value[i]), "low": float(c.low[i]), "high": float(c.high[i])}
                | ({} if c.null is None else {"null": float(c.null[i])})
                for name, c in self.curves.items()
            }

        return {
            "schema": "dna_probe.layers/1",
            "rule": self.rule,
            "selected": self.selected,
            "layers": [
                {
                    "site": name,
                    "taken": self.taken[i],
                    "reason": self.reasons[i],
                    "curves": curves_at(i),
                    "map_source": self.attention_source[i],
                    "maps": {label: np.round(maps[i], 8).tolist() for label, maps in self.maps.items()},
                }
                for i, name in enumerate(self.layers)
            ],
            "skipped": [list(pair) for pair in self.skipped],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerReport:
        rows = data["layers"]
        names = rows[0]["curves"]

        def column(name: str, key: str) -> np.ndarray:
            return np.array([row["curves"][name][key] for row in rows])

        return cls(
            layers=tuple(row["site"] for row in rows),
            curves={
                name: Curve(
                    column(name, "value"),
                    column(name, "low"),
                    column(name, "high"),
                    column(name, "null") if "null" in names[name] else None,
                )
                for name in names
            },
            maps={label: tuple(np.array(row["maps"][label]) for row in rows) for label in ("real", "fake")},
            attention_source=tuple(row["map_source"] for row in rows),
            rule=data["rule"],
            taken=tuple(row["taken"] for row in rows),
            reasons=tuple(row["reason"] for row in rows),
            skipped=tuple((name, reason) for name, reason in data["skipped"]),
            provenance=data["provenance"],
        )

    def __repr__(self) -> str:
        lines = [f"LayerReport: rule '{self.rule}' took {len(self.selected)} of {len(self.layers)} layers"]
        for i, name in enumerate(self.layers):
            mark = "*" if self.taken[i] else " "
            values = "  ".join(
                f"{key} {self.curves[key].value[i]:.3g}" for key in ("cosine_shift", "attention_js", "spread")
            )
            lines.append(f" {mark} {name:28s} {values}  {self.reasons[i]}")
        return "\n".join(lines)


def locate_layers(
    model: Any,
    data: Any = None,
    *,
    rule: str = "transition",
    resamples: int = 200,
    seed: int = 0,
    options: Options | None = None,
    **rule_parameters: float,
) -> LayerReport:
    """Curves over depth for a model on real and fake images, and the layers that ``rule`` takes.

    Args:
        model: any ``torch.nn.Module``, a backbone name, or a ``Backbone``.
        data: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; None takes the built-in probe set of
            images. For backbones of texts or sounds, texts or recordings instead; see ``samples.read_samples``.
        rule: name of a layer rule, see ``dna_probe.layer_rules``; ``rule_parameters`` go to it.
        resamples: bootstrap and permutation draws.

    At most 4 000 images are read, drawn evenly from both classes, so that memory stays bounded.

    Raises:
        DataError: no folder, one class only, nothing readable.
        BackboneError, SiteError, NumericalError: the model cannot be probed.
    """
    from dna_probe.backbones import open_backbone

    require_rule(rule)
    backbone = open_backbone(model)
    if data is None and backbone.preprocessing.modality != "image":
        raise DataError(
            f"{backbone.name} needs labelled samples to locate its layers on",
            "The built-in probe set holds images",
            "Give data: a folder, a table, or (samples, labels)",
        )
    images = probe_set() if data is None else read_samples(data)
    require_two_classes(images)
    images = bounded(images, seed)
    features = collect_layer_features(backbone, images, options)
    report = report_layers(backbone, features, rule=rule, resamples=resamples, seed=seed, **rule_parameters)
    agreement = agreement_of(backbone, features.images, layer_units(backbone), options)
    return replace(report, provenance={**report.provenance, **agreement})


def bounded(images: ImageSet, seed: int) -> ImageSet:
    """At most ``MAX_IMAGES`` images, half of each class where there are that many."""
    if len(images) <= MAX_IMAGES:
        return images
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(np.flatnonzero(images.labels == label))[: MAX_IMAGES // 2] for label in (0, 1)]
    return images.subset(np.sort(np.concatenate(kept)))


def layer_reading(site: Site) -> Reading:
    return Reading(site, site.default_reduction)


def layer_units(backbone: Backbone) -> dict[Reading, range]:
    """All units of every layer's reading."""
    return {reading: range(reading.width) for reading in map(layer_reading, backbone.layers)}


def map_site(backbone: Backbone, site: Site) -> Site:
    """Where the layer's map comes from: its attention pattern, or the layer itself."""
    return backbone.pattern(site.layer) or site


def collect_layer_features(backbone: Backbone, images: ImageSet, options: Options | None = None) -> Features:
    """What ``report_layers`` needs of each image, in one forward pass."""
    readings = list(layer_units(backbone))
    return collect_features(backbone, images, readings, [map_site(backbone, s) for s in backbone.layers], options)


def report_layers(
    backbone: Backbone,
    features: Features,
    *,
    rule: str = "transition",
    resamples: int = 200,
    seed: int = 0,
    **rule_parameters: float,
) -> LayerReport:
    """The curves and the choice from features already collected.

    Raises:
        DataError: a class has no readable image.
    """
    images = features.images
    require_two_classes(images)
    sites = backbone.layers
    values = [features.values[layer_reading(site).name].astype(np.float64) for site in sites]
    maps = [features.attention[map_site(backbone, site).name] for site in sites]
    labels = images.labels
    rng = np.random.default_rng(seed)
    observed = [(labels == label) / (labels == label).sum() for label in (0, 1)]
    drawn = _bootstrap_weights(labels, images.groups, resamples, rng)
    shuffled = _permutation_weights(labels, images.groups, resamples, rng)

    curves: dict[str, Curve] = {}
    per_layer = [
        _layer_curves(values[i], maps[i], (observed[0][None], observed[1][None]), drawn, shuffled)
        for i in range(len(sites))
    ]
    for name in per_layer[0]:
        stacked = [per_layer[i][name] for i in range(len(sites))]
        value, low, high, null = (np.array(column) for column in zip(*stacked, strict=True))
        curves[name] = Curve(value, low, high, None if name in NOT_COMPARING_CLASSES else null)
    with small_fits():
        curves["probe_auc"] = _probe_curve(values, labels, images.groups, drawn, seed)
    choice: LayerChoice = choose_layers(rule, {name: c.value for name, c in curves.items()}, **rule_parameters)
    return LayerReport(
        layers=tuple(site.name for site in sites),
        curves=curves,
        maps={
            label: tuple((weights @ m["map"]).reshape(backbone.grid_of(m["map"].shape[1])) for m in maps)
            for label, weights in (("real", observed[0]), ("fake", observed[1]))
        },
        attention_source=tuple("attention" if backbone.pattern(site.layer) else "energy" for site in sites),
        rule=rule,
        taken=choice.taken,
        reasons=choice.reasons,
        skipped=images.skipped,
        provenance={
            "backbone": backbone.identity(),
            "data": images.fingerprint(),
            "images": {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())},
            "origin": images.origin,
            "seed": seed,
            "resamples": resamples,
            **rule_parameters,
        },
    )


def take_layers(
    backbone: Backbone, features: Features, rule: str = "transition", **rule_parameters: float
) -> list[str]:
    """Sites of the layers that ``report_layers`` would take, without its intervals, probes and null levels."""
    labels = features.images.labels
    observed = [((labels == label) / (labels == label).sum())[None] for label in (0, 1)]
    rows = [
        _statistics(
            features.values[layer_reading(site).name].astype(np.float64),
            features.attention[map_site(backbone, site).name],
            (observed[0], observed[1]),
        )
        for site in backbone.layers
    ]
    curves = {name: np.array([row[name][0] for row in rows]) for name in rows[0]}
    choice = choose_layers(rule, curves, **rule_parameters)
    return [site.name for site, taken in zip(backbone.layers, choice.taken, strict=True) if taken]


Weights = tuple[np.ndarray, np.ndarray]


def _bootstrap_weights(labels: np.ndarray, groups: Sequence[str], draws: int, rng: np.random.Generator) -> Weights:
    """Image weights (draws, n) of each class under a cluster bootstrap: groups are drawn, not images."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, member].astype(np.float64)
    weights = []
    for label in (0, 1):
        own = times * (labels == label)
        # A draw without any image of the class says nothing: it keeps the observed images.
        own[own.sum(1) == 0] = labels == label
        weights.append(own / own.sum(1, keepdims=True))
    return weights[0], weights[1]


def _permutation_weights(labels: np.ndarray, groups: Sequence[str], draws: int, rng: np.random.Generator) -> Weights:
    """Image weights (draws, n) of each class under shuffled labels.

    Where a group holds both classes (a photograph and its forgeries), labels are shuffled inside it: across groups,
    content would differ between the shuffled classes as it does not between the true ones.
    """
    names = np.asarray(groups)
    own = {name: np.flatnonzero(names == name) for name in np.unique(names)}
    mixed = [index for index in own.values() if len(np.unique(labels[index])) == 2]
    pure = np.setdiff1d(np.arange(len(labels)), np.concatenate([[], *mixed]).astype(int))
    permuted = np.tile(labels, (draws, 1))
    for row in permuted:
        for index in (*mixed, pure):
            row[index] = rng.permutation(labels[index])
    real, fake = ((permuted == label) / (labels == label).sum() for label in (0, 1))
    return real, fake


def _layer_curves(
    values: np.ndarray, maps: Mapping[str, np.ndarray], observed: Weights, drawn: Weights, shuffled: Weights
) -> dict[str, tuple[float, float, float, float]]:
    """Curve name -> (value, low, high, null) of one layer."""
    at = [_statistics(values, maps, weights) for weights in (observed, drawn, shuffled)]
    result = {}
    for name in at[0]:
        low, high = np.percentile(at[1][name], [2.5, 97.5])
        result[name] = float(at[0][name][0]), float(low), float(high), float(np.percentile(np.abs(at[2][name]), 95))
    return result


def _statistics(values: np.ndarray, maps: Mapping[str, np.ndarray], weights: Weights) -> dict[str, np.ndarray]:
    """Every curve of one layer for each row of image weights, (draws,)."""
    real, fake = (w @ values for w in weights)
    centred = values - values.mean(0)
    # A class token that has not yet looked at the image is constant but for rounding, which must not pass for a shift.
    centred[:, centred.std(0) <= 1e-6 * np.abs(values).mean(0)] = 0
    spread = [np.maximum(w @ centred**2 - (w @ centred) ** 2, 0) for w in weights]
    pooled = (spread[0] + spread[1]) / 2
    delta = (weights[1] - weights[0]) @ centred
    norms = np.linalg.norm(real, axis=1) * np.linalg.norm(fake, axis=1)
    positive = np.maximum(pooled, 1e-12 * max(float(pooled.mean()), 1e-30))
    map_real, map_fake = (w @ maps["map"] for w in weights)
    middle = (map_real + map_fake) / 2
    entropy, distance = maps["entropy"].astype(np.float64), maps["distance"].astype(np.float64)
    return {
        "cosine_shift": 1 - (real * fake).sum(1) / np.maximum(norms, 1e-30),
        "normalised_shift": np.linalg.norm(delta, axis=1)
        / np.sqrt(values.shape[1] * np.maximum(pooled.mean(1), 1e-30)),
        "fisher": (delta**2 / (2 * positive)).mean(1),
        "attention_js": (_divergence(map_real, middle) + _divergence(map_fake, middle)) / 2,
        "entropy_shift": (weights[1] - weights[0]) @ entropy,
        "distance_shift": (weights[1] - weights[0]) @ distance,
        "spread": (weights[0] + weights[1]) @ entropy / 2 / np.log(maps["map"].shape[1]),
    }


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import rel_entr

    return rel_entr(p, q).sum(1)


def _probe_curve(
    values: Sequence[np.ndarray], labels: np.ndarray, groups: Sequence[str], drawn: Weights, seed: int
) -> Curve:
    """Out-of-fold AUC of each layer's probe; the interval resamples the images, not the fits."""
    columns = []
    pairs = folds(labels, groups, seed=seed)
    for layer in values:
        scores = out_of_fold_scores(layer, labels, pairs, seed=seed)
        real, fake = scores[labels == 0], scores[labels == 1]
        wins = (fake[:, None] > real).astype(float) + 0.5 * (fake[:, None] == real)
        w_real, w_fake = drawn[0][:, labels == 0], drawn[1][:, labels == 1]
        draws = ((w_fake @ wins) * w_real).sum(1)
        columns.append((wins.mean(), *np.percentile(draws, [2.5, 97.5])))
    return Curve(*np.array(columns).T)
