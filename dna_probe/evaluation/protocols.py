"""Protocols: which images a method is fitted on and which it is tested on.

Every protocol turns a set of images into ``Cell``s. What they share: groups (prompts, photographs, near-duplicates)
never lie on both sides, every draw holds out its own share of the groups for testing, so that the test images of a
draw are the same for every number of shots, and nothing about a test image but its position leaves this module.

``few-shot``
    Train on N images per class of one generator (or of several together), test on the others, on held-out images of
    the same generator, and on unseen reals.
``leave-one-generator-out``
    Train on all generators but one, test on that one.
``cross-set``
    Train on one data set, test on others.
``train-test``
    The split that the data set defines.
``temporal``
    Train on generators released up to a date, test on later ones.
``robustness``
    As few-shot, with one test set for all draws, which is then transformed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.sampling import held_out_mask, shot_positions
from dna_probe.images.sets import FAKE, REAL, ImageSet

ALL = "all"
Shots = int | str


@dataclass(frozen=True, eq=False)
class Cell:
    """One fit and its test.

    Attributes:
        train_on: the generator or mix that the fakes are of.
        shots: images per class, or ``"all"``.
        draw: number of the draw.
        seed: of everything random in this cell.
        train, test: positions in the whole set, ascending; reals and fakes.
    """

    train_on: str
    shots: Shots
    draw: int
    seed: int
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a protocol is asked for.

    Attributes:
        shots: images per class, each a number or ``"all"``.
        draws: times each fit is repeated on other images.
        train_on: ``each`` generator by itself, the ``mix`` of all, or generators named with commas, mixed.
        reals: more real images to train on than shots: this many in all, as far as there are so many, or ``"all"`` that
            are not held out; None takes none. Every method gets them.
        test_fraction: share of the groups that each draw holds out.
        cutoffs: dates of ``temporal``, a month (2023-06) taken whole; left out, every date after which a generator is
            left.
        seed: of all draws.
    """

    shots: tuple[Shots, ...] = (10, 50)
    draws: int = 10
    train_on: str = "each"
    reals: Shots | None = None
    test_fraction: float = 0.5
    cutoffs: tuple[str, ...] = ()
    seed: int = 0


