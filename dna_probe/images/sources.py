"""Images that are not files of their own: encoded in memory, or (see ``archives``) inside a file that holds many.

Such a source has a ``name``, for messages and reports, and ``read_bytes()``, which gives the encoded image and raises
``OSError`` where it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable


@runtime_checkable
class StoredImage(Protocol):
    """What reading needs of such a source."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file under the name it goes by."""

    name: str
    content: bytes = field(repr=False)

    def read_bytes(self) -> bytes:
        return self.content


def is_stored(source: object) -> TypeGuard[StoredImage]:
    return not isinstance(source, Path) and isinstance(source, StoredImage)
