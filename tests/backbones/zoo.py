"""Small models of every family, with what is known about them, for the tests of the backbone contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from dna_probe.backbones.contract import Backbone
from dna_probe.images.preprocessing import Preprocessing


class TokenBlock(nn.Module):
    """A block as a user would write it: names of its own, attention without dropout, in-place activation."""

    def __init__(self, width: int):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.up, self.relu, self.down = nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.mix(self.before(x).mean(1, keepdim=True))
        return x + self.down(self.relu(self.up(self.after(x))))


class TokenModel(nn.Module):
    def __init__(self, width: int = 24, depth: int = 3):
        super().__init__()
        self.image_size = 32
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.trunk = nn.ModuleList(TokenBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.trunk:
            x = block(x)
        return self.head(x[:, 0])


class ConvModel(nn.Module):
    """One in-place activation for all convolutions, layers as attributes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, 2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.fc(self.relu(self.conv2(x)).mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """What a model is and what its backbone must look like."""

    make: Callable[[], nn.Module]
    layers: int
    layout: str
    prefix: int = 0
    class_token: bool = False
    mlp: bool = True
    pattern: bool = True
    grid: tuple[int, int] | None = None
    size: int | None = None


def _timm(name: str, **settings) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **settings)

    return make


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96)


def _squeezenet() -> nn.Module:
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(weights=None)


_SMALL = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
_VIT = {"layers": 3, "layout": "tokens", "class_token": True, "grid": (4, 4)}
_CNN = {"layout": "nchw", "mlp": False, "pattern": False, "size": 64}
CASES: dict[str, Case] = {
    "vit": Case(_timm("vit_tiny_patch16_224", **_SMALL), prefix=1, **_VIT),
    "deit": Case(_timm("deit_tiny_patch16_224", **_SMALL), prefix=1, **_VIT),
    "deit_distilled": Case(_timm("deit_tiny_distilled_patch16_224", **_SMALL), prefix=2, **_VIT),
    "dinov2_registers": Case(_timm("vit_small_patch14_reg4_dinov2", **{**_SMALL, "img_size": 56}), prefix=5, **_VIT),
    "clip": Case(_timm("vit_base_patch32_clip_224", **{**_SMALL, "img_size": 128}), prefix=1, **_VIT),
    "registers_pooled": Case(
        _timm("vit_medium_patch16_reg4_gap_256", **_SMALL), layers=3, layout="tokens", prefix=4, grid=(4, 4)
    ),
    "eva02": Case(_timm("eva02_tiny_patch14_224", **{**_SMALL, "img_size": 56}), prefix=1, **_VIT),
    "swin": Case(
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=64,
            window_size=4,
            embed_dim=24,
            depths=(1, 2, 1),
            num_heads=(2, 2, 4),
        ),
        layers=4,
        layout="nhwc",
        pattern=False,
    ),
    "convnext": Case(_timm("convnext_atto"), layers=4, **_CNN),
    "resnet18": Case(_timm("resnet18"), layers=4, **_CNN),
    "mobilenetv3": Case(_timm("mobilenetv3_small_050"), layers=6, **_CNN),
    "edgenext": Case(_timm("edgenext_xx_small"), layers=4, **_CNN),
    "torchvision_vit": Case(_torchvision_vit, prefix=1, pattern=False, **_VIT),
    "squeezenet": Case(_squeezenet, layers=9, **_CNN),
    "own_tokens": Case(TokenModel, prefix=1, pattern=False, **_VIT),
    "own_convolutions": Case(ConvModel, layers=2, **_CNN),
}
TIMM = [name for name in CASES if not name.startswith(("own", "torchvision", "squeezenet"))]
ATTENTION = [name for name, case in CASES.items() if case.pattern]


@lru_cache
def model_of(name: str) -> nn.Module:
    """One model per case for the whole run, in training mode, as a user may hand it over."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = CASES[name].make()
        # Biases and scales away from 0 and 1, so that a wrong tap cannot pass for the right one.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.data += 0.1 * torch.randn_like(parameter)
            if name.endswith("qkv.weight"):  # sharp attention: an even one would agree with almost any formula
                parameter.data *= 10
    return model.train()


@lru_cache
def backbone_of(name: str) -> Backbone:
    from dna_probe.backbones import open_backbone

    size = CASES[name].size
    preprocessing = Preprocessing(input_size=(size, size)) if size else None
    return open_backbone(model_of(name), preprocessing=preprocessing)


def pixels_for(backbone: Backbone, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *backbone.preprocessing.input_size, generator=generator)
