"""Samples of concurrent requests, judged together by one thread, which alone runs the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dna_probe.errors import DnaProbeError

if TYPE_CHECKING:
    from dna_probe.collection import Options
    from dna_probe.detector import Prediction

# Samples that may wait at once; what comes beyond is refused. Their bytes are bounded by `uploads.MAX_HELD`.
MAX_WAITING = 1024


class Judge(Protocol):
    """What is needed of a detector."""

    def stream(self, sources: Iterable[Any], options: Options | None = None) -> Iterator[Prediction]: ...


class Busy(DnaProbeError):
    """Too many samples wait already, or none are taken any more."""


@dataclass
class _Work:
    """A sample to judge, or a function to call between two batches."""

    sample: Any = None
    function: Callable[[], Any] | None = None
    future: Future[Any] = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue of samples and the thread that empties it, up to ``max_batch`` at a time.

    A batch begins when the thread is free and a sample is there; it waits for more until the oldest of them has waited
    ``wait`` seconds. Under load nothing waits: what came during one batch makes the next.

    Args:
        detector: what judges; only this thread touches it.
        options: how ``detector.stream`` runs.
        max_batch: most samples in one forward pass.
        wait: seconds that the first sample of a batch waits for others.
        observe: called with the number of samples of each batch.
    """

    def __init__(
        self,
        detector: Judge,
        options: Options | None = None,
        max_batch: int = 32,
        wait: float = 0.01,
        observe: Callable[[int], object] | None = None,
    ):
        self.detector, self.options = detector, options
        self.max_batch, self.wait = max_batch, wait
        self._observe = observe or (lambda size: None)
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dna-probe-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Samples and calls in the queue, without those that run."""
        return len(self._queue)

    def submit(self, samples: Sequence[Any]) -> list[Future[Prediction]]:
        """The verdicts to come, one per sample, in order.

        Raises:
            Busy: more than ``MAX_WAITING`` would wait, or the batcher was closed.
        """
        return [work.future for work in self._enqueue([_Work(sample) for sample in samples])]

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """The result to come of a function that touches the detector; it runs alone, in its turn.

        Raises:
            Busy: as ``submit``.
        """
        return self._enqueue([_Work(function=function)])[0].future

    def close(self, patience: float | None = None) -> None:
        """Take no more, finish what is queued, and end the thread; give up after so many seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(patience)

    def _enqueue(self, works: list[_Work]) -> list[_Work]:
        with self._changed:
            if self._closed:
                raise Busy("The service is stopping", "", "Ask another instance, or later")
            if len(self._queue) + len(works) > MAX_WAITING:
                raise Busy("The service is busy", f"{len(self._queue)} samples wait already", "Try again in a while")
            self._queue.extend(works)
            self._changed.notify_all()
        return works

    def _run(self) -> None:
        while batch := self._next():
            # A request that was given up waits for no answer.
            batch = [work for work in batch if work.future.set_running_or_notify_cancel()]
            if batch and batch[0].function is not None:
                _settle(batch[0].future, batch[0].function)
            elif batch:
                self._observe(len(batch))
                self._judge(batch)

    def _next(self) -> list[_Work]:
        """The next samples, or the next function alone; empty once the batcher is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._queue and self._queue[0].function is None:
                left = self._queue[0].came + self.wait - time.monotonic()
                self._changed.wait_for(lambda: len(self._queue) >= self.max_batch or self._closed, max(left, 0))
            batch: list[_Work] = []
            while self._queue and len(batch) < self.max_batch:
                if self._queue[0].function is not None and batch:
                    break
                batch.append(self._queue.popleft())
                if batch[0].function is not None:
                    break
            return batch

    def _judge(self, batch: list[_Work]) -> None:
        try:
            predictions = list(self.detector.stream([work.sample for work in batch], self.options))
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # One after the other, so that only the sample at fault fails.
            for work in batch:
                self._judge([work])
            return
        for work, prediction in zip(batch, predictions, strict=True):
            work.future.set_result(prediction)


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
