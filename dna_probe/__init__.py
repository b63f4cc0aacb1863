"""dna_probe: find the units of a frozen pretrained model that respond to forgery, and fit a few-shot detector on them.

    layers = dna_probe.locate_layers(model, data)
    scores = dna_probe.score_units(model, data, layers=layers)
    units = dna_probe.truncate(scores)
    detector = dna_probe.fit(model, data, shots=10)

Names load on first use, so that importing the package imports neither torch nor timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AnchorClassifier": "anchor",
    "Backbone": "backbones.contract",
    "Detector": "detector",
    "DnaProbeError": "errors",
    "ImageSet": "images.sets",
    "LayerReport": "location",
    "Options": "collection",
    "Selectivity": "selectivity",
    "Stability": "stability",
    "UnitScores": "scoring",
    "UnitSet": "truncation",
    "Verification": "verification",
    "audit": "evaluation.audit",
    "collect_activations": "activation_shards",
    "evaluate": "evaluation.examination",
    "export": "exporting",
    "fit": "fitting",
    "load": "detector",
    "locate_layers": "location",
    "measure_selectivity": "selectivity",
    "measure_stability": "stability",
    "open_activations": "activations",
    "open_backbone": "backbones",
    "probe_set": "images.probe_set",
    "read_images": "images.layouts",
    "score_units": "scoring",
    "truncate": "truncation",
    "verify": "verification",
}

__all__ = [*_HOMES, "plots"]

if TYPE_CHECKING:
    from dna_probe import plots as plots
    from dna_probe.activation_shards import collect_activations as collect_activations
    from dna_probe.activations import open_activations as open_activations
    from dna_probe.anchor import AnchorClassifier as AnchorClassifier
    from dna_probe.backbones import open_backbone as open_backbone
    from dna_probe.backbones.contract import Backbone as Backbone
    from dna_probe.collection import Options as Options
    from dna_probe.detector import Detector as Detector
    from dna_probe.detector import load as load
    from dna_probe.errors import DnaProbeError as DnaProbeError
    from dna_probe.evaluation.audit import audit as audit
    from dna_probe.evaluation.examination import evaluate as evaluate
    from dna_probe.exporting import export as export
    from dna_probe.fitting import fit as fit
    from dna_probe.images.layouts import read_images as read_images
    from dna_probe.images.probe_set import probe_set as probe_set
    from dna_probe.images.sets import ImageSet as ImageSet
    from dna_probe.location import LayerReport as LayerReport
    from dna_probe.location import locate_layers as locate_layers
    from dna_probe.scoring import UnitScores as UnitScores
    from dna_probe.scoring import score_units as score_units
    from dna_probe.selectivity import Selectivity as Selectivity
    from dna_probe.selectivity import measure_selectivity as measure_selectivity
    from dna_probe.stability import Stability as Stability
    from dna_probe.stability import measure_stability as measure_stability
    from dna_probe.truncation import UnitSet as UnitSet
    from dna_probe.truncation import truncate as truncate
    from dna_probe.verification import Verification as Verification
    from dna_probe.verification import verify as verify


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("dna_probe.plots")
    if name in _HOMES:
        return getattr(import_module(f"dna_probe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dna_probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
