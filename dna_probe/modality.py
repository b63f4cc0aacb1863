"""Whether data are images, texts or recordings, told by looking at them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dna_probe.content import StoredSample
from dna_probe.errors import DataError
from dna_probe.images.archives import MEMBER_SUFFIXES, TABLE_SUFFIXES, list_members
from dna_probe.images.discovery import files_near
from dna_probe.images.folders import KINDS, TEXTS, Kind, place_in_folders, shard_name, walk
from dna_probe.images.reading import MIN_SIDE
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import is_stored
from dna_probe.images.tables import COLUMNS, MANIFEST_SUFFIXES, TEXT_SUFFIXES, is_given
from dna_probe.texts.tables import open_texts

# As many rows of a table are looked at.
_ROWS = 50
# How sound files begin: WAV, FLAC, OGG, MP3 (with a tag and without), AIFF, AU, CAF.
_SOUND = re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xe2-\xfb]|FORM....AIF|\.snd|caff", re.DOTALL)


def guess_modality(data: Any) -> str:
    """What data are: "text", "audio", or else "image".

    A set says it itself. A folder or archive is what most of the files in its class folders are by their suffixes,
    or else most of the images and recordings in it. Captions (texts named as an image or a recording) do not count, nor
    do texts in no class folder, of which one is often a README, where there are tables or archives to look into. A
    table is what the files are that it names; if it names none, it is of texts where it has a column `text`. Of a list
    of samples, or of a tuple that begins with one, most decide: paths and stored sources by their suffix, bytes by
    their first ones, other strings are texts, (samples, rate) and arrays of a few channels recordings. Raises
    `DataError` for a damaged table or archive.
    """
    if isinstance(data, ImageSet):
        return data.modality
    if isinstance(data, str | os.PathLike):
        return _of_folder(Path(data)) if os.path.isdir(data) else _of_file(Path(data))
    items = data[0] if isinstance(data, tuple) and data and not isinstance(data[0], str | os.PathLike) else data
    if isinstance(items, Sequence) or hasattr(items, "ndim"):
        return _most(_of_item(item) for item in items)
    return "image"


def _of_folder(root: Path) -> str:
    files = list(walk(root))
    names = [file.relative_to(root).as_posix() for file in files]
    if found := _of_names(names, root.resolve().name):
        return found
    inside = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    if tables := _of_tables([*inside, *files_near(root, TEXT_SUFFIXES)]):
        return _most(tables)
    archives = [file for file in files if file.suffix.lower() in MEMBER_SUFFIXES]
    return _of_file(archives[0]) if archives else _of_texts(names)


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in MANIFEST_SUFFIXES and os.path.isfile(path):
        return _of_table(path) or "image"
    if suffix in MEMBER_SUFFIXES and os.path.isfile(path):
        names = [member.member for member in list_members(path)]
        return _of_names(names, shard_name(path)) or _of_texts(names)
    kind = _kind(path.name)
    return kind.modality if kind else "image"


def _of_tables(paths: Iterable[Path]) -> list[str]:
    """The modalities of tables in a folder; what is none of samples, or no table, says nothing."""
    found = []
    for path in paths:
        try:
            found.append(_of_table(path))
        except DataError:
            continue
    return [modality for modality in found if modality]


def _of_table(path: Path) -> str:
    """The modality of a table's samples, "" where nothing in it tells."""
    table = open_texts(path, kinds={"path": COLUMNS["path"]}, first=_ROWS)
    columns = table.columns().get("path", ())
    cells = [cell for _, row in table.rows[:_ROWS] for name in columns if is_given(cell := row.get(name))]
    named = [kind.modality for cell in cells if (kind := _kind(cell.get("path") if isinstance(cell, dict) else cell))]
    if named:
        return _most(named)
    if table.cell is not None:
        return "audio" if table.image_column.strip().lower() == "audio" else "image"
    if any(name.strip().lower().startswith("image") for name in columns):
        return "image"
    return "text" if table.has("text") else ""


def _of_names(names: Iterable[str], top: str) -> str:
    """What most files in class folders are, or else most that are no texts; "" where there are none of either."""
    found = [(name, kind) for name in names if (kind := _kind(name))]
    captioned = {_stem(name) for name, kind in found if kind is not TEXTS}
    found = [(name, kind) for name, kind in found if kind is not TEXTS or _stem(name) not in captioned]
    classed = [kind for name, kind in found if place_in_folders((top, *name.split("/")[:-1]), kind)]
    kinds = classed or [kind for _, kind in found if kind is not TEXTS]
    return _most(kind.modality for kind in kinds) if kinds else ""


def _of_texts(names: Iterable[str]) -> str:
    return "text" if any(_kind(name) is TEXTS for name in names) else "image"


def _stem(name: str) -> str:
    """A caption goes by the name of its file, often in another folder: wav/0.wav and txt/0.txt."""
    return name.rpartition("/")[2].partition(".")[0]


def _of_item(item: Any) -> str:
    if isinstance(item, str):
        kind = _kind(item)
        is_path = kind is not None and (kind is not TEXTS or os.path.isfile(item))
        return kind.modality if kind is not None and is_path else "text"
    if isinstance(item, StoredSample):
        return item.modality
    if isinstance(item, os.PathLike) or is_stored(item):
        kind = _kind(item.name if is_stored(item) else str(item))
        return kind.modality if kind else "image"
    if isinstance(item, bytes | bytearray):
        return "audio" if _SOUND.match(item) else "image"
    shape = getattr(item, "shape", ())
    is_waveform = len(shape) == 1 or (len(shape) == 2 and min(shape) < MIN_SIDE)
    return "audio" if isinstance(item, tuple) or is_waveform else "image"


def _kind(name: object) -> Kind | None:
    """The kind of the file of this name."""
    suffix = os.path.splitext(name)[1].lower() if isinstance(name, str) and "\n" not in name else ""
    return next((kind for kind in KINDS.values() if suffix in kind.suffixes), None)


def _most(modalities: Iterable[str]) -> str:
    """The modality that occurs most, of equals the first that `KINDS` has; "image" where there is none."""
    counts = Counter(modalities)
    return max(KINDS, key=lambda modality: counts[modality])
