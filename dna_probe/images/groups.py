"""Which images, texts or recordings belong together, told from their file names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dna_probe.images.sets import FAKE, REAL

_TOKEN = re.compile(r"\d+|[^\W\d_]+|[\W_]+")


def natural_key(path: object) -> list[tuple[int, int, str]]:
    """A sorting key under which frame 2 comes before frame 10."""
    text = path.as_posix() if isinstance(path, Path) else str(path)
    tokens = re.findall(r"\d+|\D+", text)
    return [(0, int(t), t) if t.isascii() and t.isdigit() else (1, 0, t.casefold()) for t in tokens] + [(-1, 0, text)]


def find_groups(
    paths: Sequence[Path],
    labels: Sequence[int],
    generators: Sequence[str],
    contexts: Sequence[str],
    modality: str = "image",
) -> tuple[str, ...]:
    """The group of each sample: images made from one prompt, or forged from one photograph, share it.

    A fake's key is its file stem without the generator's name and without the words that all stems of its generator
    begin with: `ai_SDXL_Base_10` becomes `10`. A key that at least two generators have is a group. A real image
    shares the group of the fakes whose whole stem, or whose key, is its own whole stem. Every other image is its own
    group, named by its path. `contexts` (subject or split folders) keep equal stems of different folders apart.

    Texts and recordings are written or spoken anew by each maker, so the names of real ones have words of their own
    too: `ss_gt_3` is the sentence `ss_hgan_3` and `ss_3`. There a key is the stem without its maker's name and without
    the words, wherever they stand, that all stems of that maker have; keys of at least two makers are groups.

    Numbering alone can group images that have nothing to do with each other. That costs a little freedom in splitting
    and never leaks.
    """
    if modality != "image":
        return _group_sentences(paths, generators, contexts)
    stems = [path.stem for path in paths]
    keys = list(stems)
    by_generator: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        if label == FAKE:
            by_generator[generators[position]].append(position)
    for generator, positions in by_generator.items():
        for position, key in zip(positions, _residuals([stems[p] for p in positions], generator), strict=True):
            keys[position] = key
    full = [f"{context}/{key}" if context else key for context, key in zip(contexts, keys, strict=True)]
    raw = [f"{context}/{stem}" if context else stem for context, stem in zip(contexts, stems, strict=True)]

    makers: dict[str, set[str]] = defaultdict(set)
    for generator, positions in by_generator.items():
        for position in positions:
            makers[full[position]].add(generator)
    real_stems = {raw[position] for position, label in enumerate(labels) if label == REAL}
    groups = [path.as_posix() for path in paths]
    of_stem: dict[str, str] = {}
    for positions in by_generator.values():
        for position in positions:
            if len(makers[full[position]]) > 1 or full[position] in real_stems:
                groups[position] = full[position]
            elif raw[position] in real_stems:
                groups[position] = raw[position]
            else:
                continue
            of_stem.setdefault(raw[position], groups[position])
            of_stem.setdefault(full[position], groups[position])
    for position, label in enumerate(labels):
        if label == REAL:
            groups[position] = of_stem.get(raw[position], groups[position])
    return tuple(groups)


def connect(count: int, pairs: Iterable[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """For each of `count` things the number (n,) of the component it lies in, where each pair joins two of them.

    Components are numbered in the order of their first members.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(pairs if isinstance(pairs, np.ndarray) else list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    found = connected_components(graph, directed=False)[1]
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def _group_sentences(paths: Sequence[Path], makers: Sequence[str], contexts: Sequence[str]) -> tuple[str, ...]:
    of_maker: dict[str, list[int]] = defaultdict(list)
    for position, maker in enumerate(makers):
        of_maker[maker].append(position)
    keys = [""] * len(paths)
    users: dict[str, set[str]] = defaultdict(set)
    for maker, positions in of_maker.items():
        words = [_words(paths[position].stem, maker) for position in positions]
        shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
        for position, found in zip(positions, words, strict=True):
            # A number that happens to be common is part of what names the sentence.
            key = "_".join(word for word in found if word.isdigit() or word not in shared)
            # Where all files have one name, the folder tells the sentence.
            key = key or f"{paths[position].parent.name}/{paths[position].stem}"
            keys[position] = f"{contexts[position]}/{key}" if contexts[position] else key
            users[keys[position]].add(maker)
    return tuple(key if len(users[key]) > 1 else path.as_posix() for key, path in zip(keys, paths, strict=True))


def _words(stem: str, maker: str) -> list[str]:
    """The words and numbers of a stem, in lower case, without the maker's name."""
    rest = _name_of_maker(maker).sub("", stem, count=1)
    return [word.casefold() for word in _TOKEN.findall(rest) if word[0].isalnum()]


def _name_of_maker(maker: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_]){re.escape(maker)}(?![^\W_])", re.IGNORECASE)


def _residuals(stems: list[str], generator: str) -> list[str]:
    """Stems without the generator's name and without the leading words that all of them share."""
    name = _name_of_maker(generator)
    tokens = [_TOKEN.findall(name.sub("", stem, count=1)) or [stem] for stem in stems]
    shared = 0
    shortest = min(len(words) for words in tokens)
    while shared < shortest - 1 and len({words[shared] for words in tokens}) == 1:
        shared += 1
    # A number that happens to be common is part of what names the image, so only words and marks go.
    while shared and any(word.isdigit() for word in tokens[0][:shared]):
        shared -= 1
    left = ["".join(words[shared:]).strip("_-. ") for words in tokens]
    return [rest or stem for rest, stem in zip(left, stems, strict=True)]
