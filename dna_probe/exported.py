"""Run an exported detector: with onnxruntime and Pillow alone, without torch, or from a ``.pt2`` file with torch."""

from __future__ import annotations

import json
import math
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dna_probe.anchor import Calibration
from dna_probe.collection import Options
from dna_probe.detector import Prediction
from dna_probe.errors import ArtefactError, DataError, needs_extra
from dna_probe.images.preprocessing import _MAX_RESIZED, Preprocessing
from dna_probe.images.reading import UnreadableImage, name_of, read_image
from dna_probe.images.sets import ImageSet, noun_of
from dna_probe.images.threads import in_order
from dna_probe.images.views import Equalisation, TreatedImage
from dna_probe.moments import require_finite
from dna_probe.samples import as_sources, read_unlabelled_samples
from dna_probe.shards import progress_bar

SCHEMA = 1
# Under this name the metadata lie in a file of either format.
METADATA = "dna_probe"
ONNX, TORCH = ".onnx", ".pt2"
REQUIRED = {"backbone", "modality", "preprocessing", "equalisation", "units", "calibration", "provenance"}
# As many batches of samples are taken at a time, among which those of one size run together.
PORTION = 16
# Whatever the batch size, no more pixels than this go through the graph at once, nor wait for others of their size.
BATCH_PIXELS, WAITING_PIXELS = 16_000_000, 64_000_000

