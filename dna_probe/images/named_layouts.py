"""How published benchmarks arrange their images in folders: one pattern for each, and what it says of an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from dna_probe.errors import DataError
from dna_probe.images.entries import Entry, assemble, parse_label
from dna_probe.images.faceforensics import EXPECTS, join_videos, place_frame
from dna_probe.images.folders import SPLIT_FOLDERS, Place, Tree, TreeFile, and_list, describe_splits, entry_at
from dna_probe.images.sets import FAKE, REAL, ImageSet

_SPLIT = rf"(?P<split>{'|'.join(SPLIT_FOLDERS)})"
_MAYBE_SPLIT = rf"(?:(?:.*/)?{_SPLIT}/)?"
_GENERATOR = rf"(?P<generator>(?!(?:{'|'.join(SPLIT_FOLDERS)}|fake|real)/)[^/]+)"
_INNER_CLASS = r"(?P<label>0_real|1_fake)"
_BELOW = r"(?:/(?P<below>.+))?"
_UFD_REALS = {"imagenet": ("guided",), "laion": ("ldm_200", "ldm_200_cfg", "ldm_100", "glide_", "dalle")}
_UFD_FOLDERS = "imagenet|laion|guided|ldm_200_cfg|ldm_200|ldm_100|glide_100_27|glide_50_27|glide_100_10|dalle"
_SYNTHBUSTER_STEM = re.compile(r"r[0-9a-f]{8}t?", re.IGNORECASE)
_SYNTHBUSTER_REALS = re.compile(r"0_real|reals?|(real[-_ ])?raise[-_ \w]*", re.IGNORECASE)


Placed = Sequence[tuple[TreeFile, Place]]


@dataclass(frozen=True)
class FolderPattern:
    """A named arrangement of folders.

    `place` says what the layout knows of an image from the folders above it, outermost first, and its file's stem; None
    where it does not lie as expected. `expects` is the arrangement as a person writes it. `check` says why the set as a
    whole does not fit ("" where it does), `apart` whether nothing else lies like this set, and `note` what more there
    is to say of it. `finish` completes the entries with what needs all of them, or a file beside them.
    """

    name: str
    description: str
    expects: str
    place: Callable[[tuple[str, ...], str], Place | None]
    apart: Callable[[Placed], bool] = lambda placed: True
    check: Callable[[Placed], str] = lambda placed: ""
    note: Callable[[Placed], str] = lambda placed: ""
    finish: Callable[[Tree, list[Entry]], list[Entry]] = lambda tree, entries: entries


def read_pattern(tree: Tree, pattern: FolderPattern) -> ImageSet:
    """The images of a tree arranged by a pattern; others are listed in `skipped`.

    Raises `DataError`, with what was expected and what was found, where fewer than half of the images lie by the
    pattern, or where some do not and the others are all real or all fake.
    """
    placed, strays = _match(tree, pattern)
    reason = _misfit(tree, placed, strays) or pattern.check(placed)
    if reason:
        raise DataError(
            f"{tree.origin} is not arranged as {pattern.name}",
            f"Expected {pattern.expects}, but {reason}",
            "choose the layout it has, or 'auto'",
        )
    entries = pattern.finish(tree, [entry_at(tree, file, place) for file, place in placed])
    skipped = [(file.name, f"does not lie as {pattern.name} expects: {pattern.expects}") for file in strays]
    layout = f"{pattern.name}: {pattern.expects}, {describe_splits(entry.split for entry in entries)}"
    return assemble(entries, tree.origin, layout + pattern.note(placed), skipped)


def recognise(tree: Tree) -> tuple[FolderPattern | None, list[str]]:
    """The pattern by which all images of a tree lie, if only one such arrangement is known; else the names of all."""
    alike = []
    for pattern in PATTERNS.values():
        placed, strays = _match(tree, pattern, whole=True)
        if placed and not strays and not pattern.check(placed):
            if pattern.apart(placed):
                return pattern, []
            alike.append(pattern.name)
    return None, alike


def _match(tree: Tree, pattern: FolderPattern, whole: bool = False) -> tuple[Placed, list[TreeFile]]:
    """The images that lie by the pattern, from the root or else from the folder above it, and the others.

    `whole` gives up at the first one that does not.
    """
    placed: list[tuple[TreeFile, Place]] = []
    strays: list[TreeFile] = []
    for above in ((), (tree.name,)):
        placed, strays = [], []
        for file in tree.files:
            place = pattern.place((*above, *file.path.parts[:-1]), file.path.stem)
            if place is not None:
                placed.append((file, place))
            else:
                strays.append(file)
                if whole:
                    break
        if placed:
            break
    return placed, strays


def _misfit(tree: Tree, placed: Placed, strays: Sequence[TreeFile]) -> str:
    if len(placed) >= len(strays) and (not strays or len({place.label for _, place in placed}) > 1):
        return ""
    folders = Counter("/".join(above) + "/" for above in tree.folders())
    shown = [f"{folder} ({count})" for folder, count in folders.most_common(4)]
    more = f" and {len(folders) - 4} more folders" if len(folders) > 4 else ""
    return f"only {len(placed)} of {len(tree.files)} images lie so; found {', '.join(shown)}{more}"


def _by_regex(expression: str, group: Callable[[Place, str], str] | None = None):
    """A rule that matches the folders above an image, whole and in any case, by the names label, generator, split,
    context and below (what lies below the class folder); `group` makes the group of the place and the stem."""
    compiled = re.compile(expression, re.IGNORECASE)

    @lru_cache(maxsize=1024)
    def place_folder(folders: tuple[str, ...]) -> Place | None:
        found = compiled.fullmatch("/".join(folders))
        if found is None:
            return None
        said = found.groupdict()
        if SPLIT_FOLDERS.keys() & (said.get("context") or "").lower().split("/"):
            return None
        label = REAL if parse_label(said.get("label")) == REAL else FAKE
        split = SPLIT_FOLDERS.get((said.get("split") or "").lower(), "")
        # The folder that names a fake's generator names the source of a real image.
        generator = said.get("generator") or ""
        context = (split, said.get("context"), said.get("below"))
        return Place(
            label,
            "real" if label == REAL else generator or "fake",
            split,
            "/".join(part for part in context if part),
            "/".join(part for part in (said.get("label"), generator, said.get("below")) if part) if group else "",
        )

    def place(folders: tuple[str, ...], stem: str) -> Place | None:
        found = place_folder(folders)
        return replace(found, group=group(found, stem)) if found is not None and group is not None else found

    return place


def _place_synthbuster(folders: tuple[str, ...], stem: str) -> Place | None:
    """Reals and fakes of one stem come from one photograph (RAISE), so the stem is the group."""
    if not folders:
        return None
    real = any(_SYNTHBUSTER_REALS.fullmatch(folder) for folder in folders)
    return Place(REAL if real else FAKE, "real" if real else folders[-1], "", group=stem)


def _check_synthbuster(placed: Placed) -> str:
    strange = [file.path.name for file, _ in placed if not _SYNTHBUSTER_STEM.fullmatch(file.path.stem)]
    if len(strange) * 2 <= len(placed):
        return ""
    return f"{len(strange)} of {len(placed)} images are not named rXXXXXXXXt, the first is {strange[0]}"


def _paired(placed: Placed) -> tuple[int, int]:
    """How many fakes have the name of a real image, and how many there are."""
    fakes = [file.path.stem for file, place in placed if place.label == FAKE]
    reals = {file.path.stem for file, place in placed if place.label == REAL}
    return sum(stem in reals for stem in fakes), len(fakes)


def _all_paired(placed: Placed) -> bool:
    paired, fakes = _paired(placed)
    return paired == fakes


def _check_pairs(placed: Placed) -> str:
    paired, fakes = _paired(placed)
    return "" if paired * 2 > fakes else f"only {paired} of {fakes} fakes are named like a real image"


def _check_families(placed: Placed) -> str:
    return "" if any(place.label == FAKE for _, place in placed) else "no folder is named so but Real"


def _note_ufd(placed: Placed) -> str:
    """Which reals each fake was made to stand beside."""
    present = {part.lower() for file, _ in placed for part in file.path.parts[:-1]}
    fakes = dict.fromkeys(place.generator for _, place in placed if place.label == FAKE)
    said = []
    for real, starts in _UFD_REALS.items():
        theirs = [name for name in fakes if name.lower().startswith(starts)]
        if real in present and theirs:
            said.append(f"{real} beside {and_list(theirs)}")
    return f", reals: {', '.join(said)}" if said else ""


_GENERATOR_FOLDERS = _by_regex(rf"{_MAYBE_SPLIT}{_GENERATOR}(?:/(?P<context>.+))?/{_INNER_CLASS}{_BELOW}")

PATTERNS: dict[str, FolderPattern] = {
    pattern.name: pattern
    for pattern in (
        FolderPattern(
            "faceforensics",
            "FaceForensics++ and DeepfakeBench: frames of videos, split by lists of pairs of video ids",
            EXPECTS,
            place_frame,
            finish=join_videos,
        ),
        FolderPattern(
            "ufd",
            "UniversalFakeDetect's diffusion sets: imagenet and laion reals, eight diffusion settings",
            "{imagenet,laion}/0_real and {guided,ldm_*,glide_*,dalle}/1_fake",
            _by_regex(rf"(?:.*/)?(?P<generator>{_UFD_FOLDERS})/{_INNER_CLASS}{_BELOW}"),
            note=_note_ufd,
        ),
        FolderPattern(
            "synthbuster",
            "Synthbuster beside RAISE: one folder per generator and one of reals, paired by file stem",
            "<generator>/rXXXXXXXXt.png and a folder of reals (real or RAISE)",
            _place_synthbuster,
            check=_check_synthbuster,
        ),
        FolderPattern(
            "wildfake",
            "WildFake: Real, and generators by family",
            "[Images/]{Real,<family>_based/<generator>}/...",
            _by_regex(rf"(?:.*?/)??(?:(?P<label>Real)|\w+_based/(?P<generator>(?!Real/)[^/]+)){_BELOW}"),
            check=_check_families,
        ),
        FolderPattern(
            "truefake",
            "TrueFake: the same pictures before and after social platforms; one picture is one group",
            "{PreSocial,Facebook,Telegram,Twitter}/{Fake/<generator>,Real}/...",
            _by_regex(
                r"(?:.*/)?(?P<context>PreSocial|Facebook|Telegram|Twitter)/"
                rf"(?P<label>Real|Fake)(?:/(?P<generator>[^/]+))?{_BELOW}",
                # A picture sent through several platforms keeps its name and its folders below the class.
                lambda place, stem: f"{place.group}/{stem}",
            ),
        ),
        FolderPattern(
            "genimage",
            "GenImage: ai and nature inside each generator's train and val",
            "<generator>/[imagenet_*/]{train,val}/{ai,nature}",
            _by_regex(
                rf"(?:.*?/)??(?!imagenet_){_GENERATOR}(?:/(?P<context>imagenet_[^/]+))?/{_SPLIT}/(?P<label>ai|nature)"
                + _BELOW
            ),
        ),
        FolderPattern(
            "chameleon",
            "Chameleon: one class each, generators unknown",
            "[test/]{0_real,1_fake}",
            _by_regex(rf"{_MAYBE_SPLIT}{_INNER_CLASS}{_BELOW}"),
        ),
        FolderPattern(
            "dda",
            "DDA: each fake is made from the real image of its name; the pair is one group",
            "real/ and fake/ with files of equal names",
            _by_regex(
                rf"(?:.*/)?(?:{_SPLIT}/)?(?P<label>real|fake)(?:/(?P<generator>[^/]+))?{_BELOW}",
                lambda place, stem: stem,
            ),
            apart=_all_paired,
            check=_check_pairs,
        ),
        *(
            FolderPattern(
                name,
                description,
                expects,
                _GENERATOR_FOLDERS,
                apart=lambda placed: False,
            )
            for name, description, expects in (
                (
                    "forensynths",
                    "ForenSynths (CNNDetection): a folder per generator, some with subjects",
                    "{train,val,test}/<generator>[/<class>]/{0_real,1_fake}",
                ),
                (
                    "aigcdetect",
                    "AIGCDetectBenchmark: folders like ForenSynths', or its parquet mirror",
                    "test/<generator>[/<class>]/{0_real,1_fake}",
                ),
                (
                    "aigibench",
                    "AIGIBench: a folder per generator, some with variants",
                    "test/<generator>[/<variant>]/{0_real,1_fake}",
                ),
            )
        ),
    )
}
