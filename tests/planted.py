"""A token model whose forgery units are known: planted units read a checkerboard trace, all others read content.

Images are smooth noise; fakes carry a faint checkerboard. Patches are embedded by random low-pass filters, which do
not see the checkerboard, and by ``planted`` filters, which see nothing else. From block ``turn`` on the class token
looks at the patches, so that real and fake come apart there and not before.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

SIDE, PATCH, WIDTH, DEPTH, TURN = 32, 8, 48, 6, 2
PLANTED = (3, 11, 19, 27, 35, 43)


class Block(nn.Module):
    def __init__(self, looks: bool):
        super().__init__()
        self.looks = looks
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        nn.init.normal_(self.mlp[2].weight, std=0.002)

    def forward(self, x):
        if self.looks:
            seen = x[:, :1] + x[:, 1:].mean(1, keepdim=True)
            x = torch.cat([seen, x[:, 1:]], 1)
        return x + self.mlp(x)


class Planted(nn.Module):
    pretrained_cfg: ClassVar = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        board = torch.from_numpy(checkerboard(PATCH)).float()
        with torch.no_grad():
            blocks = torch.randn(WIDTH, 3, PATCH // 4, PATCH // 4)
            self.embed.weight.copy_(blocks.repeat_interleave(4, 2).repeat_interleave(4, 3) / 16)
            for unit in PLANTED:
                self.embed.weight[unit] = board
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Block(i >= TURN) for i in range(DEPTH))

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        for block in self.blocks:
            x = block(x)
        return x


def checkerboard(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.where((x + y) % 2 == 0, 1.0, -1.0)


def images(count: int, seed: int = 0, strength: float = 3.0) -> tuple[list[np.ndarray], np.ndarray]:
    """``count`` images of each class, uint8; the checkerboard changes each pixel of a fake by a few grey levels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count)
    found = []
    for label in labels:
        smooth = rng.normal(128, 30, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
        noise = rng.normal(0, 2, (SIDE, SIDE, 3))
        trace = label * strength * rng.uniform(0.5, 1.5) * checkerboard(SIDE)[..., None]
        found.append(np.clip(smooth + noise + trace, 0, 255).round().astype(np.uint8))
    return found, labels
