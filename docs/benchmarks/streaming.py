"""Reading a store: rates of Celler and other readers, what training loses to reading, and memory.

    python docs/benchmarks/streaming.py atlas/store [--rounds 5]

The store is one that docs/benchmarks/atlas.py wrote, or any other. Readers take turns in each round, so that other jobs
on the machine slow all of them alike. Needs the atlas extra.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from processes import measure_alone, peak_mb

from celler._utils._devices import cpu_threads
from celler.atlas._datamodule import DataModule
from celler.atlas._source import CHUNK_ROWS, StoreCells
from celler.atlas._store import BLOCK_ROWS, STORE_NAME, fast_codecs
from celler.data._loader import TokenLoader
from celler.data._samplers import ShuffledSampler
from celler.data._tokenizer import Tokenizer
from celler.model import Celler
from celler.training._plan import TrainingConfig, TrainingPlan

BATCH_SIZE = 128
CONFIG = TrainingConfig(max_epochs=1, batch_size=BATCH_SIZE)
#: Minibatches that a reader gives before the clock starts: it opens files and reads a block.
N_WARM = 4
#: Minibatches in memory for the training steps that read nothing.
N_KEPT = 40


def measure_streaming(dm: DataModule, n_cells: int = 20_000, n_rounds: int = 5) -> dict[str, float]:
    """Medians over rounds: cells/s of annbatch's counts, Celler's tokens and scvi-tools' dense counts.

    Each reader reads ``n_cells`` in a round. ``celler_per_*`` are medians of ratios in the same round;
    ``training_loses`` is the share of a training step's time that is lost to reading.
    """
    with fast_codecs(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse ")  # scvi-tools' reader
        rates = rates_of(readers(dm), n_cells, n_rounds)
        lost = lost_by_training(dm, n_cells // 4, n_rounds)
    found = {f"{name}_cells_per_second": float(np.median(each)) for name, each in rates.items()}
    for other in ("annbatch", "scvi_tools"):
        found[f"celler_per_{other}"] = float(np.median(rates["celler"] / rates[other]))
    return found | {"training_loses": lost}


def measure_training(dm: DataModule) -> dict[str, float]:
    """An epoch of reading, then one of ``train``: seconds, and MiB before, at the peak of each."""
    figures = {"memory_before_mb": peak_mb()}
    for _ in token_minibatches(dm):
        pass
    figures["reading_peak_memory_mb"] = peak_mb()
    start = time.perf_counter()
    Celler(registry=dm.registry).train(1, datamodule=dm, accelerator="cpu", show_progress=False)
    figures["training_seconds"] = time.perf_counter() - start
    return figures | {"training_peak_memory_mb": peak_mb()}


def readers(dm: DataModule) -> dict[str, Iterable[Any]]:
    """Readers of minibatches of 128 random cells, by name."""
    from scvi.dataloaders import AnnbatchDataModule

    dense = AnnbatchDataModule(annbatch_loader(dm, has_obs=True), label_key=dm.labels_key, batch_key=dm.batch_key)
    return {
        "annbatch": annbatch_loader(dm, has_obs=False),
        "celler": token_minibatches(dm),
        "scvi_tools": dense,
    }


def token_minibatches(dm: DataModule) -> Iterable[Any]:
    """Minibatches of tokens of all cells of the store, as training gets them."""
    return token_loader(dm, np.arange(len(dm)))


def token_loader(dm: DataModule, rows: np.ndarray) -> TokenLoader:
    """The loader of ``train(datamodule=dm)``."""
    sampler = ShuffledSampler(rows, BATCH_SIZE, CONFIG.seed)
    source, dropout = StoreCells(dm.store, dm.labels), CONFIG.token_dropout
    return TokenLoader(source, Tokenizer(), sampler, is_log=False, token_dropout=dropout)


def annbatch_loader(dm: DataModule, *, has_obs: bool) -> Any:
    """annbatch alone, with blocks of the size that Celler reads."""
    import anndata
    from annbatch import DatasetCollection, Loader

    loader = Loader(
        chunk_size=CHUNK_ROWS,
        preload_nchunks=BLOCK_ROWS // CHUNK_ROWS,
        batch_size=BATCH_SIZE,
        shuffle=True,
        preload_to_gpu=False,
        rng=np.random.default_rng(0),
    )
    for group in DatasetCollection(dm.store.place.of(STORE_NAME).group()):
        obs = anndata.io.read_elem(group["obs"]) if has_obs else None
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs)
    return loader


def rates_of(readers: dict[str, Iterable[Any]], n_cells: int, n_rounds: int) -> dict[str, np.ndarray]:
    """Cells per second of each reader, by round."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(n_rounds):
        for name, minibatches in readers.items():
            iterator = warmed(minibatches)
            start = time.perf_counter()
            n = sum(1 for _ in islice(iterator, max(1, n_cells // BATCH_SIZE)))
            rates[name].append(n * BATCH_SIZE / (time.perf_counter() - start))
            del iterator  # which ends its threads
    return {name: np.array(found) for name, found in rates.items()}


def warmed(minibatches: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(minibatches)
    for _ in islice(iterator, N_WARM):
        pass
    return iterator


def lost_by_training(dm: DataModule, n_cells: int, n_rounds: int) -> float:
    """Share of a training step's time that reading takes; steps with and without reading take turns."""
    model, rows = Celler(registry=dm.registry), np.flatnonzero(dm.labels >= 0)
    loader = token_loader(dm, rows)
    plan = TrainingPlan(model.module.train(), np.bincount(dm.labels[rows]), CONFIG)
    optimizer = torch.optim.AdamW(model.module.parameters(), fused=True)
    kept = list(islice(loader, N_KEPT))

    def seconds(minibatches: Iterable[Any]) -> float:
        iterator = warmed(minibatches)
        start, n = time.perf_counter(), 0
        for minibatch in islice(iterator, max(1, n_cells // BATCH_SIZE)):
            optimizer.zero_grad()
            plan.loss_of(minibatch).backward()
            optimizer.step()
            n += 1
        return (time.perf_counter() - start) / n

    with cpu_threads(1):
        times = [(seconds(cycle(kept)), seconds(loader)) for _ in range(n_rounds)]
    return float(np.median([1 - without / reading for without, reading in times]))


def main() -> None:
    """Print both measurements, the second from a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="folder that cl.atlas.build wrote")
    parser.add_argument("--labels-key", default="cell_type", help="default: cell_type")
    parser.add_argument("--batch-key", default="donor", help="default: donor")
    parser.add_argument("--cells", type=int, default=20_000, help="read in a round (default: 20000)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dm = DataModule(options.store, labels_key=options.labels_key, batch_key=options.batch_key)
    if options.one:
        print(json.dumps(measure_training(dm)))
        return
    arguments = [
        options.store,
        "--labels-key",
        options.labels_key,
        "--batch-key",
        options.batch_key,
    ]
    found = {
        "reading": measure_streaming(dm, options.cells, options.rounds),
        "training an epoch": measure_alone(__file__, *arguments, "--one"),
    }
    for what, figures in found.items():
        print(f"{what}:")
        for name, value in figures.items():
            print(f"  {name}: {value:,.2f}")


if __name__ == "__main__":
    main()
