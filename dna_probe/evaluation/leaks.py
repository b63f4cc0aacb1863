"""Images that belong together: copies, near-copies and groups, and where they leak from one split into another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dna_probe.images.sets import ImageSet

DUPLICATES, NEAR_DUPLICATES, GROUP = "duplicates", "near-duplicates", "group"


@dataclass(frozen=True)
class Cluster:
    """Images that belong together.

    Attributes:
        kind: "duplicates" (equal files), "near-duplicates" (pictures that look alike) or "group" (made from one
            prompt or photograph).
        images: their names.
        labels: 0 real, 1 fake, -1 unlabelled.
        splits: "" where nothing is known.
    """

    kind: str
    images: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[str, ...]

    @property
    def across_classes(self) -> bool:
        return {0, 1} <= set(self.labels)

    @property
    def across_splits(self) -> bool:
        return len(set(self.splits) - {""}) > 1

    @property
    def leaks(self) -> tuple[str, ...]:
        """What is wrong with it, in a few words; nothing for copies on one side of a split.

        Near-duplicates in both classes are no leak: a fake may be made from a photograph of the set.
        """
        found = []
        if self.kind == DUPLICATES and self.across_classes:
            found.append("the same file under both labels")
        if self.across_splits:
            what = {DUPLICATES: "the same file", NEAR_DUPLICATES: "near-duplicates", GROUP: "one group"}[self.kind]
            found.append(f"{what} in more than one split")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "images": list(self.images),
            "labels": list(self.labels),
            "splits": list(self.splits),
            "leaks": list(self.leaks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cluster:
        return cls(data["kind"], tuple(data["images"]), tuple(data["labels"]), tuple(data["splits"]))


def duplicates(image_set: ImageSet, hashes: Sequence[str]) -> tuple[Cluster, ...]:
    """Images whose files are equal byte for byte, as ``content_hash`` tells them."""
    return _clusters(DUPLICATES, image_set, _together(hashes))


def near_duplicates(image_set: ImageSet, found: Iterable[Sequence[int]], hashes: Sequence[str]) -> tuple[Cluster, ...]:
    """Those that ``find_near_duplicates`` found which are not all one and the same file."""
    return _clusters(NEAR_DUPLICATES, image_set, (own for own in found if len({hashes[i] for i in own}) > 1))


def split_groups(image_set: ImageSet) -> tuple[Cluster, ...]:
    """Groups of which not all images lie in the same split."""
    return tuple(one for one in _clusters(GROUP, image_set, _together(image_set.groups)) if one.across_splits)


def _clusters(kind: str, image_set: ImageSet, members: Iterable[Sequence[int]]) -> tuple[Cluster, ...]:
    names, labels, splits = image_set.names, image_set.labels.tolist(), image_set.splits
    return tuple(
        Cluster(kind, tuple(names[i] for i in own), tuple(labels[i] for i in own), tuple(splits[i] for i in own))
        for own in members
        if len(own) > 1
    )


def _together(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions with equal keys, in the order of the first of each."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        places[key].append(position)
    return list(places.values())
