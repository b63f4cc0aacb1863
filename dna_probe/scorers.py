"""Scorers: rules from evidence about units to factors whose product says how much each responds to forgery.

The triadic score (DNA, arXiv 2601.22515, in the form third parties give it) is |mean gradient x mean activation x probe
weight|. Its body is not fully published, so the open parts are variants with names:

``triadic``
    Gradient of the logit of a *reference head*, a linear probe on the network's last layer, carried back through the
    network; activation as the standardised difference of the class means; weight of the layer's own probe. All three
    are in units of one standard deviation of the unit, so that layers compare.
``triadic_raw``
    The same head, with the mean activation as it is and no standardisation.
``triadic_loss``
    The gradient of the head's cross-entropy in place of its logit.
``triadic_own``
    The gradient of the layer's own probe. For a linear probe it is proportional to the probe weight, so the ranking
    is that of activation x weight^2: the gradient adds nothing.
``triadic_absolute``
    Mean |gradient| x mean |activation| x |weight|, standardised.

``triadic_depths``
    As ``triadic``, with three reference heads: on the deepest of the layers scored, on the last, and midway. Each
    head's gradient is scaled to unit norm over all units, per standard deviation, and the three are averaged.
``triadic_conductance``
    In place of the gradient, how much more of the head's logit flows through the unit in fake images than in real ones
    (the difference of the class means of captum's conductance, in logits).

Attributions of the reference head's logit on the way from a blank image (see ``dna_probe.attribution``):
``conductance`` and ``integrated_gradients``, fake mean minus real mean, and ``internal_influence``, the class-balanced
mean, per standard deviation.

Scores that ask for what holds beyond the few images at hand:

``moderated_t``
    The t of fake against real with each unit's variance drawn towards that of its reading, by as much as the units of
    the reading agree (empirical Bayes: Smyth 2004, as in limma): with few images of thousands of units, the largest
    plain t are those whose variance came out small by chance.
``invariance``
    Cohen's d of the images' mean views, times the unit's invariance: the share of its variance that is not between the
    processed views of one image (an intraclass correlation, Shrout and Fleiss 1979). Without views it is Cohen's d.
    With the root of a share of the within-class variance it would be Cohen's d over all views, which ``cohens_d`` is.
``triadic_invariant``
    Gradient and weight as in ``triadic``, the activation as in ``invariance``.
``forged_pairs``
    How far the built-in forgers move the unit on real photographs, content unchanged (see ``dna_probe.pairs``), times
    Cohen's d; zero where the two disagree in sign, since a unit that forging moves away from the fakes told them by
    something else.
``real_whitened``
    Difference of the class means after what real images differ in is damped: ``(S + I)^-1 (fake - real)`` in each
    reading, ``S`` the covariance of the standardised real images. A ridge Fisher discriminant with the covariance of
    one class, from reals alone as in LAKE (arXiv 2604.07802); Ledoit and Wolf (2004) shrink towards the same target, by
    an amount that they estimate.
``whitened``, ``elimination``
    Weight in a probe after that damping, which is the default, and how long the unit survives recursive elimination
    by it (Guyon et al. 2002); see ``dna_probe.whitening``.

Rows may be views of one image. Whatever compares the classes is computed in each class, so that it does not depend on
how many images there are of either.

Single factors, as controls and for ablation: ``cohens_d``, ``auroc``, ``weight``, ``activation``, ``gradient``,
``gradient_x_activation``, ``real_variance``, ``random``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from dna_probe.attribution import Attributions
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.gradients import Gradients
from dna_probe.pairs import PairedDifference
from dna_probe.probing import linear_probe
from dna_probe.sites import Reading
from dna_probe.whitening import blocks, elimination_order, whitened_weights

Need = Literal["features", "gradient", "depths", "conductance", "integrated_gradients", "internal_influence", "pairs"]
Sensitivity = Gradients | Attributions | PairedDifference


@dataclass(frozen=True)
class Evidence:
    """What a scorer may look at: labelled features of some readings, and what else it asked for.

    Attributes:
        values: (n, units), the readings side by side; ``labels`` (n,) are 0 and 1.
        sensitivity: gradients, attributions or paired differences.
        image: (n,) integer id of the image that each row is a view of; None where every row is an image of its own.
    """

    readings: tuple[Reading, ...]
    values: np.ndarray
    labels: np.ndarray
    sensitivity: Sensitivity | None = None
    seed: int = 0
    image: np.ndarray | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each reading."""
        return tuple(reading.width for reading in self.readings)

    def blocks(self, values: np.ndarray) -> list[np.ndarray]:
        """Something of all units, (..., units), by reading."""
        return blocks(values, self.widths)

    def class_means(self, values: np.ndarray) -> np.ndarray:
        """Mean over the real and over the fake rows, (2, units)."""
        return np.stack([values[self.labels == label].mean(0, dtype=np.float64) for label in (0, 1)])

    @cached_property
    def class_variances(self) -> np.ndarray:
        """Population variance of each unit within the real and within the fake rows, (2, units)."""
        return np.stack([self.values[self.labels == label].var(0, dtype=np.float64) for label in (0, 1)])

    @cached_property
    def difference(self) -> np.ndarray:
        """Fake mean minus real mean, (units,)."""
        real, fake = self.class_means(self.values)
        return fake - real

    @cached_property
    def scale(self) -> np.ndarray:
        """Standard deviation of each unit over all images were both classes equally common, (units,)."""
        return np.sqrt(self.class_variances.mean(0) + (self.difference / 2) ** 2)

    @cached_property
    def contrast(self) -> np.ndarray:
        """Cohen's d, fake minus real, with the pooled within-class deviation, (units,).

        A unit that does not vary within the classes (any unit, with one image of each) is measured by its deviation
        over all images.
        """
        delta, pooled = self.difference, np.sqrt(self.class_variances.mean(0))
        least = 1e-9 * (np.abs(delta) + 1)
        spread = np.where(pooled > least, pooled, self.scale)
        return np.divide(delta, spread, out=np.zeros_like(delta), where=spread > least)

    @cached_property
    def over_images(self) -> Evidence:
        """One row per image, the mean of its views; the same evidence where every row is an image of its own."""
        if self.image is None:
            return self
        ids, first = np.unique(self.image, return_index=True)
        if len(ids) == len(self.labels):
            return replace(self, image=None)
        member = (self.image == ids[:, None]).astype(np.float64)
        means = member @ self.values / member.sum(1, keepdims=True)
        return replace(self, values=means, labels=self.labels[first], image=None)

    @cached_property
    def invariance(self) -> np.ndarray:
        """Share of each unit's variance that is not between the views of one image, 0 to 1; 1 without views, (units,).

        The variance is that over all rows, the class difference included, so that one image of each class will do.
        """
        if self.image is None:
            return np.ones(self.values.shape[1])
        means = self.over_images
        own = means.values[np.unique(self.image, return_inverse=True)[1]]
        between_views = self.class_means((self.values - own) ** 2).mean(0)
        total = self.scale**2
        share = np.divide(between_views, total, out=np.zeros_like(total), where=total > 0)
        return np.clip(1 - share, 0, 1)

    @cached_property
    def weight(self) -> np.ndarray:
        """Weight of each unit, per standard deviation, in a probe of its own reading, (units,)."""
        parts = []
        for block, scale in zip(self.blocks(self.values), self.blocks(self.scale), strict=True):
            probe = linear_probe(random_state=self.seed).fit(block, self.labels)
            parts.append(probe[-1].coef_[0] * scale / probe[0].scale_)
        return np.concatenate(parts)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Class-balanced mean over rows, (units,)."""
        return self.class_means(values).mean(0)

    def gradient(self, kind: str = "mean") -> np.ndarray:
        """Class-balanced mean of a field of ``Gradients``, (units,).

        Raises:
            DnaProbeError: no gradient was collected.
        """
        if not isinstance(self.sensitivity, Gradients):
            raise DnaProbeError("This scorer needs gradients", fix="Collect them with collect_gradients")
        by_name = getattr(self.sensitivity, kind)
        return np.concatenate([by_name[reading.name].mean(0) for reading in self.readings])

    def attribution(self, method: str) -> np.ndarray:
        """Mean attribution of each class, (2, units).

        Raises:
            DnaProbeError: no attribution by this method was collected.
        """
        found = self.sensitivity
        if not isinstance(found, Attributions) or found.method != method:
            raise DnaProbeError(
                f"This scorer needs attributions by {method}", fix="Collect them with collect_attributions"
            )
        return np.concatenate([found.mean[reading.name] for reading in self.readings], axis=1)

    def flow(self, method: str) -> np.ndarray:
        """Mean attribution of fake images minus that of real ones, (units,)."""
        real, fake = self.attribution(method)
        return fake - real

    @property
    def forged(self) -> np.ndarray:
        """Standardised paired difference of forgeries and their photographs, (units,).

        Raises:
            DnaProbeError: no pairs were collected.
        """
        if not isinstance(self.sensitivity, PairedDifference):
            raise DnaProbeError("This scorer needs forged pairs", fix="Collect them with collect_pairs")
        return np.concatenate([self.sensitivity.mean[reading.name] for reading in self.readings])

    def resampled(self, rng: np.random.Generator, share: float = 0.8) -> Evidence:
        """The same evidence with a share of the images of each class, all views of each; gradients and the like,
        already averages, are kept.

        Drawn without replacement: the copies in a bootstrap sample would inflate the probe's weights.
        """
        image = np.arange(len(self.labels)) if self.image is None else self.image
        members = [np.unique(image[self.labels == label]) for label in (0, 1)]
        drawn = np.concatenate([rng.choice(m, max(1, round(share * len(m))), replace=False) for m in members])
        index = np.isin(image, drawn)
        own = None if self.image is None else self.image[index]
        return Evidence(self.readings, self.values[index], self.labels[index], self.sensitivity, self.seed, own)


Factors = dict[str, np.ndarray]


def _triadic(evidence: Evidence) -> Factors:
    return {
        "gradient": evidence.gradient() * evidence.scale,
        "activation": evidence.contrast,
        "weight": evidence.weight,
    }


def _triadic_raw(evidence: Evidence) -> Factors:
    per_unit = np.maximum(evidence.scale, 1e-12)
    return {
        "gradient": evidence.gradient(),
        "activation": evidence.mean(evidence.values),
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
        "activation": evidence.mean(np.abs(evidence.values)) / np.maximum(evidence.scale, 1e-12),
        "weight": evidence.weight,
    }


def _triadic_conductance(evidence: Evidence) -> Factors:
    return {
        "conductance": evidence.flow("conductance"),
        "activation": evidence.contrast,
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


def _moderated_t(evidence: Evidence) -> Factors:
    """Smyth (2004), for two groups. The prior is that of the units of a reading, which are of one kind; units
    of different depths are not, and their scales differ."""
    images = evidence.over_images
    counts = np.bincount(images.labels, minlength=2)
    freedom = int(counts.sum() - 2)
    if freedom > 0:
        pooled = counts @ images.class_variances / freedom
        variance = np.concatenate([moderate(part, freedom) for part in images.blocks(pooled)])
    else:
        # One image of each class tells no variance within: the units of a reading share one.
        parts = images.blocks(images.scale**2)
        variance = np.concatenate([np.full(len(part), part.mean()) for part in parts])
    error = np.sqrt(variance * (1 / counts).sum())
    return {"t": np.divide(images.difference, error, out=np.zeros_like(error), where=error > 0)}


def moderate(variance: np.ndarray, freedom: int) -> np.ndarray:
    """Posterior variances of some units, the mean of prior and own variance by degrees of freedom, (units,)."""
    prior_freedom, prior = variance_prior(variance, freedom)
    if np.isinf(prior_freedom):
        return np.full(len(variance), prior)
    return (prior_freedom * prior + freedom * variance) / (prior_freedom + freedom)


def variance_prior(variance: np.ndarray, freedom: int) -> tuple[float, float]:
    """Degrees of freedom and scale of the inverse chi-squared prior that variances come from (Smyth 2004).

    By the moments of the logarithms of the variances, each with ``freedom`` degrees. Infinite degrees of freedom where
    they differ by no more than chance; none where there are fewer than two variances to tell from. Units that do not
    vary are left out, and very small variances raised to 1e-5 of the median, as in limma.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    used = variance[variance > 1e-12 * variance.max(initial=0.0)]
    if len(used) < 2:
        return 0.0, 0.0
    log = np.log(np.maximum(used, 1e-5 * np.median(used))) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(log.var(ddof=1) - polygamma(1, freedom / 2))
    if excess <= 0:
        return np.inf, float(np.exp(log.mean()))
    # 1/x < trigamma(x) < 1/x + 1/x^2 encloses the solution.
    upper = (1 + np.sqrt(1 + 4 * excess)) / (2 * excess)
    half = brentq(lambda x: polygamma(1, x) - excess, 1 / excess, upper)
    return 2 * half, float(np.exp(log.mean() + digamma(half) - np.log(half)))


