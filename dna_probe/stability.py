"""Does a detector find the same units again: with other images, more of them, or another generator's?

The units are selected again as ``fit`` would, from few-shot draws of one generator's fakes and as many reals (the
``few-shot`` protocol of ``dna_probe.evaluation``), and the selections compared in pairs:

``draws``
    Same generator and number of images, other images.
``shots``
    Same generator, other number of images.
``generators``
    Same number of images, other generator.

By the Jaccard index of the sets, beside that of random sets of these sizes from these pools, and by Spearman's rank
correlation of the scores over the units that both pools hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.batches import load_batches
from dna_probe.collection import Options, require_modality
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.evaluation.audit import inspect_set
from dna_probe.evaluation.harness import Network
from dna_probe.evaluation.preparation import Settings
from dna_probe.evaluation.protocols import Cell, Plan, plan_cells
from dna_probe.evaluation.training import Located, View
from dna_probe.fitting import DEFAULTS, DnaSettings, choose_units, no_views, stack
from dna_probe.images.processed import process
from dna_probe.images.sampling import require_two_classes
from dna_probe.images.sets import UNLABELLED, ImageSet
from dna_probe.images.views import TOO_SMALL, Equalisation, equalise_set, unreadable
from dna_probe.probing import small_fits
from dna_probe.samples import read_samples
from dna_probe.shards import progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.backbones.contract import Backbone

DRAWS, SHOTS, GENERATORS = "draws", "shots", "generators"
COMPARISONS = (DRAWS, SHOTS, GENERATORS)
# Units listed in the table of how often each is selected: those of at least this share of the fits.
LISTED = 0.05


@dataclass(frozen=True, repr=False)
class Stability:
    """How much selections of units agree.

    Attributes:
        origin: where the images came from.
        pairs: one mapping per ``comparison`` and number of ``shots`` (a text like ``10 and 50`` where it differs):
            ``pairs`` of fits, mean ``jaccard`` with the 95 % range over pairs (``jaccard_low``, ``jaccard_high``), the
            mean ``chance`` level, and the mean ``rank_correlation`` of the scores with its range likewise.
        sizes: one mapping per ``shots`` and ``generator`` (``all`` together too): ``fits`` and the ``median``, ``low``
            and ``high`` quartile of the number of units selected.
        frequency: one mapping per unit selected in at least 5 % of the fits, the most frequent first: ``unit``, the
            share ``selected`` of all fits, and the share ``scored``, whose layers hold it.
        fits: how many selections were made.
        notes: what was left out, for people.
        skipped: (name, reason) of images that could not be read.
        provenance: of the backbone and the settings.
    """

    origin: str
    pairs: Sequence[Mapping[str, Any]]
    sizes: Sequence[Mapping[str, Any]]
    frequency: Sequence[Mapping[str, Any]]
    fits: int
    notes: Sequence[str] = ()
    skipped: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[str]:
        """What the pairs say, in sentences."""
        return [_pair_sentence(row) for row in self.pairs] + [
            f"With {row['shots']} images per class {row['median']:g} units are selected "
            f"(quartiles {row['low']:g} to {row['high']:g})."
            for row in self.sizes
            if row["generator"] == "all"
        ]

    def table(self) -> pd.DataFrame:
        """The comparisons, one row each."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.pairs])

    def frequency_table(self) -> pd.DataFrame:
        """How often each unit is selected, one row each."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.frequency], columns=["unit", "selected", "scored"])

    def to_json(self) -> dict[str, Any]:
        return {"schema": "dna_probe.stability/1", **asdict(self), "verdicts": self.verdicts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stability:
        parts = {one.name: data[one.name] for one in fields(cls)}
        return cls(**parts | {"skipped": tuple((name, reason) for name, reason in parts["skipped"])})

    def __repr__(self) -> str:
        head = f"Stability on {self.origin}: {self.fits} selections"
        return "\n".join([head, *(f"  {sentence}" for sentence in self.verdicts)])


def measure_stability(
    model: Any,
    data: Any,
    *,
    shots: Sequence[int] = (10, 20, 50),
    draws: int = 10,
    rule: str = DEFAULTS.rule,
    kinds: Sequence[str] = DEFAULTS.kinds,
    scorer: str = DEFAULTS.scorer,
    cut: str = DEFAULTS.cut,
    scope: str = DEFAULTS.scope,
    views: Sequence[str] | None = None,
    equalisation: Equalisation | None = None,
    seed: int = 0,
    options: Options | None = None,
    **cut_parameters: float,
) -> Stability:
    """Select units again and again, and compare the selections.

    Args:
        model: any ``torch.nn.Module``, a backbone name, or a ``Backbone``.
        data: labelled images of both classes: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; for
            backbones of texts or sounds, texts or recordings instead, see ``samples.read_samples``.
        shots: images per class; numbers that the data cannot give are left out, and told.
        draws: selections per generator and number of images.
        rule, kinds, scorer, cut, scope, views, cut_parameters: as in ``fit``.
        equalisation: treatment of the images before anything looks at them.

    Raises:
        DnaProbeError: a mistyped name; no draw leaves a unit.
        DataError: one class only, too few images for the smallest number of shots, nothing readable.
        NumericalError: an activation, gradient or score is not finite.
    """
    from dna_probe.backbones import open_backbone

    options = options or Options()
    parameters = tuple(cut_parameters.items())
    named = DEFAULTS.views if views is None else tuple(views)
    dna = DnaSettings(rule, tuple(kinds), scorer, cut, scope, views=named, parameters=parameters)
    settings = Settings(methods=("dna",), plan=Plan(tuple(shots), draws, seed=seed), dna=dna)
    given = read_samples(data)
    if given.modality != "image":
        dna = replace(dna, views=no_views(given, views, equalisation))
    backbone = open_backbone(model)
    require_modality(backbone, given)
    images, notes = _read(given, backbone, equalisation, options)
    cells, too_many = _plan(images, settings.plan)
    notes += too_many
    network = Network.collect(backbone, images, dna.kinds, options)
    processed = [
        Network.collect(backbone, process(images, name, backbone.preprocessing), dna.kinds, options, locating=False)
        for name in dna.views
    ]
    located = network.locate(cells, dna, options)
    chosen, failures = _select([network, *processed], cells, located, dna, options)
    if not chosen:
        raise DnaProbeError("No units are left in any draw", failures[0], "Use another rule or cut")
    notes += [f"In {many} of {len(cells)} draws nothing was selected: {why}" for why, many in Counter(failures).items()]
    return Stability(
        origin=images.origin,
        pairs=_compare(chosen),
        sizes=_sizes(chosen),
        frequency=_frequency(chosen),
        fits=len(chosen),
        notes=notes,
        skipped=unreadable(images).skipped,
        provenance={
            "backbone": backbone.identity(),
            "data": images.fingerprint(),
            "settings": {
                **asdict(dna),
                "shots": list(shots),
                "draws": draws,
                "seed": seed,
                "equalisation": equalisation.to_json() if equalisation else None,
            },
        },
    )


def _read(
    given: ImageSet, backbone: Backbone, equalisation: Equalisation | None, options: Options
) -> tuple[ImageSet, list[str]]:
    """The labelled images that can be read, and what was left out."""
    images = given.subset(given.labels != UNLABELLED)
    require_two_classes(images)
    notes = []
    if equalisation is not None:
        images = equalise_set(images, equalisation, options.workers)
        small = sum(reason.startswith(TOO_SMALL) for _, reason in images.skipped)
        if small:
            notes.append(f"Left out, being too small for the equalisation: {small} images.")
    if images.modality == "image":
        images, _ = inspect_set(images, options.workers, options.progress)
    else:
        images = _readable(images, backbone, options)
    require_two_classes(images)
    return images, notes


def _readable(samples: ImageSet, backbone: Backbone, options: Options) -> ImageSet:
    """The texts or recordings that can be read, the others in ``skipped``."""
    batches = load_batches(samples.images, backbone.preprocessing, options.batch_size, options.workers)
    failed = {position: reason for batch in batches for position, _, reason in batch.failures}
    kept = samples.subset([position for position in range(len(samples)) if position not in failed])
    names = samples.names
    return replace(kept, skipped=(*samples.skipped, *((names[i], reason) for i, reason in failed.items())))


def _plan(images: ImageSet, plan: Plan) -> tuple[list[Cell], list[str]]:
    """The draws for every number of shots that the images can give, and what they cannot."""
    cells: list[Cell] = []
    notes: list[str] = []
    for shots in plan.shots:
        try:
            cells += plan_cells("few-shot", images, np.zeros(len(images), int), replace(plan, shots=(shots,)))
        except DataError as error:
            if not cells:
                raise
            notes.append(f"{shots} shots were left out. {error.what}.")
    return cells, notes


@dataclass(frozen=True, eq=False)
class _Selection:
    """One selection.

    Attributes:
        pool: which of all units were scored, ascending; ``score`` of each of them.
        units: which were selected; both as numbers over all layers of the network.
        names: of the units selected.
        scored: readings that were scored.
    """

    generator: str
    shots: int
    pool: np.ndarray
    score: np.ndarray
    units: np.ndarray
    names: tuple[str, ...]
    scored: tuple[str, ...]


def _select(
    networks: Sequence[Network],
    cells: Sequence[Cell],
    located: Sequence[Located],
    dna: DnaSettings,
    options: Options,
) -> tuple[list[_Selection], list[str]]:
    """The selection of every draw, and why there is none in others."""
    view = View.join(networks[0].features.values, networks[0].layers)
    found: list[_Selection] = []
    failures: list[str] = []
    with small_fits(), progress_bar(len(cells), options.progress, "selections") as advance:
        for cell, place in zip(cells, located, strict=True):
            own, *processed = (network.features.subset(cell.train) for network in networks)
            try:
                if place.failure:
                    raise DnaProbeError(place.failure)
                rows = stack(own, processed)
                kept = choose_units(rows, place.readings, place.sensitivity, dna, cell.seed)
                if not len(kept):
                    raise DnaProbeError(f"No unit is left: {kept.reason}")
            except DnaProbeError as error:
                failures.append(str(error))
            else:
                spans = [view.spans[reading.name] for reading in kept.scores.readings]
                pool = np.concatenate([np.arange(span.start, span.stop) for span in spans])
                order = np.argsort(pool)
                found.append(
                    _Selection(
                        generator=cell.train_on,
                        shots=int(cell.shots),
                        pool=pool[order],
                        score=kept.scores.score[order],
                        units=np.sort(pool[kept.mask]),
                        names=tuple(kept.units),
                        scored=tuple(reading.name for reading in kept.scores.readings),
                    )
                )
            advance(1)
    return found, failures


def _compare(chosen: Sequence[_Selection]) -> list[dict[str, Any]]:
    """Pairs of selections by what sets them apart."""
    found = []
    for (comparison, shots), pairs in _grouped(chosen).items():
        jaccard, chance, correlation = np.array([_agreement(a, b) for a, b in pairs]).T
        found.append(
            {
                "comparison": comparison,
                "shots": shots,
                "pairs": len(pairs),
                **_range("jaccard", jaccard),
                "chance": float(chance.mean()),
                **_range("rank_correlation", correlation),
            }
        )
    return found


def _grouped(chosen: Sequence[_Selection]) -> dict[tuple[str, str], list[tuple[_Selection, _Selection]]]:
    groups: dict[tuple[str, str], list[tuple[_Selection, _Selection]]] = {}
    for kind, a, b in _pairs(chosen):
        shots = f"{a.shots}" if a.shots == b.shots else " and ".join(map(str, sorted((a.shots, b.shots))))
        groups.setdefault((kind, shots), []).append((a, b))
    return {key: groups[key] for kind in COMPARISONS for key in groups if key[0] == kind}


def _pairs(chosen: Sequence[_Selection]) -> Iterator[tuple[str, _Selection, _Selection]]:
    for a, b in combinations(chosen, 2):
        same = a.generator == b.generator, a.shots == b.shots
        if same == (True, True):
            yield DRAWS, a, b
        elif same == (True, False):
            yield SHOTS, a, b
        elif same == (False, True):
            yield GENERATORS, a, b


def _range(name: str, values: np.ndarray) -> dict[str, float | None]:
    """Mean and 95 % range of the values that there are."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = np.percentile(known, [2.5, 97.5])
    return {name: float(known.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _agreement(a: _Selection, b: _Selection) -> tuple[float, float, float]:
    """Jaccard index, its level by chance, and Spearman's correlation of the scores (NaN without common units)."""
    common, in_a, in_b = np.intersect1d(a.pool, b.pool, assume_unique=True, return_indices=True)
    shared = len(np.intersect1d(a.units, b.units, assume_unique=True))
    jaccard = shared / (len(a.units) + len(b.units) - shared)
    chance = chance_jaccard(len(a.units), len(b.units), len(a.pool), len(b.pool), len(common))
    return jaccard, chance, _rank_correlation(a.score[in_a], b.score[in_b])


@lru_cache(maxsize=4096)
def chance_jaccard(first: int, second: int, first_pool: int, second_pool: int, common: int) -> float:
    """Expected Jaccard index of random sets of these sizes from pools that share ``common`` units.

    The overlap is hypergeometric. Where the pools differ, the first set is taken to have its expected number of units,
    rounded, among those in common.
    """
    from scipy.stats import hypergeom

    inside = round(first * common / first_pool)
    overlap = np.arange(min(inside, second) + 1)
    probability = hypergeom.pmf(overlap, second_pool, inside, second)
    return float((probability * overlap / (first + second - overlap)).sum())


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; NaN where the scores of a side do not differ."""
    from scipy.stats import rankdata

    if len(first) < 2:
        return float("nan")
    ranks = [np.asarray(rankdata(score)) for score in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / norm if norm else float("nan")


def _sizes(chosen: Sequence[_Selection]) -> list[dict[str, Any]]:
    found = []
    for shots in sorted({one.shots for one in chosen}):
        for generator in ["all", *sorted({one.generator for one in chosen})]:
            own = [len(o.units) for o in chosen if o.shots == shots and generator in ("all", o.generator)]
            if own:
                low, median, high = np.percentile(own, [25, 50, 75]).tolist()
                found.append(
                    {
                        "shots": shots,
                        "generator": generator,
                        "fits": len(own),
                        "median": median,
                        "low": low,
                        "high": high,
                    }
                )
    return found


def _frequency(chosen: Sequence[_Selection]) -> list[dict[str, Any]]:
    from dna_probe.sites import parse_unit

    counted = Counter(name for one in chosen for name in one.names)
    scored = Counter(name for one in chosen for name in one.scored)
    return [
        {"unit": unit, "selected": many / len(chosen), "scored": scored[parse_unit(unit)[0]] / len(chosen)}
        for unit, many in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        if many >= LISTED * len(chosen)
    ]


def _pair_sentence(row: Mapping[str, Any]) -> str:
    what = {
        DRAWS: f"Two draws of {row['shots']} images per class",
        SHOTS: f"Draws of {row['shots']} images per class",
        GENERATORS: f"Draws of {row['shots']} images per class of two generators",
    }[row["comparison"]]
    if row["jaccard_low"] > row["chance"]:
        how = "more than chance"
    elif row["jaccard"] > row["chance"]:
        how = "more than chance on average, not in every pair"
    else:
        how = "no more than chance"
    ranked = "" if row["rank_correlation"] is None else f"; their scores correlate by {row['rank_correlation']:.2f}"
    return f"{what} agree on units by a Jaccard index of {row['jaccard']:.3f}, {how} ({row['chance']:.3f}){ranked}."
