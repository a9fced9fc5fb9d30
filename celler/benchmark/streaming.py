"""Streaming a store: cells per second beside other readers, what training loses to it, and its memory."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from celler._utils._devices import cpu_threads
from celler.atlas._datamodule import DataModule
from celler.atlas._source import CHUNK_ROWS, StoreCells
from celler.atlas._store import BLOCK_ROWS, PIPELINE, STORE_NAME
from celler.benchmark._process import run_script
from celler.data._loader import TokenLoader
from celler.model import Celler
from celler.training._plan import TrainingConfig, TrainingPlan

BATCH_SIZE = 128
CONFIG = TrainingConfig(max_epochs=1, batch_size=BATCH_SIZE)
#: Minibatches that a reader gives before the clock starts: files are opened and a block is read.
N_WARM = 4
#: Minibatches in memory that training takes again and again where nothing is read.
N_KEPT = 40
#: A process of its own: the peak is the training's alone.
SCRIPT = """
import json, sys, time
import celler as cl
from celler.benchmark._process import memory_mb
from celler.benchmark.streaming import token_minibatches
dm = cl.atlas.DataModule(sys.argv[1], labels_key=sys.argv[2])
figures = {"memory_before_mb": memory_mb("VmHWM")}
for _ in token_minibatches(dm):
    pass
figures["reading_peak_memory_mb"] = memory_mb("VmHWM")
begin = time.perf_counter()
model = cl.model.Celler(registry=dm.registry)
model.train(1, datamodule=dm, accelerator="cpu", show_progress=False)
figures["training_seconds"] = time.perf_counter() - begin
print(json.dumps(figures | {"training_peak_memory_mb": memory_mb("VmHWM")}))
"""


def measure_streaming(
    store: str | os.PathLike[str],
    *,
    labels_key: str = "cell_type",
    batch_key: str = "donor",
    n_cells: int = 20_000,
    n_rounds: int = 5,
) -> dict[str, float]:
    """Medians over ``n_rounds``, in each of which all take their turn: what else the machine does falls on all alike.

    store: a folder that :func:`celler.atlas.build` wrote. labels_key, batch_key: its columns; scvi-tools' reader wants
    both. n_cells: read by each reader in a round, in minibatches of 128.

    Returns cells per second of annbatch's counts, Celler's tokens and scvi-tools' dense counts, the medians of the
    two ratios, and the share of training's time on the processor that is lost to reading. Raises ``ImportError``
    without the atlas extra.
    """
    import zarr

    dm = DataModule(store, labels_key=labels_key, batch_key=batch_key)
    codecs = {"codec_pipeline.path": PIPELINE} if find_spec("zarrs") else {}
    with zarr.config.set(codecs), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ")  # scvi-tools' reader
        rates = _rates(_readers(dm), n_cells, n_rounds)
        lost = _lost_by_training(dm, n_cells // 4, n_rounds)
    found = {f"{name}_cells_per_second": float(np.median(each)) for name, each in rates.items()}
    for other in ("annbatch", "scvi_tools"):
        found[f"celler_per_{other}"] = float(np.median(rates["celler"] / rates[other]))
    return found | {"training_loses": lost}


def measure_training(
    store: str | os.PathLike[str], *, labels_key: str = "cell_type"
) -> dict[str, float]:
    """An epoch of reading and one of ``train`` over the whole store, in a process of their own.

    Returns seconds of training, and MiB before, at the peak of reading, and at that of all.

    Raises ``RuntimeError`` with what it said where it fails.
    """
    return run_script(SCRIPT, str(store), labels_key)


def _readers(dm: DataModule) -> dict[str, Iterable[Any]]:
    """What gives minibatches of 128 random cells, by name."""
    from scvi.dataloaders import AnnbatchDataModule

    dense = AnnbatchDataModule(
        _annbatch(dm, has_obs=True), label_key=dm.labels_key, batch_key=dm.batch_key
    )
    return {
        "annbatch": _annbatch(dm, has_obs=False),
        "celler": token_minibatches(dm),
        "scvi_tools": dense,
    }


def token_minibatches(dm: DataModule) -> Iterable[Any]:
    """Minibatches of tokens of all cells of the store, as training is given them."""
    return _loaders(dm, Celler(registry=dm.registry)).shuffled(np.arange(len(dm)), None)


def _loaders(dm: DataModule, model: Celler) -> TokenLoader:

    return TokenLoader(
        StoreCells(dm.store, dm.labels),
        model._tokenizer,
        False,
        CONFIG.batch_size,
        CONFIG.seed,
        CONFIG.token_dropout,
    )


def _annbatch(dm: DataModule, *, has_obs: bool) -> Any:
    """Annbatch alone, with blocks of the size that Celler reads."""
    import anndata
    import zarr
    from annbatch import DatasetCollection, Loader

    loader = Loader(
        chunk_size=CHUNK_ROWS,
        preload_nchunks=BLOCK_ROWS // CHUNK_ROWS,
        batch_size=BATCH_SIZE,
        shuffle=True,
        preload_to_gpu=False,
        rng=np.random.default_rng(0),
    )
    for group in DatasetCollection(zarr.open_group(dm.store.path / STORE_NAME, mode="r")):
        obs = anndata.io.read_elem(group["obs"]) if has_obs else None
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs)
    return loader


def _rates(readers: dict[str, Iterable[Any]], n_cells: int, n_rounds: int) -> dict[str, np.ndarray]:
    """Cells per second of each reader, by round."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(n_rounds):
        for name, minibatches in readers.items():
            iterator = _warmed(minibatches)
            start = time.perf_counter()
            n = sum(1 for _ in islice(iterator, max(1, n_cells // BATCH_SIZE)))
            rates[name].append(n * BATCH_SIZE / (time.perf_counter() - start))
            del iterator  # which ends its threads
    return {name: np.array(found) for name, found in rates.items()}


def _warmed(minibatches: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(minibatches)
    for _ in islice(iterator, N_WARM):
        pass
    return iterator


def _lost_by_training(dm: DataModule, n_cells: int, n_rounds: int) -> float:
    """Share of the time of training steps that goes to reading; steps with and without it take turns."""
    model, rows = Celler(registry=dm.registry), np.flatnonzero(dm.labels >= 0)
    loaders = _loaders(dm, model)
    plan = TrainingPlan(model.module.train(), loaders.class_counts(rows), CONFIG)
    optimizer = torch.optim.AdamW(model.module.parameters(), fused=True)
    kept = list(islice(loaders.shuffled(rows, None), N_KEPT))

    def seconds(minibatches: Iterable[Any]) -> float:
        iterator = _warmed(minibatches)
        start, n = time.perf_counter(), 0
        for minibatch in islice(iterator, max(1, n_cells // BATCH_SIZE)):
            optimizer.zero_grad()
            plan.training_step(minibatch, 0).backward()
            optimizer.step()
            n += 1
        return (time.perf_counter() - start) / n

    with cpu_threads(1):
        times = [
            (seconds(cycle(kept)), seconds(loaders.shuffled(rows, None))) for _ in range(n_rounds)
        ]
    return float(np.median([1 - without / reading for without, reading in times]))
