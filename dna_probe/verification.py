"""Do the selected units matter? Mask them, at the readout and inside the network, against matched controls.

A unit that the detector does not read cannot matter to it at the readout, so the curves are for several *readers*:

``detector``
    The stored classifier, which reads the selected units (the FDUs) alone.
``all-units``
    A standardised linear probe on all units of the detector's readings, fitted across folds of groups on values as they
    are and judged on masked values of the fold held out.
``last-layer``
    The same on the network's last layer, for edits inside the network: do the units feed its own final representation?

Units are masked cumulatively, best first, and compared with equally many controls (``control_units``) under each
intervention (``interventions``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Options, collect_features, require_modality
from dna_probe.errors import DnaProbeError
from dna_probe.evaluation.examination import trained_on
from dna_probe.images.reading import content_hash
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import UNLABELLED, ImageSet
from dna_probe.images.views import TOO_SMALL, equalise_set, unreadable
from dna_probe.interventions import INTERVENTIONS, require_interventions
from dna_probe.location import bounded, layer_reading
from dna_probe.masking import Bench, summarise
from dna_probe.masking_sentences import masking_sentences
from dna_probe.samples import read_samples
from dna_probe.sites import resolve_reading

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.detector import Detector


@dataclass(frozen=True, repr=False)
class Verification:
    """What masking units does.

    Attributes:
        origin: where the images came from.
        knee: number of selected units, ``units`` of all that were scored.
        images: how many were read at the readout, ``network_images`` inside the network.
        rows: one mapping per place, intervention, reader, kind of units and number ``k`` masked: ``auc`` with
            ``auc_low`` and ``auc_high`` (over the draws of drawn controls, over groups of images for other units),
            ``accuracy_real``, ``accuracy_fake``, ``loss`` of AUC against unmasked, ``masked`` (fewer than ``k`` where
            a reading has no more units), ``draws``; for selected units inside the network ``self_repair``, see below.
        summary: one mapping per place, intervention and reader, at the knee: ``loss``; ``accuracy_real``
            and ``accuracy_fake`` unmasked and masked; ``spearman`` of AUC against the number masked up to there; in
            ``controls`` per kind its mean ``loss``, the ``ratio`` of ours to it (None where it loses nothing), and for
            drawn kinds ``p``, (1 + draws that lose as much) / (1 + draws); ``self_repair``, 1 - loss inside the network
            / loss at the readout on the same images (None where that is below 0.01). The detector reads nothing but
            edited units then, so that under ``zero`` and ``mean`` its two losses are equal by construction; in
            ``rows`` it is also for fewer units.
        trained_on: names of images that the detector was fitted on.
        notes: what was left out, for people.
        skipped: (name, reason) of images that could not be read.
        provenance: of the detector and the settings.
    """

    origin: str
    knee: int
    units: int
    images: int
    network_images: int
    rows: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    trained_on: Sequence[str] = ()
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[str]:
        """What holds and what does not, in sentences."""
        return masking_sentences(self.summary, self.knee, self.images, len(self.trained_on))

    def table(self) -> pd.DataFrame:
        """The rows, one each."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        return {"schema": "dna_probe.verification/1", **asdict(self), "verdicts": self.verdicts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verification:
        parts = {one.name: data[one.name] for one in fields(cls)}
        return cls(**parts | {"skipped": tuple((name, reason) for name, reason in parts["skipped"])})

    def __repr__(self) -> str:
        head = f"Verification on {self.origin}: {self.knee} of {self.units} units, {self.images} images"
        return "\n".join([head, *(f"  {sentence}" for sentence in self.verdicts)])


