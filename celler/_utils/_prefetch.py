"""Prefetch: what an iterable gives next is made in a thread while the caller works on what it gave."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["prefetch"]
Item = TypeVar("Item")


def prefetch(iterable: Iterable[Item], n: int = 1) -> Iterator[Item]:
    """The items of ``iterable`` in their order, at most ``n`` of them made before they are asked for.

    While the caller works on an item the next ``n`` are made, so that ``n + 1`` are in memory.

    One thread makes them, so that it pays where making an item releases the GIL: compiled code, reading. An
    error is raised where its item would have come. The thread starts with the first item that is asked for; it
    has ended, and a generator that it ran is closed, when the last item was taken or the iterator is closed.
    """
    if n < 1:
        raise ValueError(f"n={n} was given; at least 1 is needed.")
    return _ahead(iterable, n)


def _ahead(iterable: Iterable[Item], n: int) -> Iterator[Item]:
    slots, is_stopped = threading.Semaphore(n), threading.Event()
    ready: SimpleQueue[tuple[list[Item], BaseException | None]] = SimpleQueue()

    def work() -> None:
        iterator: Iterator[Item] = iter(())
        try:
            iterator = iter(iterable)
            while slots.acquire() and not is_stopped.is_set():
                ready.put(([next(iterator)], None))
        except StopIteration:
            ready.put(([], None))
        except BaseException as error:  # noqa: BLE001
            ready.put(([], error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, name="celler-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            items, error = ready.get()
            if error is not None:
                raise error
            if not items:
                return
            slots.release()
            yield items.pop()
    finally:
        is_stopped.set()
        slots.release()
        thread.join()
