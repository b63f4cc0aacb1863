"""Read samples, in order and beside the model, and stack them into batches that a backbone takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dna_probe.errors import DataError, UnreadableSample
from dna_probe.images.reading import name_of
from dna_probe.images.threads import in_order


class Reader(Protocol):
    """What reading needs of a preprocessing, whatever the modality."""

    @property
    def modality(self) -> str: ...

    def load(self, source: Any, name: str) -> np.ndarray:
        """One sample as the array that the backbone takes, without a batch axis; raises ``UnreadableSample``."""

    def trial(self, count: int) -> np.ndarray:
        """A batch of made-up samples of one shape, to see what fires in a model."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples of one shape, ready for a backbone.

    Attributes:
        index: positions, in the list given, of the rows of ``inputs``.
        inputs: (n, ...): pixels (n, 3, height, width), token numbers (n, length), or what an audio model takes.
        failures: positions, names and reasons of samples that could not be read since the batch before.
    """

    index: list[int]
    inputs: np.ndarray
    failures: list[tuple[int, str, str]]


def load_batches(
    sources: Sequence[Any], preprocessing: Reader, batch_size: int = 32, workers: int = 0
) -> Iterator[Batch]:
    """Read, preprocess and stack samples in order, in ``workers`` threads (0: in the calling thread).

    As many as ``batch_size`` readable samples are read for each batch. Samples of unequal shape, such as texts of
    unequal length, are never padded: what was read is handed out in one batch per shape, in the order in which the
    shapes appear. Unreadable samples are left out of ``index`` and told in ``failures``; if only such are left at the
    end, the last batch has no rows. At most one batch and two samples per thread are read ahead, so memory does not
    grow with the list. Errors other than an unreadable sample go through to the caller, and the threads end with the
    iterator.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, not {batch_size}")
    if workers < 0:
        raise DataError(f"workers must be 0 or more, not {workers}")
    sources = getattr(sources, "images", sources)

    def load(position: int) -> np.ndarray | UnreadableSample:
        try:
            return preprocessing.load(sources[position], name_of(sources[position], position))
        except UnreadableSample as error:
            return error

    return _batches(in_order(load, len(sources), workers, batch_size), batch_size)


def _batches(loaded: Iterator[np.ndarray | UnreadableSample], batch_size: int) -> Iterator[Batch]:
    rows: list[tuple[int, np.ndarray]] = []
    failures: list[tuple[int, str, str]] = []
    for position, result in enumerate(loaded):
        if isinstance(result, UnreadableSample):
            failures.append((position, result.name, result.reason))
            continue
        rows.append((position, result))
        if len(rows) == batch_size:
            yield from _by_shape(rows, failures)
            rows, failures = [], []
    if rows:
        yield from _by_shape(rows, failures)
    elif failures:
        yield Batch([], np.zeros((0,), np.float32), failures)


def _by_shape(rows: list[tuple[int, np.ndarray]], failures: list[tuple[int, str, str]]) -> Iterator[Batch]:
    shapes: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row in rows:
        shapes.setdefault(row[1].shape, []).append(row)
    for alike in shapes.values():
        yield Batch([position for position, _ in alike], np.stack([values for _, values in alike]), failures)
        failures = []
