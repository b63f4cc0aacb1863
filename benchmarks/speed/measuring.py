"""Peak memory, in a process of its own; and the tables that all sections give."""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from collection import resident

from dna_probe.evaluation import wording

THREADS = 2
PAGE = 4096 / 1e6


@dataclass(frozen=True)
class Block:
    """A table: what it is, and its rows, column -> number, sentence or None where it does not apply."""

    title: str
    rows: list[dict[str, Any]]

    @property
    def head(self) -> list[str]:
        return list(self.rows[0])

    @property
    def lines(self) -> list[list[str]]:
        return [[shown(row.get(column)) for column in self.head] for row in self.rows]


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"
    return wording.NONE if value is None else str(value)


@dataclass(frozen=True)
class Peak:
    """Megabytes: ``above``, the highest resident memory of some runs over what was resident before; ``process``, it."""

    above: float
    process: float

    def over(self, other: "Peak") -> float:
        """Ratio of what runs needed; a page is the least that can be told."""
        return self.above / max(other.above, PAGE)


def peak_of(run: Callable[[], object], times: int = 3) -> Peak:
    """The peak over some runs, from the kernel's own high-water mark, which is set back first.

    Not ``ru_maxrss``: a process starts with that of the one that started it.
    """
    gc.collect()
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(times):
        run()
    status = Path("/proc/self/status").read_text()
    highest = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return Peak(highest - before, highest)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` in a fresh process, so that nothing of another measurement is resident in it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (THREADS,)) as pool:
        return pool.submit(function, *arguments).result()
