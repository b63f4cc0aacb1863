"""Images inside files that hold many: members of zips and tars, cells of parquet and Arrow tables.

Nothing is unpacked. Each image becomes a small value that knows its archive and its place in it, can be pickled and
read from any thread, and goes by the name `archive.zip::folder/a.jpg`, `shard.tar::0001.jpg` or `part.parquet::17`.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.errors import DataError
from dna_probe.images.sources import MAX_BYTES, too_large

if TYPE_CHECKING:
    import pyarrow

TABLE_SUFFIXES = frozenset({".parquet", ".arrow"})
MEMBER_SUFFIXES = frozenset({".zip", ".tar"})
# The columns in which published tables keep the encoded image, tried in this order before any other binary column.
_IMAGE_COLUMNS = ("image", "image_data", "img", "picture", "bytes", "image_bytes", "jpg", "png", "webp")
_TAR_BLOCK = 512

_zip_lock = threading.Lock()
_table_lock = threading.Lock()


class DamagedTable(DataError):
    """A file is not the table that its name says it is."""


@dataclass(frozen=True)
class ZipMember:
    """One file of a zip."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        return f"{self.archive}::{self.member}"

    def read_bytes(self) -> bytes:
        """The member's content. Raises `OSError` where it is damaged, encrypted, gone or larger than `MAX_BYTES`."""
        opened = _open_zip(self.archive, os.getpid(), *_stamp(self.archive))
        try:
            entry = opened.getinfo(self.member)
            if entry.file_size > MAX_BYTES:
                raise too_large(MAX_BYTES)
            # ZipFile counts its open members without a lock of its own.
            with _zip_lock:
                stream = opened.open(entry)
            try:
                return stream.read()
            finally:
                with _zip_lock:
                    stream.close()
        except KeyError:
            raise OSError("no such member in the archive") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
            raise OSError(f"damaged or encrypted member: {error}") from None


@dataclass(frozen=True)
class TarMember:
    """One file of an uncompressed tar, with the place of its content, so that reading it needs no search."""

    archive: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.archive}::{self.member}"

    def read_bytes(self) -> bytes:
        """The member's content. Raises `OSError` where the archive ends before it, or it is larger than `MAX_BYTES`."""
        if self.size > MAX_BYTES:
            raise too_large(MAX_BYTES)
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("truncated: the archive ends too early")
        return content


@dataclass(frozen=True)
class TableCell:
    """One row of a column of encoded images; rows count from 0 over the whole file.

    The column is bytes, or Hugging Face's struct of bytes and path. Neighbouring rows of a parquet file are decoded
    together, a row group at a time, and the last two row groups are kept: memory holds no more than these.
    """

    archive: Path
    row: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.archive}::{self.row}"

    def read_bytes(self) -> bytes:
        """The encoded image. Raises `OSError` where the file is damaged or the row holds none."""
        import pyarrow as pa

        try:
            value = _cell(self.archive, self.row, self.column)
        except (pa.ArrowException, KeyError, IndexError) as error:
            raise OSError(f"damaged table: {' '.join(str(error).split())}") from None
        return encoded_bytes(value, self.archive.parent)


Member = ZipMember | TarMember | TableCell


