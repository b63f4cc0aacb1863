"""Files of a traced detector: ``.onnx`` and ``.pt2``, each with its metadata inside."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError, DnaProbeError
from dna_probe.exported import METADATA, SCHEMA
from dna_probe.exporting.graph import INPUT, OUTPUT
from dna_probe.exporting.operators import translations

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from dna_probe.detector import Detector

# What a protobuf message, hence a model in one file, can hold.
ONNX_BYTES = 2**31 - 2**20
# Of the provenance these say what lay where on one machine, or name every training image.
_PRIVATE = ("image_hashes", "origin")

# Metadata -> the content of the file.
Write = Callable[[Mapping[str, Any]], bytes]


def describe(detector: Detector, precision: str, packages: Sequence[str]) -> dict[str, Any]:
    """What is stored beside the graph: all that a verdict needs, and where the detector came from.

    Args:
        precision: of the weights, "float32" or "int8".
        packages: whose versions had a part in the export, beside those of the fit.
    """
    from importlib.metadata import version

    from dna_probe.fitting import versions

    identity = {name: value for name, value in detector.backbone.identity().items() if name != "weights"}
    return {
        "schema": f"dna_probe.exported/{SCHEMA}",
        "modality": detector.modality,
        "precision": precision,
        "backbone": identity,
        "preprocessing": detector.backbone.preprocessing.to_json(),
        "equalisation": detector.equalisation.to_json() if detector.equalisation else None,
        "units": list(detector.units),
        "classifier": detector.anchor.kind,
        "calibration": asdict(detector.anchor.calibration_),
        "provenance": {name: value for name, value in detector.provenance.items() if name not in _PRIVATE},
        "versions": versions() | {name: version(name) for name in packages},
    }


def torch_writer(program: ExportedProgram) -> Write:
    """How to write a ``.pt2`` file."""
    import torch

    def write(metadata: Mapping[str, Any]) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
        return buffer.getvalue()

    return write


def to_onnx(program: ExportedProgram, name: str) -> ModelProto:
    """The graph in ONNX, checked, with the names of its input, output and free sizes.

    Raises:
        DnaProbeError: it is too large for one file.
        BackboneError: an operation of the backbone has no counterpart in ONNX.
    """
    import onnx
    import torch

    tensors = {id(tensor): tensor for tensor in (*program.state_dict.values(), *program.constants.values())}
    size = sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, torch.Tensor))
    if size > ONNX_BYTES:
        raise DnaProbeError(
            f"{name} is too large for a file in ONNX",
            f"Up to its deepest unit it has {size / 1e9:.1f} GB of weights, and such a file holds 2",
            "Export it with --format torch-export",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: "batch", 1: "height", 2: "width"}},
                custom_translation_table=translations(),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        unknown = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        raise BackboneError(
            f"{name} cannot be exported to ONNX",
            f"It runs {unknown[1]}, which has no translation" if unknown else _last_line(error),
            "Export it with --format torch-export",
        ) from error
    assert made is not None  # which torch gives back where it writes no file
    for node in made.model.graph.all_nodes():
        # Stack traces, with the paths of this machine.
        node.metadata_props.clear()
    proto = made.model_proto
    onnx.checker.check_model(proto)
    return proto


def onnx_writer(proto: ModelProto) -> Write:
    """How to write a ``.onnx`` file."""

    def write(metadata: Mapping[str, Any]) -> bytes:
        kept = [prop for prop in proto.metadata_props if prop.key != METADATA]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        proto.metadata_props.add(key=METADATA, value=json.dumps(metadata))
        return proto.SerializeToString()

    return write


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
