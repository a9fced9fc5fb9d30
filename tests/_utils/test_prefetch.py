"""Prefetching: order, errors, bounds, overlap, and threads that end."""

import signal
import threading
import time

import pytest

from celler._utils._prefetch import prefetch


def n_threads() -> int:
    return sum(thread.name.startswith("celler-prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("n", [1, 2, 100])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_prefetch_gives_all_items_in_order(n, length):
    assert list(prefetch(range(length), n)) == list(range(length))
    assert n_threads() == 0


def test_prefetch_with_items_that_are_none_or_errors():
    items = [None, ValueError("an item, not raised"), []]
    assert list(prefetch(items, 2)) == items


def test_prefetch_makes_an_item_while_another_is_used():
    is_made = threading.Event()

    def items():
        yield 1
        is_made.set()
        yield 2

    ahead = prefetch(items())
    assert next(ahead) == 1
    assert is_made.wait(10), "the second was not made before it was asked for"
    assert list(ahead) == [2]


def test_prefetch_makes_no_more_than_n_ahead():
    made, was_made = [], threading.Semaphore(0)

    def items():
        for i in range(10):
            made.append(i)
            yield i
            was_made.release()

    ahead = prefetch(items(), 2)
    next(ahead)
    # Item 0 is in work, so 1 and 2 may wait, and no place is free for 3 until 1 is asked for.
    for _ in range(2):
        assert was_made.acquire(timeout=10)
    assert not was_made.acquire(timeout=0.05)
    assert made == [0, 1, 2]
    assert list(ahead) == list(range(1, 10))


def test_prefetch_with_an_error_raises_it_in_its_place():
    def items():
        yield from range(3)
        raise KeyError("fourth")

    ahead = prefetch(items(), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="fourth") as raised:
        next(ahead)
    assert "items" in [entry.name for entry in raised.traceback], "says where it was raised"
    assert n_threads() == 0


def test_prefetch_with_no_iterable():
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(3, 1))


def test_prefetch_with_a_caller_that_stops_ends_the_thread_and_closes_the_source():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(n_threads())

    for _ in prefetch(items(), 2):
        break
    ahead = prefetch(items(), 2)
    next(ahead)
    ahead.close()
    with pytest.raises(RuntimeError, match="the caller's"):
        fail_over(prefetch(items(), 2))
    assert n_threads() == 0
    assert closed == [0] * 3, "closed once each, after the thread has ended"


def fail_over(items):
    for _ in items:
        raise RuntimeError("the caller's own error")


def test_prefetch_starts_with_the_first_next():
    ahead = prefetch(iter([1]), 1)
    assert n_threads() == 0
    assert list(ahead) == [1]


def test_prefetch_that_is_dropped_keeps_an_interrupt():
    """Python ignored Ctrl-C while the generator of an epoch waited for its thread, and the training went on."""

    def slow():
        yield 0
        time.sleep(0.5)
        yield 1

    def drop(items):
        items.clear()
        time.sleep(2)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        items = [prefetch(slow())]
        next(items[0])
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            drop(items)
    finally:
        signal.signal(signal.SIGINT, before)
    assert n_threads() == 0
