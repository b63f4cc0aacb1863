"""Write a detector to one file that runs anywhere: preprocessing, trimmed backbone, units, classifier, calibration."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dna_probe.collection import Options
from dna_probe.errors import ArtefactError, DataError, DnaProbeError, needs_extra, unknown_name
from dna_probe.exported import ONNX, TORCH, ExportedDetector
from dna_probe.images.sets import noun_of
from dna_probe.storage import write_atomically

if TYPE_CHECKING:
    from dna_probe.detector import Detector, Prediction

SUFFIXES = {"onnx": ONNX, "torch-export": TORCH}
# Largest difference of a probability for which a file is left, unless another is asked for.
TOLERANCE = 1e-4
# Short side of the images on which a file is tried, and how many of the built-in photographs they are made from.
_SIDES = (97, 224, 300, 411)
_PHOTOGRAPHS = 6


@dataclass(frozen=True)
class Agreement:
    """How the verdicts of a file compare with those of the detector.

    Attributes:
        images: how many both could read.
        equal_verdicts: share of them with the same verdict.
        max_difference, mean_difference: of the probabilities.
        origin: what the images are.
    """

    images: int
    equal_verdicts: float
    max_difference: float
    mean_difference: float
    origin: str

    @classmethod
    def between(cls, expected: Sequence[Prediction], found: Sequence[Prediction], origin: str) -> Agreement:
        """Raises ``DataError`` where no image could be read."""
        pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a.error is None and b.error is None]
        if not pairs:
            first = next((one for one in expected if one.error), None)
            why = f"First: {first.path}: {first.error}" if first else "There are none"
            raise DataError(f"No image to compare with could be read in {origin}", why, "Give others with --agree")
        probabilities = np.array([(a.probability, b.probability) for a, b in pairs])
        gap = np.abs(probabilities[:, 0] - probabilities[:, 1])
        same = float(np.mean([a.verdict == b.verdict for a, b in pairs]))
        return cls(len(pairs), same, float(gap.max()), float(gap.mean()), origin)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path, format, precision: the file, ``onnx`` or ``torch-export``, and ``float32`` or ``int8``.
        size: of the file, in bytes.
        agreement: with the detector.
    """

    path: Path
    format: str
    precision: str
    size: int
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        return {"schema": "dna_probe.export/1", **asdict(self), "path": str(self.path)}

    def __repr__(self) -> str:
        found = self.agreement
        return (
            f"{self.path}: {self.format}, {self.precision}, {self.size / 1e6:.1f} MB; on {found.images} images of "
            f"{found.origin} {found.equal_verdicts:.1%} of the verdicts are equal, "
            f"probabilities differ by {found.max_difference:.1e} at most, {found.mean_difference:.1e} on average"
        )


def export(
    detector: Detector,
    path: str | Path,
    format: str | None = None,
    *,
    int8: bool = False,
    agree: Any = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    options: Options | None = None,
) -> ExportReport:
    """Write a detector of images to one file, which ``ExportedDetector.open`` reads.

    The graph takes ``images``, uint8 (batch, height, width, 3) of any one size, upright and RGB, and gives
    ``probability`` (batch,), that of fake. Threshold, unsure band, preprocessing, equalisation, units and provenance
    lie beside it as JSON. What was written is run and compared with the detector before it gets its name.

    Args:
        format: ``onnx``, which runs without torch, or ``torch-export``; None goes by the suffix, ``.onnx`` or ``.pt2``.
        int8: weights of 8 bits (``onnx`` only): smaller and faster, and the probabilities move; by how much is
            measured, once the same graph with its weights in float32 has been found equal.
        agree: images to measure that on: paths, a folder, or whatever ``judge`` takes; None takes built-in ones.
        tolerance: largest difference of a probability for which a file in float32 is kept. A backbone with jumps, such
            as tables that activations are looked up in, turns another order of sums into another value: allow it more.
        overwrite: replace a file that is there.

    Raises:
        DnaProbeError: not a detector of images, a file that exists, or one that disagrees by more than the tolerance
            (which is not left); an extra is not installed.
        BackboneError: the backbone cannot be traced.
    """
    path = Path(path)
    format = require_writable(path, format, int8, overwrite)
    _require_exportable(detector)

    from dna_probe.exporting import graph, writing

    program = graph.trace(detector)
    packages = ["torch"]
    if format == "onnx":
        model = writing.to_onnx(program, detector.name)
        packages += ["onnx", "onnxscript", "onnxruntime"]
        write = writing.onnx_writer(model)
    else:
        write = writing.torch_writer(program)
    metadata = writing.describe(detector, "int8" if int8 else "float32", packages)

    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        write_atomically(beside, write(metadata))
        wanted = None if int8 else agree
        agreement = _require_equal(detector, ExportedDetector.open(beside), wanted, tolerance, options)
        if int8:
            from dna_probe.exporting.quantisation import quantise

            write = writing.onnx_writer(quantise(model))
            write_atomically(beside, write(metadata))
            agreement = _measure(detector, ExportedDetector.open(beside), agree, options)
        write_atomically(beside, write(metadata | {"agreement": asdict(agreement)}))
        size = beside.stat().st_size
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return ExportReport(path, format, metadata["precision"], size, agreement)


