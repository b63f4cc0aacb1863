"""Small models of every family, with what is known about them, for the tests of the backbone contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from dna_probe.backbones.contract import Backbone
from dna_probe.images.preprocessing import Preprocessing

from .cases import CHANNELS, LINEAR, MIXED, POOLED, RESOLUTIONS, UNSEEN, WINDOWS, Case
from .zoo_huggingface import HF_CASES


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


class Wrapper(nn.Module):
    """A model inside another module, as training code holds it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model

    def forward(self, x):
        return self.backbone(x)


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
_PATCH14 = {**_SMALL, "img_size": 56}
_STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
_DEEP = {"depths": (3, 3, 9, 3), "dims": (8, 16, 24, 32)}
_TOKENS = {"layers": 3, "layout": "tokens", "grid": (4, 4)}
_VIT = {**_TOKENS, "class_token": True}
_CNN = {"layout": "nchw", "mlp": False, "pattern": False, "size": 64}
_SWIN = {"layout": "nhwc", "pattern": False, "attention": (WINDOWS, RESOLUTIONS), "intermediates": 3}
CASES: dict[str, Case] = {
    "vit": Case(_timm("vit_tiny_patch16_224", **_SMALL), prefix=1, **_VIT),
    "deit": Case(_timm("deit_tiny_patch16_224", **_SMALL), prefix=1, **_VIT),
    "deit_distilled": Case(_timm("deit_tiny_distilled_patch16_224", **_SMALL), prefix=2, **_VIT),
    "deit3": Case(_timm("deit3_small_patch16_224", **_SMALL), prefix=1, **_VIT),
    "dinov2_registers": Case(_timm("vit_small_patch14_reg4_dinov2", **_PATCH14), prefix=5, **_VIT),
    "dinov3": Case(_timm("vit_small_patch16_dinov3", **_SMALL), prefix=5, **_VIT),
    "clip": Case(_timm("vit_base_patch32_clip_224", **{**_SMALL, "img_size": 128}), prefix=1, **_VIT),
    "siglip": Case(_timm("vit_base_patch16_siglip_224", **_SMALL), **_TOKENS),
    "siglip2": Case(_timm("vit_so400m_patch14_siglip_224.v2_webli", **_PATCH14), **_TOKENS),
    "registers_pooled": Case(_timm("vit_medium_patch16_reg4_gap_256", **_SMALL, qk_norm=True), prefix=4, **_TOKENS),
    "pe_core": Case(_timm("vit_pe_core_tiny_patch16_384", **_SMALL), prefix=1, **_VIT),
    "pe_spatial": Case(_timm("vit_pe_spatial_tiny_patch16_512", **_SMALL), prefix=1, **_VIT),
    "rope_mixed": Case(_timm("vit_small_patch16_rope_mixed_224", **_SMALL), prefix=1, **_VIT),
    "relative_positions": Case(_timm("vit_relpos_small_patch16_224", **_SMALL), **_TOKENS),
    "eva02": Case(_timm("eva02_tiny_patch14_224", **_PATCH14), prefix=1, **_VIT),
    "eva02_clip": Case(_timm("eva02_base_patch16_clip_224", **_SMALL), prefix=1, **_VIT),
    "beit": Case(_timm("beit_base_patch16_224", **_SMALL), prefix=1, **_VIT),
    "beitv2": Case(_timm("beitv2_base_patch16_224", **_SMALL), prefix=1, **_VIT),
    "cait": Case(_timm("cait_xxs24_224", **_SMALL), pattern=False, heads=True, attention=(MIXED,), **_TOKENS),
    # Its blocks return pixels and patches: the second of two tensors is the stream.
    "tnt": Case(
        _timm(
            "tnt_s_patch16_224",
            img_size=64,
            depth=3,
            embed_dim=48,
            inner_dim=8,
            num_heads_inner=2,
            num_heads_outer=3,
        ),
        prefix=1,
        heads=False,
        **_VIT,
    ),
    "qwen3": Case(_timm("qwen3_vit_88m", depth=3, embed_dim=48, num_heads=3), **_TOKENS, size=64),
    # As many patches as channels in a head: the shape alone does not tell its attention from one over patches.
    "xcit": Case(_timm("xcit_nano_12_p16_224", **_SMALL), pattern=False, heads=True, attention=(CHANNELS,), **_TOKENS),
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
        **_SWIN,
    ),
    "swinv2": Case(
        _timm(
            "swinv2_tiny_window8_256",
            img_size=64,
            window_size=4,
            embed_dim=16,
            depths=(1, 2, 1),
            num_heads=(2, 2, 4),
        ),
        layers=4,
        **_SWIN,
    ),
    "twins": Case(
        _timm(
            "twins_svt_small",
            img_size=64,
            depths=(2, 2, 2, 2),
            embed_dims=(16, 16, 32, 32),
            num_heads=(1, 2, 2, 2),
            wss=(4, 4, 4, 2),
        ),
        layers=8,
        layout="tokens",
        pattern=False,
        heads=True,
        attention=(WINDOWS, POOLED, RESOLUTIONS),
        size=64,
        intermediates=4,
    ),
    "maxvit": Case(
        _timm("test_maxvit", img_size=64), layers=4, **{**_CNN, "size": None}, attention=(WINDOWS, RESOLUTIONS)
    ),
    "mobilevit": Case(
        _timm("mobilevit_xxs", num_classes=0), layers=5, **_CNN, attention=(WINDOWS,), attending=3, intermediates=4
    ),
    "mobilevitv2": Case(_timm("mobilevitv2_050", num_classes=0), layers=5, **_CNN, attention=(LINEAR,), attending=3),
    "edgenext": Case(
        _timm("edgenext_xx_small", **_STAGES, heads=(2, 2, 2, 2)), layers=4, **_CNN, attention=(CHANNELS,), attending=3
    ),
    "pvt": Case(
        _timm("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 2, 2)),
        layers=4,
        **_CNN,
        attention=(POOLED, RESOLUTIONS),
    ),
    "davit": Case(
        _timm("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(2, 2, 2, 2)),
        layers=4,
        **_CNN,
        attention=(UNSEEN,),
    ),
    "convnext": Case(_timm("convnext_atto", **_STAGES), layers=4, **_CNN),
    "convnextv2": Case(_timm("convnextv2_atto", **_STAGES), layers=4, **_CNN),
    "resnet18": Case(_timm("resnet18", channels=(8, 16, 24, 32)), layers=4, **_CNN),
    "regnet": Case(_timm("regnetx_002", num_classes=0), layers=4, **_CNN),
    "efficientnet": Case(_timm("test_efficientnet"), layers=5, **_CNN),
    "mobilenetv2": Case(_timm("mobilenetv2_035", num_classes=0), layers=7, **_CNN, intermediates=5),
    "mobilenetv3": Case(_timm("mobilenetv3_small_050", num_classes=0), layers=6, **_CNN, intermediates=4),
    "torchvision_vit": Case(_torchvision_vit, prefix=1, pattern=False, attention=(UNSEEN,), **_VIT),
    "squeezenet": Case(_squeezenet, layers=9, **_CNN),
    "own_tokens": Case(TokenModel, prefix=1, pattern=False, **_VIT),
    "own_convolutions": Case(ConvModel, layers=2, **_CNN),
    "own_wrapper": Case(lambda: Wrapper(_timm("convnext_atto", **_DEEP)()), layers=4, **_CNN),
}
TIMM = [name for name in CASES if not name.startswith(("own", "torchvision", "squeezenet"))]
ATTENTION = [name for name, case in CASES.items() if case.pattern]
CASES |= HF_CASES


@lru_cache
def model_of(name: str) -> nn.Module:
    """One model per case for the whole run, in training mode, as a user may hand it over."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        case = CASES[name]
        model = case.make()
        # Biases and scales away from 0 and 1, so that a wrong tap cannot pass for the right one.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.data += 0.1 * torch.randn_like(parameter)
            if case.pattern and name.endswith(("qk.weight", "qkv.weight", "q_proj.weight", "k_proj.weight")):
                parameter.data *= 10  # sharp attention: an even one would agree with almost any formula
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
