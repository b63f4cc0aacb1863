"""Where a unit lives: site names, token reductions, unit names.

Names follow TransformerLens: ``blocks.3.hook_resid_post`` is the residual stream after block 3,
``blocks.3.mlp.hook_post`` its MLP hidden units after the non-linearity, ``blocks.3.attn.hook_z`` the outputs of its
attention heads side by side, ``blocks.3.attn.hook_pattern`` its attention probabilities; convolutional stages are
``stages.2.hook_out``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from dna_probe.errors import SiteError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["residual", "mlp", "heads", "pattern", "stage"]
Layout = Literal["tokens", "nhwc", "nchw", "vector"]

REDUCTIONS = ("cls", "mean", "max", "std", "top")
TOP_SHARE = 10  # `top` averages one patch in this many


@dataclass(frozen=True)
class Site:
    """One place in the network where activations are read.

    Attributes:
        name: TransformerLens name, unique in a backbone.
        kind: ``residual``, ``mlp``, ``heads``, ``pattern`` or ``stage``.
        layer: depth of the block or stage, counted from 0.
        module: dotted path of the hooked module.
        side: whether the activation is the module's ``output`` or its ``input``.
        layout: ``tokens`` (n, length, width), ``nhwc``, ``nchw`` (of sequences (n, width, length)) or ``vector``
            (n, width); patterns are (n, heads, queries, keys) and carry ``tokens``.
        width: units of one reading (heads, for a pattern).
        prefix_tokens: tokens before the patches (CLS, distillation, registers).
        class_token: whether token 0 is a CLS token.
        heads: of a ``heads`` site, how many attention heads lie side by side in its units; else 0.
        part: which of the tensors given or returned holds the activation, counted from 0.
    """

    name: str
    kind: Kind
    layer: int
    module: str
    side: Literal["output", "input"]
    layout: Layout
    width: int
    prefix_tokens: int = 0
    class_token: bool = False
    heads: int = 0
    part: int = 0

    @property
    def default_reduction(self) -> str:
        return "cls" if self.class_token else "mean"

    def head_of(self, unit: int) -> int | None:
        """The attention head that a unit of a ``heads`` site belongs to; None at other sites."""
        return unit // (self.width // self.heads) if self.heads else None

    def to_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """A site read through a token reduction: one number per unit and image.

    Reductions: ``cls``, the CLS token; over the patches ``mean``, ``max``, ``std`` (population), and ``top``, the mean
    of the tenth of them (rounded up) in which that very unit is largest. A ``vector`` site has one value per image; its
    only reduction, ``mean``, is that value.
    """

    site: Site
    reduction: str

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise unknown_name("reduction", self.reduction, REDUCTIONS, SiteError)
        if self.site.kind == "pattern":
            raise SiteError(
                f"{self.site.name} holds attention probabilities, not units",
                "They are summarised, not reduced over tokens",
                "Read the residual or MLP site of the same block",
            )
        if self.reduction == "cls" and not self.site.class_token:
            raise SiteError(
                f"{self.site.name} has no CLS token to read",
                "Its model pools its patches",
                "Use the reduction 'mean'",
            )
        if self.reduction != "mean" and self.site.layout == "vector":
            raise SiteError(
                f"{self.site.name} has no patches to take the {self.reduction} of",
                "It gives one vector per image",
                "Use the reduction 'mean', which is that vector",
            )

    @property
    def name(self) -> str:
        """The site's name, with the reduction behind a colon where it is not the site's default."""
        plain = self.reduction == self.site.default_reduction
        return self.site.name if plain else f"{self.site.name}:{self.reduction}"

    @property
    def width(self) -> int:
        return self.site.width

    def unit(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def reduce(self, activation: Tensor) -> Tensor:
        """Activation of the site for a batch -> (n, width)."""
        if self.site.layout == "vector":
            return activation
        if self.reduction == "cls":
            return activation[:, 0]
        patches = patch_tokens(self.site, activation)
        if self.reduction == "mean":
            return patches.mean(1, dtype=_wide(patches))
        if self.reduction == "max":
            return patches.amax(1)
        if self.reduction == "std":
            return patches.std(1, correction=0)
        return patches.topk(_top_count(patches), dim=1).values.mean(1, dtype=_wide(patches))

    def reduce_gradient(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Gradient of the output by the site -> derivative by the reading, (n, width).

        A reading does not say how its patches move when it does, so each reduction has a direction in which the reading
        grows at rate one: for ``mean`` every patch by the same, for ``max`` the largest patch alone, for ``top`` the
        patches it averages, for ``std`` every patch away from their mean in proportion, by ``(x - mean) / std`` (by
        nothing, where all are equal).
        """
        if self.site.layout == "vector":
            return gradient
        if self.reduction == "cls":
            return gradient[:, 0]
        slopes = patch_tokens(self.site, gradient)
        if self.reduction == "mean":
            return slopes.sum(1)
        patches = patch_tokens(self.site, activation)
        if self.reduction == "std":
            centred, spread = patches - patches.mean(1, keepdim=True), patches.std(1, correction=0)
            return (slopes * centred).sum(1) / spread.where(spread > 0, 1)
        return slopes.gather(1, self._chosen(patches)).sum(1)

    def reduce_attribution(self, attribution: Tensor, activation: Tensor) -> Tensor:
        """Shares of the output that lie on the site's tokens -> sum over those the reading covers, (n, width).

        ``mean`` and ``std`` cover all patches, ``max`` and ``top`` those which they read.
        """
        if self.site.layout == "vector":
            return attribution
        if self.reduction == "cls":
            return attribution[:, 0]
        shares = patch_tokens(self.site, attribution)
        if self.reduction in ("mean", "std"):
            return shares.sum(1)
        return shares.gather(1, self._chosen(patch_tokens(self.site, activation))).sum(1)

    def _chosen(self, patches: Tensor) -> Tensor:
        """Positions of the patches that ``max`` or ``top`` reads, (n, chosen, width)."""
        return patches.topk(1 if self.reduction == "max" else _top_count(patches), dim=1).indices


