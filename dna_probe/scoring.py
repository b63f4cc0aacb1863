"""Score units: how much does each respond to forgery?

The triadic score (DNA, arXiv 2601.22515, in the form third parties give it) is |mean gradient x mean activation x probe
weight|. Its body is not fully published, so the open parts are variants with names:

``triadic``
    Default. Gradient of the logit of a *reference head*, a linear probe on the network's last layer, carried back
    through the network; activation as the standardised difference of the class means; weight of the layer's own
    probe. All three are in units of one standard deviation of the unit, so that layers compare.
``triadic_raw``
    The same head, with the mean activation as it is and no standardisation.
``triadic_loss``
    The gradient of the head's cross-entropy in place of its logit.
``triadic_own``
    The gradient of the layer's own probe. For a linear probe it is proportional to the probe weight, so the ranking
    is that of activation x weight^2: the gradient adds nothing.
``triadic_absolute``
    Mean |gradient| x mean |activation| x |weight|, standardised.

Single factors, as controls and for ablation: ``cohens_d``, ``auroc``, ``weight``, ``activation``, ``gradient``,
``gradient_x_activation``, ``real_variance``, ``random``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import (
    Features,
    Gradients,
    LinearHead,
    Options,
    collect_features,
    collect_gradients,
)
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.images.layouts import read_images
from dna_probe.images.sampling import require_two_classes
from dna_probe.location import LayerReport, layer_reading, locate_layers
from dna_probe.moments import require_finite
from dna_probe.probing import linear_probe, small_fits
from dna_probe.sites import Reading, resolve_site

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.backbones.contract import Backbone

KINDS = ("cls", "mean", "mlp", "mlp_mean")
DEFAULT_KINDS = ("cls",)
RESAMPLES = 10


@dataclass(frozen=True)
class Evidence:
    """What a scorer may look at: labelled features of some readings, and gradients where it asked for them."""

    readings: tuple[Reading, ...]
    values: np.ndarray
    labels: np.ndarray
    gradients: Gradients | None = None
    seed: int = 0

    @cached_property
    def scale(self) -> np.ndarray:
        """Standard deviation of each unit over all images, (units,)."""
        return self.values.std(0, dtype=np.float64)

    @cached_property
    def contrast(self) -> np.ndarray:
        """Cohen's d, fake minus real, with the pooled within-class deviation, (units,).

        A unit that does not vary within the classes (any unit, with one image of each) is measured by its deviation
        over all images.
        """
        real, fake = self.values[self.labels == 0], self.values[self.labels == 1]
        pooled = np.sqrt((real.var(0, dtype=np.float64) + fake.var(0, dtype=np.float64)) / 2)
        delta = fake.mean(0, dtype=np.float64) - real.mean(0, dtype=np.float64)
        spread = np.where(pooled > 1e-9 * (np.abs(delta) + 1), pooled, self.scale)
        return np.divide(delta, spread, out=np.zeros_like(delta), where=spread > 1e-9 * (np.abs(delta) + 1))

    @cached_property
    def weight(self) -> np.ndarray:
        """Weight of each unit, per standard deviation, in a probe of its own reading, (units,)."""
        parts, start = [], 0
        for reading in self.readings:
            block = self.values[:, start : start + reading.width]
            parts.append(linear_probe(random_state=self.seed).fit(block, self.labels)[-1].coef_[0])
            start += reading.width
        return np.concatenate(parts)

    def gradient(self, kind: str) -> np.ndarray:
        """Class-balanced mean of a field of ``Gradients``, (units,).

        Raises:
            DnaProbeError: no gradient was collected.
        """
        if self.gradients is None:
            raise DnaProbeError("This scorer needs gradients", fix="Collect them with collect_gradients")
        by_name: Mapping[str, np.ndarray] = getattr(self.gradients, kind)
        return np.concatenate([by_name[reading.name].mean(0) for reading in self.readings])

    def resampled(self, rng: np.random.Generator, share: float = 0.8) -> Evidence:
        """The same evidence with a share of the images of each class; gradients, already averages, are kept.

        Drawn without replacement: the copies in a bootstrap sample would inflate the probe's weights.
        """
        members = [np.flatnonzero(self.labels == label) for label in (0, 1)]
        index = np.concatenate([rng.choice(m, max(1, round(share * len(m))), replace=False) for m in members])
        return Evidence(self.readings, self.values[index], self.labels[index], self.gradients, self.seed)


Factors = dict[str, np.ndarray]


def _triadic(evidence: Evidence) -> Factors:
    return {
        "gradient": evidence.gradient("mean") * evidence.scale,
        "activation": evidence.contrast,
        "weight": evidence.weight,
    }


def _triadic_raw(evidence: Evidence) -> Factors:
    per_unit = np.maximum(evidence.scale, 1e-12)
    return {
        "gradient": evidence.gradient("mean"),
        "activation": evidence.values.mean(0, dtype=np.float64),
        "weight": evidence.weight / per_unit,
    }


def _triadic_loss(evidence: Evidence) -> Factors:
    return _triadic(evidence) | {"gradient": evidence.gradient("loss") * evidence.scale}


def _triadic_own(evidence: Evidence) -> Factors:
    """For ``z = w.x + b`` and cross-entropy ``dL/dx_k = (sigma(z) - y) w_k``: within a layer the gradient is the
    weight times one constant, so the score ranks as ``activation x weight^2``. The constant, the mean residual, is
    larger where the probe fits worse and would favour bad layers; it is left out."""
    return {"gradient": evidence.weight, "activation": evidence.contrast, "weight": evidence.weight}


def _triadic_absolute(evidence: Evidence) -> Factors:
    return {
        "gradient": evidence.gradient("absolute") * evidence.scale,
        "activation": np.abs(evidence.values).mean(0, dtype=np.float64) / np.maximum(evidence.scale, 1e-12),
        "weight": evidence.weight,
    }


def _auroc(evidence: Evidence) -> Factors:
    """Mann-Whitney U over the number of pairs, as distance from one half."""
    from scipy.stats import rankdata

    fake = evidence.labels == 1
    ranks: np.ndarray = np.asarray(rankdata(evidence.values, axis=0))[fake].sum(axis=0)
    wins: np.ndarray = ranks - fake.sum() * (fake.sum() + 1) / 2
    return {"auroc": wins / (fake.sum() * (~fake).sum()) - 0.5}


def _real_variance(evidence: Evidence) -> Factors:
    """Variance over real images: what marks a unit of content (LAKE, arXiv 2604.07802)."""
    return {"variance": np.asarray(evidence.values[evidence.labels == 0].var(axis=0, dtype=np.float64))}


@dataclass(frozen=True)
class Scorer:
    """A rule from evidence to factors; the score is the absolute value of their product."""

    factors: Callable[[Evidence], Factors]
    needs_gradients: bool = False


SCORERS: dict[str, Scorer] = {
    "triadic": Scorer(_triadic, True),
    "triadic_raw": Scorer(_triadic_raw, True),
    "triadic_loss": Scorer(_triadic_loss, True),
    "triadic_own": Scorer(_triadic_own),
    "triadic_absolute": Scorer(_triadic_absolute, True),
    "cohens_d": Scorer(lambda e: {"contrast": e.contrast}),
    "auroc": Scorer(_auroc),
    "weight": Scorer(lambda e: {"weight": e.weight}),
    "activation": Scorer(lambda e: {"activation": np.abs(e.values).mean(0, dtype=np.float64)}),
    "gradient": Scorer(lambda e: {"gradient": e.gradient("mean") * e.scale}, True),
    "gradient_x_activation": Scorer(lambda e: {"product": e.gradient("product")}, True),
    "real_variance": Scorer(_real_variance),
    "random": Scorer(lambda e: {"draw": np.random.default_rng(e.seed).random((e.values.shape[1],))}),
}


@dataclass(frozen=True)
class UnitScores:
    """Scores of units, with the factors they were made of.

    Attributes:
        readings: the readings scored; units are numbered reading by reading.
        scorer: name of the scorer.
        score: (units,) non-negative.
        factors: name -> (units,), signed; the score is the absolute value of their product.
        p_value: (units,) two-sided Welch t-test of fake against real.
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
    scorer: str = "triadic",
    seed: int = 0,
    options: Options | None = None,
) -> UnitScores:
    """Score every unit of the located layers.

    Args:
        layers: a ``LayerReport``, site names of layers, or None to locate them on the same data.
        kinds: which units: ``cls`` and ``mean`` of the block output (patch mean), ``mlp`` and ``mlp_mean`` of its MLP
            hidden units. A kind that a layer does not have falls back to ``mean``.
        scorer: name in ``dna_probe.scoring.SCORERS``.

    Raises:
        DnaProbeError: unknown scorer, kind or site (with near matches), one class only, non-finite values.
    """
    from dna_probe.backbones import open_backbone

    require_scorer(scorer)
    backbone = open_backbone(model)
    images = read_images(data)
    require_two_classes(images)
    if layers is None:
        layers = locate_layers(backbone, images, seed=seed, options=options)
    names = layers.selected if isinstance(layers, LayerReport) else list(layers)
    readings = readings_of(backbone, names, kinds)
    head = None
    if SCORERS[scorer].needs_gradients:
        last = layer_reading(backbone.layers[-1])
        head = reference_head(collect_features(backbone, images, [last], options=options), last, seed)
    features, gradients = collect_evidence(backbone, images, readings, head, options)
    origin = {"backbone": backbone.identity(), "data": features.images.fingerprint()}
    return score_features(features, readings, scorer, gradients, seed, origin)


