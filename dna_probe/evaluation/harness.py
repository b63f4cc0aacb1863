"""Run a benchmark: collect features once, fit and test every method in every cell, measure.

What costs forward and backward passes happens first and, unless on a cluster, in this process; the cells themselves are
arithmetic on arrays and run in several. Each finished cell is a file, so that a run that was cut off goes on where it
stopped and ends with the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.cache import digest
from dna_probe.collection import Features, Options, collect_features
from dna_probe.engines import Engine, open_engine
from dna_probe.errors import ArtefactError, DataError, DnaProbeError
from dna_probe.evaluation.methods import Method, Undecided, make_method
from dna_probe.evaluation.outcomes import CellOutcome, Condition
from dna_probe.evaluation.preparation import Bench, Say, Settings, plan, prepare
from dna_probe.evaluation.protocols import Cell
from dna_probe.evaluation.results import (
    SCHEMA,
    BenchmarkResult,
    ImageTable,
    Measured,
    curves_of,
    measure_outcome,
    summarise,
)
from dna_probe.evaluation.training import Located, Locator, Training, View, locator
from dna_probe.fitting import DnaSettings, versions
from dna_probe.images.degradations import available_degradations, unavailable_degradations
from dna_probe.images.processed import process
from dna_probe.images.reading import read_image
from dna_probe.images.sets import FAKE, ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.location import layer_reading, layer_units, map_site, take_layers
from dna_probe.precision import agreement_of
from dna_probe.probing import small_fits
from dna_probe.scorers import SCORERS
from dna_probe.scoring import (
    SensitivityRequest,
    collect_many_sensitivities,
    head_readings,
    readings_of,
    reference_head,
)
from dna_probe.shards import progress_bar

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

CLEAN = Condition()
# Cells whose gradients are collected together: more share more forward passes, fewer lose less to an interruption.
TOGETHER = 50


@dataclass(frozen=True, eq=False)
class BenchmarkRun:
    """A finished benchmark.

    Attributes:
        result: what it measured, together.
        measured: the measures of every cell, condition, method and tested generator.
        outcomes: file of each cell, in order.
        bench: the images.
    """

    result: BenchmarkResult
    measured: Measured
    outcomes: Sequence[Path]
    bench: Bench

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One mapping per cell, condition, method and tested generator."""
        return self.measured.rows


def benchmark(
    model: Any,
    data: Any,
    tests: Sequence[Any] = (),
    settings: Settings | None = None,
    *,
    state: str | Path,
    layout: str = "auto",
    jobs: int = 1,
    options: Options | None = None,
    say: Say = str,
) -> BenchmarkRun:
    """Compare methods on a backbone by a protocol.

    Args:
        model: any ``torch.nn.Module``, a backbone name, or a ``Backbone``.
        data: the data set: a folder, a manifest, ``(images, labels)`` or an ``ImageSet``; ``tests`` are those that
            ``cross-set`` tests on.
        state: folder for what is finished; the same call after an interruption goes on from there.
        jobs: processes for the arithmetic of the cells, unless the engine of the options is a cluster.
        say: told what was found, before anything runs, and what is being done.

    Raises:
        DnaProbeError: a mistyped name.
        DataError: the images cannot give what the protocol needs; nothing has run then.
    """
    from dna_probe.backbones import open_backbone

    settings, options = settings or Settings(), options or Options()
    _make(Path(state))
    bench = prepare([data, *tests], settings, layout, options, say)
    cells = plan(bench, settings)
    backbone = open_backbone(model)
    folder = Path(state) / _run_key(bench, backbone, settings, cells, options)[:16]
    _make(folder)
    options = replace(options, cache=options.cache or folder / "cache")
    files = [folder / f"{number:05d}.safetensors" for number in range(len(cells))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    done = f", {len(cells) - len(missing)} of them done before" if len(missing) < len(cells) else ""
    say(f"{len(cells)} cells{done}; {len(settings.methods)} methods: {', '.join(settings.methods)}")
    conditions = _conditions(settings)
    if missing:
        arena = _Arena.collect(bench, backbone, settings, conditions, cells[0].test, options, say)
        # Cells that train on the same images share the most passes.
        todo = sorted(((cells[number], files[number]) for number in missing), key=lambda one: one[0].train_on)
        say("Locating layers and carrying gradients back in every cell")
        tasks = []
        with progress_bar(len(todo), options.progress, "cells") as advance:
            for start in range(0, len(todo), TOGETHER):
                tasks += _tasks(arena, bench.images, settings, todo[start : start + TOGETHER], options)
                advance(len(todo[start : start + TOGETHER]))
        say("Fitting and testing")
        # Only now: workers that wake while the backbone runs take its cores several times over.
        if options.engine == "local":
            _all(open_engine("local", min(jobs, len(tasks))), _run_cell, tasks, len(tasks), options, arena.arrays)
        else:
            _run_elsewhere(open_engine(options.engine), tasks, arena.arrays, options)
    images = ImageTable.from_frame(bench.frame())
    say("Measuring")
    outcomes = map(CellOutcome.read, files)
    engine = open_engine(options.engine, min(jobs, len(files)))
    shared = images, conditions, settings.plan.seed
    measured = Measured.join(_all(engine, _measure, outcomes, len(files), options, *shared))
    info = _info(bench, backbone, settings, cells, [CellOutcome.read(file).notes for file in files])
    info |= agreement_of(backbone, bench.images, layer_units(backbone), options)
    result = summarise(info, measured, curves_of(map(CellOutcome.read, files), images), settings.plan.seed)
    return BenchmarkRun(result, measured, files, bench)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"{folder} cannot be made", error.strerror or str(error), "Choose another place") from error


