"""Where the work is done: in this process, in several processes of this machine, or on a Ray cluster.

An engine calls a function on each of some parts and gives the results in the order of the parts. How the work is
divided depends on the work alone, never on how many workers there are, so that every engine gives the same results.
Scheduling, transport, and the replacement of workers that died are joblib's and Ray's.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from dna_probe.errors import BackboneError, DnaProbeError, needs_extra, unknown_name

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

ENGINES = ("local", "ray")
# Images in one task, rounded up to whole batches: what is computed again where a worker dies.
SHARD = 64
# How often Ray gives a task to another worker when the one that had it died.
MAX_RETRIES = 3
# Tasks handed to Ray ahead of the one whose result is waited for, for each core of the cluster.
AHEAD = 4


class Engine(Protocol):
    """A place to work in."""

    def map(self, function: Callable[..., Any], parts: Iterable[Any], *shared: Any) -> Generator[Any, None, None]:
        """``function(part, *shared)`` of each part, in their order; closed before the end, it gives up the others."""


def open_engine(name: str, jobs: int = 1) -> Engine:
    """The engine of this name in ``ENGINES``.

    Args:
        jobs: processes of ``local``; with one, this process does the work itself.

    Raises:
        DnaProbeError: a mistyped name, Ray is not installed, or its cluster is out of reach.
    """
    if name == "ray":
        return Cluster.connect()
    if name != "local":
        raise unknown_name("engine", name, ENGINES)
    return Processes(jobs) if jobs > 1 else Local()


def shard_size(batch_size: int) -> int:
    """Images in one task: whole batches, so that dividing the images never divides a batch."""
    return -(-SHARD // batch_size) * batch_size


@dataclass(frozen=True)
class Local:
    """This process, one part after another."""

    def map(self, function: Callable[..., Any], parts: Iterable[Any], *shared: Any) -> Generator[Any, None, None]:
        yield from (function(part, *shared) for part in parts)


@dataclass(frozen=True)
class Processes:
    """Several processes of this machine, through joblib, each of which keeps to one thread."""

    jobs: int

    def map(self, function: Callable[..., Any], parts: Iterable[Any], *shared: Any) -> Generator[Any, None, None]:
        from joblib import Parallel, delayed, parallel_config

        # Arrays are shared through files instead of being copied to every process.
        with parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=1):
            pool = Parallel(return_as="generator", max_nbytes="1M")
            try:
                yield from pool(delayed(function)(part, *shared) for part in parts)
            except BrokenExecutor as error:
                raise DnaProbeError(
                    "A process that worked on a part of this died",
                    "The machine may be out of memory",
                    "Take fewer --jobs; what was finished is kept",
                ) from error


@dataclass(frozen=True)
class Cluster:
    """The workers of a Ray cluster. A part is one task, which reserves one core, and one GPU if a backbone is on one.

    What is shared is put into the object store once; a backbone goes there as a pickle and is unpacked once by each
    worker. A task whose worker or machine died is given to another, ``MAX_RETRIES`` times. An error that the function
    raises is raised here; it would only be raised again.
    """

    @classmethod
    def connect(cls) -> Cluster:
        """The cluster that this process is connected to, that RAY_ADDRESS names or that runs on this machine already;
        else one of this machine's cores, which ends with this process.

        Raises:
            DnaProbeError: Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise needs_extra("The engine 'ray'", "ray", "ray") from error
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS", "")
            try:
                _knock(address)
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # of a cluster that does not come up, Ray raises no kind of its own
                raise DnaProbeError(
                    f"There is no Ray cluster at {address}" if address else "Ray did not start on this machine",
                    _first_line(error),
                    "Start one (ray start --head) and give its address as RAY_ADDRESS",
                ) from error
        return cls()

    def map(self, function: Callable[..., Any], parts: Iterable[Any], *shared: Any) -> Generator[Any, None, None]:
        import ray

        packed = [_Parcel.pack(value) if _is_backbone(value) else value for value in shared]
        kept: Any = ray.put((os.getcwd(), packed))
        on_gpu = any(isinstance(value, _Parcel) and value.device == "cuda" for value in packed)
        if on_gpu and not ray.cluster_resources().get("GPU"):
            raise DnaProbeError(
                "No machine of the cluster has a GPU",
                "The backbone is on one, and so would each task be",
                "Use --device cpu, or add a machine with a GPU",
            )
        task = ray.remote(_call).options(num_cpus=1, num_gpus=int(on_gpu), max_retries=MAX_RETRIES)
        pending: deque[Any] = deque()
        try:
            for part in parts:
                pending.append(task.remote(kept, function, part))
                # Asked each time, for a cluster may grow.
                if len(pending) > AHEAD * ray.cluster_resources().get("CPU", 1):
                    yield _result(pending.popleft())
            while pending:
                yield _result(pending.popleft())
        finally:
            for ref in pending:
                # By force: an interrupt may hit an import, and the process would go on with half a module.
                ray.cancel(ref, force=True)


