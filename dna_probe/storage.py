"""Writing that loses nothing: beside the target first, renamed at the end."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dna_probe.errors import ArtefactError, DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a reader sees the old content or the new, never a part.

    Raises:
        DataError: the disk is full or the folder cannot be written; what was there is kept.
    """
    with replacing_file(path) as beside:
        beside.write_bytes(content)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to ``path`` when the context ends well and removed when it does not.

    Raises:
        DataError: the disk is full or the folder cannot be written; what was there is kept.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise DataError(
            f"{path} could not be written", error.strerror or str(error), "Free some space or choose another folder"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to write into, renamed to ``folder`` when the context ends well and removed when it does not.

    Raises:
        ArtefactError: ``folder`` is a file, or is not empty and ``overwrite`` is not set, or the disk refuses.
    """
    folder = Path(folder)
    require_free(folder, overwrite)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir(parents=True)
        yield beside
        publish(beside, folder, overwrite)
    except OSError as error:
        raise ArtefactError(
            f"{folder} could not be written",
            error.strerror or str(error),
            "Free some space or choose another folder; nothing that was there has changed",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish(beside: Path, folder: Path, overwrite: bool = False) -> None:
    """Give a finished folder its name; what has the name makes room, and comes back where that fails.

    Raises:
        ArtefactError: something came to lie there, and ``overwrite`` is not set. OSError: the disk refuses.
    """
    require_free(folder, overwrite)
    old = folder.with_name(f".{folder.name}.old.{uuid.uuid4().hex[:8]}")
    try:
        with suppress(FileNotFoundError):
            folder.rename(old)
        beside.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_free(folder: str | Path, overwrite: bool = False) -> None:
    """Raise ``ArtefactError`` where writing would destroy something."""
    folder = Path(folder)
    if folder.is_file():
        raise ArtefactError(f"{folder} is a file", "A folder is written", "Choose another name")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ArtefactError(
            f"{folder} is not empty", "It would be replaced", "Choose another folder or pass --overwrite"
        )
