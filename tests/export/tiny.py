"""A backbone small enough to be exported in a test: a factory, so that a saved detector finds it again."""

import timm
import torch

# Small enough to be quick, cropped like most.
CFG = {"input_size": (3, 32, 32), "crop_pct": 0.9, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def vit():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3
    )
    model.pretrained_cfg = dict(CFG)
    return model
