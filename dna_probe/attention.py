"""What an attention pattern says of one image: where the class token looks, how spread out, how far.

For sites without attention the same three are taken from the spatial energy map, the share of the squared activation
that each position holds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from dna_probe.sites import patch_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from dna_probe.sites import Site

# Parts into which the map of a sequence is divided, whatever its length.
BINS = 48


def summarise_pattern(pattern: Tensor, site: Site, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Attention probabilities (n, heads, queries, keys) -> map, entropy and distance of each image.

    Returns:
        ``map`` (n, patches): head-averaged attention from CLS to the patches, renormalised to sum to one; without a CLS
        token, the attention that a patch receives, averaged over patch queries. ``entropy`` (n,): Shannon entropy of
        the map in nats. ``distance`` (n,): mean attention distance in patches, the attention-weighted distance
        between a patch query and its keys averaged over heads and queries (Dosovitskiy et al. 2021, figure 7).
    """
    from einops import einsum, reduce

    patches = pattern[..., site.prefix_tokens :].float()
    queries = patches[:, :, site.prefix_tokens :]
    received = reduce(queries, "image head query key -> image key", "mean")
    raw = patches[:, :, 0].mean(1) if site.class_token else received
    distances = _distances(grid).to(pattern.device)
    weight = queries.sum(-1).clamp_min(1e-12)
    travelled = einsum(queries, distances, "image head query key, query key -> image head query") / weight
    return {**_map_entropy(raw), "distance": travelled.mean((1, 2))}


def summarise_energy(tokens: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Spatial activations (n, patches, width) -> map, entropy and distance of the energy map.

    ``distance`` is the mean distance, in cells, between two positions drawn from the map.
    """
    result = _map_entropy(tokens.float().square().sum(-1))
    spread = result["map"] @ _distances(grid).to(tokens.device)
    return {**result, "distance": (spread * result["map"]).sum(-1)}


def summarise_sequence(activation: Tensor, site: Site) -> dict[str, Tensor]:
    """The same of a sequence of any length, from a pattern or from tokens, on ``BINS`` equal parts of its length.

    ``entropy`` is a share of its maximum, log(tokens), times log(``BINS``), and ``distance`` a share of the length
    times ``BINS``, so that sequences of different lengths compare.
    """
    patches = activation.shape[-1] - site.prefix_tokens if site.kind == "pattern" else 0
    if site.kind == "pattern":
        found = summarise_pattern(activation, site, (1, patches))
    else:
        tokens = patch_tokens(site, activation)
        patches = tokens.shape[1]
        found = summarise_energy(tokens, (1, patches))
    return {
        "map": found["map"] @ _overlap(patches).to(activation.device),
        "entropy": found["entropy"] * (math.log(BINS) / math.log(max(patches, 2))),
        "distance": found["distance"] * (BINS / patches),
    }


@lru_cache(maxsize=1024)
def _overlap(tokens: int) -> Tensor:
    """Which share of each token lies in each of ``BINS`` equal parts of the sequence, (tokens, BINS); rows sum to 1."""
    import torch

    edges = torch.arange(BINS + 1, dtype=torch.float64) * tokens / BINS
    starts = torch.arange(tokens, dtype=torch.float64)[:, None]
    covered = (torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)).clamp_min(0)
    return covered.float()


def _map_entropy(raw: Tensor) -> dict[str, Tensor]:
    shares = raw / raw.sum(-1, keepdim=True).clamp_min(1e-12)
    return {"map": shares, "entropy": -(shares * shares.clamp_min(1e-12).log()).sum(-1)}


@lru_cache(maxsize=32)
def _distances(grid: tuple[int, int]) -> Tensor:
    import torch

    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float().reshape(-1, 2)
    return torch.cdist(cells, cells)
