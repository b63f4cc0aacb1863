"""The detector: a frozen backbone up to its deepest unit, the units, the classifier, and where it all came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.anchor import AnchorClassifier
from dna_probe.collection import NoReadableImage, Options, collect_features, require_modality
from dna_probe.errors import ArtefactError, BackboneError, DataError, DnaProbeError
from dna_probe.images.archives import Member
from dna_probe.images.layouts import ArchivedSample
from dna_probe.images.reading import name_of
from dna_probe.images.sets import UNLABELLED, ImageSet, noun_of
from dna_probe.images.sources import is_stored
from dna_probe.images.views import Equalisation, TreatedImage
from dna_probe.location import LayerReport
from dna_probe.samples import as_sources, is_single, is_table, read_unlabelled_samples
from dna_probe.scoring import UnitScores
from dna_probe.shards import progress_bar
from dna_probe.sites import Reading, parse_unit, resolve_reading
from dna_probe.storage import replacing_folder
from dna_probe.truncation import UnitSet

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone
    from dna_probe.compiling import Trimmed

SCHEMA = 1
# Batches that `Detector.stream` runs together: reading does not run ahead of the model from one portion to the next.
PORTION = 16
REQUIRED = {"backbone", "preprocessing", "equalisation", "units", "anchor", "arrays_sha256", "skipped", "provenance"}


@dataclass(frozen=True)
class Prediction:
    """The verdict on one image, or the reason why there is none."""

    path: str
    probability: float | None = None
    verdict: str | None = None
    threshold: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "probability": self.probability,
            "verdict": self.verdict,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class Detector:
    """A fitted detector; make one with ``fit`` or ``load``.

    Attributes:
        backbone: the frozen model.
        units: names of the units read, ``site[k]``, in depth order.
        anchor: the classifier on them.
        layers, scores, unit_set: how the units were found; None after ``load`` where they were not stored.
        equalisation: treatment of the training images, and of every image before it is judged; None leaves them as
            they are.
        skipped: training images that could not be read, with the reason.
        provenance: data fingerprint, parameters, versions, seeds.
        trimmed: what ``compile`` came to; None for a detector that is not compiled.
    """

    backbone: Backbone
    units: tuple[str, ...]
    anchor: AnchorClassifier
    layers: LayerReport | None = None
    scores: UnitScores | None = None
    unit_set: UnitSet | None = None
    equalisation: Equalisation | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    trimmed: Trimmed | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What the backbone is called."""
        return self.backbone.name

    @property
    def modality(self) -> str:
        """What is judged: "image", "text" or "audio"."""
        return self.backbone.preprocessing.modality

    @property
    def classes_(self) -> np.ndarray:
        return self.anchor.classes_

    @property
    def random_state(self) -> int:
        return self.anchor.random_state

    @property
    def threshold(self) -> float:
        return self.anchor.threshold_

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings that hold the units, in depth order."""
        return tuple(self.units_by_reading)

    @property
    def deepest_layer(self) -> int:
        """The block or stage after which the forward pass stops, counted from 0."""
        return max(reading.site.layer for reading in self.readings)

    @property
    def units_by_reading(self) -> dict[Reading, list[int]]:
        """Positions of the units in each reading, in depth order."""
        wanted: dict[Reading, list[int]] = {}
        for unit in self.units:
            name, index = parse_unit(unit)
            wanted.setdefault(resolve_reading(name, self.backbone.sites), []).append(index)
        return wanted

    @property
    def out_of_fold_auc(self) -> float | None:
        """AUC of the cross-fitted scores of the training images; None where they could not be cross-fitted."""
        return self.provenance.get("out_of_fold_auc")

    def get_feature_names_out(self) -> np.ndarray:
        return np.array(self.units, dtype=object)

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Which of the scored units are read, as in scikit-learn.

        Raises:
            DnaProbeError: the detector was stored without its scores.
        """
        if self.unit_set is None:
            raise DnaProbeError("This detector was loaded without its scores", fix="Use get_feature_names_out()")
        return self.unit_set.get_support(indices)

    def transform(self, images: Any, options: Options | None = None) -> np.ndarray:
        """Values of the units on each image, (n, units).

        Raises:
            DataError: an image cannot be read; it is named with the reason.
        """
        values, _, failures = self.unit_values(self._as_set(images), options)
        if failures:
            name, reason = failures[0]
            raise DataError(
                f"{len(failures)} of {len(values) + len(failures)} {noun_of(self.modality)} cannot be read; first "
                f"{name}: {reason}",
                fix="Leave them out, or use judge(), which reports them one by one",
            )
        return values

    def predict_proba(self, images: Any, options: Options | None = None) -> np.ndarray:
        """Probabilities of real and fake, (n, 2), in the order given.

        Args:
            images: paths, PIL images, arrays or tensors; or one of them; or a folder or ``ImageSet``. For a backbone
                of texts, strings that are texts, or paths, or a table; of sounds, paths, arrays, or
                ``(samples, rate)``.

        Raises:
            DataError: an image cannot be read.
        """
        return self.anchor.predict_proba(self.transform(images, options))

    def predict(self, images: Any, options: Options | None = None) -> np.ndarray:
        """1 for fake, 0 for real, at the stored threshold, (n,)."""
        return (self.predict_proba(images, options)[:, 1] >= self.threshold).astype(int)

    def judge(self, images: Any, options: Options | None = None) -> list[Prediction]:
        """A verdict per image, in the order given; an unreadable image keeps its place with the reason."""
        return list(self.stream(self._as_set(images), options))

    def stream(self, sources: Iterable[Any] | ImageSet, options: Options | None = None) -> Iterator[Prediction]:
        """The verdicts of `judge` as they come, in memory that does not grow with the number of samples.

        Args:
            sources: samples as for `predict_proba`, in any number, from a list, a generator or an `ImageSet`. They are
                taken from it a portion at a time, see `PORTION`.

        Raises:
            DataError: a set of another modality. NumericalError: an activation is not finite.
        """
        options = options or Options()
        if isinstance(sources, ImageSet):
            require_modality(self.backbone, sources)
            sources = sources.images
        total = len(sources) if isinstance(sources, Sized) else 0
        with progress_bar(total, options.progress and total > 0, noun_of(self.modality)) as advance:
            quiet, position = replace(options, progress=False), 0
            for portion in _portions(sources, options.batch_size):
                yield from self._judge_portion(portion, position, quiet)
                position += len(portion)
                advance(len(portion))

    def _judge_portion(self, portion: list[Any], first: int, options: Options) -> list[Prediction]:
        """Verdicts on samples whose positions count from `first`."""
        noun = noun_of(self.modality)
        sources = as_sources(portion, self.modality, first)
        samples = ImageSet(
            sources, np.full(len(sources), UNLABELLED), origin=f"the {noun} given", modality=self.modality
        )
        names = [_name(source, i, self.modality) for i, source in enumerate(sources, first)]
        try:
            values, index, failures = self.unit_values(samples, options)
        except NoReadableImage as error:
            values, index, failures = np.empty((0, len(self.units))), [], list(error.skipped)
        # Failures come in order too; their names need not be unique.
        failed = sorted(set(range(len(sources))) - set(index))
        result = {i: Prediction(names[i], error=reason) for i, (_, reason) in zip(failed, failures, strict=True)}
        if index:
            for i, probability in zip(index, self.anchor.predict_proba(values)[:, 1].tolist(), strict=True):
                result[i] = Prediction(names[i], probability, self.anchor.verdict(probability), self.threshold)
        return [result[i] for i in range(len(sources))]

    def _as_set(self, images: Any) -> ImageSet:
        modality = self.modality
        if isinstance(images, ImageSet):
            return images
        if isinstance(images, Iterator):
            images = list(images)
        if isinstance(images, str | Path) and (os.path.isdir(images) or is_table(images)):
            images = read_unlabelled_samples([images], modality)
        elif is_single(images, modality) and getattr(images, "ndim", 3) != 4:
            images = [images]
        return ImageSet(
            images=as_sources(images, modality),
            labels=np.full(len(images), UNLABELLED),
            origin=f"the {noun_of(modality)} given",
            modality=modality,
        )

    def treated(self, images: ImageSet) -> ImageSet:
        """The images as this detector looks at them: equalised, when they are read, if its training images were."""
        if self.equalisation is None:
            return images
        sources = zip(images.images, images.names, strict=True)
        return replace(images, images=tuple(TreatedImage(s, self.equalisation, name) for s, name in sources))

    def compile(self) -> Detector:
        """The same detector with a backbone that computes its units and nothing else; see ``trimming.trim``.

        Always a working detector: ``trimmed.note``, and its ``repr``, say what was done, or why its backbone runs as
        before. It is not stored with ``save``, and does not follow when the backbone's weights are changed later. With
        a cache, which keeps whole readings, on another engine and at another precision it runs as before, too.
        """
        from dna_probe.compiling import compile_reader

        return replace(self, trimmed=compile_reader(self.backbone, self.units_by_reading, self.anchor.predict_proba))

    def unit_values(
        self, images: ImageSet, options: Options | None
    ) -> tuple[np.ndarray, list[int], list[tuple[str, str]]]:
        """Values of the units, the positions of the images that they belong to, and the images that failed."""
        options = options or Options()
        reader = self.trimmed.reader if self.trimmed else None
        plain = replace(options, cache=None, engine="local", precision="float32", compile=False)
        if reader is not None and options == plain:
            from dna_probe.compiling import read_units

            return read_units(self.backbone, reader, self.treated(images), options)
        wanted = self.units_by_reading
        marked = replace(self.treated(images), groups=tuple(str(i) for i in range(len(images))), skipped=())
        features = collect_features(self.backbone, marked, list(wanted), options=options)
        values = np.concatenate([features.values[reading.name][:, index] for reading, index in wanted.items()], axis=1)
        return values, [int(group) for group in features.images.groups], list(features.images.skipped)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write ``manifest.json`` and ``arrays.safetensors`` (and the layer and unit reports) into a folder.

        It is written beside and renamed at the end, so an interrupt or a full disk leaves what was there.

        Raises:
            ArtefactError: the folder is not empty and ``overwrite`` is not set, or it cannot be written.
        """
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(values) for name, values in self.anchor.to_arrays().items()}
        content = save(arrays)
        manifest = {
            "schema": f"dna_probe.detector/{SCHEMA}",
            "backbone": self.backbone.identity(),
            "preprocessing": self.backbone.preprocessing.to_json(),
            "equalisation": self.equalisation.to_json() if self.equalisation else None,
            "units": list(self.units),
            "anchor": self.anchor.to_json(),
            "arrays_sha256": hashlib.sha256(content).hexdigest(),
            "skipped": [list(pair) for pair in self.skipped],
            "unit_set": self.unit_set.to_json() if self.unit_set else None,
            "provenance": dict(self.provenance),
        }
        with replacing_folder(folder, overwrite) as beside:
            (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
            (beside / "arrays.safetensors").write_bytes(content)
            if self.layers is not None:
                (beside / "layers.json").write_text(json.dumps(self.layers.to_json()))
            if self.scores is not None:
                (beside / "scores.json").write_text(json.dumps(self.scores.to_json()))
        return Path(folder)

    def __repr__(self) -> str:
        low, high = self.anchor.band_
        return (
            f"Detector on {self.backbone.name}: {len(self.units)} units of {len(self.readings)} readings, "
            f"stops after layer {self.deepest_layer + 1} of {self.backbone.depth}; {self.anchor.kind}, "
            f"threshold {self.threshold:.3f}, unsure {low:.3f} to {high:.3f}"
            + (f"; {self.trimmed.note}" if self.trimmed else "")
        )


def _portions(sources: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    """`PORTION` batches of samples that lie in files at a time, fewer of those that are in memory already."""
    if isinstance(sources, str | os.PathLike):
        raise DataError(f"A list of samples is needed, not the single one {str(sources)[:60]!r}")
    portion: list[Any] = []
    room = PORTION * batch_size
    for source in sources:
        portion.append(source)
        room -= 1 if isinstance(source, str | os.PathLike | ArchivedSample | Member) else PORTION // 2
        if room <= 0:
            yield portion
            portion, room = [], PORTION * batch_size
    if portion:
        yield portion


def _name(source: Any, position: int, modality: str) -> str:
    """What a sample is called in predictions; see `ImageSet.names`."""
    if modality == "image" or isinstance(source, str | Path) or is_stored(source):
        return name_of(source, position)
    return f"{noun_of(modality)}[{position}]"


def load(folder: str | Path, model: Any = None, weights: str | Path | None = None, device: str = "auto") -> Detector:
    """Read a detector that ``save`` wrote.

    Where it was fitted on the ``factory`` of a Python file, that file is run: load detectors that you trust.

    Args:
        model: the backbone, where the detector was fitted on a module that cannot be rebuilt by name.

    Raises:
        ArtefactError: not a detector, damaged, written by a newer version, or other weights than those it was fitted
            with.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    from dna_probe.backbones import open_backbone
    from dna_probe.backbones.contract import Backbone

    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        content = (folder / "arrays.safetensors").read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{folder} has no readable arrays.safetensors", error.strerror or "", "Fit it again"
        ) from error
    if hashlib.sha256(content).hexdigest() != manifest["arrays_sha256"]:
        raise ArtefactError(
            f"{folder / 'arrays.safetensors'} is damaged",
            "Its SHA-256 is not the one in manifest.json",
            "Copy or fit it again",
        )
    try:
        arrays = load_arrays(content)
    except SafetensorError as error:
        raise ArtefactError(
            f"{folder / 'arrays.safetensors'} is damaged", str(error), "Copy or fit it again"
        ) from error
    identity = manifest["backbone"]
    try:
        backbone = open_backbone(
            (identity.get("spec") or identity["name"]) if model is None else model,
            weights=weights or (identity.get("weights") if model is None else None),
            device=device,
            random_weights=model is None and identity.get("random_weights", False),
            preprocessing=_preprocessing(manifest["preprocessing"]),
        )
    except BackboneError as error:
        if model is not None or identity.get("spec"):
            raise
        # A module object leaves no more than its name, which timm may know.
        raise ArtefactError(
            f"{folder} was fitted on a model object ({identity['name']})",
            f"It cannot be rebuilt by name ({error.what})",
            "Pass it: dna_probe.load(folder, model=...)",
        ) from error
    if not isinstance(model, Backbone):
        backbone = _read_as_much(backbone, manifest["preprocessing"])
    if backbone.weight_hash != identity["weight_hash"]:
        raise ArtefactError(
            f"The weights of {backbone.name} are not those that {folder} was fitted with",
            f"SHA-256 {backbone.weight_hash[:12]} instead of {identity['weight_hash'][:12]}",
            "Load the same weights, or fit again",
        )
    if backbone.preprocessing.to_json() != manifest["preprocessing"]:
        raise ArtefactError(
            f"{folder} was fitted with another preprocessing than {backbone.name} has",
            "Its tokeniser, feature extractor or their settings differ",
            "Open the backbone with that one: dna_probe.load(folder, model=open_backbone(..., preprocessing=...))",
        )
    try:
        anchor = AnchorClassifier.restore(manifest["anchor"], arrays)
        treated = manifest["equalisation"]
        equalisation = Equalisation.from_json(treated) if treated else None
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder / 'manifest.json'} is damaged", f"{type(error).__name__}: {error}", "Copy or fit it again"
        ) from error
    layers = _stored(folder / "layers.json", LayerReport.from_json)
    scores = _stored(folder / "scores.json", UnitScores.from_json)
    return Detector(
        backbone=backbone,
        units=tuple(manifest["units"]),
        anchor=anchor,
        layers=layers,
        scores=scores,
        unit_set=UnitSet.from_json(manifest["unit_set"], scores) if scores and manifest.get("unit_set") else None,
        equalisation=equalisation,
        skipped=tuple((name, reason) for name, reason in manifest["skipped"]),
        provenance=manifest["provenance"],
    )