def _invariance(evidence: Evidence) -> Factors:
    return {"activation": evidence.over_images.contrast, "invariance": evidence.invariance}


def _triadic_invariant(evidence: Evidence) -> Factors:
    return {
        "gradient": evidence.gradient() * evidence.scale,
        **_invariance(evidence),
        "weight": evidence.weight,
    }


def _forged_pairs(evidence: Evidence) -> Factors:
    contrast = evidence.over_images.contrast
    agreement = (np.sign(evidence.forged) == np.sign(contrast)).astype(np.float64)
    return {"forged": evidence.forged, "activation": contrast, "agreement": agreement}


def _real_whitened(evidence: Evidence) -> Factors:
    parts = []
    varies = evidence.scale > 1e-9 * (np.abs(evidence.mean(evidence.values)) + 1)
    scale = np.where(varies, evidence.scale, np.inf)
    columns = (evidence.blocks(part) for part in (evidence.values[evidence.labels == 0], evidence.difference, scale))
    for real, delta, unit in zip(*columns, strict=True):
        _, size, axes = np.linalg.svd((real - real.mean(0, dtype=np.float64)) / unit, full_matrices=False)
        variance = size**2 / len(real)
        # (S + I)^-1 takes a share of each principal direction and leaves what is beside them.
        parts.append(delta / unit - (axes @ (delta / unit) * variance / (variance + 1)) @ axes)
    return {"difference": np.concatenate(parts)}


