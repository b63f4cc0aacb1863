"""Names, readings and token reductions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dna_probe.errors import SiteError
from dna_probe.sites import (
    REDUCTIONS,
    Reading,
    Site,
    parse_unit,
    patch_tokens,
    readings_by_layer,
    resolve_reading,
    resolve_site,
)

TOKENS = Site("blocks.1.hook_resid_post", "residual", 1, "blocks.1", "output", "tokens", 6, 5, True)
POOLED = Site("blocks.0.hook_resid_post", "residual", 0, "blocks.0", "output", "tokens", 6, 4, False)
NHWC = Site("stages.0.hook_out", "stage", 0, "stages.0", "output", "nhwc", 6)
NCHW = Site("stages.1.hook_out", "stage", 1, "stages.1", "output", "nchw", 6)
VECTOR = Site("stages.2.hook_out", "stage", 2, "stages.2", "output", "vector", 6)
SITES = {site.name: site for site in (POOLED, TOKENS, NHWC, NCHW, VECTOR)}
# Twelve patches: `top` takes two of them.
SHAPES = {TOKENS: (2, 17, 6), POOLED: (2, 16, 6), NHWC: (2, 3, 4, 6), NCHW: (2, 6, 3, 4), VECTOR: (2, 6)}


def readings() -> list[Reading]:
    fitting = {"vector": ["mean"]}
    return [
        Reading(site, reduction)
        for site in SHAPES
        for reduction in fitting.get(site.layout, REDUCTIONS)
        if reduction != "cls" or site.class_token
    ]


def test_patches_are_the_same_in_every_layout():
    patches = torch.randn(2, 9, 6)
    maps = patches.view(2, 3, 3, 6)
    prefix = torch.randn(2, 5, 6)
    assert torch.equal(patch_tokens(TOKENS, torch.cat([prefix, patches], 1)), patches)
    assert torch.equal(patch_tokens(NHWC, maps), patches)
    assert torch.equal(patch_tokens(NCHW, maps.permute(0, 3, 1, 2)), patches)
    assert patch_tokens(VECTOR, patches[:, 0]).shape == (2, 1, 6)


def batch(site: Site, seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPES[site], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def place(site: Site, patches: np.ndarray) -> torch.Tensor:
    """(n, patches, width) written to the spatial part of an activation of zeros."""
    activation = torch.zeros(SHAPES[site], dtype=torch.float64)
    patch_tokens(site, activation).copy_(torch.as_tensor(patches).reshape(patch_tokens(site, activation).shape))
    return activation


def slow(reduction: str, values: np.ndarray) -> tuple[float, np.ndarray]:
    """One unit of one image over its patches: the reduction, and how the patches move as it grows at rate one."""
    tenth = int(np.ceil(len(values) / 10))
    if reduction == "mean":
        return values.sum() / len(values), np.ones(len(values))
    if reduction == "std":
        spread = np.sqrt(((values - values.mean()) ** 2).mean())
        return spread, (values - values.mean()) / spread if spread else np.zeros(len(values))
    best = sorted(range(len(values)), key=lambda p: -values[p])[: 1 if reduction == "max" else tenth]
    return float(np.mean([values[p] for p in best])), np.isin(np.arange(len(values)), best).astype(float)


over_patches = pytest.mark.parametrize(
    "reading",
    [r for r in readings() if r.reduction != "cls" and r.site.layout != "vector"],
    ids=lambda r: f"{r.site.layout}:{r.reduction}",
)


@over_patches
def test_reductions_and_their_gradients_equal_a_slow_reference(reading):
    """Unit by unit: the value by NumPy, the derivative by moving the patches along the direction through autograd."""
    site, activation, weight = reading.site, batch(reading.site), batch(reading.site, 1)

    def output(x):
        return (weight * torch.sin(x)).flatten(1).sum(1)

    leaf = activation.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(output(leaf).sum(), leaf)
    slope, reduced = reading.reduce_gradient(gradient, activation), reading.reduce(activation)
    share = reading.reduce_attribution(gradient * activation, activation)
    assert slope.shape == share.shape == reduced.shape == (2, site.width)
    patches = patch_tokens(site, activation).numpy()
    for unit in range(site.width):
        expected, moves = zip(*(slow(reading.reduction, image[:, unit]) for image in patches), strict=True)
        np.testing.assert_allclose(reduced[:, unit], expected, atol=1e-12)
        moved = np.zeros_like(patches)
        moved[..., unit] = moves
        direction = place(site, moved)
        _, grown = torch.func.jvp(reading.reduce, (activation,), (direction,))
        torch.testing.assert_close(grown[:, unit], torch.ones(2, dtype=torch.float64))
        _, change = torch.func.jvp(output, (activation,), (direction,))
        torch.testing.assert_close(slope[:, unit], change)
        covered = np.ones_like(moves) if reading.reduction == "std" else np.array(moves)
        products = patch_tokens(site, gradient * activation).numpy()[..., unit]
        np.testing.assert_allclose(share[:, unit], (covered * products).sum(1), atol=1e-12)


def test_the_class_token_and_vectors_are_their_own_gradient():
    gradient, activation = batch(TOKENS), batch(TOKENS, 1)
    reading = Reading(TOKENS, "cls")
    assert torch.equal(reading.reduce(activation), activation[:, 0])
    assert torch.equal(reading.reduce_gradient(gradient, activation), gradient[:, 0])
    assert torch.equal(reading.reduce_attribution(gradient, activation), gradient[:, 0])
    vector = Reading(VECTOR, "mean")
    gradient = batch(VECTOR)
    assert torch.equal(vector.reduce(gradient), gradient)
    assert torch.equal(vector.reduce_gradient(gradient, gradient), gradient)
    assert torch.equal(vector.reduce_attribution(gradient, gradient), gradient)


@over_patches
def test_equal_patches_have_no_spread_and_no_gradient_by_it(reading):
    activation = place(reading.site, np.full(patch_tokens(reading.site, batch(reading.site)).shape, 0.3))
    assert torch.isfinite(reading.reduce_gradient(batch(reading.site), activation)).all()
    spread = Reading(reading.site, "std")
    assert spread.reduce(activation).abs().max() < 1e-12
    zeros = torch.zeros(SHAPES[reading.site], dtype=torch.float64)
    assert not spread.reduce_gradient(batch(reading.site), zeros).any()


@given(
    st.sampled_from([POOLED, TOKENS, NHWC, NCHW]),
    st.integers(0, 10**6),
    st.floats(-5, 5),
    st.floats(0.1, 10),
)
def test_reductions_over_patches_keep_their_order_shift_and_scale(site, seed, shift, scale):
    activation = batch(site, seed)
    reduced = {r: Reading(site, r).reduce(activation) for r in ("mean", "max", "std", "top")}
    assert (reduced["max"] >= reduced["top"] - 1e-12).all() and (reduced["top"] >= reduced["mean"] - 1e-12).all()
    assert (reduced["std"] >= 0).all()
    for reduction, value in reduced.items():
        moved = Reading(site, reduction).reduce(scale * activation + shift)
        torch.testing.assert_close(moved, scale * value + (0 if reduction == "std" else shift))


@given(st.sampled_from(["mean", "max", "std", "top"]), st.permutations(range(12)), st.integers(0, 10**6))
def test_the_order_of_patches_does_not_matter(reduction, order, seed):
    patches = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    reading = Reading(NHWC, reduction)
    plain, shuffled = patches.view(2, 3, 4, 6), patches[:, order].view(2, 3, 4, 6)
    torch.testing.assert_close(reading.reduce(plain), reading.reduce(shuffled))
    torch.testing.assert_close(
        reading.reduce_gradient(plain.sin(), plain), reading.reduce_gradient(shuffled.sin(), shuffled)
    )


def test_top_is_the_tenth_of_the_patches_but_at_least_one():
    site = Site("stages.0.hook_out", "stage", 0, "stages.0", "output", "nchw", 1)
    for side, count in ((1, 1), (3, 1), (4, 2), (14, 20)):
        values = torch.arange(side * side, dtype=torch.float64).view(1, 1, side, side)
        assert Reading(site, "top").reduce(values).item() == np.arange(side * side)[-count:].mean()


@pytest.mark.parametrize("reduction", ["mean", "max", "std", "top"])
def test_prefix_tokens_never_reach_the_patches(reduction):
    activation = torch.randn(2, 14, 6)
    spoiled = activation.clone()
    spoiled[:, :5] = float("nan")
    reading = Reading(TOKENS, reduction)
    assert torch.equal(reading.reduce(activation), reading.reduce(spoiled))
    assert torch.equal(reading.reduce_gradient(activation, activation), reading.reduce_gradient(spoiled, spoiled))


def test_names():
    assert Reading(TOKENS, "cls").name == "blocks.1.hook_resid_post"
    assert Reading(TOKENS, "mean").name == "blocks.1.hook_resid_post:mean"
    assert Reading(POOLED, "mean").name == "blocks.0.hook_resid_post"
    assert Reading(TOKENS, "mean").unit(3) == "blocks.1.hook_resid_post:mean[3]"
    for reading in readings():
        assert resolve_reading(reading.name, SITES) == reading


@given(st.sampled_from(readings()), st.integers(0, 10**6))
def test_unit_names_come_back(reading, index):
    name, parsed = parse_unit(reading.unit(index))
    assert parsed == index
    assert resolve_reading(name, SITES) == reading


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.1[x]", "[3]", "a[3] ", "a[-1]", ""])
def test_what_is_no_unit_name(name):
    with pytest.raises(SiteError, match=r"is not a unit name. Write it as site\[k\]"):
        parse_unit(name)


def test_mistakes_say_what_is_meant():
    with pytest.raises(
        SiteError, match=r"Unknown site 'blocks.1.hook_resid_pst'. Did you mean 'blocks.1.hook_resid_post'"
    ):
        resolve_site("blocks.1.hook_resid_pst", SITES)
    with pytest.raises(SiteError, match=r"Unknown reduction 'variance'. Known: cls, mean, max, std, top"):
        resolve_reading("blocks.1.hook_resid_post:variance", SITES)
    with pytest.raises(
        SiteError, match=r"has no CLS token to read. Its model pools its patches. Use the reduction 'mean'"
    ):
        resolve_reading("blocks.0.hook_resid_post:cls", SITES)
    with pytest.raises(SiteError, match=r"has no patches to take the std of. It gives one vector per image. Use the"):
        resolve_reading("stages.2.hook_out:std", SITES)
    pattern = Site("blocks.1.attn.hook_pattern", "pattern", 1, "blocks.1.attn.attn_drop", "input", "tokens", 3, 5, True)
    with pytest.raises(SiteError, match=r"holds attention probabilities, not units"):
        Reading(pattern, "cls")


def test_readings_are_grouped_by_layer_in_order():
    grouped = readings_by_layer([Reading(NCHW, "mean"), Reading(TOKENS, "cls"), Reading(POOLED, "mean")])
    assert list(grouped) == [0, 1]
    assert [reading.site for reading in grouped[1]] == [NCHW, TOKENS]


def test_units_of_heads_know_their_head():
    site = Site("blocks.1.attn.hook_z", "heads", 1, "blocks.1.attn.proj", "input", "tokens", 12, 1, True, heads=3)
    assert [site.head_of(k) for k in (0, 3, 4, 11)] == [0, 0, 1, 2]
    assert TOKENS.head_of(0) is None


def test_site_is_plain_data():
    assert Site(**TOKENS.to_json()) == TOKENS
    before_heads = {key: value for key, value in TOKENS.to_json().items() if key != "heads"}
    assert Site(**before_heads) == TOKENS
