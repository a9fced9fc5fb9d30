"""Guard against lost speed: what Celler does often, beside a plain computation on the same cells, in one run.

    python docs/benchmarks/guard.py [--allowed 1.3] [--rounds 5]

A ratio is the shortest processor time of Celler's part over that of the plain one, in rounds that take turns, so the
machine and its other jobs count little. ``EXPECTED`` has the ratios when this was written; the exit code is 1 where one
is more than ``--allowed`` times that. After a change that is meant to cost time, write the new ratio there.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from streaming import annbatch_loader, token_minibatches
from synthetic import synthetic_cells
from torch import nn
from torch.nn import functional as F

import celler as cl
from celler.data._tokenizer import Tokenizer
from celler.training._linear import logistic_regression

EXPECTED = {"start-up": 1.8, "tokens": 0.2, "predict": 2.6, "train": 15.0, "solve": 7.7, "store": 0.65}
N_CELLS, N_CLASSES = 4000, 20


class Part(NamedTuple):
    """What is measured, and a plain computation beside it."""

    name: str
    of_celler: Callable[[], object]
    plain: Callable[[], object]


def log_values(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """log1p of counts per 10,000."""
    return sparse.csr_matrix(sparse.diags_array(1e4 / np.asarray(X.sum(axis=1)).ravel()) @ X).log1p()


def steps(X: torch.Tensor, codes: torch.Tensor) -> None:
    """Train two layers on dense values, an epoch in minibatches of 32."""
    network = nn.Sequential(nn.Linear(X.shape[1], 128), nn.GELU(), nn.Linear(128, N_CLASSES))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for rows in torch.randperm(len(X)).split(32):
        optimizer.zero_grad()
        F.cross_entropy(network(X[rows]), codes[rows]).backward()
        optimizer.step()


def python(code: str) -> Callable[[], object]:
    """A fresh interpreter that runs ``code``."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def parts(folder: Path) -> Iterator[Part]:
    """All parts, on synthetic cells."""
    cells = synthetic_cells(N_CELLS, n_classes=N_CLASSES)
    genes, codes = np.arange(cells.n_vars, dtype=np.int32), cells.obs["cell_type"].cat.codes.to_numpy()
    X = log_values(cells.X)
    dense, table = torch.from_numpy(X.toarray()), np.ones((cells.n_vars, N_CLASSES), np.float32)
    cl.model.Celler.setup_anndata(cells, labels_key="cell_type")
    model = cl.model.Celler(cells)

    def train() -> None:
        model.train(1, train_size=1.0, refit=False, batch_size=32, class_prior=0.0, show_progress=False)

    def values() -> None:
        np.argsort(log_values(cells.X).data.reshape(N_CELLS, -1), axis=1)

    train()
    yield Part("start-up", python("import celler"), python("import json"))
    yield Part("tokens", lambda: Tokenizer()(cells.X, genes), values)
    yield Part("predict", lambda: model.predict(cells), lambda: (log_values(cells.X) @ table).argmax(axis=1))
    yield Part("train", train, lambda: steps(dense, torch.from_numpy(codes).long()))
    yield Part("solve", lambda: logistic_regression(X, codes, N_CLASSES), lambda: [X @ table for _ in range(20)])
    if find_spec("annbatch") is not None:
        yield store(cells, folder / "store")


def store(cells: AnnData, path: Path) -> Part:
    """An epoch of tokens from a store, beside annbatch's counts of the same cells."""
    cl.atlas.build([cells], path, labels_key="cell_type", test_size=0.0)
    dm = cl.atlas.DataModule(path, labels_key="cell_type")
    both = token_minibatches(dm), annbatch_loader(dm, has_obs=False)
    return Part("store", *(lambda reader=reader: [list(reader) for _ in range(5)] for reader in both))


def processor_time() -> float:
    """Seconds of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = processor_time()
    run()
    return processor_time() - start


def ratio(part: Part, n_rounds: int) -> float:
    """Shortest time of Celler over that of the plain computation."""
    part.of_celler(), part.plain()
    times = [(seconds(part.of_celler), seconds(part.plain)) for _ in range(n_rounds)]
    of_celler, plain = (min(each) for each in zip(*times, strict=True))
    return of_celler / plain


def main() -> None:
    """Print the ratios, and exit with 1 where one is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allowed", type=float, default=1.3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    is_slow = False
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(Path(folder)):
            found = ratio(part, arguments.rounds)
            too_slow = found > arguments.allowed * EXPECTED[part.name]
            is_slow |= too_slow
            print(f"{part.name:10} {found:6.2f}, expected {EXPECTED[part.name]:.2f}{', TOO SLOW' if too_slow else ''}")
    raise SystemExit(int(is_slow))


if __name__ == "__main__":
    main()
