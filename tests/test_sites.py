"""Names, readings and token reductions."""

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
SHAPES = {TOKENS: (2, 14, 6), POOLED: (2, 13, 6), NHWC: (2, 3, 3, 6), NCHW: (2, 6, 3, 3), VECTOR: (2, 6)}


def readings() -> list[Reading]:
    return [Reading(site, r) for site in SHAPES for r in REDUCTIONS if r == "mean" or site.class_token]


def test_patches_are_the_same_in_every_layout():
    patches = torch.randn(2, 9, 6)
    maps = patches.view(2, 3, 3, 6)
    prefix = torch.randn(2, 5, 6)
    assert torch.equal(patch_tokens(TOKENS, torch.cat([prefix, patches], 1)), patches)
    assert torch.equal(patch_tokens(NHWC, maps), patches)
    assert torch.equal(patch_tokens(NCHW, maps.permute(0, 3, 1, 2)), patches)
    assert patch_tokens(VECTOR, patches[:, 0]).shape == (2, 1, 6)


@pytest.mark.parametrize("reading", readings(), ids=lambda r: f"{r.site.layout}:{r.reduction}")
def test_reading_has_one_number_per_unit_and_its_gradient_is_a_derivative(reading):
    """Moving a reading by d (every covered token by d) changes the output by ``reduce_gradient`` times d."""
    activation = torch.randn(SHAPES[reading.site], dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(activation)
    assert reading.reduce(activation).shape == (2, reading.width)
    (gradient,) = torch.autograd.grad((activation * weight).sum(), activation)
    moved = torch.zeros_like(activation)
    if reading.reduction == "cls":
        moved[:, 0, 2] = 1
    elif reading.site.layout == "nchw":
        moved[:, 2] = 1
    elif reading.site.layout == "tokens":
        moved[:, reading.site.prefix_tokens :, 2] = 1
    else:
        moved[..., 2] = 1
    change = (moved * weight).flatten(1).sum(1)
    torch.testing.assert_close(reading.reduce_gradient(gradient)[:, 2], change)


def test_prefix_tokens_never_reach_the_mean():
    activation = torch.randn(2, 14, 6)
    spoiled = activation.clone()
    spoiled[:, :5] = float("nan")
    reading = Reading(TOKENS, "mean")
    assert torch.equal(reading.reduce(activation), reading.reduce(spoiled))


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
    with pytest.raises(SiteError, match=r"Unknown reduction 'max'. Known: cls, mean"):
        resolve_reading("blocks.1.hook_resid_post:max", SITES)
    with pytest.raises(
        SiteError, match=r"has no CLS token to read. Its model pools its patches. Use the reduction 'mean'"
    ):
        resolve_reading("blocks.0.hook_resid_post:cls", SITES)
    pattern = Site("blocks.1.attn.hook_pattern", "pattern", 1, "blocks.1.attn.attn_drop", "input", "tokens", 3, 5, True)
    with pytest.raises(SiteError, match=r"holds attention probabilities, not units"):
        Reading(pattern, "cls")


def test_readings_are_grouped_by_layer_in_order():
    grouped = readings_by_layer([Reading(NCHW, "mean"), Reading(TOKENS, "cls"), Reading(POOLED, "mean")])
    assert list(grouped) == [0, 1]
    assert [reading.site for reading in grouped[1]] == [NCHW, TOKENS]


def test_site_is_plain_data():
    assert Site(**TOKENS.to_json()) == TOKENS
