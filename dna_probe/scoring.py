"""Score units: how much does each respond to forgery?

Features of the located layers are collected, with the gradients or attributions that the scorer asks for, and the
scorer (``dna_probe.scorers``) turns them into one score per unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.attribution import collect_attributions
from dna_probe.collection import Features, Options, collect_features
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.gradients import (
    GRADIENT_FIELDS,
    GradientRequest,
    Gradients,
    LinearHead,
    collect_gradients,
    collect_many_gradients,
)
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import ImageSet
from dna_probe.location import LayerReport, layer_reading, locate_layers
from dna_probe.moments import require_finite
from dna_probe.pairs import collect_many_pairs, image_ids
from dna_probe.probing import linear_probe, small_fits
from dna_probe.samples import read_samples
from dna_probe.scorers import SCORERS, Evidence, Sensitivity, require_scorer
from dna_probe.sites import REDUCTIONS, Reading, resolve_site

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.backbones.contract import Backbone

# Kind -> where in the layer, and the reduction over its tokens.
KINDS: dict[str, tuple[str, str]] = {
    **{reduction: ("block", reduction) for reduction in REDUCTIONS},
    **{"mlp" if reduction == "cls" else f"mlp_{reduction}": ("mlp", reduction) for reduction in REDUCTIONS},
    "heads": ("heads", "cls"),
    "heads_mean": ("heads", "mean"),
}
DEFAULT_KINDS = ("cls", "mean")
RESAMPLES = 10


@dataclass(frozen=True)
class UnitScores:
    """Scores of units, with the factors they were made of.

    Attributes:
        readings: the readings scored; units are numbered reading by reading.
        scorer: name of the scorer.
        score: (units,) non-negative.
        factors: name -> (units,), signed; the score is the absolute value of their product.
        p_value: (units,) two-sided Welch t-test of fake images against real ones, each the mean of its views.
        resamples: (draws, units) scores from 80 % of the images of each class, for the spread of the knee.
        provenance: backbone, weights, data fingerprint, parameters.
    """

    readings: tuple[Reading, ...]
    scorer: str
    score: np.ndarray
    factors: Mapping[str, np.ndarray]
    p_value: np.ndarray
    resamples: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def units(self) -> list[str]:
        """Names, ``site[k]``."""
        return [reading.unit(k) for reading in self.readings for k in range(reading.width)]

    @cached_property
    def layer(self) -> np.ndarray:
        """Depth of each unit, (units,)."""
        return np.concatenate([np.full(reading.width, reading.site.layer) for reading in self.readings])

    @cached_property
    def order(self) -> np.ndarray:
        """Units from best to worst; ties go by position, which is by layer, reading and index."""
        return np.argsort(-self.score, kind="stable")

    def table(self) -> pd.DataFrame:
        """One row per unit, best first."""
        import pandas as pd

        columns = {
            "unit": self.units,
            "layer": self.layer,
            "score": self.score,
            **self.factors,
            "p_value": self.p_value,
        }
        return pd.DataFrame(columns).iloc[self.order].reset_index(drop=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "dna_probe.scores/1",
            "scorer": self.scorer,
            "readings": [{"site": r.site.to_json(), "reduction": r.reduction} for r in self.readings],
            "score": self.score.tolist(),
            "factors": {name: values.tolist() for name, values in self.factors.items()},
            "p_value": self.p_value.tolist(),
            "resamples": self.resamples.tolist(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UnitScores:
        from dna_probe.sites import Site

        return cls(
            readings=tuple(Reading(Site(**r["site"]), r["reduction"]) for r in data["readings"]),
            scorer=data["scorer"],
            score=np.array(data["score"]),
            factors={name: np.array(values) for name, values in data["factors"].items()},
            p_value=np.array(data["p_value"]),
            resamples=np.array(data["resamples"]),
            provenance=data["provenance"],
        )

    def __repr__(self) -> str:
        best = "\n".join(f"  {self.units[i]:36s} {self.score[i]:.4g}" for i in self.order[:5])
        return f"UnitScores: {len(self.score)} units of {len(self.readings)} readings by '{self.scorer}'; best\n{best}"


def score_units(
    model: Any,
    data: Any,
    layers: LayerReport | Sequence[str] | None = None,
    *,
    kinds: Sequence[str] = DEFAULT_KINDS,
    scorer: str = "whitened",
    seed: int = 0,
    options: Options | None = None,
) -> UnitScores:
    """Score every unit of the located layers.

    Args:
        layers: a ``LayerReport``, site names of layers, or None to locate them on the same data.
        kinds: which units: ``cls``, ``mean``, ``max``, ``std`` and ``top`` are the block output's CLS token and its
            reductions over the patches (see ``Reading``); ``mlp``, ``mlp_mean``, ``mlp_max``, ``mlp_std`` and
            ``mlp_top`` those of its MLP hidden units; ``heads`` and ``heads_mean`` of its attention heads' outputs. A
            layer without MLP or heads gives its output instead, without CLS token the patch mean.
        scorer: name in ``dna_probe.scorers.SCORERS``.

    Raises:
        DnaProbeError: unknown scorer, kind or site (with near matches), one class only, non-finite values.
    """
    from dna_probe.backbones import open_backbone

    require_scorer(scorer)
    backbone = open_backbone(model)
    images = read_samples(data)
    require_two_classes(images)
    if layers is None:
        layers = locate_layers(backbone, images, seed=seed, options=options)
    names = layers.selected if isinstance(layers, LayerReport) else list(layers)
    readings = readings_of(backbone, names, kinds)
    at = head_readings(backbone, readings, scorer)
    seen = collect_features(backbone, images, at, options=options) if at else None
    heads = [reference_head(seen, reading, seed) for reading in at] if seen else []
    features, sensitivity = collect_evidence(backbone, images, readings, heads, scorer, options)
    origin = {"backbone": backbone.identity(), "data": features.images.fingerprint()}
    return score_features(features, readings, scorer, sensitivity, seed, origin)


def require_kinds(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("unit kind", kind, KINDS)
    if not kinds:
        raise DnaProbeError("No unit kind was named", fix=f"Known: {', '.join(KINDS)}")


def readings_of(backbone: Backbone, layers: Sequence[str], kinds: Sequence[str] = DEFAULT_KINDS) -> tuple[Reading, ...]:
    """The readings of the kinds asked for, at the layers named, in depth order and without repeats.

    Raises:
        SiteError: no such site. DnaProbeError: no such kind, or no layer at all.
    """
    require_kinds(kinds)
    if not layers:
        raise DnaProbeError(
            "No layer was taken, so there are no units to score",
            "The layer rule found none that meets its conditions",
            "Use another rule, for example 'top_m', or name the layers",
        )
    found: dict[str, Reading] = {}
    for site in sorted((resolve_site(name, backbone.sites) for name in layers), key=lambda s: s.layer):
        for kind in kinds:
            place, reduction = KINDS[kind]
            inside = {"block": None, "mlp": backbone.mlp(site.layer), "heads": backbone.heads(site.layer)}[place]
            where = inside or site
            plain = reduction == "cls" or where.layout == "vector"
            reading = Reading(where, where.default_reduction if plain else reduction)
            found[reading.name] = reading
    return tuple(found.values())


def head_readings(backbone: Backbone, readings: Sequence[Reading], scorer: str) -> list[Reading]:
    """What the reference heads of a scorer read, in depth order; nothing where it needs none.

    One head is on the last layer. Heads at several depths are on the deepest layer that is scored, on the last, and on
    the one midway: none is below a unit, so that each has a gradient by every unit.
    """
    needs, last = SCORERS[scorer].needs, backbone.depth - 1
    if needs in ("features", "pairs") or not readings:
        return []
    deepest = max(reading.site.layer for reading in readings) if needs == "depths" else last
    return [layer_reading(backbone.layers[k]) for k in sorted({deepest, (deepest + last + 1) // 2, last})]


def reference_head(features: Features, reading: Reading, seed: int = 0) -> LinearHead:
    """The linear probe on a layer whose logit the gradients are taken of."""
    probe = linear_probe(random_state=seed).fit(features.values[reading.name], features.images.labels)
    scaler, classifier = probe[0], probe[-1]
    return LinearHead(reading, scaler.mean_, scaler.scale_, classifier.coef_[0], float(classifier.intercept_[0]))


def collect_evidence(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    heads: Sequence[LinearHead],
    scorer: str,
    options: Options | None = None,
) -> tuple[Features, Sensitivity | None]:
    """Features of the readings, and what else the scorer needs; with one gradient, from one pass.

    Args:
        heads: on what ``head_readings`` says.
    """
    needs = SCORERS[scorer].needs
    if needs == "gradient":
        return collect_gradients(backbone, images, readings, heads[0], options)
    features = collect_features(backbone, images, readings, options=options)
    if needs == "features":
        return features, None
    request = SensitivityRequest(np.arange(len(features.images)), readings, heads)
    return features, collect_many_sensitivities(backbone, features, [request], scorer, options)[0]


@dataclass(frozen=True, eq=False)
class SensitivityRequest:
    """Gradients or attributions of heads by some readings, or paired differences of these, over images of a set at the
    positions ``members``."""

    members: np.ndarray
    readings: Sequence[Reading]
    heads: Sequence[LinearHead]


def collect_many_sensitivities(
    backbone: Backbone,
    features: Features,
    requests: Sequence[SensitivityRequest],
    scorer: str,
    options: Options | None = None,
) -> list[Sensitivity]:
    """What the scorer needs besides features, of each request; gradients of all requests from one forward per image,
    and each photograph forged once.

    Args:
        features: of the images of all requests, by their readings.
    """
    needs, images = SCORERS[scorer].needs, features.images
    if not requests:
        return []
    if needs == "pairs":
        wanted = [(request.members, request.readings) for request in requests]
        return [*collect_many_pairs(backbone, images, wanted, options=options)]
    if needs not in ("gradient", "depths"):
        return [
            collect_attributions(backbone, images.subset(r.members), r.readings, r.heads[0], needs, options=options)
            for r in requests
        ]
    single = [GradientRequest(r.members, r.readings, head) for r in requests for head in r.heads]
    found = iter(collect_many_gradients(backbone, images, single, options))
    own = [[next(found) for _ in request.heads] for request in requests]
    if needs == "gradient":
        return [gradients for (gradients,) in own]
    return [_average_heads(gradients, features, request) for gradients, request in zip(own, requests, strict=True)]


def _average_heads(gradients: Sequence[Gradients], features: Features, request: SensitivityRequest) -> Gradients:
    """Mean over heads, each scaled so that its mean gradient per standard deviation has norm one over all units."""
    spread = {r.name: features.values[r.name][request.members].std(0, dtype=np.float64) for r in request.readings}
    norms = [np.sqrt(sum(((g.mean[n].mean(0) * spread[n]) ** 2).sum() for n in spread)) for g in gradients]

    def mean(field: str, name: str) -> np.ndarray:
        parts = [getattr(g, field)[name] / norm for g, norm in zip(gradients, norms, strict=True) if norm > 0]
        return np.mean(parts, axis=0) if parts else np.zeros_like(getattr(gradients[0], field)[name])

    return Gradients(**{field: {name: mean(field, name) for name in spread} for field in GRADIENT_FIELDS})


def score_features(
    features: Features,
    readings: Sequence[Reading],
    scorer: str,
    sensitivity: Sensitivity | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
) -> UnitScores:
    """Scores from features already collected; rows of one name, label and group are views of one image.

    Raises:
        NumericalError: a score is not finite. DataError: one class only.
    """
    from scipy.stats import ttest_ind

    require_scorer(scorer)
    labels = features.images.labels
    require_two_classes(features.images)
    views = image_ids(features.images)
    image = views if len(np.unique(views)) < len(views) else None
    evidence = Evidence(tuple(readings), features.of(readings), labels, sensitivity, seed, image)
    rng = np.random.default_rng(seed)
    with small_fits():
        factors = SCORERS[scorer].factors(evidence)
        drawn = [product(SCORERS[scorer].factors(evidence.resampled(rng))) for _ in range(resamples)]
    score = product(factors)
    require_finite(score, "score", scorer)
    with np.errstate(all="ignore"):
        images = evidence.over_images
        real, fake = (images.values[images.labels == label] for label in (0, 1))
        p_value = ttest_ind(fake, real, equal_var=False).pvalue
    return UnitScores(
        readings=tuple(readings),
        scorer=scorer,
        score=score,
        factors=factors,
        p_value=np.nan_to_num(p_value, nan=1.0),
        resamples=np.array(drawn),
        provenance={"scorer": scorer, "seed": seed, **(provenance or {})},
    )


def product(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.abs(np.prod(list(factors.values()), axis=0))
