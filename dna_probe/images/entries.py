"""From what is known of each sample to a labelled set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dna_probe.images.groups import find_groups
from dna_probe.images.reading import Source
from dna_probe.images.sets import FAKE, REAL, UNLABELLED, ImageSet

_LABELS = {
    **dict.fromkeys(("0", "0.0", "real", "reals", "0_real", "nature", "false"), REAL),
    **dict.fromkeys(("1", "1.0", "fake", "fakes", "1_fake", "ai", "true"), FAKE),
    "unlabelled": UNLABELLED,
}
# What only the makers of texts and recordings say.
_MORE_LABELS = {
    **dict.fromkeys(("human", "bonafide", "bona-fide", "bona_fide"), REAL),
    **dict.fromkeys(("machine", "generated", "spoof", "spoofed"), FAKE),
}
_ISO_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Entry:
    """One sample: where it is (`path`, below the root of its set), what it is, what is known of it.

    `context` (subject, variant, split) tells equal names of different folders apart. Where `group` is "", the group is
    told from the names. `sha256` is that of the encoded image where a table lists it.
    """

    source: Source
    path: PurePosixPath
    label: int
    generator: str = ""
    split: str = ""
    group: str = ""
    date: str = ""
    context: str = ""
    sha256: str = ""


def assemble(
    entries: Sequence[Entry],
    origin: str,
    layout: str,
    skipped: Sequence[tuple[str, str]] = (),
    modality: str = "image",
) -> ImageSet:
    """The set of these samples, in their order. Groups are those given; where none is, see `find_groups`."""
    labels = [entry.label for entry in entries]
    generators = ["real" if e.label == REAL else e.generator or ("fake" if e.label == FAKE else "") for e in entries]
    if any(entry.group for entry in entries):
        groups = tuple(entry.group or str(entry.path) for entry in entries)
    else:
        contexts = [entry.context if modality == "image" else entry.split for entry in entries]
        groups = find_groups([Path(e.path) for e in entries], labels, generators, contexts, modality)
    return ImageSet(
        images=tuple(entry.source for entry in entries),
        labels=labels,  # type: ignore[arg-type]
        generators=tuple(generators),
        groups=groups,
        splits=tuple(entry.split for entry in entries),
        dates=tuple(entry.date for entry in entries),
        origin=origin,
        layout=layout,
        skipped=tuple(skipped),
        modality=modality,
    )


def parse_label(value: object, modality: str = "image") -> int | None:
    """0 for real, 1 for fake, -1 for unlabelled, however it is written; None for anything else."""
    known = _LABELS if modality == "image" else {**_LABELS, **_MORE_LABELS}
    return known.get(str(value).strip().lower())


def parse_date(value: object) -> str | None:
    """A date as ISO text, as exact as it was given (2024, 2024-06 or 2024-06-30); "" for none, None if not a date."""
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "nan", "nat", "none", "unknown", "n/a"):
        return ""
    iso = _ISO_DATE.match(text)
    # A date and time begins with its date; 2024-6 or 20240630 begin with something else.
    if iso and (iso.end() == len(text) or text[iso.end()] in "T "):
        return iso.group()
    import pandas

    found = pandas.to_datetime(text, errors="coerce")
    return None if pandas.isna(found) else found.date().isoformat()
