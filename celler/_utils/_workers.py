"""Workers: a function run on many tasks by several processes, each with a device of its own; results in order."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import joblib
import torch
from joblib.externals.loky import ProcessPoolExecutor

from celler._utils._devices import one_blas_thread

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

#: Pools of one process each: the i-th process keeps its device. They wait for the next call.
_workers: list[ProcessPoolExecutor] = []
_last_use = [0.0]
IDLE_SECONDS = 300  #: after which a process without work ends
#: What processes take to start and to import the package, and what those that wait take to load a model.
START_SECONDS, WARM_SECONDS = 6.0, 0.2


class Done(NamedTuple):
    """What a worker made of a task: ``None`` where it raised ``ValueError``, and the messages of its warnings."""

    result: Any
    messages: list[str]


def are_worth(seconds: float, n_workers: int) -> bool:
    """Whether this many processes save more time than they take to start, of the ``seconds`` that this one takes."""
    is_warm = len(_workers) >= n_workers and time.monotonic() < _last_use[0] + IDLE_SECONDS
    return n_workers == 1 or seconds * (1 - 1 / n_workers) > (WARM_SECONDS if is_warm else START_SECONDS)


def in_order(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Iterable[Task],
    devices: Sequence[torch.device],
) -> Generator[Done, None, None]:
    """Return ``function(shared, task)`` of each task in their order; two tasks for each of ``devices`` are under way.

    Each process gets the tensors of ``shared`` on its device. Where a task raises ``ValueError``, the caller does it
    again and raises the error of one process: a worker does not know the names of cells, and its error may not pickle.
    """
    n_threads = min(torch.get_num_threads(), max(1, joblib.cpu_count() // len(devices)))
    # loky neither forks nor imports the user's script, so it works in notebooks and without a guard in scripts.
    with tempfile.TemporaryDirectory(prefix="celler-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "shared.pt"
        torch.save(shared, path)
        begin = lambda i, task: _submit(i, _work, str(path), str(devices[i]), n_threads, function, task)
        try:
            yield from _results(tasks, begin, len(devices))
        except BrokenProcessPool as error:
            stop_workers()
            raise RuntimeError(
                f"one of the {len(devices)} processes of devices= ended before its work was done, most likely for lack "
                "of memory. Pass a smaller number, or leave devices out."
            ) from error
        except (KeyboardInterrupt, SystemExit):
            stop_workers()
            raise
        finally:
            # Memory and files are free again when the caller goes on; after an error the present tasks end first.
            with suppress(BrokenProcessPool):
                wait([worker.submit(_forget) for worker in _workers[: len(devices)]])


def _results(
    tasks: Iterable[Task], begin: Callable[[int, Task], Future[Done]], n_workers: int
) -> Generator[Done, None, None]:
    """Give each process the next of its tasks before the result of the last one is used."""
    waiting: deque[Future[Done]] = deque()
    try:
        for k, task in enumerate(tasks):
            waiting.append(begin(k % n_workers, task))
            if len(waiting) >= 2 * n_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        _last_use[0] = time.monotonic()
    finally:
        for future in waiting:
            future.cancel()


def stop_workers() -> None:
    """End all processes, whatever they do."""
    while _workers:
        _workers.pop().shutdown(kill_workers=True)


def _submit(i: int, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Give the i-th process something to do; one that has ended, as by a lack of memory, is replaced."""
    while len(_workers) <= i:
        _workers.append(_worker())
    try:
        return _workers[i].submit(function, *arguments)
    except BrokenProcessPool:
        _workers[i] = _worker()
        return _workers[i].submit(function, *arguments)


def _worker() -> ProcessPoolExecutor:
    # The parent ends its processes at Ctrl-C, which reaches those of a terminal or a notebook too.
    interrupt = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(1, timeout=IDLE_SECONDS, initializer=signal.signal, initargs=interrupt)


@one_blas_thread
def _work(path: str, device: str, n_threads: int, function: Callable[[Any, Any], Any], task: Any) -> Done:
    """Run a task in a worker."""
    _settle()
    torch.set_num_threads(n_threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", kind)
        try:
            result = function(_shared(path, device), task)
        except ValueError:
            result = None
    return Done(result, [str(one.message) for one in caught])


@cache
def _settle() -> None:
    """Leave the modules that a worker has loaded alone, until it ends and then."""
    # loky collects garbage every second, for a third of the time if all that was imported is looked through.
    gc.freeze()
    # The parent would wait while they are taken apart.
    atexit.register(signal.raise_signal, signal.SIGTERM)


@lru_cache(maxsize=1)
def _shared(path: str, device: str) -> Any:
    """Load what the tasks of one call share."""
    return torch.load(path, map_location=device, weights_only=False)


def _forget() -> None:
    """Free what the tasks of a call shared, and close its files."""
    _shared.cache_clear()
    gc.collect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.clear)  # a forked process has no processes of its parent