def _preprocessing(stored: Mapping[str, Any]) -> Any:
    """That of images; those of texts and sounds come with the backbone, and are compared."""
    from dna_probe.images.preprocessing import Preprocessing

    return None if "modality" in stored else Preprocessing.from_json(stored)


def _read_as_much(backbone: Backbone, stored: Mapping[str, Any]) -> Backbone:
    """The backbone, reading as much of each text or recording as when the detector was fitted: no model says that."""
    from dna_probe.backbones import open_backbone

    reader: Any = backbone.preprocessing
    if stored.get("modality") != reader.modality:
        return backbone
    own = reader.to_json()
    lengths = {name: stored[name] for name in ("max_length", "seconds") if stored.get(name) != own.get(name)}
    return open_backbone(backbone, preprocessing=replace(reader, **lengths)) if lengths else backbone


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a detector folder.

    Raises:
        ArtefactError: missing, not JSON, incomplete, or of a newer schema.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise ArtefactError(
            f"{folder} is not a detector", "It has no readable manifest.json", "Give the folder that 'fit' wrote"
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged", str(error), "Copy or fit it again") from error
    kind, _, version = str(manifest.get("schema", "") if isinstance(manifest, dict) else "").partition("/")
    if kind != "dna_probe.detector" or not version.isdigit():
        raise ArtefactError(
            f"{folder} is not a detector", "Its manifest has another schema", "Give the folder that 'fit' wrote"
        )
    if int(version) > SCHEMA:
        raise ArtefactError(
            f"{folder} was written by a newer dna_probe",
            f"Its schema is {version}, this version reads up to {SCHEMA}",
            "Upgrade dna-probe",
        )
    missing = REQUIRED - set(manifest)
    if missing:
        raise ArtefactError(f"{path} is damaged", f"It lacks {', '.join(sorted(missing))}", "Copy or fit it again")
    return manifest


def _stored(path: Path, read: Any) -> Any:
    try:
        return read(json.loads(path.read_text())) if path.exists() else None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is damaged", f"{type(error).__name__}: {error}", "Copy or fit it again") from error
