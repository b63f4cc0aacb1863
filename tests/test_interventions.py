"""Edits inside the forward pass against a slow reference: one image, one edit, plain torch hooks of the test's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dna_probe import interventions as interventions_module
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options, collect_features
from dna_probe.errors import DnaProbeError, NumericalError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sets import ImageSet
from dna_probe.interventions import (
    INTERVENTIONS,
    Edit,
    make_interventions,
    require_interventions,
    reread,
)
from dna_probe.sites import resolve_reading

VIT_READINGS = (
    "blocks.1.hook_resid_post",
    "blocks.1.mlp.hook_post",
    "blocks.2.hook_resid_post",
    "blocks.2.hook_resid_post:mean",
    "blocks.2.mlp.hook_post:mean",
)
PIXELS = Preprocessing(input_size=(32, 32), crop_pct=1.0)


class Stages(nn.Module):
    """Convolutional stages of which the last remembers the batch of the first."""

    def __init__(self, remembers: bool):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 6), (6, 6), (6, 8)))
        self.remembers = remembers

    def forward(self, x):
        x = first = torch.relu(self.stages[0](x))
        x = torch.relu(self.stages[1](x))
        if self.remembers:
            x = torch.cat([x, first[:, :, ::2, ::2]], 2)
        return self.stages[2](x)


def make_vit():
    import timm

    torch.manual_seed(3)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, num_classes=0
    )


@pytest.fixture(scope="module")
def vit():
    return open_backbone(make_vit(), preprocessing=PIXELS)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    made = tuple(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(4))
    return ImageSet(made, np.array([0, 1, 1, 0]))


def prepare(backbone, pictures, names):
    readings = [resolve_reading(name, backbone.sites) for name in names]
    values = collect_features(backbone, pictures, readings).of(readings).astype(float)
    return readings, values


def together(backbone, pictures, readings, watched, edits, **options):
    """(edits, images, units of ``watched``)."""
    found = np.full((len(edits), len(pictures), sum(r.width for r in watched)), np.nan)
    for part in reread(backbone, pictures, readings, watched, edits, Options(**options)):
        found[part.edits, part.image] = np.concatenate([part.values[r.name] for r in watched], axis=1)
    assert np.isfinite(found).all()
    return found


def slowly(backbone, pictures, readings, watched, edits):
    """The same, by one forward of the bare module per image and edit."""
    model = backbone.module.eval()
    found = []
    for edit in edits:
        rows = []
        for image, label in zip(pictures.images, pictures.labels, strict=True):
            pixels = torch.from_numpy(backbone.preprocessing(Image.fromarray(image)))[None]
            offsets = edit.intervention.level + (1 if label else -1) * edit.intervention.shift
            rows.append(one_forward(model, pixels, readings, watched, edit, offsets))
        found.append(rows)
    return np.array(found)


def one_forward(model, pixels, readings, watched, edit, offsets):
    handles, seen = [], {}
    starts = np.cumsum([0, *(reading.width for reading in readings)])

    def change(site, activation):
        new = activation.clone()
        for start, reading in zip(starts, readings, strict=False):
            for unit in edit.units[(edit.units >= start) & (edit.units < start + reading.width)]:
                if reading.site == site:
                    write(new, reading, int(unit - start), edit.intervention.keep, offsets[unit])
        return new

    def put(site):
        module = model.get_submodule(site.module)

        def after(module, args, output):
            seen[site.name] = change(site, output)
            return seen[site.name]

        def before(module, args):
            seen[site.name] = change(site, args[0])
            return (seen[site.name], *args[1:])

        return (
            module.register_forward_hook(after) if site.side == "output" else module.register_forward_pre_hook(before)
        )

    for site in {reading.site.name: reading.site for reading in (*readings, *watched)}.values():
        handles.append(put(site))
    with torch.no_grad():
        model(pixels)
    for handle in handles:
        handle.remove()
    return np.concatenate([reading.reduce(seen[reading.site.name])[0].numpy() for reading in watched])


def write(activation, reading, unit, keep, offset):
    if reading.site.layout == "nchw":
        channel = activation[0, unit]
    elif reading.reduction == "cls":
        channel = activation[0, 0, unit : unit + 1]
    else:
        channel = activation[0, reading.site.prefix_tokens :, unit]
    if reading.reduction == "std":
        spread = channel.std(correction=0)
        channel.copy_(channel.mean() + (channel - channel.mean()) * (keep * spread + offset) / spread)
    else:
        channel.copy_(keep * channel + offset)


def some_edits(values, labels, units):
    rng = np.random.default_rng(5)
    made = make_interventions(list(INTERVENTIONS), values, labels)
    return [Edit(one, rng.choice(units, 6, replace=False)) for one in made for _ in range(3)]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_edits_of_a_vision_transformer(vit, pictures, batch_size):
    readings, values = prepare(vit, pictures, VIT_READINGS)
    last = resolve_reading("blocks.3.hook_resid_post", vit.sites)
    early = resolve_reading("blocks.0.hook_resid_post", vit.sites)
    edits = some_edits(values, pictures.labels, values.shape[1])
    watched = [early, *readings, last]
    fast = together(vit, pictures, readings, watched, edits, batch_size=batch_size)
    np.testing.assert_allclose(fast, slowly(vit, pictures, readings, watched, edits), atol=2e-5)


@pytest.mark.parametrize("reduction", ["max", "std", "top"])
def test_every_reduction_becomes_exactly_what_the_intervention_says(vit, pictures, reduction):
    readings, values = prepare(vit, pictures, [f"blocks.3.hook_resid_post:{reduction}"])
    for one in make_interventions(list(INTERVENTIONS), values, pictures.labels):
        edit = Edit(one, np.arange(5))
        found = together(vit, pictures, readings, readings, [edit])[0]
        wanted = one.edited(values, pictures.labels)
        np.testing.assert_allclose(
            found[:, :5], np.maximum(wanted, 0)[:, :5] if reduction == "std" else wanted[:, :5], atol=1e-5
        )
        np.testing.assert_allclose(found[:, 5:], values[:, 5:], atol=1e-5)


@pytest.mark.parametrize(
    "names", [("blocks.1.hook_resid_post:std",), ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z:max")]
)
def test_other_readings_against_the_reference(vit, pictures, names):
    readings, values = prepare(vit, pictures, names)
    last = resolve_reading("blocks.3.hook_resid_post", vit.sites)
    edits = some_edits(values, pictures.labels, values.shape[1])
    watched = [*readings, last]
    fast = together(vit, pictures, readings, watched, edits)
    np.testing.assert_allclose(fast, slowly(vit, pictures, readings, watched, edits), atol=2e-5)


@pytest.mark.parametrize("remembers", [False, True])
def test_edits_of_convolutional_stages_also_where_the_model_holds_on_to_the_batch(pictures, remembers, monkeypatch):
    torch.manual_seed(0)
    backbone = open_backbone(Stages(remembers), preprocessing=PIXELS)
    readings, values = prepare(backbone, pictures, [backbone.layers[1].name])
    last = resolve_reading(backbone.layers[-1].name, backbone.sites)
    edits = some_edits(values, pictures.labels, values.shape[1])
    agreed = []
    real = interventions_module._agrees
    monkeypatch.setattr(interventions_module, "_agrees", lambda *given: agreed.append(real(*given)) or agreed[-1])
    fast = together(backbone, pictures, readings, [*readings, last], edits)
    assert agreed == [not remembers]
    np.testing.assert_allclose(fast, slowly(backbone, pictures, readings, [*readings, last], edits), atol=2e-5)


def test_readings_that_share_their_patches_are_changed_once(vit, pictures):
    """A shift for two readings of one unit's patches must not count twice."""
    readings, values = prepare(vit, pictures, ["blocks.2.hook_resid_post:mean", "blocks.2.hook_resid_post:max"])
    swap = INTERVENTIONS["swap"](values, pictures.labels)
    width = readings[0].width
    both = together(vit, pictures, readings, readings[:1], [Edit(swap, np.array([4, width + 4]))])
    one = together(vit, pictures, readings, readings[:1], [Edit(swap, np.array([4]))])
    np.testing.assert_allclose(both, one, atol=1e-6)