# What the names begin with of those parts of a `.pt2` file that torch unpickles.
PICKLED = ("opaque_obj_", "custom_obj_")
_SWITCHING = threading.Lock()

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExportedDetector:
    """A detector of images that ``dna_probe.export`` wrote; ``open`` reads it.

    Attributes:
        name: of the backbone.
        units: names of the units read.
        preprocessing: what the graph does to an image before the backbone sees it.
        calibration: from probabilities to verdicts.
        equalisation: treatment of every image before it is judged, or None.
        metadata: all that was stored beside the graph.
        run: uint8 images (n, height, width, 3) -> probabilities of fake (n,), float32.
    """

    name: str
    units: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: Calibration
    equalisation: Equalisation | None
    metadata: Mapping[str, Any]
    run: Run

    @classmethod
    def open(cls, path: str | Path, threads: int | None = None) -> ExportedDetector:
        """Read a ``.onnx`` or ``.pt2`` file.

        Args:
            threads: of one run; None takes ``OMP_NUM_THREADS``, or else one for each core. A ``.pt2`` file runs in
                those of torch.

        Raises:
            ArtefactError: not there, damaged, not of dna_probe, or of a newer version.
            DnaProbeError: onnxruntime is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtefactError(f"There is no file {path}", fix="Give the file that 'export' wrote")
        if path.suffix.lower() not in (ONNX, TORCH):
            raise ArtefactError(
                f"{path} is no exported detector", f"Such files end in {ONNX} or {TORCH}", "Give the file by that name"
            )
        run, stored = _open_torch(path) if path.suffix.lower() == TORCH else _open_onnx(path, threads)
        metadata = read_metadata(stored, path)
        try:
            equalisation = metadata["equalisation"]
            return cls(
                name=metadata["backbone"]["name"],
                units=tuple(metadata["units"]),
                preprocessing=Preprocessing.from_json(metadata["preprocessing"]),
                calibration=_calibration(metadata["calibration"]),
                equalisation=Equalisation.from_json(equalisation) if equalisation else None,
                metadata=metadata,
                run=run,
            )
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise ArtefactError(f"{path} is damaged", f"{type(error).__name__}: {error}", "Export it again") from error

    @property
    def modality(self) -> str:
        return self.metadata["modality"]

    @property
    def threshold(self) -> float:
        return self.calibration.threshold

    def predict_proba(self, images: Any, options: Options | None = None) -> np.ndarray:
        """Probabilities of real and fake, (n, 2), in the order given.

        Args:
            images: paths, PIL images, arrays or tensors; or one of them; or a folder or ``ImageSet``.

        Raises:
            DataError: an image cannot be read.
        """
        found = self.judge(images, options)
        failed = [one for one in found if one.error is not None]
        if failed:
            raise DataError(
                f"{len(failed)} of {len(found)} images cannot be read; first {failed[0].path}: {failed[0].error}",
                fix="Leave them out, or use judge(), which reports them one by one",
            )
        fake = np.array([one.probability for one in found], dtype=np.float64)
        return np.column_stack([1 - fake, fake])

    def judge(self, images: Any, options: Options | None = None) -> list[Prediction]:
        """A verdict per image, in the order given; an unreadable image keeps its place with the reason."""
        if isinstance(images, str | Path) and Path(images).is_dir():
            images = read_unlabelled_samples([images], self.modality)
        elif not isinstance(images, ImageSet | list | tuple | Iterator) and getattr(images, "ndim", 3) != 4:
            images = [images]
        return list(self.stream(images, options))

    def stream(self, sources: Iterable[Any] | ImageSet, options: Options | None = None) -> Iterator[Prediction]:
        """The verdicts of ``judge`` as they come, in memory that does not grow with the number of images.

        Args:
            sources: in any number, from a list, a generator or an ``ImageSet``.
            options: its batch size, workers and progress count; there is nothing to cache.

        Raises:
            DataError: a set of another modality, a batch size below 1. NumericalError: a probability is not finite.
        """
        options = options or Options()
        if options.batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {options.batch_size}")
        if isinstance(sources, str | os.PathLike):
            raise DataError(f"A list of images is needed, not the single one {str(sources)[:60]!r}")
        if isinstance(sources, ImageSet):
            if sources.modality != self.modality:
                raise DataError(f"{self.name} takes {noun_of(self.modality)}, not {noun_of(sources.modality)}")
            sources = sources.images
        total = len(sources) if isinstance(sources, Sized) else 0
        rest, first = iter(sources), 0
        with progress_bar(total, options.progress and total > 0, noun_of(self.modality)) as advance:
            while portion := list(islice(rest, PORTION * options.batch_size)):
                yield from self._judge_portion(as_sources(portion, self.modality, first), first, options)
                first += len(portion)
                advance(len(portion))

    def _judge_portion(self, sources: tuple[Any, ...], first: int, options: Options) -> list[Prediction]:
        names = [name_of(source, position) for position, source in enumerate(sources, first)]
        found: dict[int, Prediction] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}

        def read(position: int) -> np.ndarray | UnreadableImage:
            try:
                return self.read(sources[position], names[position])
            except UnreadableImage as error:
                return error

        def judge(shape: tuple[int, ...]) -> None:
            positions, images = zip(*waiting.pop(shape), strict=True)
            probabilities = self.run(np.stack(images))
            require_finite(probabilities, "probability")
            for position, probability in zip(positions, probabilities.tolist(), strict=True):
                found[position] = Prediction(
                    names[position], probability, self.calibration.verdict(probability), self.threshold
                )

        # Decoded images are large, so few are kept ahead.
        for position, image in enumerate(in_order(read, len(sources), options.workers, ahead=options.workers)):
            if isinstance(image, UnreadableImage):
                found[position] = Prediction(names[position], error=image.reason)
                continue
            alike = waiting.setdefault(image.shape, [])
            alike.append((position, image))
            if len(alike) == options.batch_size or sum(one.size for _, one in alike) > 3 * BATCH_PIXELS:
                judge(image.shape)
            elif sum(one.size for group in waiting.values() for _, one in group) > 3 * WAITING_PIXELS:
                judge(next(iter(waiting)))
        for shape in list(waiting):
            judge(shape)
        return [found[position] for position in range(len(sources))]

    def read(self, source: Any, name: str) -> np.ndarray:
        """An image as the graph takes it, equalised where the detector asks for it, uint8 (height, width, 3).

        Raises:
            UnreadableImage: it cannot be read, or its sides differ too much.
        """
        if self.equalisation is not None:
            source = TreatedImage(source, self.equalisation, name)
        image = read_image(source, name=name)
        # The graph never holds the whole resized image, but what the detector refuses is refused here too.
        if math.prod(self.preprocessing._resized(*image.size)) > _MAX_RESIZED:
            raise UnreadableImage(name, f"its sides differ too much: {image.width} x {image.height}")
        return np.asarray(image)

    def __repr__(self) -> str:
        low, high = self.calibration.low, self.calibration.high
        return (
            f"ExportedDetector on {self.name}: {len(self.units)} units; "
            f"threshold {self.threshold:.3f}, unsure {low:.3f} to {high:.3f}"
        )


def _calibration(stored: Mapping[str, Any]) -> Calibration:
    found = Calibration(**stored)
    if not math.isfinite(found.threshold + found.low + found.high):
        raise ValueError("a threshold is not finite")
    return found


def read_metadata(stored: str | None, path: Path) -> dict[str, Any]:
    """The metadata of an exported file.

    Raises:
        ArtefactError: missing, not JSON, incomplete, or of a newer schema.
    """
    if stored is None:
        raise ArtefactError(
            f"{path} is no detector of dna_probe",
            "It says nothing of units or threshold",
            "Export one: dna-probe export",
        )
    try:
        metadata = json.loads(stored)
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged", str(error), "Export it again") from error
    kind, _, version = str(metadata.get("schema", "") if isinstance(metadata, dict) else "").partition("/")
    if kind != "dna_probe.exported" or not version.isdecimal():
        raise ArtefactError(f"{path} is damaged", "Its metadata have another schema", "Export it again")
    if int(version) > SCHEMA:
        raise ArtefactError(
            f"{path} was written by a newer dna_probe",
            f"Its schema is {version}, this version reads up to {SCHEMA}",
            "Upgrade dna-probe",
        )
    missing = REQUIRED - set(metadata)
    if missing:
        raise ArtefactError(f"{path} is damaged", f"It lacks {', '.join(sorted(missing))}", "Export it again")
    return metadata


def _open_onnx(path: Path, threads: int | None) -> tuple[Run, str | None]:
    """How to run the graph of a ``.onnx`` file, and the metadata stored in it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise needs_extra(str(path), "onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _threads()
    options.log_severity_level = 3
    _require_readable(path)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for every way in which a file can be damaged
        raise ArtefactError(
            f"{path} is damaged, or onnxruntime {onnxruntime.__version__} is too old for it",
            _first_line(error),
            "Copy or export it again, or upgrade onnxruntime",
        ) from error
    stored = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return lambda images: session.run(None, {"images": images})[0], stored


def _threads() -> int:
    from joblib import cpu_count

    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(stated) if stated.isdigit() and int(stated) else cpu_count(only_physical_cores=True)


def _open_torch(path: Path) -> tuple[Run, str | None]:
    """How to run the graph of a ``.pt2`` file, and the metadata stored in it."""
    import torch

    _require_readable(path)
    if not zipfile.is_zipfile(path):
        raise ArtefactError(f"{path} is damaged", "It is no zip file", "Copy or export it again")
    _require_no_pickles(path)
    stored = {METADATA: ""}
    try:
        with _without_pickles():
            graph = torch.export.load(path, extra_files=stored).module()
    except Exception as error:  # whatever reading stumbles over in a file that is damaged, or made by something else
        raise ArtefactError(f"{path} is damaged", _first_line(error), "Copy or export it again") from error

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(images)).numpy()

    return run, stored[METADATA] or None


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read", error.strerror or str(error)) from error


def _require_no_pickles(path: Path) -> None:
    """Raises ``ArtefactError`` for a file with objects that torch would unpickle, whatever they run; ours have none."""
    with zipfile.ZipFile(path) as archive:
        told = b"".join(archive.read(entry) for entry in archive.infolist() if entry.filename.endswith("_config.json"))
        names = "\n".join(archive.namelist())
    if any(mark in names or mark.encode() in told for mark in PICKLED):
        raise ArtefactError(
            f"{path} holds Python objects", "Opening them could run any code", "Open files that 'export' wrote"
        )


@contextmanager
def _without_pickles() -> Iterator[None]:
    """``torch.export.load`` would fall back to unpickling anything at all."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _SWITCHING:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 200 else line[:197] + "..."