def _wide(values: Tensor) -> torch.dtype | None:
    """The type to average in: of half precision float32, so that the mean is not rounded once more."""
    import torch

    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None


def _top_count(patches: Tensor) -> int:
    return -(-patches.shape[1] // TOP_SHARE)


def patch_tokens(site: Site, activation: Tensor) -> Tensor:
    """Spatial part of an activation as (n, patches, width), without prefix tokens."""
    if site.layout == "tokens":
        return activation[:, site.prefix_tokens :]
    if site.layout == "nhwc":
        return activation.flatten(1, 2)
    if site.layout == "nchw":
        return activation.flatten(2).transpose(1, 2)
    return activation[:, None]


_UNIT = re.compile(r"(?P<reading>.+)\[(?P<index>\d+)\]")


def parse_unit(name: str) -> tuple[str, int]:
    """``'blocks.7.mlp.hook_post:mean[412]'`` -> ``('blocks.7.mlp.hook_post:mean', 412)``."""
    match = _UNIT.fullmatch(name)
    if not match:
        raise SiteError(
            f"{name!r} is not a unit name", fix="Write it as site[k], for example blocks.7.mlp.hook_post[412]"
        )
    return match["reading"], int(match["index"])


def resolve_reading(name: str, sites: Mapping[str, Site]) -> Reading:
    """A reading by name (``site`` or ``site:reduction``), or an error that lists near matches."""
    site_name, _, reduction = name.partition(":")
    site = resolve_site(site_name, sites)
    return Reading(site, reduction or site.default_reduction)


def resolve_site(name: str, sites: Mapping[str, Site]) -> Site:
    if name not in sites:
        raise unknown_name("site", name, sites, SiteError)
    return sites[name]


def readings_by_layer(readings: Iterable[Reading]) -> dict[int, list[Reading]]:
    layers: dict[int, list[Reading]] = {}
    for reading in readings:
        layers.setdefault(reading.site.layer, []).append(reading)
    return dict(sorted(layers.items()))
