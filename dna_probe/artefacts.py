"""Open a detector wherever it lies: the folder that ``fit`` wrote, or the file that ``export`` wrote."""

from __future__ import annotations

from pathlib import Path

from dna_probe.detector import Detector, load
from dna_probe.errors import DnaProbeError
from dna_probe.exported import ONNX, TORCH, ExportedDetector


def open_detector(
    path: str | Path, weights: str | Path | None = None, device: str = "auto"
) -> Detector | ExportedDetector:
    """A detector from a folder, or from a ``.onnx`` or ``.pt2`` file.

    Args:
        weights: local weights of the backbone; an exported file brings its own.
        device: where the backbone of a folder runs; an exported file runs on the CPU.

    Raises:
        ArtefactError: not a detector, damaged, of a newer version, or other weights than those it was fitted with.
        DnaProbeError: weights or a device for a file that has no use for them, or an extra is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in (ONNX, TORCH) or path.is_dir():
        return load(path, weights=weights, device=device)
    if weights is not None:
        raise DnaProbeError(f"{path} brings its weights along", fix="Leave out --weights")
    if device not in ("auto", "cpu"):
        raise DnaProbeError(f"{path} runs on the CPU, not on {device}", fix="Leave out --device")
    return ExportedDetector.open(path)
