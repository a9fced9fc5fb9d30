"""Prefetch: a thread makes the next items of an iterable while the caller uses the last one."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")


def prefetch(iterable: Iterable[Item], n: int = 1) -> Iterator[Item]:
    """Return the items of ``iterable`` in order, up to ``n`` of them made ahead; ``n + 1`` are in memory.

    This pays where making an item releases the GIL: compiled code, reading. An error is raised in the place of its
    item. The thread starts with the first ``next`` and ends, and closes a generator, with the last item or earlier.
    """
    iterator, end = iter(iterable), cast(Item, object())
    thread = ThreadPoolExecutor(1, "celler-prefetch")
    waiting = deque(thread.submit(next, iterator, end) for _ in range(n))
    try:
        while (item := waiting.popleft().result()) is not end:
            # Before the caller gets the item, so that the next one is made while it is used.
            waiting.append(thread.submit(next, iterator, end))
            yield item
    finally:
        try:
            thread.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            # Python ignores errors while a generator that nobody uses any more is closed: Ctrl-C comes again after it.
            thread.shutdown(cancel_futures=True)
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        if hasattr(iterator, "close"):
            iterator.close()
