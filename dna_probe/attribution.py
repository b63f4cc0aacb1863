"""Attribute a reference head's logit to units along a path of images, by the methods of captum.

Plain gradients say what a unit does to the logit at one image. The methods here integrate on the way from a baseline,
the mean colour (zeros after normalisation), to the image:

``conductance``
    Integrated gradients through the unit (Dhamdhere et al., arXiv 1805.12233; captum's ``LayerConductance``). Over all
    units of a site through which everything passes, it adds up to logit(image) - logit(baseline).
``integrated_gradients``
    The same on the straight line between the site's own activations (Sundararajan et al., arXiv 1703.01365; captum's
    ``LayerIntegratedGradients``).
``internal_influence``
    The average gradient on the way, not multiplied by any difference (Leino et al., arXiv 1802.03788; captum's
    ``InternalInfluence``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.cache import digest
from dna_probe.collection import NoReadableImage, Options, open_cache
from dna_probe.errors import DnaProbeError, unknown_name
from dna_probe.gradients import LinearHead
from dna_probe.images.sets import ImageSet
from dna_probe.moments import require_finite
from dna_probe.shards import stream_batches
from dna_probe.sites import Reading, Site

if TYPE_CHECKING:
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

# Name -> captum's class.
ATTRIBUTION_METHODS = {
    "conductance": "LayerConductance",
    "integrated_gradients": "LayerIntegratedGradients",
    "internal_influence": "InternalInfluence",
}
STEPS = 16


@dataclass(frozen=True)
class Attributions:
    """What a reference head's logit owes to each unit, averaged over images.

    Attributes:
        method: name in ``ATTRIBUTION_METHODS``.
        mean: reading name -> (2, width) float64, one row per class (real, fake); in logits, but for
            ``internal_influence``, which is in logits per unit of activation.
    """

    method: str
    mean: Mapping[str, np.ndarray]


def collect_attributions(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    head: LinearHead,
    method: str = "conductance",
    steps: int = STEPS,
    options: Options | None = None,
) -> Attributions:
    """Attributions of all readings, site by site: each costs ``steps`` forward and backward passes per image.

    Tokens are reduced as for gradient times activation, and for ``internal_influence`` as for gradients. With a cache,
    the result is stored under the head, the images, the readings, the method and the steps.

    Args:
        head: no site may be deeper than its own.
        options: ``batch_size`` bounds the images, at any step of the way, in one pass.

    Raises:
        DataError: no image could be read.
        DnaProbeError: no such method, or less than one step.
        NumericalError: an attribution is not finite.
    """
    if method not in ATTRIBUTION_METHODS:
        raise unknown_name("attribution method", method, ATTRIBUTION_METHODS)
    if steps < 1:
        raise DnaProbeError(f"{steps} steps cannot be taken", fix="Take at least 1")
    options = options or Options()
    cache, names = open_cache(backbone, options), [reading.name for reading in readings]
    key = "" if cache is None else digest(method, steps, images.fingerprint(), names, head.key)
    if cache is not None and cache.has(key, names):
        return Attributions(method, {name: values[0] for name, values in cache.rows([key], names).items()})
    mean = _class_means(backbone, images, readings, head, method, steps, options)
    if cache is not None:
        cache.add([key], {name: values[None] for name, values in mean.items()})
    return Attributions(method, mean)


def _class_means(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    head: LinearHead,
    method: str,
    steps: int,
    options: Options,
) -> dict[str, np.ndarray]:
    sites = {reading.site.name: reading.site for reading in readings}
    sums, count = {reading.name: np.zeros((2, reading.width)) for reading in readings}, np.zeros(2)
    attribute = _attributor(backbone, head, method, steps, max(2, options.batch_size))
    skipped: list[tuple[str, str]] = []
    # captum takes at least two steps of every image in one pass.
    halved = replace(options, batch_size=max(1, options.batch_size // 2))
    for positions, pixels in stream_batches(backbone, images, halved, skipped):
        members = np.stack([images.labels[positions] == label for label in (0, 1)]).astype(float)
        count += members.sum(1)
        activations = backbone.capture(pixels, sites)
        attributions = {name: attribute(pixels, site) for name, site in sites.items()}
        for reading in readings:
            name = reading.site.name
            reduce = reading.reduce_gradient if method == "internal_influence" else reading.reduce_attribution
            values = reduce(attributions[name], activations[name]).cpu().numpy()
            require_finite(values, method.replace("_", " "), reading.name)
            sums[reading.name] += members @ values
    if not count.sum():
        raise NoReadableImage(images, skipped)
    return {name: total / np.maximum(count, 1)[:, None] for name, total in sums.items()}


def _attributor(
    backbone: Backbone, head: LinearHead, method: str, steps: int, batch_size: int
) -> Callable[[Tensor, Site], Tensor]:
    """A function from pixels and a site to the attributions of the site's activation, of its shape, in float32."""
    import captum.attr
    import torch

    deepest = head.reading.site.name

    def logits(pixels: Tensor) -> Tensor:
        kept: list[Tensor] = []
        # Entered anew for each pass, so that captum's hook on a module runs before ours and is not cut off by the stop.
        with backbone.visiting({deepest: kept.append}) as run:
            run(pixels)
        return head.logits(kept[0])

    def attribute(pixels: Tensor, site: Site) -> Tensor:
        layer = backbone.module.get_submodule(site.module)
        with torch.enable_grad():
            found = getattr(captum.attr, ATTRIBUTION_METHODS[method])(logits, layer).attribute(
                pixels,
                baselines=0.0,
                n_steps=steps,
                internal_batch_size=batch_size,
                attribute_to_layer_input=site.side == "input",
            )
        return (found[0] if isinstance(found, tuple) else found).detach().float()

    return attribute