def plan_cells(protocol: str, images: ImageSet, sets: np.ndarray, plan: Plan) -> list[Cell]:
    """The cells of a protocol, in a fixed order.

    Args:
        images: the data set and, for ``cross-set``, those to test on, behind one another.
        sets: which of them each image belongs to, 0 for the data set, (n,).

    Raises:
        DataError: the set cannot give what the plan asks for; nothing has run then.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    if plan.draws < 1:
        raise DataError(f"draws must be at least 1, not {plan.draws}")
    if plan.reals not in (None, ALL) and int(plan.reals or 0) < 1:
        raise DataError(f"reals must be at least 1, or 'all', not {plan.reals}")
    if protocol != "cross-set" and (sets != 0).any():
        raise DataError(f"The protocol {protocol} tests on one data set", "", "Leave --test out, or take cross-set")
    if not plan.shots:
        raise DataError("No number of shots was given", "", "Give numbers, or 'all'")
    cells = list(PROTOCOLS[protocol](_Bench(images, sets), plan))
    for cell in cells:
        require_apart(images, cell)
    return cells


def require_apart(images: ImageSet, cell: Cell) -> None:
    """Refuse a cell that would test on what it trains on.

    Raises:
        DataError: a group lies on both sides, or a side lacks a class.
    """
    groups = np.asarray(images.groups)
    shared = np.intersect1d(groups[cell.train], groups[cell.test])
    if len(shared):
        raise DataError(
            f"Leak: {len(shared)} groups lie in the training and in the test images, first {shared[0]!r}",
            "A detector would be tested on what it was fitted on",
            "Give those images one split, or leave them out of one side",
        )
    for side, positions in (("training", cell.train), ("test", cell.test)):
        for label, word in ((REAL, "real"), (FAKE, "fake")):
            if not (images.labels[positions] == label).any():
                raise DataError(
                    f"The {side} part of {images.origin} holds no {word} images",
                    f"Trained on {cell.train_on}, draw {cell.draw}",
                    "Give more images, another split or another --test-fraction",
                )


class _Bench:
    """The images, and the questions that protocols ask of them."""

    def __init__(self, images: ImageSet, sets: np.ndarray):
        self.images, self.sets = images, sets
        self.labels = images.labels
        self.made = np.asarray(images.generators, dtype=object)
        self.own = sets == 0
        self.generators = sorted(set(self.made[self.own & (self.labels == FAKE)]))

    def held_out(self, plan: Plan, draw: int) -> np.ndarray:
        """Which images of the data set the draw holds out, (n,) bool."""
        mask = np.zeros(len(self.images), bool)
        inside = np.flatnonzero(self.own)
        chosen = held_out_mask(self.images.subset(inside), plan.test_fraction, _seed(plan.seed, "split", draw))
        mask[inside] = chosen
        return mask

    def cell(
        self,
        pool: np.ndarray,
        test: np.ndarray,
        generators: Sequence[str],
        shots: Shots,
        draw: int,
        plan: Plan,
        on: str,
    ) -> Cell:
        """Shots from a pool (mask) of reals and of these generators' fakes, tested on a mask."""
        seed = _seed(plan.seed, on, shots, draw)
        inside = pool & ((self.labels == REAL) | np.isin(self.made, list(generators)))
        positions = np.flatnonzero(inside)
        if shots != ALL:
            drawn = positions[self._draw(positions, int(shots), seed, on)]
            positions = np.union1d(drawn, self._more_reals(positions, drawn, plan.reals, seed))
        return Cell(on, shots, draw, seed, positions, np.flatnonzero(test))

    def _draw(self, positions: np.ndarray, shots: int, seed: int, on: str) -> np.ndarray:
        labels = self.labels[positions]
        most = int(min((labels == REAL).sum(), (labels == FAKE).sum()))
        if shots > most:
            raise DataError(
                f"{shots} shots per class were asked for, but {self.images.origin} leaves {most} to train on",
                f"Trained on {on}, a draw has {int((labels == REAL).sum())} real and {int((labels == FAKE).sum())} fake"
                " images; the others are held out for testing",
                f"Ask for at most {most}, for 'all', or lower --test-fraction",
            )
        return shot_positions(self.images.subset(positions), shots, seed)

    def _more_reals(self, pool: np.ndarray, drawn: np.ndarray, reals: Shots | None, seed: int) -> np.ndarray:
        """Real images of the pool beyond those drawn, as many as make up the number asked for."""
        if reals is None:
            return drawn[:0]
        others = np.setdiff1d(pool[self.labels[pool] == REAL], drawn)
        if reals == ALL:
            return others
        missing = max(0, int(reals) - int((self.labels[drawn] == REAL).sum()))
        return np.random.default_rng(seed).permutation(others)[:missing]

    def fits(self, plan: Plan) -> Iterator[tuple[int, Shots]]:
        """Draw and shots of every fit on one pool of images; all of them are the same images in every draw."""
        for draw in range(plan.draws):
            for shots in plan.shots:
                if shots != ALL or not draw:
                    yield draw, shots

    def outside(self, test: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Test images (mask) of groups that the training pool does not hold."""
        groups = np.asarray(self.images.groups)
        return test & ~np.isin(groups, groups[train])

    def sources(self, train_on: str) -> list[tuple[str, list[str]]]:
        """Name and generators of each mix to train on."""
        if train_on == "each":
            return [(name, [name]) for name in self.generators]
        if train_on == "mix":
            return [("mix", self.generators)]
        wanted = [name.strip() for name in train_on.split(",")]
        for name in wanted:
            if name not in self.generators:
                raise unknown_name("generator", name, ["each", "mix", *self.generators], DataError)
        return [("+".join(wanted), wanted)]


def _few_shot(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    for draw in range(plan.draws):
        held = bench.held_out(plan, draw)
        for name, generators in bench.sources(plan.train_on):
            for shots in plan.shots:
                yield bench.cell(bench.own & ~held, held, generators, shots, draw, plan, name)


def _robustness(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    held = bench.held_out(plan, 0)
    for draw, shots in bench.fits(plan):
        for name, generators in bench.sources(plan.train_on):
            yield bench.cell(bench.own & ~held, held, generators, shots, draw, plan, name)


def _leave_one_out(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    if len(bench.generators) < 2:
        raise DataError(
            f"{bench.images.origin} holds fakes of {len(bench.generators)} generator",
            "Leaving one out needs at least two",
            "Name the generators by folder or in a manifest, or take the few-shot protocol",
        )
    for draw in range(plan.draws):
        held = bench.held_out(plan, draw)
        for left in bench.generators:
            others = [name for name in bench.generators if name != left]
            for shots in plan.shots:
                yield bench.cell(bench.own & ~held, held, others, shots, draw, plan, f"all but {left}")


def _cross_set(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    if bench.own.all():
        raise DataError("The cross-set protocol needs other data sets to test on", "", "Name them with --test")
    # An image that is also in the training set, or looks like one there, tests nothing.
    test = bench.outside(~bench.own, bench.own)
    for draw, shots in bench.fits(plan):
        for name, generators in bench.sources(plan.train_on):
            yield bench.cell(bench.own, test, generators, shots, draw, plan, name)


def _train_test(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    splits = np.asarray(bench.images.splits)
    if not {"train", "test"} <= set(splits):
        raise DataError(
            f"{bench.images.origin} defines no train and test split",
            f"Its splits are {', '.join(sorted(set(filter(None, splits)))) or 'unnamed'}",
            "Name folders train and test, add a split column to a manifest, or take another protocol",
        )
    # Published splits have near-duplicates on both sides.
    test = bench.outside(splits == "test", splits == "train")
    for draw, shots in bench.fits(plan):
        for name, generators in bench.sources("mix" if plan.train_on == "each" else plan.train_on):
            yield bench.cell(splits == "train", test, generators, shots, draw, plan, name)


def _temporal(bench: _Bench, plan: Plan) -> Iterator[Cell]:
    dates: Mapping[str, str] = {
        name: max(bench.images.dates[i] for i in np.flatnonzero(bench.made == name)) for name in bench.generators
    }
    unknown = [name for name, date in dates.items() if not date]
    if unknown:
        raise DataError(
            f"The release date of {', '.join(unknown[:3])} is not known",
            f"{len(unknown)} of {len(dates)} generators have none",
            "Add a column release_date (2024-06-12) to a manifest, or give --release-dates FILE",
        )
    known = sorted(set(dates.values()))
    cutoffs = plan.cutoffs or tuple(known[:-1])
    if not cutoffs:
        raise DataError(f"All generators were released on {known[0]}", "There is no later one to test on")
    for draw in range(plan.draws):
        held = bench.held_out(plan, draw)
        for cutoff in cutoffs:
            before = [name for name in bench.generators if dates[name][: len(cutoff)] <= cutoff]
            after = [name for name in bench.generators if name not in before]
            if not before or not after:
                raise DataError(
                    f"No generator was released {'before' if not before else 'after'} {cutoff}",
                    f"Their dates run from {known[0]} to {known[-1]}",
                )
            for shots in plan.shots:
                yield bench.cell(bench.own & ~held, held, before, shots, draw, plan, f"up to {cutoff}")


PROTOCOLS: dict[str, Callable[[_Bench, Plan], Iterator[Cell]]] = {
    "few-shot": _few_shot,
    "leave-one-generator-out": _leave_one_out,
    "cross-set": _cross_set,
    "train-test": _train_test,
    "temporal": _temporal,
    "robustness": _robustness,
}


def _seed(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())