def _conditions(settings: Settings) -> tuple[Condition, ...]:
    if settings.protocol != "robustness":
        return (CLEAN,)
    known = available_degradations()
    return (
        CLEAN,
        *(
            Condition(name, level + 1, known[name].label(level))
            for name in settings.transforms or known
            for level in range(len(known[name].severities))
        ),
    )


@dataclass(frozen=True, eq=False)
class Network:
    """A backbone with what it made of all images, and how layers, gradients and attributions come from it."""

    backbone: Backbone
    features: Features

    @classmethod
    def collect(
        cls, backbone: Backbone, images: ImageSet, kinds: Sequence[str], options: Options, locating: bool = True
    ) -> Network:
        """Features of the images, with the attention that layers are located by unless ``locating`` is off."""
        names = [site.name for site in backbone.layers]
        readings = {r.name: r for r in map(layer_reading, backbone.layers)}
        readings |= {r.name: r for r in readings_of(backbone, names, kinds)}
        maps = [map_site(backbone, site) for site in backbone.layers] if locating else []
        features = collect_features(backbone, images, list(readings.values()), maps, options)
        if len(features.images) != len(images):
            name, reason = features.images.skipped[-1]
            raise DataError(f"{name} cannot be given to the backbone", reason, "Leave it out")
        return cls(backbone, features)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer_reading(site).name for site in self.backbone.layers)

    def locate(self, cells: Sequence[Cell], dna: DnaSettings, options: Options) -> list[Located]:
        """Layers, and what the scorer needs besides features, on the training images of each cell."""
        located: list[Located] = []
        requests: dict[int, SensitivityRequest] = {}
        for number, cell in enumerate(cells):
            own = self.features.subset(cell.train)
            try:
                layers = take_layers(self.backbone, own, dna.rule)
                located.append(Located(readings_of(self.backbone, layers, dna.kinds), None))
            except DnaProbeError as error:
                located.append(Located((), None, str(error)))
                continue
            readings = located[number].readings
            at = head_readings(self.backbone, readings, dna.scorer)
            if SCORERS[dna.scorer].needs != "features":
                heads = [reference_head(own, reading, cell.seed) for reading in at]
                requests[number] = SensitivityRequest(cell.train, readings, heads)
        wanted = list(requests.values())
        found = collect_many_sensitivities(self.backbone, self.features, wanted, dna.scorer, options)
        for number, sensitivity in zip(requests, found, strict=True):
            located[number] = replace(located[number], sensitivity=sensitivity)
        return located


@dataclass(frozen=True, eq=False)
class _Arrays:
    """What every cell needs of the images, and nothing by which a method could know them.

    Attributes:
        view: all images; ``processed`` the same under each processed view that a detector trains on;
            ``transformed`` the test images under each condition after the first.
    """

    labels: np.ndarray
    groups: np.ndarray
    view: View
    processed: Mapping[str, View]
    transformed: tuple[View, ...]