class TestArithmetic:
    def test_zero_mean_and_swap(self, rng):
        values, labels = rng.normal(2, 1, (30, 4)), np.repeat([0, 1], 15)
        zero, mean, swap = (INTERVENTIONS[name](values, labels) for name in ("zero", "mean", "swap"))
        assert not zero.edited(values, labels).any()
        assert np.allclose(mean.edited(values, labels), values.mean(0))
        swapped = swap.edited(values, labels)
        for label in (0, 1):
            own, other = labels == label, labels != label
            assert np.allclose(swapped[own].mean(0), values[other].mean(0)), "the class means are exchanged"
            assert np.allclose(swapped[own].std(0), values[own].std(0)), "each image's own variation stays"

    def test_a_mistyped_name(self):
        with pytest.raises(DnaProbeError, match=r"Unknown intervention 'means'. Did you mean 'mean'"):
            require_interventions(["zero", "means"])


class TestTheModelIsLeftAsItWas:
    def state(self, model):
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        fused = [getattr(m, "fused_attn", None) for m in model.modules()]
        return hooks, flags, fused, {name: value.clone() for name, value in model.state_dict().items()}

    def same(self, before, after):
        return before[:3] == after[:3] and all(torch.equal(before[3][name], value) for name, value in after[3].items())

    @pytest.mark.parametrize("error", [None, KeyboardInterrupt, NumericalError])
    def test_whatever_happens(self, pictures, error):
        model = make_vit().train()
        model.blocks[1].eval()
        model.blocks[2].mlp.fc1.weight.requires_grad_(False)
        backbone = open_backbone(model, preprocessing=PIXELS)
        readings, values = prepare(backbone, pictures, VIT_READINGS)
        before = self.state(model)
        mean = INTERVENTIONS["mean"](values * (np.nan if error is NumericalError else 1), pictures.labels)
        try:
            for _ in reread(backbone, pictures, readings, readings, [Edit(mean, np.arange(3))]):
                if error is KeyboardInterrupt:
                    raise KeyboardInterrupt
        except (KeyboardInterrupt, NumericalError) as caught:
            assert type(caught) is error
        else:
            assert error is None
        assert self.same(before, self.state(model))
