"""Make the images of a benchmark ready: read, equalise, tie duplicates together, audit, plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.anchor import require_rate, require_resolvable
from dna_probe.collection import Options
from dna_probe.errors import DataError, unknown_name
from dna_probe.evaluation.audit import audit_inspected, inspect_set
from dna_probe.evaluation.methods import METHODS, Dna, Method, make_method
from dna_probe.evaluation.protocols import PROTOCOLS, Cell, Plan, plan_cells
from dna_probe.fitting import DEFAULTS, DnaSettings
from dna_probe.images.degradations import available_degradations, unavailable_degradations
from dna_probe.images.duplicates import join_near_duplicates
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import FAKE, REAL, UNLABELLED, ImageSet, join
from dna_probe.images.views import Equalisation, equalisation_report, equalise_set, unreadable
from dna_probe.samples import read_images_for
from dna_probe.shards import progress_bar

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """What a benchmark does.

    Attributes:
        protocol: name in ``dna_probe.evaluation.protocols``.
        methods: names in ``dna_probe.evaluation.methods``.
        plan: shots, draws and splits.
        dna: how the detector is fitted.
        equalisation: treatment that gives both classes one size, codec and quality, or None.
        target_fpr: operating point that every calibrated method sets its threshold for, or None.
        release_dates: (generator, ISO date), for ``temporal``, in place of what the data says.
        transforms: of ``robustness``; empty takes all that this machine can do.
        calibrate: whether the probabilities and thresholds of detectors are wanted; without, they fit several times
            faster.
        test_images: most test images per class of ``robustness``, which sees each of them under every transform.

    Raises:
        DnaProbeError: a mistyped name.
    """

    protocol: str = "few-shot"
    methods: tuple[str, ...] = tuple(METHODS)
    plan: Plan = field(default_factory=Plan)
    dna: DnaSettings = DEFAULTS
    equalisation: Equalisation | None = None
    target_fpr: float | None = None
    release_dates: tuple[tuple[str, str], ...] = ()
    transforms: tuple[str, ...] = ()
    calibrate: bool = True
    test_images: int = 50

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise unknown_name("protocol", self.protocol, PROTOCOLS)
        if not self.methods:
            raise DataError("No method was named", "", f"Known: {', '.join(METHODS)}")
        for name in self.methods:
            make_method(name)
        self.dna.check()
        if self.target_fpr is not None:
            require_rate(self.target_fpr)
        impossible = unavailable_degradations()
        for name in self.transforms:
            if name in impossible:
                raise DataError(f"The transform {name!r} cannot be done here", impossible[name])
            if name not in available_degradations():
                raise unknown_name("transform", name, available_degradations(), DataError)

    @cached_property
    def built(self) -> Mapping[str, Method]:
        """The methods by name, unfitted."""
        return {name: make_method(name) for name in self.methods}

    @property
    def detectors(self) -> list[DnaSettings]:
        """How every detector of the run is fitted: its own first, then the variants."""
        variants = [one.settings(self.dna) for one in self.built.values() if isinstance(one, Dna)]
        return list(dict.fromkeys([self.dna, *variants]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """The images of a benchmark, all of them readable.

    Attributes:
        images: the data set and those to test on, behind one another; near-duplicates share a group.
        sets: name of the data set of each image, (n,).
        tables: ``metadata`` and ``thumbnail`` -> (n, columns).
        sha256: of each image.
        notes: per data set, what was read, what equalising changed, and the audit of what is measured.
    """

    images: ImageSet
    sets: np.ndarray
    tables: Mapping[str, np.ndarray]
    sha256: tuple[str, ...]
    notes: tuple[Mapping[str, Any], ...]

    def frame(self) -> pd.DataFrame:
        """One row per image: path, label, generator, set, group, sha256."""
        import pandas as pd

        return pd.DataFrame(
            {
                "path": self.images.names,
                "label": self.images.labels,
                "generator": self.images.generators,
                "set": self.sets,
                "group": self.images.groups,
                "sha256": self.sha256,
            }
        )


def prepare(
    datas: Sequence[Any], settings: Settings, layout: str = "auto", options: Options | None = None, say: Say = str
) -> Bench:
    """Read the data set and those to test on, and tell what was found.

    Raises:
        DataError: a set cannot be read, or the data set lacks a class.
    """
    options = options or Options()
    read = [read_images_for("The benchmark", data, layout) for data in datas]
    read = [one.subset(one.labels != UNLABELLED) if (one.labels == UNLABELLED).any() else one for one in read]
    for one in read:
        say(f"{one.describe()}{f'; found {one.layout}' if one.layout else ''}")
    for one in read:
        require_two_classes(one)
    if settings.release_dates:
        read = [_dated(one, dict(settings.release_dates)) for one in read]
    names = _names(read)
    notes: list[dict[str, Any]] = [
        {"name": name, "describe": one.describe()} for name, one in zip(names, read, strict=True)
    ]
    if settings.equalisation is not None:
        say(f"Equalising: {settings.equalisation}")
        for i, one in enumerate(read):
            with progress_bar(len(one), options.progress) as advance:
                read[i] = equalise_set(one, settings.equalisation, options.workers, advance)
            report = equalisation_report(one, read[i], settings.equalisation)
            notes[i]["equalised"] = report.to_json()
            say(repr(report))
            read[i] = unreadable(read[i])
    inspected = [inspect_set(one, options.workers, options.progress) for one in read]
    read = [images for images, _ in inspected]
    for note, (images, looked) in zip(notes, inspected, strict=True):
        found = audit_inspected(images, looked, seed=settings.plan.seed, workers=options.workers)
        say(f"Audit of {note['name']}: {found.verdict}")
        note["audit"] = found.to_json()
    seen = [inspection for _, part in inspected for inspection in part]
    return Bench(
        images=join_near_duplicates(_together(read, names), workers=options.workers),
        sets=np.repeat(np.array(names, dtype=object), [len(one) for one in read]),
        tables={
            "metadata": np.stack([one.metadata for one in seen]),
            "thumbnail": np.stack([one.thumbnail for one in seen]).astype(np.float32),
        },
        sha256=tuple(one.sha256 for one in seen),
        notes=tuple(notes),
    )


def plan(bench: Bench, settings: Settings) -> list[Cell]:
    """The cells of the protocol.

    Raises:
        DataError: the images cannot give what the protocol needs, or too few calibration reals for ``target_fpr``.
    """
    images = bench.images
    cells = plan_cells(settings.protocol, images, (bench.sets != bench.sets[0]).astype(int), settings.plan)
    for name in dict.fromkeys(bench.sets[cells[0].test]):
        # A set may have lost a class to what it shares with the training set.
        require_two_classes(images.subset(cells[0].test[bench.sets[cells[0].test] == name]))
    if settings.target_fpr is not None:
        for cell in cells:
            require_resolvable(settings.target_fpr, int((images.labels[cell.train] == REAL).sum()))
    if settings.protocol == "robustness":
        test = _capped(images, cells[0].test, settings.test_images, settings.plan.seed)
        cells = [replace(cell, test=test) for cell in cells]
    return cells


def read_release_dates(path: Path) -> tuple[tuple[str, str], ...]:
    """(generator, release date) of each row of a CSV file with these columns.

    Raises:
        DataError: it cannot be read, lacks a column, or holds what is no date.
    """
    import csv
    from datetime import date

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read", str(error)) from None
    found = []
    for row in rows:
        if not {"generator", "release_date"} <= set(row):
            raise DataError(f"{path} lacks a column", f"It has {', '.join(map(str, row))}", "generator,release_date")
        try:
            found.append((row["generator"].strip(), date.fromisoformat(row["release_date"].strip()).isoformat()))
        except (ValueError, AttributeError):
            raise DataError(
                f"{row['release_date']!r} in {path} is no date", "", "Write it as year-month-day: 2024-06-12"
            ) from None
    return tuple(found)


def _dated(images: ImageSet, dates: Mapping[str, str]) -> ImageSet:
    own = zip(images.generators, images.dates, strict=True)
    return replace(images, dates=tuple(dates.get(name, date) for name, date in own))


def _capped(images: ImageSet, test: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many test images of each class, the fakes spread over generators."""
    rng = np.random.default_rng(seed)
    made = np.asarray(images.generators, dtype=object)
    reals = test[images.labels[test] == REAL]
    fakes = [test[made[test] == name] for name in sorted(set(made[test[images.labels[test] == FAKE]]))]
    # One of each generator in turn, until there are enough.
    mixed = [rng.permutation(own).tolist() for own in fakes]
    turns = [position for turn in zip_longest(*mixed) for position in turn if position is not None]
    return np.sort(np.concatenate([rng.permutation(reals)[:most], turns[:most]]).astype(np.int64))


def _names(read: Sequence[ImageSet]) -> list[str]:
    """A short name of each set, told apart by number where two are called alike."""
    found: list[str] = []
    for one in read:
        name = Path(one.origin).stem or one.origin
        found.append(name if name not in found else f"{name} {len(found) + 1}")
    return found


def _together(read: Sequence[ImageSet], names: Sequence[str]) -> ImageSet:
    """The sets behind one another; equal group names of different sets mean nothing."""
    if len(read) == 1:
        return read[0]
    return join(
        replace(one, groups=tuple(f"{name}: {group}" for group in one.groups))
        for one, name in zip(read, names, strict=True)
    )
