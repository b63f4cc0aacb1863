"""What could tell real from fake in a data set besides the traces of a generator, and what leaks between its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import NoReadableImage
from dna_probe.evaluation.audit_sentences import LIMIT, flags, listed, verdict
from dna_probe.evaluation.file_features import FAMILIES, METADATA_NAMES, Inspection, inspect, metadata_probe
from dna_probe.evaluation.file_features import metadata_features as metadata_features
from dna_probe.evaluation.file_features import thumbnail_features as thumbnail_features
from dna_probe.evaluation.file_histograms import Histogram, histograms
from dna_probe.evaluation.leaks import Cluster, duplicates, near_duplicates, split_groups
from dna_probe.evaluation.metrics import Interval, auc, auc_interval
from dna_probe.images.duplicates import find_near_duplicates, join_groups
from dna_probe.images.reading import UnreadableImage
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import REAL, UNLABELLED, ImageSet
from dna_probe.images.threads import in_order
from dna_probe.images.views import CLASSES, file_words, summarise_files
from dna_probe.probing import Folds, folds, linear_probe, out_of_fold_scores, small_fits
from dna_probe.samples import read_images_for
from dna_probe.shards import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.base import ClassifierMixin

SCHEMA = "dna_probe.audit/1"
ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """The fakes of one generator against all reals.

    Attributes:
        generator: its name, or "all" for the fakes of every generator.
        real, fake: numbers of images.
        metadata: out-of-fold AUC of a random forest on ``metadata_features``; None with fewer than two groups of a
            class, since nothing can be held out.
        thumbnail: out-of-fold AUC of a linear probe on 16 x 16 pixels.
        tells: (what, AUC of a small forest on that alone) for each part of the metadata that varies, largest first.
    """

    generator: str
    real: int
    fake: int
    metadata: Interval | None
    thumbnail: Interval | None
    tells: tuple[tuple[str, float], ...]

    @property
    def told_by(self) -> tuple[tuple[str, float], ...]:
        """The parts of the metadata that tell the classes apart alone: the three best above ``LIMIT``."""
        return tuple((name, value) for name, value in self.tells if value > LIMIT)[:3]

    @property
    def coded_alike(self) -> bool:
        """Whether the files differ in their bytes per pixel alone, that is in how detailed their pictures are."""
        return all(name == "bytes per pixel" for name, _ in self.tells)

    def to_json(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "real": self.real,
            "fake": self.fake,
            **_auc_json("metadata", self.metadata),
            **_auc_json("thumbnail", self.thumbnail),
            "tells": dict(self.tells),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        return cls(
            data["generator"],
            data["real"],
            data["fake"],
            _auc_from_json("metadata", data),
            _auc_from_json("thumbnail", data),
            tuple((name, value) for name, value in data["tells"].items()),
        )


@dataclass(frozen=True, repr=False)
class Audit:
    """What was found in a data set.

    Attributes:
        origin: where the images came from.
        comparisons: of all fakes with the reals first, then of each generator.
        unlabelled: images without a label, which are looked through for copies and leaks only.
        files: class ("real", "fake") -> what its files are like, see ``summarise_files``.
        histograms: of each class, see ``file_histograms.TITLES``.
        duplicates: files that are equal byte for byte.
        near_duplicates: pictures that look alike but are not the same file.
        split_groups: groups that lie in more than one split.
        unreadable: (name, reason) of images left out.
        seed: of the folds, the forests and the bootstrap.
    """

    origin: str
    comparisons: tuple[Comparison, ...]
    unlabelled: int
    files: Mapping[str, Mapping[str, Any]]
    histograms: Mapping[str, Histogram]
    duplicates: tuple[Cluster, ...]
    near_duplicates: tuple[Cluster, ...]
    split_groups: tuple[Cluster, ...]
    unreadable: tuple[tuple[str, str], ...]
    seed: int

    @property
    def overall(self) -> Comparison:
        return self.comparisons[0]

    @property
    def metadata_auc(self) -> float | None:
        """AUC of a classifier that never looks at pixels, all generators against the reals."""
        return None if self.overall.metadata is None else self.overall.metadata.value

    @property
    def thumbnail_auc(self) -> float | None:
        """AUC of a classifier that sees 16 x 16 pixels, all generators against the reals."""
        return None if self.overall.thumbnail is None else self.overall.thumbnail.value

    @property
    def leaks(self) -> tuple[tuple[str, Cluster], ...]:
        """What is wrong, and with which images."""
        clusters = (*self.duplicates, *self.near_duplicates, *self.split_groups)
        return tuple((reason, cluster) for cluster in clusters for reason in cluster.leaks)

    @property
    def flags(self) -> tuple[str, ...]:
        """A sentence for everything that makes results on these images doubtful."""
        return tuple(flags(self))

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return verdict(self)

    def __repr__(self) -> str:
        lines = [f"Audit of {self.origin}"]
        lines += [f"  {name}: {file_words(self.files[name])}" for name in CLASSES]
        for one in self.comparisons:
            told = f"; told by {listed(one.told_by)}" if one.told_by else ""
            lines.append(
                f"  {one.generator}: metadata AUC {_words(one.metadata)}, thumbnail AUC {_words(one.thumbnail)}{told}"
            )
        lines += [f"  ! {flag}" for flag in self.flags]
        return "\n".join([*lines, f"  {self.verdict}"])

    def table(self) -> pd.DataFrame:
        """One row for all fakes, then one per generator: images, both AUCs with intervals, what tells them apart."""
        import pandas as pd

        rows = []
        for one in self.comparisons:
            row: dict[str, Any] = {"generator": one.generator, "real": one.real, "fake": one.fake}
            for name, found in (("metadata", one.metadata), ("thumbnail", one.thumbnail)):
                value, low, high = found or (float("nan"),) * 3
                row |= {f"{name}_auc": value, f"{name}_low": low, f"{name}_high": high}
            rows.append({**row, "told_by": ", ".join(name for name, _ in one.told_by)})
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "origin": self.origin,
            **_auc_json("metadata", self.overall.metadata),
            **_auc_json("thumbnail", self.overall.thumbnail),
            "limit": LIMIT,
            "verdict": self.verdict,
            "flags": list(self.flags),
            "images": {"real": self.overall.real, "fake": self.overall.fake, "unlabelled": self.unlabelled},
            "generators": {one.generator: one.fake for one in self.comparisons[1:]},
            "comparisons": [one.to_json() for one in self.comparisons],
            "files": {name: dict(told) for name, told in self.files.items()},
            "histograms": {name: one.to_json() for name, one in self.histograms.items()},
            "duplicates": [cluster.to_json() for cluster in self.duplicates],
            "near_duplicates": [cluster.to_json() for cluster in self.near_duplicates],
            "split_groups": [cluster.to_json() for cluster in self.split_groups],
            "leaks": [{"reason": reason, "images": list(cluster.images)} for reason, cluster in self.leaks],
            "unreadable": [{"path": name, "reason": reason} for name, reason in self.unreadable],
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Audit:
        """The audit that ``to_json`` gave; what can be worked out again (flags, verdict, leaks) is not read."""
        return cls(
            origin=data["origin"],
            comparisons=tuple(map(Comparison.from_json, data["comparisons"])),
            unlabelled=data["images"]["unlabelled"],
            files=data["files"],
            histograms={name: Histogram.from_json(one) for name, one in data["histograms"].items()},
            duplicates=tuple(map(Cluster.from_json, data["duplicates"])),
            near_duplicates=tuple(map(Cluster.from_json, data["near_duplicates"])),
            split_groups=tuple(map(Cluster.from_json, data["split_groups"])),
            unreadable=tuple((one["path"], one["reason"]) for one in data["unreadable"]),
            seed=data["seed"],
        )


def audit(data: Any, *, seed: int = 0, workers: int = 0, progress: bool = False) -> Audit:
    """Measure what tells real from fake without the traces of a generator, and look for copies and leaks.

    Two classifiers that a data set without confounds leaves at an AUC of one half: a random forest on what the files
    say without their pixels, and a linear probe on 16 x 16 pixels, which sees colour and layout. Both are
    cross-validated with groups kept together, on all images and on each generator with all reals, since a pooled AUC
    hides one generator. Intervals are bootstraps over groups. Every image is opened once, and once more for
    near-duplicates.

    Args:
        data: what ``read_images`` takes.
        seed: of folds, forests and bootstrap.
        workers: threads that decode images.
        progress: show a progress bar when standard error is a terminal.

    Raises:
        DataError: the set has only one class, or no image could be read.
    """
    given = read_images_for("The audit", data)
    require_two_classes(given)
    images, seen = inspect_set(given, workers, progress)
    return audit_inspected(images, seen, seed=seed, workers=workers, progress=progress)


def inspect_set(image_set: ImageSet, workers: int = 0, progress: bool = False) -> tuple[ImageSet, list[Inspection]]:
    """The images that can be read, the others in ``skipped``, and what was seen of each.

    Raises:
        DataError: none can be read.
    """
    names = image_set.names

    def look(position: int) -> Inspection | UnreadableImage:
        try:
            return inspect(image_set.images[position], names[position])
        except UnreadableImage as error:
            return error

    kept: list[int] = []
    seen: list[Inspection] = []
    failures: list[tuple[str, str]] = []
    with progress_bar(len(image_set), progress) as advance:
        for position, found in enumerate(in_order(look, len(image_set), workers)):
            if isinstance(found, UnreadableImage):
                failures.append((found.name, found.reason))
            else:
                kept.append(position)
                seen.append(found)
            advance(1)
    if not kept:
        raise NoReadableImage(image_set, failures)
    return replace(image_set.subset(kept), skipped=(*image_set.skipped, *failures)), seen


def audit_inspected(
    images: ImageSet, seen: Sequence[Inspection], *, seed: int = 0, workers: int = 0, progress: bool = False
) -> Audit:
    """The ``audit`` of images that ``inspect_set`` has looked at.

    Raises:
        DataError: the set has only one class.
    """
    require_two_classes(images)
    with progress_bar(len(images), progress) as advance:
        near = find_near_duplicates(images, workers=workers, advance=advance)
    hashes = [one.sha256 for one in seen]
    labelled = np.flatnonzero(images.labels != UNLABELLED)
    own, labels = [seen[i] for i in labelled.tolist()], images.labels[labelled]
    facts = [one.facts for one in own]
    return Audit(
        origin=images.origin,
        # Copies of an image that was trained on must not be held out.
        comparisons=tuple(_compare(join_groups(images, near).subset(labelled), own, seed)),
        unlabelled=len(images) - len(labelled),
        files=summarise_files(facts, labels),
        histograms=histograms(facts, labels),
        duplicates=duplicates(images, hashes),
        near_duplicates=near_duplicates(images, near, hashes),
        split_groups=split_groups(images),
        unreadable=images.skipped,
        seed=seed,
    )


def _compare(images: ImageSet, seen: Sequence[Inspection], seed: int) -> list[Comparison]:
    """All fakes with the reals, then each generator; ``images`` are labelled."""
    metadata = np.stack([one.metadata for one in seen])
    thumbnails = np.stack([one.thumbnail for one in seen]).astype(np.float64)
    made, real = np.array(images.generators), images.labels == REAL

    def compare(generator: str, rows: np.ndarray) -> Comparison:
        labels, groups = images.labels[rows], [images.groups[i] for i in rows]
        pairs = folds(labels, groups, seed=seed)
        measured = [
            _cross_validated(values[rows], labels, groups, pairs, probe, seed)
            for values, probe in ((metadata, metadata_probe(seed)), (thumbnails, linear_probe(random_state=seed)))
        ]
        tells = _tells(metadata[rows], labels, pairs, seed)
        count = int((labels == REAL).sum())
        return Comparison(generator, count, len(rows) - count, measured[0], measured[1], tells)

    generators = list(dict.fromkeys(made[~real].tolist()))
    with small_fits():
        overall = compare(ALL, np.arange(len(images)))
        if len(generators) == 1:
            return [overall, replace(overall, generator=generators[0])]
        return [overall, *(compare(name, np.flatnonzero(real | (made == name))) for name in generators)]


def _cross_validated(
    values: np.ndarray, labels: np.ndarray, groups: Sequence[str], pairs: Folds, probe: ClassifierMixin, seed: int
) -> Interval | None:
    if not pairs:
        return None
    # Where nothing varies, a score would only say which fold an image was in.
    varies = bool((np.ptp(values, axis=0) > 0).any())
    scores = out_of_fold_scores(values, labels, pairs, probe) if varies else np.zeros(len(labels))
    return auc_interval(labels, scores, groups, seed=seed)


def _tells(metadata: np.ndarray, labels: np.ndarray, pairs: Folds, seed: int) -> tuple[tuple[str, float], ...]:
    """Out-of-fold AUC from each family of columns alone, where it varies at all."""
    found = []
    for family, names in FAMILIES.items() if pairs else ():
        values = metadata[:, [METADATA_NAMES.index(name) for name in names]]
        values = values[:, np.ptp(values, axis=0) > 0]
        if values.shape[1]:
            scores = out_of_fold_scores(values, labels, pairs, metadata_probe(seed, trees=10))
            found.append((family, auc(labels, scores)))
    return tuple(sorted(found, key=lambda entry: -entry[1]))


def _words(measured: Interval | None) -> str:
    return "not measured" if measured is None else str(measured)


def _auc_json(name: str, measured: Interval | None) -> dict[str, Any]:
    if measured is None:
        return {f"{name}_auc": None, f"{name}_interval": None}
    return {f"{name}_auc": measured.value, f"{name}_interval": [measured.low, measured.high]}


def _auc_from_json(name: str, data: Mapping[str, Any]) -> Interval | None:
    value = data[f"{name}_auc"]
    return None if value is None else Interval(value, *data[f"{name}_interval"])