@dataclass(frozen=True)
class Scorer:
    """A rule from evidence to factors; the score is the absolute value of their product.

    Attributes:
        needs: what has to be collected: ``features`` alone, the ``gradient`` of a reference head, the gradients of
            heads at several ``depths``, the attributions of a reference head by the method named, or forged ``pairs``.
    """

    factors: Callable[[Evidence], Factors]
    needs: Need = "features"


SCORERS: dict[str, Scorer] = {
    "triadic": Scorer(_triadic, "gradient"),
    "triadic_raw": Scorer(_triadic_raw, "gradient"),
    "triadic_loss": Scorer(_triadic_loss, "gradient"),
    "triadic_own": Scorer(_triadic_own),
    "triadic_absolute": Scorer(_triadic_absolute, "gradient"),
    "triadic_depths": Scorer(_triadic, "depths"),
    "triadic_conductance": Scorer(_triadic_conductance, "conductance"),
    "triadic_invariant": Scorer(_triadic_invariant, "gradient"),
    "moderated_t": Scorer(_moderated_t),
    "invariance": Scorer(_invariance),
    "forged_pairs": Scorer(_forged_pairs, "pairs"),
    "real_whitened": Scorer(_real_whitened),
    "whitened": Scorer(lambda e: {"weight": whitened_weights(e.values, e.labels, e.widths)}),
    "elimination": Scorer(lambda e: {"survival": elimination_order(e.values, e.labels, e.widths)}),
    "conductance": Scorer(lambda e: {"conductance": e.flow("conductance")}, "conductance"),
    "integrated_gradients": Scorer(
        lambda e: {"integrated_gradients": e.flow("integrated_gradients")}, "integrated_gradients"
    ),
    "internal_influence": Scorer(
        lambda e: {"influence": e.attribution("internal_influence").mean(0) * e.scale}, "internal_influence"
    ),
    "cohens_d": Scorer(lambda e: {"contrast": e.contrast}),
    "auroc": Scorer(_auroc),
    "weight": Scorer(lambda e: {"weight": e.weight}),
    "activation": Scorer(lambda e: {"activation": e.mean(np.abs(e.values))}),
    "gradient": Scorer(lambda e: {"gradient": e.gradient() * e.scale}, "gradient"),
    "gradient_x_activation": Scorer(lambda e: {"product": e.gradient("product")}, "gradient"),
    "real_variance": Scorer(_real_variance),
    "random": Scorer(lambda e: {"draw": np.random.default_rng(e.seed).random((e.values.shape[1],))}),
}


def require_scorer(scorer: str) -> None:
    if scorer not in SCORERS:
        raise unknown_name("scorer", scorer, SCORERS)
