"""Samples on their way through a backbone: shard by shard, read beside the model, on any engine.

A shard is a fixed run of neighbouring samples; how many it holds depends on the batch size alone. What was found in
them is put together in their order, wherever they were worked on (``dna_probe.engines``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from dna_probe.batches import Batch, load_batches
from dna_probe.engines import open_engine, shard_size
from dna_probe.images.sets import ImageSet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone
    from dna_probe.collection import Options

    # Positions and inputs of each batch, on the backbone's device.
    Batches = Iterator[tuple[list[int], Tensor]]
    # The position at which its shard begins, a batch, and what waits until it is on the device.
    Loaded = tuple[int, Batch, Callable[[], Tensor]]

T = TypeVar("T")


@dataclass(eq=False)
class Shard:
    """What was found in some neighbouring images of a set.

    Attributes:
        index: positions of those that could be read, in the order of the rows in ``found``.
        failures: positions of the others, with the reason.
        found: rows by name, moments, or sums, as who asked for it keeps them.
    """

    index: list[int]
    failures: list[tuple[int, str]]
    found: Any = None

    def moved(self, start: int) -> Shard:
        """The same at later positions."""
        return Shard(
            [position + start for position in self.index],
            [(position + start, reason) for position, reason in self.failures],
            self.found,
        )


Take = Callable[[Shard], None]
# Goes over the images and hands each shard to the last argument, in order.
Feed = Callable[["Backbone", ImageSet, "Options", Take], None]


def run_shards(feed: Feed, backbone: Backbone, images: ImageSet, options: Options, take: Take) -> None:
    """Go over the images by the engine of the options; ``take`` gets every shard here and in order.

    Args:
        feed: for another engine than ``local``, something that can be pickled. It is then called with one shard of the
            images at a time, at whose first image positions begin.
    """
    if options.engine == "local":
        feed(backbone, images, options, take)
        return
    size = shard_size(options.batch_size)
    starts = range(0, len(images), size)
    shards = (replace(images.subset(slice(start, start + size)), skipped=()) for start in starts)
    alone = replace(options, engine="local", cache=None, progress=False)
    found = open_engine(options.engine).map(_run_shard, shards, feed, backbone, alone)
    with progress_bar(len(images), options.progress) as advance, closing(found):
        for start, shard in zip(starts, found, strict=True):
            take(shard.moved(start))
            advance(len(shard.index) + len(shard.failures))


def _run_shard(images: ImageSet, feed: Feed, backbone: Backbone, options: Options) -> Shard:
    shards: list[Shard] = []
    feed(backbone, images, options, shards.append)
    (shard,) = shards
    return shard


def feed_shards(
    backbone: Backbone, images: ImageSet, options: Options, work: Callable[[Batches], Any], take: Take
) -> None:
    """``work`` on the batches of each shard, and hand over what it gives."""
    with progress_bar(len(images), options.progress) as advance, closing(_load(backbone, images, options)) as loaded:
        for _, batches in groupby(loaded, key=itemgetter(0)):
            shard = Shard([], [])
            shard.found = work(_listen(shard, batches, advance))
            take(shard)


def _listen(
    shard: Shard, loaded: Iterable[Loaded], advance: Callable[[int], None]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and inputs of the batches, while the shard notes what could be read."""
    for _, batch, arrive in loaded:
        shard.failures += [(position, reason) for position, _, reason in batch.failures]
        shard.index += batch.index
        if batch.index:
            yield batch.index, arrive()
        advance(len(batch.index) + len(batch.failures))


def _load(backbone: Backbone, images: ImageSet, options: Options) -> Generator[Loaded, None, None]:
    """Batches, already on their way to the device; none has images of two shards."""
    size, send = shard_size(options.batch_size), _sender(backbone.device)

    def load() -> Generator[Loaded, None, None]:
        for start in range(0, len(images), size):
            part = images.images[start : start + size]
            for batch in load_batches(part, backbone.preprocessing, options.batch_size, options.workers):
                index = [start + position for position in batch.index]
                failures = [(start + position, name, reason) for position, name, reason in batch.failures]
                yield start, replace(batch, index=index, failures=failures), send(batch.inputs)

    # Else the threads that decode would have nothing to do between two shards.
    return _ahead(load()) if options.workers else load()


def _sender(device: torch.device) -> Callable[[np.ndarray], Callable[[], Tensor]]:
    """What starts to copy a batch to the device, and gives what waits for it there.

    To CUDA from pinned memory and in a stream of its own, so that a batch is copied while the one before is computed.
    """
    import torch

    if device.type != "cuda":
        return lambda inputs: lambda: torch.from_numpy(inputs).to(device)
    copying = torch.cuda.Stream(device)

    def send(inputs: np.ndarray) -> Callable[[], Tensor]:
        with torch.cuda.stream(copying):
            sent = torch.from_numpy(inputs).pin_memory().to(device, non_blocking=True)
            copied = copying.record_event()

        def arrive() -> Tensor:
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            # Else its memory could be given to the next batch while this one is still computed.
            sent.record_stream(current)
            return sent

        return arrive

    return send


def _ahead(values: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same values, each made while the one before it is being used."""
    with closing(values), ThreadPoolExecutor(1, thread_name_prefix="dna-probe-batches") as pool:
        coming = pool.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = pool.submit(next, values, None)
            yield value


def named(images: ImageSet, failures: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """The names, as the set has them, in place of positions."""
    names = images.names if failures else ()
    return [(names[position], reason) for position, reason in failures]


def stream_batches(
    backbone: Backbone, images: ImageSet, options: Options, skipped: list[tuple[str, str]]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and inputs of each batch on the backbone's device; unreadable samples go to ``skipped``."""
    shard = Shard([], [])
    with progress_bar(len(images), options.progress) as advance, closing(_load(backbone, images, options)) as loaded:
        yield from _listen(shard, loaded, advance)
    skipped += named(images, shard.failures)


@contextmanager
def progress_bar(total: int, wanted: bool, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on standard error for work over two seconds; nothing when it is not a terminal."""
    if not wanted:
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(unit, total=total)
        yield lambda step: progress.advance(task, step)
