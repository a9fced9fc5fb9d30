"""Speed and memory of streaming a store: against raw annbatch, scvi-tools' data module, and no loading at all.

python docs/benchmarks/atlas_stream.py STORE [--cells 60000] [--rounds 3] [--memory]

Readers take turns, so that what else the machine does falls on all of them alike. With --memory only the peak
memory of one epoch of training over the store is measured, in this process.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import zarr

import celler as cl
from celler.model.loaders import Loaders
from celler.model.streaming import StoreSource
from celler.tokenizer import Tokenizer
from celler.training import TrainingConfig, TrainingPlan

BATCH_SIZE = 128


def annbatch_loader(path: Path, *, has_obs: bool):
    """annbatch alone, with blocks of the size that Celler reads."""
    import anndata
    from annbatch import DatasetCollection, Loader

    loader = Loader(
        chunk_size=512, preload_nchunks=8, batch_size=BATCH_SIZE, shuffle=True, preload_to_gpu=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    for group in DatasetCollection(zarr.open_group(path / "cells.zarr", mode="r")):
        obs = anndata.io.read_elem(group["obs"]) if has_obs else None
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs)
    return loader


def readers(dm: cl.atlas.DataModule, path: Path) -> dict[str, Callable[[], Iterable]]:
    """What gives minibatches of 128 cells, by name."""
    from scvi.dataloaders import AnnbatchDataModule

    config = TrainingConfig(max_epochs=1, batch_size=BATCH_SIZE)
    source = StoreSource(dm.store, dm.labels)
    loaders = Loaders(source, Tokenizer(max_genes=2048), False, config)
    tokens = loaders.shuffled(np.arange(len(dm)), None)  # the cells that the others read
    raw = annbatch_loader(path, has_obs=False)
    dense = AnnbatchDataModule(
        annbatch_loader(path, has_obs=True), label_key="cell_type", batch_key="donor"
    )
    return {"annbatch": lambda: raw, "celler": lambda: tokens, "scvi-tools": lambda: dense}


def rate(minibatches: Iterable, n_cells: int) -> float:
    """Cells per second, after the first minibatches, for which files are opened and a block is read."""
    iterator: Iterator = iter(minibatches)
    for _ in islice(iterator, 4):
        pass
    start, n = time.perf_counter(), 0
    for _ in islice(iterator, n_cells // BATCH_SIZE):
        n += BATCH_SIZE
    seconds = time.perf_counter() - start
    iterator.close()
    return n / seconds


def speed(dm: cl.atlas.DataModule, path: Path, n_cells: int, n_rounds: int) -> None:
    """Print cells per second of each reader, and their ratios."""
    each = readers(dm, path)
    rates = {name: [] for name in each}
    for _ in range(n_rounds):
        for name, make in each.items():
            rates[name].append(rate(make(), n_cells))
    for name, found in rates.items():
        print(f"{name:>12}: {np.median(found):9,.0f} cells/s, rounds {np.round(found).astype(int)}")
    ours = np.array(rates["celler"])
    for name in ("annbatch", "scvi-tools"):
        print(f"celler / {name}: {np.median(ours / np.array(rates[name])):.2f}")


def training(dm: cl.atlas.DataModule, n_cells: int, n_rounds: int) -> None:
    """Print what share of the training's time goes to loading: steps with and without it take turns."""
    import torch

    model = cl.model.Celler(registry=dm.registry)
    config = TrainingConfig(max_epochs=1, batch_size=BATCH_SIZE)
    rows = np.flatnonzero(dm.labels >= 0)
    loaders = Loaders(StoreSource(dm.store, dm.labels), model._tokenizer, False, config)
    plan = TrainingPlan(model.module.train(), loaders.class_counts(rows), config)
    optimizer = torch.optim.AdamW(model.module.parameters(), fused=True)
    torch.set_num_threads(1)
    held = list(islice(loaders.shuffled(rows, None), 40))

    def steps(minibatches: Iterable) -> float:
        iterator, n = iter(minibatches), 0
        plan.training_step(next(iterator), 0).backward()
        start = time.perf_counter()
        for minibatch in islice(iterator, n_cells // BATCH_SIZE):
            optimizer.zero_grad()
            plan.training_step(minibatch, 0).backward()
            optimizer.step()
            n += 1
        return (time.perf_counter() - start) / n

    again = (held[i % 40] for i in range(10**9))
    lost = []
    for _ in range(n_rounds):
        without, with_loading = steps(again), steps(loaders.shuffled(rows, None))
        lost.append(1 - without / with_loading)
        print(f"a step takes {1e3 * without:.1f} ms, from the store {1e3 * with_loading:.1f} ms")
    print(f"share of the time lost to loading: {np.median(lost):.1%}, rounds {np.round(lost, 3)}")


def memory(dm: cl.atlas.DataModule, max_epochs: int) -> None:
    """Print the peak memory of a training, everything that train() does included."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    model, start = cl.model.Celler(registry=dm.registry), time.perf_counter()
    model.train(max_epochs, datamodule=dm, accelerator="cpu", show_progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - start
    print(f"{len(dm):,} cells: {before:.2f} GiB before, peak {peak:.2f} GiB, {seconds:.0f} s")
    print(model.history.iloc[-1][["train_loss", "validation_macro_f1"]].to_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if not (args.store / "manifest.json").is_file():
        raise SystemExit(f"{args.store} is no store; make one with celler atlas build.")
    dm = cl.atlas.DataModule(args.store, labels_key="cell_type", batch_key="donor")
    print(dm)
    if args.memory:
        memory(dm, 1)
        return
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})  # for all alike
    speed(dm, args.store, args.cells, args.rounds)
    training(dm, args.cells // 4, args.rounds)


if __name__ == "__main__":
    main()