def _knock(address: str) -> None:
    """Raises ``OSError`` where nothing listens at HOST:PORT, for which Ray would wait many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _call(kept: tuple[str, Sequence[Any]], function: Callable[..., Any], part: Any) -> Any:
    """What a worker does."""
    folder, packed = kept
    # Paths mean the same as where the run was started, if that folder is there.
    if os.path.isdir(folder):
        os.chdir(folder)
    return function(part, *(_unpack(value) if isinstance(value, _Parcel) else value for value in packed))


def _result(ref: Any) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(ref)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, DnaProbeError):
            raise error.cause from None
        raise
    except exceptions.RayError as error:
        raise DnaProbeError(
            f"The workers that had a part of the work died, {MAX_RETRIES + 1} of them",
            _first_line(error),
            "Look at their memory: fewer workers on a machine, or a smaller --batch-size, need less",
        ) from error


@dataclass(frozen=True)
class _Parcel:
    """A backbone on its way to the workers; ``key`` tells what was sent from all else."""

    key: str
    device: str
    content: Any = field(compare=False, repr=False)

    @classmethod
    def pack(cls, backbone: Backbone) -> _Parcel:
        """The parcel sent before, unless weights or device have changed since, or the connection.

        Raises:
            BackboneError: it cannot be pickled.
        """
        import ray

        state = ray.get_runtime_context().get_worker_id(), backbone.weight_hash, backbone.device.type
        before, parcel = _SENT.get(backbone, (None, None))
        if parcel is None or before != state:
            content = ray.put(_pickle(backbone))
            parcel = cls(content.hex(), backbone.device.type, content)
            _SENT[backbone] = state, parcel
        return parcel


_SENT: WeakKeyDictionary[Any, tuple[tuple[str, ...], _Parcel]] = WeakKeyDictionary()


# Two: a backbone and its untrained control.
@lru_cache(maxsize=2)
def _unpack(parcel: _Parcel) -> Backbone:
    import pickle

    import ray

    backbone = pickle.loads(ray.get(parcel.content))
    backbone.module.to(parcel.device)
    return backbone


def _is_backbone(value: Any) -> bool:
    contract = sys.modules.get("dna_probe.backbones.contract")
    return contract is not None and isinstance(value, contract.Backbone)


def _pickle(backbone: Backbone) -> bytes:
    from ray import cloudpickle

    shipped = copy(backbone)
    if backbone.device.type != "cpu":
        shipped.module = deepcopy(backbone.module).cpu()
    try:
        with _by_value({type(part).__module__ for part in (*backbone.module.modules(), backbone.preprocessing)}):
            return cloudpickle.dumps(shipped)
    except Exception as error:  # whatever the __reduce__ of a stranger's module raises
        raise BackboneError(
            f"{backbone.name} cannot be sent to the workers",
            f"It cannot be pickled: {_first_line(error)}",
            "Keep locks, open files, generators and parametrised layers out of the module, or use --engine local",
        ) from error


@contextmanager
def _by_value(names: Iterable[str]) -> Iterator[None]:
    """Classes of these Python modules are pickled with their code where they belong to no installed package: files
    given as path/to/file.py:factory, and the user's own beside a script."""
    from ray import cloudpickle

    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    own = [
        module
        for name in names
        if (module := sys.modules.get(name)) is not None
        and name.partition(".")[0] not in ("dna_probe", "__main__")
        and not (_file_of(module).startswith(installed) or name in cloudpickle.list_registry_pickle_by_value())
    ]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _file_of(module: ModuleType) -> str:
    return os.path.abspath(getattr(module, "__file__", None) or sys.prefix)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