@dataclass(frozen=True, eq=False)
class _Arena:
    """The networks of a run, the backbone and, where a method asks for it, its untrained control; and the arrays."""

    network: Network
    untrained: Network | None
    arrays: _Arrays

    @classmethod
    def collect(
        cls,
        bench: Bench,
        backbone: Backbone,
        settings: Settings,
        conditions: tuple[Condition, ...],
        test: np.ndarray,
        options: Options,
        say: Say,
    ) -> _Arena:
        from dna_probe.backbones import open_backbone

        kinds = list(dict.fromkeys(kind for dna in settings.detectors for kind in dna.kinds))
        say(f"Collecting features of {len(bench.images)} images with {backbone.name}")
        network = Network.collect(backbone, bench.images, kinds, options)
        untrained = None
        if any(method.needs_untrained for method in settings.built.values()):
            say("The same with untrained weights, as a control")
            control = open_backbone(backbone, random_weights=True)
            untrained = Network.collect(control, bench.images, kinds, options)

        def view_of(images: ImageSet, tables: Mapping[str, np.ndarray]) -> View:
            own, control = (
                one and Network.collect(one.backbone, images, kinds, options, locating=False)
                for one in (network, untrained)
            )
            return _view(own, control, tables)

        processed = {}
        if any(method.needs_units for method in settings.built.values()):
            for name in dict.fromkeys(name for dna in settings.detectors for name in dna.views):
                say(f"The same images under the view {name!r}, to train on")
                processed[name] = view_of(process(bench.images, name, backbone.preprocessing), {})
        transformed = []
        for condition in conditions[1:]:
            say(f"Test images under {condition.transform}, {condition.severity}")
            images = _degraded(bench.images.subset(test), condition, settings.plan.seed)
            transformed.append(view_of(images, {"thumbnail": _thumbnails(images)}))
        groups = np.unique(np.asarray(bench.images.groups), return_inverse=True)[1]
        view = _view(network, untrained, bench.tables)
        return cls(network, untrained, _Arrays(bench.images.labels, groups, view, processed, tuple(transformed)))


def _view(network: Network | None, untrained: Network | None, tables: Mapping[str, np.ndarray]) -> View:
    assert network is not None
    control = None if untrained is None else View.join(untrained.features.values, untrained.layers)
    return View.join(network.features.values, network.layers, tables, control)


def _degraded(images: ImageSet, condition: Condition, seed: int) -> ImageSet:
    """The images under a transform, in memory; each has a seed of its own."""
    degradation = available_degradations()[condition.transform]
    made = [
        degradation.apply(read_image(source), condition.level - 1, seed + position)
        for position, source in enumerate(images.images)
    ]
    return replace(images, images=tuple(made))


def _thumbnails(images: ImageSet) -> np.ndarray:
    from dna_probe.evaluation.file_features import thumbnail_features

    return thumbnail_features(images.images).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Task:
    """One cell, and what the passes over its training images gave."""

    cell: Cell
    file: Path
    settings: Settings
    trained: tuple[str, ...]
    located: Mapping[Locator, Located]
    untrained: Mapping[Locator, Located]


def _tasks(
    arena: _Arena, images: ImageSet, settings: Settings, todo: Sequence[tuple[Cell, Path]], options: Options
) -> list[_Task]:
    """Some cells after their backward passes."""
    quiet, cells = replace(options, progress=False), [cell for cell, _ in todo]
    located: list[dict[Locator, Located]] = [{} for _ in cells]
    untrained: list[dict[Locator, Located]] = [{} for _ in cells]
    if any(method.needs_units for method in settings.built.values()):
        for key, dna in {locator(dna): dna for dna in settings.detectors}.items():
            for own, found in zip(located, arena.network.locate(cells, dna, quiet), strict=True):
                own[key] = found
    if arena.untrained is not None:
        for own, found in zip(untrained, arena.untrained.locate(cells, settings.dna, quiet), strict=True):
            own[locator(settings.dna)] = found
    tasks = []
    for (cell, file), own, control in zip(todo, located, untrained, strict=True):
        trained = sorted({images.generators[i] for i in cell.train if images.labels[i] == FAKE})
        tasks.append(_Task(cell, file, settings, tuple(trained), own, control))
    return tasks


def _run_cell(task: _Task, arrays: _Arrays) -> None:
    _judge_cell(task, arrays).write(task.file)


def _run_elsewhere(engine: Engine, tasks: Sequence[_Task], arrays: _Arrays, options: Options) -> None:
    """The cells on machines that need not share a disk with this one: what they found is written here."""
    found = engine.map(_judge_cell, tasks, arrays)
    with progress_bar(len(tasks), options.progress, "cells") as advance, closing(found):
        for task, outcome in zip(tasks, found, strict=True):
            outcome.write(task.file)
            advance(1)


