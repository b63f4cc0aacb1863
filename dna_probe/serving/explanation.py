"""Where one image holds what a detector reads: the contribution of each patch, and its attention layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import attention_summary
from dna_probe.detector import Detector
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import read_image
from dna_probe.images.sets import UNLABELLED, ImageSet, noun_of
from dna_probe.location import map_site
from dna_probe.sites import Reading, Site, patch_tokens

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Grid = tuple[int, int]


def why_not(detector: Any) -> str | None:
    """Why ``explain`` cannot look into a detector, in a sentence; None where it can."""
    if not isinstance(detector, Detector):
        return "An exported detector holds no backbone whose layers could be looked at"
    if not isinstance(detector.backbone.preprocessing, Preprocessing):
        return f"The maps are of images, and this detector judges {noun_of(detector.modality)}"
    return None


@dataclass(frozen=True)
class Explanation:
    """What was found in one image.

    Attributes:
        crop: the image as the backbone looks at it: treated, resized and cropped.
        patches: see ``_patch_map``.
        layers: per layer, shallow to deep: ``site``, ``located``, ``source`` (of the map: ``attention`` or ``energy``),
            ``spread`` (the map's entropy as a share of its maximum), ``map`` (rows, columns), summing to one; and from
            the layer report of the training images, where the detector holds one, ``spread_training``, ``map_real``,
            ``map_fake`` and the Jensen-Shannon divergences of this map from those, ``from_real`` and ``from_fake``, in
            nats.
    """

    crop: Image.Image
    patches: dict[str, Any]
    layers: list[dict[str, Any]]


def explain(detector: Detector, source: Any, name: str) -> Explanation:
    """One forward pass over an image, from which both maps are taken.

    Raises:
        UnreadableImage: the image cannot be read.
    """
    import torch

    backbone, preprocessing = detector.backbone, detector.backbone.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    treated = detector.treated(ImageSet((source,), np.array([UNLABELLED]))).images[0]
    image = read_image(treated, name=name)
    found = _Found(detector)
    with torch.inference_mode(), backbone.visiting(found.visitors) as run:
        run(preprocessing(image, name)[None])
    return Explanation(preprocessing.crop(image, name), _patch_map(found), _layers(found))


class _Found:
    """What the forward pass leaves: the map of each layer, the units, and the values of those that are patch means."""

    def __init__(self, detector: Detector):
        self.detector = detector
        self.backbone = detector.backbone
        self.readings = detector.units_by_reading
        self.map_sites = [map_site(self.backbone, site) for site in self.backbone.layers]
        self.maps: dict[str, np.ndarray] = {}
        self.entropy: dict[str, float] = {}
        self.units: dict[Reading, np.ndarray] = {}
        self.patches: dict[Reading, tuple[np.ndarray, Grid]] = {}

    @property
    def visitors(self) -> dict[str, Callable[[Tensor], None]]:
        sites = {site.name: site for site in self.map_sites} | {r.site.name: r.site for r in self.readings}
        return {name: self._visitor(site) for name, site in sites.items()}

    @property
    def located(self) -> list[int]:
        """Positions of the layers that were located, or that hold units where the detector does not tell."""
        report = self.detector.layers
        if report is not None and any(report.taken):
            return [i for i, taken in enumerate(report.taken) if taken]
        return sorted({reading.site.layer for reading in self.readings})

    def _visitor(self, site: Site) -> Callable[[Tensor], None]:
        def visit(activation: Tensor) -> None:
            if site in self.map_sites:
                summary = attention_summary(self.backbone, site, activation)
                flat = summary["map"][0].double().cpu().numpy()
                self.maps[site.name] = flat.reshape(self._grid(site, activation, len(flat)))
                self.entropy[site.name] = float(summary["entropy"][0])
            for reading, index in self.readings.items():
                if reading.site == site:
                    self.units[reading] = reading.reduce(activation)[0, index].double().cpu().numpy()
                    if reading.reduction == "mean" and site.layout != "vector":
                        tokens = patch_tokens(site, activation)[0][:, index].double().cpu().numpy()
                        self.patches[reading] = tokens, self._grid(site, activation, len(tokens))

        return visit

    def _grid(self, site: Site, activation: Tensor, patches: int) -> Grid:
        """How the patches lie; in one row, where the model does not say it."""
        if site.kind != "pattern" and activation.ndim == 4:
            first = 2 if site.layout == "nchw" else 1
            return activation.shape[first], activation.shape[first + 1]
        return self.backbone.grid_of(patches)


def _patch_map(found: _Found) -> dict[str, Any]:
    """What each patch adds to the decision value, or where that cannot be said, the map of the deepest located layer.

    The classifier is linear, ``decision = sum_u w_u (x_u - m_u) / s_u + bias``, and a unit that is read as the mean
    over P patches is ``x_u = sum_p t_pu / P``, so that patch p adds ``sum_u w_u (t_pu - m_u) / (s_u P)``. The sum over
    the patches, plus ``other_units`` (those read from the class token or in another way), plus ``bias``, is
    ``decision``, exactly. Layers of unequal grids are added on the finest, cells cut by area.
    """
    arrays = found.detector.anchor.to_arrays()
    if "support" in arrays or not found.patches:
        last = found.located[-1]
        site = found.map_sites[last]
        what = "Attention" if site.kind == "pattern" else "Spatial energy (share of the squared activation)"
        why = "the classifier is not linear" if "support" in arrays else "no unit is a mean over patches"
        return {
            "kind": "attention" if site.kind == "pattern" else "energy",
            "label": f"{what} of the deepest located layer, {found.backbone.layers[last].name}; "
            f"contributions cannot be given, because {why}",
            "values": found.maps[site.name].tolist(),
        }
    finest = max((grid for _, grid in found.patches.values()), key=lambda grid: grid[0] * grid[1])
    values, others, position = np.zeros(finest), 0.0, 0
    for reading in found.readings:
        units = found.units[reading]
        at = slice(position, position + len(units))
        position = at.stop
        slope = arrays["weight"][at] / arrays["scale"][at]
        if reading in found.patches:
            tokens, grid = found.patches[reading]
            values += _onto(((tokens - arrays["mean"][at]) @ slope / len(tokens)).reshape(grid), finest)
        else:
            others += float((units - arrays["mean"][at]) @ slope)
    covered = sum(len(found.units[reading]) for reading in found.patches)
    bias = float(arrays["bias"][0])
    left = position - covered
    rest = f"; the other {left}, read from the class token or otherwise, have no place on it" if left else ""
    return {
        "kind": "contribution",
        "label": f"What each patch adds to the decision value through the {covered} of {position} units that are means "
        f"over patches{rest}",
        "values": values.tolist(),
        "units": covered,
        "other_units": others,
        "bias": bias,
        "decision": float(values.sum()) + others + bias,
    }


def _onto(values: np.ndarray, grid: Grid) -> np.ndarray:
    """A map on a finer grid: each cell's value is divided among the cells that it covers, by area."""
    rows, columns = (_shares(old, new) for old, new in zip(values.shape, grid, strict=True))
    return rows @ values @ columns.T


def _shares(old: int, new: int) -> np.ndarray:
    """The share of each of ``old`` equal parts of a length that lies in each of ``new``, (new, old)."""
    ends, starts = np.arange(1, new + 1)[:, None] / new, np.arange(new)[:, None] / new
    overlap = np.minimum(ends, np.arange(1, old + 1) / old) - np.maximum(starts, np.arange(old) / old)
    return np.clip(overlap, 0, None) * old


def _layers(found: _Found) -> list[dict[str, Any]]:
    from scipy.spatial.distance import jensenshannon

    report = found.detector.layers
    rows = []
    for i, (layer, site) in enumerate(zip(found.backbone.layers, found.map_sites, strict=True)):
        image = found.maps[site.name]
        row: dict[str, Any] = {
            "site": layer.name,
            "located": i in found.located,
            "source": "attention" if site.kind == "pattern" else "energy",
            "spread": found.entropy[site.name] / np.log(max(image.size, 2)),
            "map": image.tolist(),
        }
        if report is not None:
            row["spread_training"] = float(report.curves["spread"].value[i])
            for label in ("real", "fake"):
                mean = report.maps[label][i]
                row[f"map_{label}"] = mean.tolist()
                # The distance of SciPy is the square root of the divergence.
                row[f"from_{label}"] = float(jensenshannon(image.ravel(), mean.ravel())) ** 2
        rows.append(row)
    return rows
