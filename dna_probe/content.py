"""Texts and recordings as bytes: those that are no files of their own, and what any of them holds."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dna_probe.errors import UnreadableSample
from dna_probe.images.sources import StoredImage


@dataclass(frozen=True)
class StoredSample:
    """The bytes of a text (UTF-8) or of a sound file under the name it goes by; see `images.sources`."""

    name: str
    content: bytes = field(repr=False)
    modality: str

    def read_bytes(self) -> bytes:
        return self.content


def open_content(source: Path | bytes | bytearray | StoredImage, name: str) -> BinaryIO:
    """The bytes of a file, of a value in memory or of a stored source, to be read and closed.

    Raises `UnreadableSample` for a file that is missing, empty, a folder, a device, or may not be read.
    """
    try:
        if isinstance(source, Path):
            return _open_file(source, name)
        content = bytes(source) if isinstance(source, bytes | bytearray) else source.read_bytes()
    except OSError as error:
        raise UnreadableSample(name, f"cannot be opened ({error.strerror or error})") from None
    if not content:
        raise UnreadableSample(name, "empty (0 bytes)")
    return io.BytesIO(content)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UnreadableSample(name, "a folder, not a file")
        if not path.is_file():
            raise UnreadableSample(name, "not a plain file")
        if size == 0:
            raise UnreadableSample(name, "empty file (0 bytes)")
        return open(path, "rb")
    except FileNotFoundError:
        raise UnreadableSample(name, "no such file") from None
    except PermissionError:
        raise UnreadableSample(name, "no permission to read it") from None
    except ValueError as error:  # a null character in a path
        raise UnreadableSample(name, f"cannot be opened ({error})") from None
