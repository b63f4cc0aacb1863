"""A detector as one graph: images of any size -> probability of fake."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, fx, nn

from dna_probe.errors import BackboneError
from dna_probe.exporting.resizing import preprocess
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import MIN_SIDE
from dna_probe.trimming import trim

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dna_probe.anchor import AnchorClassifier
    from dna_probe.detector import Detector

INPUT, OUTPUT = "images", "probability"
# Of the images that are traced: no two sizes are alike, lest they be taken for one.
TRACED = (2, 41, 53, 3)


class DetectorGraph(nn.Module):
    """Preprocessing, trimmed backbone, units, classifier and calibration of a detector of images.

    uint8 (n, height, width, 3), upright RGB -> float32 (n,). Equalisation, which goes through a JPEG file, is no part
    of it.

    Raises:
        BackboneError: the backbone cannot be traced.
    """

    def __init__(self, detector: Detector):
        super().__init__()
        self.preprocessing = cast(Preprocessing, detector.backbone.preprocessing)
        self.units = trim(detector.backbone, detector.units_by_reading)
        self.classifier = Classifier(detector.anchor)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.units(preprocess(images, self.preprocessing)))


class Classifier(nn.Module):
    """``AnchorClassifier.predict_proba`` of fake: units (n, units) -> float32 (n,), in double precision inside."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    support: Tensor
    dual: Tensor
    gamma: Tensor

    def __init__(self, anchor: AnchorClassifier):
        super().__init__()
        self.slope, self.offset = anchor.calibration_.slope, anchor.calibration_.offset
        arrays = anchor.to_arrays()
        self.linear = "support" not in arrays
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(values.astype("float64")))

    def forward(self, units: Tensor) -> Tensor:
        z = (units.double() - self.mean) / self.scale
        if self.linear:
            score = z @ self.weight + self.bias
        else:
            squared = (z**2).sum(1, keepdim=True) + (self.support**2).sum(1) - 2 * z @ self.support.T
            score = torch.exp(-self.gamma * squared.clamp(min=0)) @ self.dual + self.bias
        probability = torch.sigmoid(self.slope * score + self.offset).float()
        # An infinite unit would be as sure as can be; as NaN it is an error, as it is in the detector.
        return torch.where(units.isfinite().all(1), probability, torch.nan)


def trace(detector: Detector) -> ExportedProgram:
    """The graph of a detector for any number of images of any one size.

    Raises:
        BackboneError: ``torch.export`` cannot trace it.
    """
    from torch.export import Dim, export

    graph = DetectorGraph(detector).eval()
    free = {0: Dim("batch"), 1: Dim("height", min=MIN_SIDE), 2: Dim("width", min=MIN_SIDE)}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            images = torch.zeros(TRACED, dtype=torch.uint8)
            program = export(graph, (images,), dynamic_shapes={INPUT: free}, strict=False)
    except Exception as error:
        # Whatever tracing stumbles over in somebody's model is a reason not to export it, not a fault of the detector.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackboneError(
            f"{detector.name} cannot be exported", f"torch.export cannot trace it: {reason[:200]}"
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            # It has the paths of this machine.
            node.meta.pop("stack_trace", None)
    return program