def require_scorer(scorer: str) -> None:
    if scorer not in SCORERS:
        raise unknown_name("scorer", scorer, SCORERS)


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
            mlp = backbone.mlp(site.layer) if kind.startswith("mlp") else None
            where = mlp or site
            pooled = kind.endswith("mean") or not where.class_token
            reading = Reading(where, "mean" if pooled else "cls")
            found[reading.name] = reading
    return tuple(found.values())


def reference_head(features: Features, reading: Reading, seed: int = 0) -> LinearHead:
    """The linear probe on the network's last layer whose logit the gradients are taken of."""
    probe = linear_probe(random_state=seed).fit(features.values[reading.name], features.images.labels)
    scaler, classifier = probe[0], probe[-1]
    return LinearHead(reading, scaler.mean_, scaler.scale_, classifier.coef_[0], float(classifier.intercept_[0]))


def collect_evidence(
    backbone: Backbone,
    images: Any,
    readings: Sequence[Reading],
    head: LinearHead | None,
    options: Options | None = None,
) -> tuple[Features, Gradients | None]:
    """Features of the readings, and gradients where there is a head, in one pass."""
    if head is None:
        return collect_features(backbone, images, readings, options=options), None
    return collect_gradients(backbone, images, readings, head, options)


def score_features(
    features: Features,
    readings: Sequence[Reading],
    scorer: str,
    gradients: Gradients | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
) -> UnitScores:
    """Scores from features already collected.

    Raises:
        NumericalError: a score is not finite. DataError: one class only.
    """
    from scipy.stats import ttest_ind

    require_scorer(scorer)
    labels = features.images.labels
    require_two_classes(features.images)
    evidence = Evidence(tuple(readings), features.of(readings), labels, gradients, seed)
    rng = np.random.default_rng(seed)
    with small_fits():
        factors = SCORERS[scorer].factors(evidence)
        drawn = [product(SCORERS[scorer].factors(evidence.resampled(rng))) for _ in range(resamples)]
    score = product(factors)
    require_finite(score, "score", scorer)
    with np.errstate(all="ignore"):
        p_value = ttest_ind(evidence.values[labels == 1], evidence.values[labels == 0], equal_var=False).pvalue
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