def encoded_bytes(value: Any, folder: Path | None) -> bytes:
    """The image in a table's cell: bytes, or a struct of bytes and path, a relative path starting at `folder`.

    Raises `OSError` where the cell holds neither, or its path leads out of `folder` (which None permits).
    """
    path = None
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
    if isinstance(value, bytes):
        return value
    if not isinstance(path, str) or not path:
        raise OSError("the row holds no image")
    if folder is not None and not is_inside(folder / path, folder):
        raise OSError(f"the row holds no image but the path {path!r}, outside the table's own folder")
    return (folder / path if folder is not None else Path(path)).read_bytes()


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path lies below a root, as it is written or once links are followed."""
    written = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
    return written or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def list_members(archive: Path) -> list[ZipMember] | list[TarMember]:
    """The files in a zip or tar, in its order, without hidden ones. Raises `DataError` where it is damaged."""
    return _list_zip(archive) if archive.suffix.lower() == ".zip" else _list_tar(archive)


def find_member(archive: Path, member: str) -> Member | None:
    """The image that `archive::member` names, or None where the archive has no such member or row.

    The names in an archive are listed once for as long as the file stays the same. Raises `DataError` for a damaged
    archive.
    """
    return _index(archive, *_stamp(archive))(member)


def image_column(schema: pyarrow.Schema) -> str | None:
    """The column of a table that holds encoded images: binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    def is_encoded(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and is_encoded(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if is_encoded(field.type)]
    usual = [name for wanted in _IMAGE_COLUMNS for name in found if name.lower() == wanted]
    return next(iter([*usual, *found]), None)


def read_schema(table: Path) -> pyarrow.Schema:
    """Names and types of a parquet or Arrow file's columns. Raises `DataError` where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        if table.suffix.lower() == ".arrow":
            return _arrow_table(table, *_stamp(table)).schema
        return parquet.read_schema(table)
    except (OSError, pa.ArrowException) as error:
        raise damaged_table(table, error) from None


def read_columns(table: Path, columns: Iterable[str]) -> list[dict[str, Any]]:
    """These columns of a parquet or Arrow file, row by row. Raises `DataError` where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = list(columns)
    try:
        if table.suffix.lower() == ".arrow":
            whole = _arrow_table(table, *_stamp(table)).select(columns)
        else:
            whole = parquet.ParquetFile(table).read(columns=columns)
        # A table without columns still has its rows.
        return whole.to_pylist() if columns else [{} for _ in range(count_rows(table))]
    except (OSError, pa.ArrowException) as error:
        raise damaged_table(table, error) from None


def count_rows(table: Path) -> int:
    """The rows of a parquet or Arrow file."""
    if table.suffix.lower() == ".arrow":
        return _arrow_table(table, *_stamp(table)).num_rows
    return _row_starts(table, *_stamp(table))[-1]


def damaged_table(table: Path, error: Exception) -> DamagedTable:
    kind = "an Arrow table" if table.suffix.lower() == ".arrow" else "a parquet table"
    return DamagedTable(f"{table} cannot be read as {kind}", " ".join(str(error).split()))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced, so that what is kept of it never outlives it."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _open_zip(archive: Path, process: int, changed: int, size: int) -> zipfile.ZipFile:
    """Kept open, because finding a member means reading the zip's whole directory; per process, whose place in the
    file is its own."""
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise OSError(f"damaged zip archive: {error}") from None


def _list_zip(archive: Path) -> list[ZipMember]:
    try:
        opened = _open_zip(archive, os.getpid(), *_stamp(archive))
    except OSError as error:
        raise DataError(f"{archive} cannot be read as a zip archive", str(error)) from None
    # A zip that was appended to lists a replaced member twice; the last one counts.
    names = dict.fromkeys(info.filename for info in opened.infolist() if not info.is_dir())
    return [ZipMember(archive, name) for name in names if not _hidden(name)]


def _list_tar(archive: Path) -> list[TarMember]:
    try:
        with tarfile.open(archive, "r:") as opened:
            found = {
                info.name: TarMember(archive, info.name, info.offset_data, info.size)
                for info in opened
                if info.isreg() and not info.issparse() and not _hidden(info.name)
            }
            _check_tar_end(archive, opened.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{archive} cannot be read as a tar archive",
            " ".join(str(error).split()),
            "a compressed tar has to be unpacked or stored without compression",
        ) from None
    return list(found.values())


def _check_tar_end(archive: Path, offset: int) -> None:
    """Refuse a tar whose listing stopped at a damaged header, which `tarfile` takes for the end."""
    with open(archive, "rb") as file:
        file.seek(offset)
        block = file.read(_TAR_BLOCK)
    if any(block):
        raise tarfile.ReadError(f"damaged header at byte {offset}")


def _hidden(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[-1].startswith(".") or "__MACOSX" in parts or any(p.startswith(".") and p.strip(".") for p in parts)


@lru_cache(maxsize=64)
def _index(archive: Path, changed: int, size: int):
    if archive.suffix.lower() in TABLE_SUFFIXES:
        column, rows = image_column(read_schema(archive)), count_rows(archive)

        def cell(member: str) -> Member | None:
            known = column is not None and member.isascii() and member.isdigit() and int(member) < rows
            return TableCell(archive, int(member), column) if known else None  # type: ignore[arg-type]

        return cell
    return {member.member: member for member in list_members(archive)}.get


def _cell(table: Path, row: int, column: str) -> Any:
    stamp = _stamp(table)
    if table.suffix.lower() == ".arrow":
        return _arrow_table(table, *stamp).column(column)[row].as_py()
    with _table_lock:
        starts = _row_starts(table, *stamp)
        group = bisect_right(starts, row) - 1
        values = _row_group(table, *stamp, group, column)
    return values[row - starts[group]].as_py()


@lru_cache(maxsize=64)
def _row_starts(table: Path, changed: int, size: int) -> list[int]:
    """The first row of each row group, and the number of rows."""
    import pyarrow.parquet as parquet

    metadata = parquet.read_metadata(table)
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


@lru_cache(maxsize=2)
def _row_group(table: Path, changed: int, size: int, group: int, column: str) -> pyarrow.ChunkedArray:
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(table).read_row_group(group, columns=[column]).column(column)


@lru_cache(maxsize=64)
def _arrow_table(table: Path, changed: int, size: int) -> pyarrow.Table:
    """A stream of Arrow batches, as `datasets` saves them; mapped into memory, so that only what is used is read."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(table))).read_all()
