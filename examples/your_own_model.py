"""A model that no library knows, from its definition to a detector on its units.

    python examples/your_own_model.py

The network mixes its tokens by attention of its own making, its layers lie in a dictionary, and a class token and two
memory tokens stand before the patches. Hooks find its layers by what fires; what they cannot know it says of itself.
"""

import torch
from torch import nn

import dna_probe
from dna_probe.backbones import Family, Preprocessing, register_family
from dna_probe.backbones.checking import check_backbone
from dna_probe.images.probe_set import probe_set


class Layer(nn.Module):
    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.offer, self.tell = (nn.Linear(width, width) for _ in range(3))
        self.share, self.gather = nn.Softmax(-1), nn.Linear(width, width)
        self.widen, self.bend, self.narrow = nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_a(x)
        ask, offer, tell = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.ask, self.offer, self.tell)
        )
        mixed = self.share(ask @ offer.transpose(-1, -2) / ask.shape[-1] ** 0.5) @ tell
        x = x + self.gather(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(self.bend(self.widen(self.norm_b(x))))


class Homemade(nn.Module):
    def __init__(self, width: int = 48, depth: int = 6):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.memory = nn.Parameter(torch.randn(1, 3, width))
        self.place = nn.Parameter(torch.randn(1, 3 + 64, width) * 0.1)
        self.floors = nn.ModuleDict({f"floor{number}": Layer(width) for number in range(depth)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.memory.expand(len(x), -1, -1), tokens], 1) + self.place
        for floor in self.floors.values():
            tokens = floor(tokens)
        return tokens[:, 0]


register_family(
    Family(
        "Homemade",
        layers="floors.*",
        mlp="narrow.input",
        heads="gather.input",
        num_heads=4,
        pattern="share.output",
        prefix_tokens=3,
        class_token=True,
    )
)

torch.manual_seed(0)
backbone = dna_probe.open_backbone(Homemade(), preprocessing=Preprocessing(input_size=(64, 64)))
print(backbone)
for check in check_backbone(backbone):
    print(f"  {check.verdict:8s} {check.promise}: {check.told}")

images = probe_set().of_split("fit")
detector = dna_probe.fit(backbone, images, shots=20)
print(f"{len(detector.units)} units of {', '.join(detector.provenance['layers'])}")
for prediction in detector.judge(probe_set().of_split("test").subset(range(4))):
    print(f"  {prediction.path}: {prediction.probability:.2f} {prediction.verdict}")