def trial_images() -> list[Image.Image]:
    """Photographs of unlike sizes, small and large, wide and tall; two of them also mirrored, for batches of two."""
    from dna_probe.images.probe_set import photographs

    made = []
    for turn, photograph in enumerate(list(photographs().values())[:_PHOTOGRAPHS]):
        short, share = _SIDES[turn % len(_SIDES)], (1.0, 0.4)[turn % 2]
        width, height = photograph.size
        crop = photograph.crop((0, 0, width, round(share * height)))
        factor = short / min(crop.size)
        crop = crop.resize((round(crop.width * factor), round(crop.height * factor)))
        made.append(crop.transpose(Image.Transpose.ROTATE_90) if turn % 3 == 0 else crop)
    return [*made, *(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in made[:2])]


def _require_equal(
    detector: Detector, exported: ExportedDetector, agree: Any, tolerance: float, options: Options | None
) -> Agreement:
    """The agreement of a file in float32 on the images asked for, or else on trial images.

    Raises:
        DnaProbeError: it disagrees with the detector, on trial images or on those asked for.
    """
    agreement = _compare(*_unequalised(detector, exported), trial_images(), "the built-in photographs", options)
    _require_small(agreement, tolerance)
    if agree is not None:
        agreement = _compare(detector, exported, agree, _words(agree), options)
        _require_small(agreement, tolerance)
    return agreement


def _measure(detector: Detector, exported: ExportedDetector, agree: Any, options: Options | None) -> Agreement:
    """The agreement of a file in 8 bits on the images asked for, or else on the probe set."""
    from dna_probe.images.probe_set import probe_set

    if agree is not None:
        return _compare(detector, exported, agree, _words(agree), options)
    return _compare(*_unequalised(detector, exported), probe_set(), "the built-in probe set", options)


def _unequalised(detector: Detector, exported: ExportedDetector) -> tuple[Detector, ExportedDetector]:
    """Both for built-in images, which may be too small to be equalised; that is not part of the graph anyway."""
    return replace(detector, equalisation=None), replace(exported, equalisation=None)


def _compare(
    detector: Detector, exported: ExportedDetector, images: Any, origin: str, options: Options | None
) -> Agreement:
    return Agreement.between(detector.judge(images, options), exported.judge(images, options), origin)


def _require_small(agreement: Agreement, tolerance: float) -> None:
    if not agreement.max_difference <= tolerance:
        raise DnaProbeError(
            "The exported graph disagrees with the detector, and was not kept",
            f"On {agreement.images} images of {agreement.origin} a probability differs by "
            f"{agreement.max_difference:.1e}, and {tolerance:g} is allowed",
            "Where the backbone has jumps, as rounded or looked-up activations have, allow more with --tolerance; else "
            "report this with its name",
        )


def _words(images: Any) -> str:
    """What images are called in the file, which does not tell where on this machine they lie."""
    return Path(images).name if isinstance(images, str | Path) else "the images given"


def require_writable(path: str | Path, format: str | None = None, int8: bool = False, overwrite: bool = False) -> str:
    """The format asked for, or that of the suffix.

    Raises:
        DnaProbeError: unknown, at odds with the suffix or with ``int8``, its extra is not installed, or the file exists
            or its folder cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder", "A file is written", "Choose another name")
    if format is None:
        format = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix.lower()), None)
        if format is None:
            raise DnaProbeError(
                f"{path.name!r} says no format", f"Files in onnx end in {ONNX}, those in torch-export in {TORCH}"
            )
    if format not in SUFFIXES:
        raise unknown_name("format", format, SUFFIXES)
    if path.suffix.lower() != SUFFIXES[format]:
        raise DnaProbeError(
            f"A file in {format} must end in {SUFFIXES[format]}, and {path.name!r} does not",
            "It is opened by its suffix",
            f"Write it to {path.with_suffix(SUFFIXES[format]).name!r}",
        )
    if int8 and format != "onnx":
        raise DnaProbeError("Weights of 8 bits are for onnx", f"{format} keeps them as they are", "Use --format onnx")
    if path.exists() and not overwrite:
        raise ArtefactError(f"{path} exists", "It would be replaced", "Choose another file or pass --overwrite")
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        if find_spec(package) is None:
            raise needs_extra("Exporting to ONNX", package, "onnx")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written", error.strerror or str(error), "Choose another folder"
        ) from error
    return format


def _require_exportable(detector: Detector) -> None:
    if detector.modality != "image":
        raise DnaProbeError(
            f"{detector.name} takes {noun_of(detector.modality)}, and only detectors of images are exported",
            "What comes before its backbone, a tokeniser or a feature extractor, has no place in such a file",
            "Use it from Python, or with dna-probe predict",
        )
    if detector.backbone.device.type != "cpu":
        raise DnaProbeError(
            f"{detector.name} lies on {detector.backbone.device}",
            "A file is made to run on any machine",
            "Load it with device='cpu'",
        )