def _judge_cell(task: _Task, arrays: _Arrays) -> CellOutcome:
    """Fit and test every method of a cell, and keep what they say.

    Methods see the test images in a random order, so that their place says nothing of their label either.
    """
    cell = task.cell
    order = np.random.default_rng(cell.seed).permutation(len(cell.test))
    back = np.argsort(order)
    blank = tuple(EncodedImage(str(i), b"") for i in range(len(cell.train)))
    # Numbered in the order of the true names, by which folds are drawn, so that they are those of ``fit``.
    train = Training(
        images=ImageSet(
            blank, arrays.labels[cell.train], groups=tuple(f"{group:09d}" for group in arrays.groups[cell.train])
        ),
        view=arrays.view.rows(cell.train),
        settings=task.settings.dna,
        processed={name: view.rows(cell.train) for name, view in arrays.processed.items()},
        located=task.located,
        untrained=task.untrained,
        target_fpr=task.settings.target_fpr,
        calibrate=task.settings.calibrate,
        seed=cell.seed,
    )
    tests = [arrays.view.rows(cell.test[order]), *(view.rows(order) for view in arrays.transformed)]
    judged = {}
    with small_fits():
        for name in task.settings.methods:
            try:
                method: Method = make_method(name).fit(train)
            except DnaProbeError as error:
                # Few images may leave a method with nothing, no unit behind a strict cut, say: then it knows nothing.
                method = Undecided(str(error))
            for number, view in enumerate(tests):
                if method.needs_table and method.needs_table not in view.tables:
                    continue
                said = method.judge(view)
                probability = None if said.probability is None else said.probability[back]
                judged[number, name] = replace(said, scores=said.scores[:, back], probability=probability)
    about = {"train_on": cell.train_on, "shots": cell.shots, "draw": cell.draw, "seed": cell.seed}
    notes = tuple(dict.fromkeys(f"{name}: {said.note}" for (_, name), said in judged.items() if said.note))
    return CellOutcome(about, task.trained, cell.test, judged, notes)


def _measure(outcome: CellOutcome, images: ImageTable, conditions: tuple[Condition, ...], seed: int) -> Measured:
    return measure_outcome(outcome, images, conditions, seed=seed)


def _all(
    engine: Engine, function: Callable[..., Any], parts: Iterable[Any], count: int, options: Options, *shared: Any
) -> list[Any]:
    """The results of the calls, in order."""
    results = []
    with progress_bar(count, options.progress, "cells") as advance:
        for result in engine.map(function, parts, *shared):
            results.append(result)
            advance(1)
    return results


def _run_key(bench: Bench, backbone: Backbone, settings: Settings, cells: Sequence[Cell], options: Options) -> str:
    """What a run depends on; cells of another run are not taken up."""
    images = [bench.sha256, bench.images.labels.tolist(), bench.images.generators, bench.images.groups]
    sides = [(cell.train.tolist(), cell.test.tolist()) for cell in cells]
    how = options.precision, options.compile
    network = backbone.weight_hash, backbone.structure, backbone.preprocessing.to_json(), how
    return digest(SCHEMA, settings.to_json(), images, sides, network, versions())


def _info(
    bench: Bench, backbone: Backbone, settings: Settings, cells: Sequence[Cell], told: Sequence[Sequence[str]]
) -> dict[str, Any]:
    notes = [*backbone.model_notes]
    if settings.protocol in ("cross-set", "train-test"):
        meant = bench.sets != bench.sets[0]
        if settings.protocol == "train-test":
            meant = np.asarray(bench.images.splits) == "test"
        if gone := int(meant.sum()) - len(cells[0].test):
            notes.append(f"{gone} test images were left out: they, or copies of them, are in the training set.")
    counted = Counter(note for part in told for note in part)
    notes += [f"In {count} of {len(cells)} fits {note}" for note, count in counted.items()]
    if settings.protocol == "robustness":
        notes += [f"{name} was left out: {reason}" for name, reason in unavailable_degradations().items()]
    first = bench.notes[0]
    return {
        "schema": f"dna_probe.benchmark/{SCHEMA}",
        "protocol": settings.protocol,
        "settings": settings.to_json(),
        "data": {
            "origin": bench.images.origin,
            "describe": first["describe"],
            "fingerprint": digest(bench.sha256, bench.images.labels.tolist()),
            "counts": bench.images.counts(),
            "sets": list(bench.notes),
            "skipped": [list(pair) for pair in bench.images.skipped],
        },
        "audit": bench.notes[-1 if settings.protocol == "cross-set" else 0]["audit"],
        "backbone": backbone.identity(),
        "versions": versions(),
        "methods": {name: method.description for name, method in settings.built.items()},
        "notes": notes,
    }
