"""Images that are not files of their own: encoded in memory, in an object store, or (see ``archives``) inside a file
that holds many.

Such a source has a ``name``, for messages and reports, and ``read_bytes()``, which gives the encoded image and raises
``OSError`` where it cannot.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

from dna_probe.errors import DataError, needs_extra, unknown_name

# Of a file inside another, or fetched: one that claims more is a bomb, not a photograph.
MAX_BYTES = 1 << 30


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_DRIVER = re.compile(r"nstall ([\w.-]+)|requires (.+) to be installed")


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


@dataclass(frozen=True)
class RemoteImage:
    """An image file by its URL, such as `s3://bucket/a.jpg`, fetched through fsspec each time it is read.

    It is a small value that any machine can read that has the driver and the credentials.
    """

    url: str

    @property
    def name(self) -> str:
        return self.url

    def read_bytes(self) -> bytes:
        """The file's content. Raises `OSError` where it cannot be had."""
        try:
            filesystem, path = open_filesystem(self.url)
            # Not all tell a size before they are read.
            if (filesystem.size(path) or 0) > MAX_BYTES:
                raise too_large(MAX_BYTES)
            return filesystem.cat_file(path)
        except FileNotFoundError:
            raise OSError("no such file") from None
        except OSError:
            raise
        except Exception as error:  # drivers raise what their clients do, about credentials for instance
            raise OSError(f"{type(error).__name__}: {error}") from None


def too_large(limit: int) -> OSError:
    return OSError(f"larger than {limit >> 20} MiB")


def is_url(given: object) -> TypeGuard[str]:
    """Whether a text names a place by its scheme, as `s3://bucket/a.jpg` does."""
    return isinstance(given, str) and _URL.match(given) is not None


def require_driver(url: str) -> None:
    """Raises `DataError` where fsspec is not installed, knows no such scheme, or lacks the driver for it."""
    for part in url.split("::"):
        if scheme := _URL.match(part):
            _require_scheme(scheme.group(1))


@lru_cache
def _require_scheme(scheme: str) -> None:
    try:
        import fsspec
    except ImportError as error:
        raise needs_extra(f"{scheme}://", "fsspec", "ray", DataError) from error
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        found = _DRIVER.search(str(error))
        package = "" if found is None else (found.group(1) or " ".join(re.findall(r'"([\w.-]+)"', found.group(2))))
        raise DataError(
            f"{scheme}:// cannot be read here",
            "The driver that fsspec uses for it is not installed",
            f"pip install {package}" if package else str(error),
        ) from error
    except ValueError as error:
        raise unknown_name("scheme of a URL", scheme, fsspec.available_protocols(), DataError) from error


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises what the driver raises."""
    from fsspec.core import url_to_fs

    inner, chained, outer = url.partition("::")
    if not chained:
        return url_to_fs(url)
    scheme, _, path = inner.partition("://")
    return _open_chained(f"{scheme}://::{outer}", os.getpid(), threading.get_ident()), path


@lru_cache(maxsize=16)
def _open_chained(url: str, process: int, thread: int) -> Any:
    """Kept open, for an archive's directory has to be read first; by thread, since two cannot read one at once."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)[0]


def is_stored(source: object) -> TypeGuard[StoredImage]:
    return not isinstance(source, Path) and isinstance(source, StoredImage)