def verify(
    detector: Detector,
    data: Any,
    *,
    interventions: Sequence[str] = ("mean", "zero", "swap"),
    draws: int = 20,
    points: int = 8,
    max_images: int = 32,
    seed: int = 0,
    options: Options | None = None,
) -> Verification:
    """Mask the detector's units, best first, and compare with masking other units.

    A detector that was fitted on equalised images equalises these too. At the readout all images are used (at most
    4 000) and masking is arithmetic. Inside the network it costs the later part of a forward pass for every image and
    set of units, and there are 75 sets under each intervention.

    Args:
        data: labelled images of both classes: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; for
            detectors of texts or sounds, texts or recordings instead, see ``samples.read_samples``.
        interventions: names in ``dna_probe.interventions``.
        draws: sets of each drawn kind of controls.
        points: numbers of units masked from none to all selected ones, at the readout.
        max_images: most images inside the network, half of each class, spread over generators and groups, and none
            that were trained on where there are others; 0 leaves the network out.

    Raises:
        DnaProbeError: the detector was loaded without its scores; a mistyped intervention.
        DataError: one class only, too few groups to fit across folds, nothing readable.
        NumericalError: an activation is not finite.
    """
    options = options or Options()
    require_interventions(interventions)
    _require_settings(interventions, draws, points, max_images)
    if detector.unit_set is None:
        raise DnaProbeError(
            "This detector was loaded without its scores",
            "Without them it is not known which units rank next, nor which there are",
            "Fit it again and save it, or give the folder with its scores.json",
        )
    images, trained_on, notes = _read(detector, data, seed, options)
    readings = [resolve_reading(reading.name, detector.backbone.sites) for reading in detector.unit_set.scores.readings]
    last = layer_reading(detector.backbone.layers[-1])
    watched = list({reading.name: reading for reading in (*readings, last)}.values())
    features = collect_features(detector.backbone, images, watched, options=options)
    require_two_classes(features.images)
    # By identity: an image in memory is called by its place, which changes where others cannot be read.
    seen = {id(image) for image, name in zip(images.images, images.names, strict=True) if name in set(trained_on)}
    fresh = np.array([id(image) not in seen for image in features.images.images])
    bench = Bench.make(detector, features, fresh, readings, last, interventions, draws, seed)
    rows, losses = bench.mask_readout(points)
    edited = 0
    if max_images:
        edited, more, more_losses = bench.mask_network(detector.backbone, watched, max_images, options)
        rows += more
        losses |= more_losses
    return Verification(
        origin=images.origin,
        knee=bench.pool.selected,
        units=len(bench.pool.ranked),
        images=len(features.images),
        network_images=edited,
        rows=rows,
        summary=summarise(rows, losses, bench.pool.selected),
        trained_on=trained_on,
        notes=[*notes, *bench.notes],
        skipped=unreadable(features.images).skipped,
        provenance={
            "backbone": detector.backbone.identity(),
            "data": features.images.fingerprint(),
            "fitted": {k: v for k, v in detector.provenance.items() if k != "image_hashes"},
            "settings": {
                "interventions": list(interventions),
                "draws": draws,
                "points": points,
                "max_images": max_images,
                "seed": seed,
            },
        },
    )


def _require_settings(interventions: Sequence[str], draws: int, points: int, max_images: int) -> None:
    if not interventions:
        raise DnaProbeError("No intervention was named", fix=f"Known: {', '.join(INTERVENTIONS)}")
    if draws < 1 or points < 1:
        raise DnaProbeError(f"draws and points must be at least 1, not {draws} and {points}")
    if max_images and max_images < 4:
        raise DnaProbeError(
            f"{max_images} images are too few to edit inside the network", fix="Give at least 4, or 0 to leave it out"
        )


def _read(detector: Detector, data: Any, seed: int, options: Options) -> tuple[ImageSet, list[str], list[str]]:
    """Labelled images as the detector looks at them, names of those it was fitted on, and what was left out."""
    given = read_samples(data)
    require_modality(detector.backbone, given)
    given = bounded(given.subset(given.labels != UNLABELLED), seed)
    require_two_classes(given)
    images, notes = given, []
    if detector.equalisation is not None:
        # Once and into memory, where ``detector.treated`` would do it again at each reading.
        images = equalise_set(given, detector.equalisation, options.workers)
        small = sum(reason.startswith(TOO_SMALL) for _, reason in images.skipped)
        if small:
            notes.append(f"Left out, being too small for the detector's equalisation: {small} of {len(given)} images.")
    hashes = [content_hash(image) for image in images.images]
    return images, trained_on(detector, given, hashes, images.names), notes
