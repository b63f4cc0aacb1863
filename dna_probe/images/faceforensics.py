"""FaceForensics++ and DeepfakeBench: frames of videos, whose splits are lists of pairs of video ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dna_probe.errors import DataError
from dna_probe.images.entries import Entry
from dna_probe.images.folders import Place, Tree
from dna_probe.images.groups import connect, natural_key
from dna_probe.images.sets import FAKE, REAL

EXPECTS = (
    "{original_sequences/<source>,manipulated_sequences/<method>}/{raw,c23,c40}/frames/<ids>/<number>.png, "
    "and train.json, val.json and test.json with pairs of ids"
)
_VIDEO = re.compile(
    r"(?:.*/)?(?:original_sequences/(?P<source>[^/]+)|manipulated_sequences/(?P<method>[^/]+))"
    r"/(?P<compression>raw|c\d+)/(?:[^/]+/)*?(?P<video>\d+(?:_\d+)?(?:__[^/]+)?)",
    re.IGNORECASE,
)
_SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = (".", "splits", "dataset/splits")
# Actors of DeepFakeDetection are numbered for themselves.
_ACTORS = ("actors", "deepfakedetection")


def place_frame(folders: tuple[str, ...], stem: str) -> Place | None:
    """What the folders above a frame say; its split and group need the ids of all videos, see `join_videos`."""
    found = _VIDEO.fullmatch("/".join(folders))
    if found is None:
        return None
    method = found.group("method")
    return Place(FAKE if method else REAL, method or "real", "", found.group("compression").lower())


def join_videos(tree: Tree, entries: list[Entry]) -> list[Entry]:
    """The frames with their groups and splits.

    A manipulated video `071_054` shows the target 071 with the face of the source 054: both originals, whatever was
    made of them, and the pairs that the split lists name, are one group, which lies in one split. Raises `DataError`
    where the lists contradict each other or a video.
    """
    lists = _split_lists(tree.folder)
    videos = [_ids(entry) for entry in entries]
    pairs = {*videos, *(pair for listed in lists.values() for pair in listed)}
    known = sorted({one for ids in pairs for one in ids}, key=natural_key)
    number = {one: position for position, one in enumerate(known)}
    component = connect(len(known), ((number[ids[0]], number[ids[-1]]) for ids in pairs))
    split = _splits(lists, {one: int(component[number[one]]) for one in known})
    # A group is called by its smallest id.
    first = {int(label): known[position] for position, label in reversed(list(enumerate(component)))}
    finished = []
    for entry, ids in zip(entries, videos, strict=True):
        group = int(component[number[ids[0]]])
        finished.append(replace(entry, group=f"videos with {first[group]}", split=split.get(group, "")))
    return finished


def _ids(entry: Entry) -> tuple[str, ...]:
    found = _VIDEO.fullmatch(entry.path.parent.as_posix())
    if found is None:
        raise ValueError(f"{entry.path} is no frame")
    actors = (found.group("source") or found.group("method")).lower() in _ACTORS
    return tuple(f"actor {one}" if actors else one for one in found.group("video").partition("__")[0].split("_"))


def _split_lists(folder: Path | None) -> dict[str, list[tuple[str, ...]]]:
    """The pairs of ids in each split list that lies beside the frames."""
    lists = {}
    for split in _SPLITS:
        for place in _SPLIT_FOLDERS if folder is not None else ():
            file = folder / place / f"{split}.json"  # type: ignore[operator]
            if file.is_file() and split not in lists:
                lists[split] = _pairs(file)
    return lists


def _pairs(file: Path) -> list[tuple[str, ...]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a split list", str(error)) from None
    well = isinstance(found, list) and all(isinstance(pair, list) and 1 <= len(pair) <= 2 for pair in found)
    if not well:
        raise DataError(f"{file} is no split list", "", 'write pairs of video ids: [["071", "054"], ...]')
    return [tuple(str(one) for one in pair) for pair in found]


def _splits(lists: dict[str, list[tuple[str, ...]]], component: dict[str, int]) -> dict[int, str]:
    """The split of each group of ids."""
    split: dict[int, str] = {}
    for name, pairs in lists.items():
        for one in _flat(pairs):
            before = split.setdefault(component[one], name)
            if before != name:
                raise DataError(
                    f"Video {one} lies in the split {name}, but a video that shares a face with it lies in {before}",
                    "source and target of a manipulation must lie in one split",
                    f"correct {before}.json and {name}.json",
                )
    return split


def _flat(pairs: Iterable[tuple[str, ...]]) -> Iterable[str]:
    return (one for pair in pairs for one in pair)
