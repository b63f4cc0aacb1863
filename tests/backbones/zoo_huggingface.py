"""Tiny models of Hugging Face transformers, with random weights, for the tests of the backbone contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .cases import UNSEEN, Case

_BLOCKS = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION = {**_BLOCKS, "image_size": 64, "patch_size": 16}
TEXT = {**_BLOCKS, "hidden_size": 24, "vocab_size": 60, "max_position_embeddings": 32}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def made(model: str, configuration: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        built = getattr(transformers, model)(getattr(transformers, configuration)(**settings))
        for name, parameter in built.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                # As most families start; SigLIP starts so sharp that half precision could not follow.
                parameter.data *= 0.02 / parameter.data.std()
        return built

    return make


_VIT = {"layers": 3, "layout": "tokens", "grid": (4, 4)}
_CLASS = {**_VIT, "class_token": True, "prefix": 1}
_TWO_TOWERS = {"vision_config": VISION, "text_config": {**TEXT, **SPECIAL}}
HF_CASES: dict[str, Case] = {
    "hf_vit": Case(made("ViTModel", "ViTConfig", **VISION), **_CLASS),
    "hf_vit_classifier": Case(made("ViTForImageClassification", "ViTConfig", **VISION), **_CLASS),
    "hf_deit": Case(made("DeiTModel", "DeiTConfig", **VISION), **{**_CLASS, "prefix": 2}),
    "hf_clip": Case(made("CLIPVisionModel", "CLIPVisionConfig", **VISION), **_CLASS),
    "hf_clip_two_towers": Case(made("CLIPModel", "CLIPConfig", **_TWO_TOWERS), **_CLASS),
    "hf_siglip": Case(made("SiglipVisionModel", "SiglipVisionConfig", **VISION), **_VIT),
    "hf_siglip_two_towers": Case(made("SiglipModel", "SiglipConfig", **_TWO_TOWERS), **_VIT),
    "hf_dinov2": Case(made("Dinov2Model", "Dinov2Config", **VISION), **_CLASS),
    "hf_dinov2_gated": Case(made("Dinov2Model", "Dinov2Config", **VISION, use_swiglu_ffn=True), **_CLASS),
    "hf_dinov2_registers": Case(
        made("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **VISION, num_register_tokens=4),
        **{**_CLASS, "prefix": 5},
    ),
    "hf_dinov3": Case(
        made("DINOv3ViTModel", "DINOv3ViTConfig", **VISION, num_register_tokens=2, use_gated_mlp=True),
        **{**_CLASS, "prefix": 3},
    ),
    "hf_beit": Case(made("BeitModel", "BeitConfig", **VISION, use_relative_position_bias=True), **_CLASS),
    "hf_ijepa": Case(made("IJepaModel", "IJepaConfig", **VISION), **_VIT),
    "hf_convnext": Case(
        made("ConvNextModel", "ConvNextConfig", hidden_sizes=[8, 16, 24, 32], depths=[3, 3, 9, 3]),
        layers=4,
        layout="nchw",
        mlp=False,
        pattern=False,
        size=64,
    ),
    "hf_swin": Case(
        made(
            "SwinModel",
            "SwinConfig",
            image_size=64,
            patch_size=2,
            window_size=2,
            embed_dim=8,
            depths=[2, 2, 6, 2],
            num_heads=[1, 2, 2, 4],
        ),
        layers=12,
        layout="tokens",
        pattern=False,
        attention=(UNSEEN,),
    ),
}
HF_ATTENTION = [name for name, case in HF_CASES.items() if case.pattern]
