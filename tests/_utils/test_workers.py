"""Workers: the order of results, what they share, errors, warnings and ends, with this process in their place."""

import warnings
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from worker_cases import stand_in

from celler._utils import _workers
from celler._utils._workers import Done, are_worth, in_order

CPU = torch.device("cpu")


def scaled(shared: torch.Tensor, task: int) -> float:
    if task == 3:
        raise ValueError("a task that cannot be done")
    if task == 4:
        warnings.warn("a task with a doubt", UserWarning, stacklevel=1)
        warnings.warn("of no concern to users", DeprecationWarning, stacklevel=1)
    return float(shared * task)


def test_in_order_gives_results_errors_and_warnings_in_order(monkeypatch):
    begun = stand_in(monkeypatch)
    found = list(in_order(scaled, torch.tensor(2.0), range(6), [CPU, CPU]))
    assert found == [
        Done(0, []),
        Done(2, []),
        Done(4, []),
        Done(None, []),
        Done(8, ["a task with a doubt"]),
        Done(10, []),
    ]
    assert [i for i, _, _ in begun] == [0, 1, 0, 1, 0, 1]


def test_in_order_asks_for_two_tasks_a_process(monkeypatch):
    begun = stand_in(monkeypatch)
    results = in_order(scaled, torch.tensor(1.0), range(1000), [CPU, CPU])
    next(results)
    assert len(begun) == 4
    results.close()
    assert len(begun) == 4


@pytest.mark.parametrize(("n_allowed", "n_own", "expected"), [(16, 16, 4), (16, 2, 2), (2, 2, 1)])
def test_in_order_shares_the_cores(monkeypatch, n_allowed, n_own, expected):
    begun = stand_in(monkeypatch)
    monkeypatch.setattr(_workers.joblib, "cpu_count", lambda: n_allowed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_own)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    list(in_order(scaled, torch.tensor(1.0), range(2), [CPU] * 4))
    assert {n_threads for _, _, n_threads in begun} == {expected}


@pytest.mark.parametrize(
    ("error", "raised"), [(BrokenProcessPool, RuntimeError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_in_order_ends_all_processes(monkeypatch, error, raised):
    """Where one of them ended for lack of memory, and at Ctrl-C."""
    ended = []

    class Pool:
        def submit(self, *_):
            future: Future = Future()
            future.set_exception(error())
            return future

        def shutdown(self, *, kill_workers: bool):
            ended.append(kill_workers)

    monkeypatch.setattr(_workers, "_workers", [Pool(), Pool()])
    monkeypatch.setattr(_workers, "_worker", None)
    with pytest.raises(raised, match="lack of memory. Pass a smaller number" if raised is RuntimeError else None):
        list(in_order(scaled, torch.tensor(1.0), range(4), [CPU, CPU]))
    assert ended == [True, True]
    assert _workers._workers == []


def test_a_process_that_ended_is_replaced(monkeypatch):
    class Ended:
        def submit(self, *_):
            raise BrokenProcessPool

    class New:
        def submit(self, function, *arguments):
            future: Future = Future()
            future.set_result(Done(arguments[-1] if arguments else None, []))
            return future

    monkeypatch.setattr(_workers, "_workers", [Ended()])
    monkeypatch.setattr(_workers, "_worker", New)
    assert [done.result for done in in_order(scaled, torch.tensor(1.0), range(3), [CPU, CPU])] == [0, 1, 2]


def test_are_worth_by_the_time_that_they_save(monkeypatch):
    """Half of the time with two processes, against six seconds to start them, once."""
    monkeypatch.setattr(_workers, "_workers", [])
    assert [are_worth(seconds, 2) for seconds in (1, 11, 13)] == [False, False, True]
    assert not are_worth(7, 4)
    assert are_worth(9, 4)
    assert are_worth(0.1, 1)  # another GPU was asked for
    monkeypatch.setattr(_workers, "_workers", [object(), object()])
    monkeypatch.setattr(_workers.time, "monotonic", lambda: 1000.0)
    for last, expected in ((900.0, True), (600.0, False)):
        monkeypatch.setattr(_workers, "_last_use", [last])
        assert are_worth(1, 2) is expected
        assert not are_worth(1, 4)
