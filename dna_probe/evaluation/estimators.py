"""Scikit-learn estimators that a benchmark compares with and the library itself does not offer.

Loaded only where a benchmark fits one of them: it imports scikit-learn, whose base classes they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

if TYPE_CHECKING:
    from torch import Tensor


class NeighbourContrast(ClassifierMixin, BaseEstimator):
    """Mean cosine distance to the nearest real images minus that to the nearest fake ones.

    The nearest-neighbour classifier of UnivFD (Ojha et al., CVPR 2023) with a continuous score.

    Args:
        neighbours: images of each class that count; fewer where there are fewer.
    """

    def __init__(self, neighbours: int = 5):
        self.neighbours = neighbours

    def fit(self, values: np.ndarray, labels: np.ndarray) -> NeighbourContrast:
        from sklearn.neighbors import NearestNeighbors
        from sklearn.preprocessing import StandardScaler

        self.classes_ = np.array([0, 1])
        self.scaler_ = StandardScaler().fit(values)
        self.banks_ = []
        for label in self.classes_:
            own = self.scaler_.transform(values[labels == label])
            near = NearestNeighbors(n_neighbors=min(self.neighbours, len(own)), metric="cosine")
            self.banks_.append(near.fit(own))
        return self

    def decision_function(self, values: np.ndarray) -> np.ndarray:
        scaled = self.scaler_.transform(values)
        real, fake = (bank.kneighbors(scaled)[0].mean(1) for bank in self.banks_)
        return real - fake


class LayerImportance(ClassifierMixin, BaseEstimator):
    """Learned importance of all layers, after RINE (Koutlis and Papadopoulos, arXiv 2402.19091).

    Each layer's reading is projected to a common width, the projections are summed over layers with weights that a
    softmax over layers makes for every dimension (the paper's trainable importance estimator), and two linear layers
    read the sum. Binary cross-entropy plus the paper's supervised contrastive loss (Khosla et al. 2020), AdamW on the
    whole batch. Projections of equal input width are shared, as there.

    Args:
        widths: columns of each layer, in order.
        width: of the projections.
        contrast: weight of the contrastive loss.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        width: int = 64,
        steps: int = 100,
        rate: float = 3e-3,
        decay: float = 0.01,
        contrast: float = 0.1,
        random_state: int = 0,
    ):
        self.widths, self.width, self.steps, self.rate = widths, width, steps, rate
        self.decay, self.contrast, self.random_state = decay, contrast, random_state

    def fit(self, values: np.ndarray, labels: np.ndarray) -> LayerImportance:
        import torch
        from sklearn.preprocessing import StandardScaler
        from torch.nn.functional import binary_cross_entropy_with_logits

        self.classes_ = np.array([0, 1])
        self.scaler_ = StandardScaler().fit(values)
        target = torch.tensor(labels, dtype=torch.float32)
        count = np.bincount(labels, minlength=2)
        weight = torch.as_tensor(len(labels) / (2 * count[labels]), dtype=torch.float32)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.random_state)
            self.network_ = self._network()
            optimiser = torch.optim.AdamW(self.network_.parameters(), lr=self.rate, weight_decay=self.decay, fused=True)
            batch = self._layers(values)
            for _ in range(self.steps):
                embedded, logits = self.network_(batch)
                loss = binary_cross_entropy_with_logits(logits, target, weight)
                loss = loss + self.contrast * _supervised_contrast(embedded, target)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return self

    def decision_function(self, values: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.network_(self._layers(values))[1].double().numpy()

    def _layers(self, values: np.ndarray) -> list[Tensor]:
        """The layers of each width, (n, layers, width), so that one product projects them all."""
        import torch

        scaled = torch.as_tensor(self.scaler_.transform(values), dtype=torch.float32)
        parts = scaled.split(list(self.widths), dim=1)
        return [torch.stack([part for part in parts if part.shape[1] == w], 1) for w in dict.fromkeys(self.widths)]

    def _network(self) -> Any:
        import torch
        from torch import nn

        widths, width = self.widths, self.width

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.project = nn.ModuleList(nn.Linear(w, width) for w in dict.fromkeys(widths))
                self.importance = nn.Parameter(torch.randn(len(widths), width))
                self.embed = nn.Sequential(nn.Linear(width, width), nn.ReLU())
                self.head = nn.Linear(width, 1)

            def forward(self, layers: list[Tensor]) -> tuple[Tensor, Tensor]:
                projected = [project(part).relu() for project, part in zip(self.project, layers, strict=True)]
                mixed = (torch.cat(projected, 1) * self.importance.softmax(0)).sum(1)
                embedded = self.embed(mixed)
                return embedded, self.head(embedded)[:, 0]

        return Network()


def _supervised_contrast(embedded: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Equation 2 of Khosla et al. (2020); zero where no image has another of its class."""
    import torch
    from torch.nn.functional import normalize

    unit = normalize(embedded, dim=1)
    others = ~torch.eye(len(labels), dtype=torch.bool)
    logits = (unit @ unit.T / temperature).masked_fill(~others, float("-inf"))
    log_share = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~others, 0)
    alike = (labels[:, None] == labels) & others
    has = alike.any(1)
    if not has.any():
        return embedded.sum() * 0
    return -((log_share * alike).sum(1)[has] / alike.sum(1)[has]).mean()
