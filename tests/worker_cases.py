"""Workers for tests: this process in their place, and a query that is large enough for real ones."""

import pickle
from concurrent.futures import Future

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from celler._utils import _workers


def begin_at_once(monkeypatch) -> None:
    """Processes are worth their start, however few cells there are."""
    monkeypatch.setattr(_workers, "START_SECONDS", -1.0)
    monkeypatch.setattr(_workers, "WARM_SECONDS", -1.0)


def stand_in(monkeypatch) -> list[tuple]:
    """Let this process do what workers would; the list fills with process, device and threads of each task."""
    done: list[tuple] = []

    def submit(i, function, *arguments):
        done.append((i, *arguments[1:3]))
        future: Future = Future()
        function, *arguments = pickle.loads(pickle.dumps((function, *arguments)))
        future.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return future

    begin_at_once(monkeypatch)
    monkeypatch.setattr(_workers, "_submit", submit)
    monkeypatch.setattr(_workers, "_settle", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return done


def drawn(cells: ad.AnnData, n_obs: int) -> ad.AnnData:
    """``n_obs`` cells like ``cells``, with names of their own."""
    rng = np.random.default_rng(0)
    rows = rng.integers(cells.n_obs, size=n_obs)
    X = rng.poisson(cells.X[rows].toarray()).astype(np.float32)
    X[X.sum(axis=1) == 0, 0] = 1
    found = ad.AnnData(sparse.csr_matrix(X), var=cells.var[[]])
    found.obs_names = [f"drawn {i}" for i in range(n_obs)]
    return found
