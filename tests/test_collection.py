"""What collectors keep of an activation is what the site gave, and nothing of it stays behind."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from dna_probe.backbones import open_backbone
from dna_probe.collection import Options, collect_features, collect_moments
from dna_probe.images.sets import ImageSet
from dna_probe.sites import Reading
from dna_probe.trimming import UnitReader

from .planted import images

WIDTH = 8
INLINE = Options(workers=0)


class Overwriting(nn.Module):
    """A model whose every block begins with a module in place, which overwrites what the block before gave."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)) for _ in range(3))
        self.pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def backbone():
    return open_backbone(Overwriting(), device="cpu")


@pytest.fixture(scope="module")
def data():
    return ImageSet(*images(4))


@pytest.fixture
def readings(backbone):
    return [Reading(site, reduction) for site in backbone.layers for reduction in ("cls", "mean", "max")]


@pytest.fixture
def expected(backbone, data, readings):
    """By slow copies of whole activations."""
    pixels = np.stack([backbone.preprocessing.load(image) for image in data.images])
    captured = backbone.capture(pixels, {reading.site.name for reading in readings})
    return {reading.name: reading.reduce(captured[reading.site.name]).numpy() for reading in readings}


def test_modules_in_place_change_nothing(backbone, data, readings, expected):
    found = collect_features(backbone, data, readings, options=INLINE)
    moments = collect_moments(backbone, data, readings, INLINE)
    pixels = torch.from_numpy(np.stack([backbone.preprocessing.load(image) for image in data.images]))
    units = {reading: list(range(WIDTH)) for reading in readings}
    read = UnitReader(backbone.module, backbone.sites, units)(pixels).detach().split(WIDTH, 1)
    assert (expected[readings[0].name] < 0).any()
    for reading, values in zip(readings, read, strict=True):
        np.testing.assert_allclose(found.values[reading.name], expected[reading.name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values, expected[reading.name], rtol=1e-5, atol=1e-6)
        mean = expected[reading.name][data.labels == 1].mean(0)
        np.testing.assert_allclose(moments[reading.name].classes[1].mean, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("collect", [collect_features, collect_moments])
def test_no_activation_outlives_the_layers_that_use_it(backbone, data, readings, collect, monkeypatch):
    """One view of each site would keep all of them until the end of the batch."""
    seen, alive = [], []

    def watch(module, arguments, output):
        seen.append(weakref.ref(output.untyped_storage()))
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen[:-1]))

    for block in backbone.module.blocks:
        block.register_forward_hook(watch)
    collect(backbone, data, readings, options=INLINE)
    assert max(alive) <= 1


def test_attention_alone(backbone, data):
    found = collect_features(backbone, data, [], backbone.layers, INLINE)
    assert found.attention[backbone.layers[0].name]["map"].shape == (len(data), 16)
