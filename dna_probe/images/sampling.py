"""Drawing a few labelled images, and splitting a set, without tearing groups apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from dna_probe.errors import DataError, unknown_name
from dna_probe.images.folders import KINDS
from dna_probe.images.sets import FAKE, REAL, ImageSet, noun_of

_SHUFFLES = 16


def require_two_classes(image_set: ImageSet) -> None:
    """Raises `DataError` unless the set holds real and fake images."""
    kind = KINDS[image_set.modality]
    for label, word, other in ((REAL, "real", "fake"), (FAKE, "fake", "real")):
        if not (image_set.labels == label).any():
            raise DataError(
                f"{image_set.origin} holds no {word} {kind.noun}",
                f"it holds {int((image_set.labels != label).sum())} that are {other}, and both classes are needed",
                kind.advice,
            )


def draw_shots(image_set: ImageSet, shots: int, seed: int = 0, generators: Iterable[str] | None = None) -> ImageSet:
    """`shots` real and `shots` fake images, drawn at random, the fakes spread evenly over the generators.

    `generators` restricts the fakes to these. No two images of one group are drawn while a group is left unused.
    The images keep the order of the set; the same seed draws the same images. Raises `DataError` where a class has too
    few.
    """
    return image_set.subset(shot_positions(image_set, shots, seed, generators))


def shot_positions(
    image_set: ImageSet, shots: int, seed: int = 0, generators: Iterable[str] | None = None
) -> np.ndarray:
    """Where the images that `draw_shots` takes lie in the set, ascending."""
    if shots < 1:
        raise DataError(f"shots must be at least 1, not {shots}")
    makers = image_set.generators
    fakes = image_set.labels == FAKE
    if generators is not None:
        wanted = [generators] if isinstance(generators, str) else list(generators)
        present = sorted({maker for maker, fake in zip(makers, fakes, strict=True) if fake})
        for name in wanted:
            if name not in present:
                raise unknown_name("generator", name, present, DataError)
        fakes = fakes & np.isin(np.asarray(makers, dtype=object), wanted)
    reals = image_set.labels == REAL
    if min(reals.sum(), fakes.sum()) < shots:
        noun = noun_of(image_set.modality)
        raise DataError(
            f"{shots} {noun} of each class were asked for, but {image_set.origin} holds "
            f"{int(reals.sum())} real and {int(fakes.sum())} fake",
            "",
            f"ask for fewer shots, or add {noun}",
        )
    rng = np.random.default_rng(seed)
    used: Counter[str] = Counter()
    chosen: list[int] = []
    for mask in (reals, fakes):
        chosen.extend(_draw(image_set, np.flatnonzero(mask), shots, used, rng))
    return np.sort(np.array(chosen, dtype=np.int64))


def _draw(
    image_set: ImageSet, positions: np.ndarray, shots: int, used: Counter[str], rng: np.random.Generator
) -> list[int]:
    """Round by round over the generators, each time an image of the group used least."""
    left: dict[str, list[int]] = {}
    for position in rng.permutation(positions).tolist():
        left.setdefault(image_set.generators[position], []).append(position)
    drawn: list[int] = []
    here: Counter[str] = Counter()
    while len(drawn) < shots:
        names = sorted(name for name, rest in left.items() if rest)
        for name in rng.permutation(names)[: shots - len(drawn)]:
            groups = image_set.groups
            best = min(left[name], key=lambda p: (used[groups[p]], here[groups[p]]))
            left[name].remove(best)
            used[groups[best]] += 1
            here[groups[best]] += 1
            drawn.append(best)
    return drawn


def split_by_group(image_set: ImageSet, test_fraction: float = 0.3, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(train, test): about `test_fraction` of each label in test, and no group on both sides.

    Raises `DataError` where a label has fewer than two groups, or groups mix so that no such split is found.
    """
    test = held_out_mask(image_set, test_fraction, seed)
    return image_set.subset(~test), image_set.subset(test)


def held_out_mask(image_set: ImageSet, test_fraction: float = 0.3, seed: int = 0) -> np.ndarray:
    """Which images `split_by_group` puts into test, (n,) bool."""
    if not 0 < test_fraction < 1:
        raise DataError(f"test_fraction must lie between 0 and 1, not {test_fraction}")
    names, member = np.unique(np.asarray(image_set.groups, dtype=object).astype(str), return_inverse=True)
    labels = np.unique(image_set.labels)
    table = np.zeros((len(names), len(labels)))
    np.add.at(table, (member, np.searchsorted(labels, image_set.labels)), 1)
    words = {REAL: "real", FAKE: "fake"}
    for column, label in enumerate(labels):
        if (table[:, column] > 0).sum() < 2:
            raise DataError(
                f"{image_set.origin} cannot be split: all {words.get(int(label), 'unlabelled')} "
                f"{noun_of(image_set.modality)} form one group",
                "a group never lies on both sides",
            )
    totals = table.sum(0)
    target = np.clip(test_fraction * totals, 1, totals - 1)
    rng = np.random.default_rng(seed)
    best: np.ndarray | None = None
    nearest = np.inf
    for _ in range(_SHUFFLES):
        taken, distance = _fill(table, target, rng)
        inside = table[taken].sum(0)
        if (inside > 0).all() and (inside < totals).all() and distance < nearest:
            best, nearest = taken, distance
    if best is None:
        raise DataError(
            f"{image_set.origin} cannot be split with every label on both sides", "its groups are too large"
        )
    return best[member]


def _fill(table: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Groups in random order, each taken if that brings the counts of every label nearer to the target."""
    taken = np.zeros(len(table), dtype=bool)
    missing = target.astype(float).copy()
    distance = float(((missing / target) ** 2).sum())
    for group in rng.permutation(len(table)):
        after = missing - table[group]
        closer = float(((after / target) ** 2).sum())
        if closer < distance:
            taken[group], missing, distance = True, after, closer
    return taken, distance
