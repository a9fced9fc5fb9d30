"""Ceilings of this machine, and how near Celler comes to them.

    python docs/benchmarks/speed.py [--encoder latent|transformer] [--large] [--device cuda] [--out speed.csv]

The cells are synthetic: 500 of 3,000 genes, 20 types. On a CPU, time is processor time summed over threads, so that
other jobs do not count; on a GPU it is wall time. docs/benchmarks/work.py counts operations and bytes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from processes import peak_mb
from scipy import sparse
from synthetic import synthetic_cells
from torch import Tensor
from work import Ceilings, Work, forward_work, tokenizer_work, training_work

from celler._utils._devices import autocast, choose_device, choose_precision, cpu_threads
from celler.data._loader import Minibatch
from celler.data._tokenizer import Tokenizer
from celler.model import Celler
from celler.network._config import NetworkConfig
from celler.network._network import GeneTransformer, build_network
from celler.training._plan import TrainingConfig, TrainingPlan, one_cycle, parameter_groups

N_ROUNDS = 5


@dataclass(frozen=True)
class Bench:
    """The cells, the network and the machine of one measurement."""

    cells: AnnData
    config: NetworkConfig
    batch_size: int
    pass_size: int
    device: torch.device
    precision: str
    is_large: bool

    @property
    def n_tokens(self) -> float:
        """Tokens of a cell."""
        return min(self.cells.X.nnz / self.cells.n_obs, 2048)


def measure_speed(
    encoder: str = "additive",
    *,
    accelerator: str = "auto",
    large: bool = False,
    n_threads: int | None = 1,
    n_cells: int | None = None,
) -> pd.DataFrame:
    """Measure ceilings, tokenizer, network, training and prediction.

    encoder, accelerator: as in :class:`celler.model.Celler` and :meth:`celler.model.Celler.train`.
    large: full self-attention of scGPT's size, width 512, 12 layers and 1,200 tokens.
    n_threads: CPU threads, ``None`` for all. n_cells: ``None`` for about half a minute.

    Returns a row per measure: ``value``, ``unit`` and, where there is a floor, the value ``at_floor`` and the ``share``
    of it that is reached.
    """
    device = choose_device(accelerator)
    with cpu_threads(n_threads):
        threads = torch.get_num_threads()
        bench = _bench(encoder, device, large, n_cells)
        before = _peak_mb(device)
        # Ceilings come last: their buffers would hide the peak of the rest.
        found = [*_tokenizer(bench), *_network(bench)]
        found += [] if large else _model(bench, accelerator)
        peak = _peak_mb(device) - before
        ceilings, rows = _ceilings(bench)
    rows += [row for each in found for row in each.rows(ceilings)]
    rows.append(_row("peak memory beyond packages and cells", peak, "MiB"))
    table = pd.DataFrame(rows)
    table.attrs = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "precision": bench.precision,
        "cells": f"{bench.n_tokens:.0f} of {bench.config.n_genes:,} genes, {bench.config.n_classes} types",
        "network": f"{bench.config.encoder}, width {bench.config.d_model}, minibatches of {bench.batch_size}",
    }
    return table


def speed_text(table: pd.DataFrame) -> str:
    """The table of ``measure_speed`` as text, with the machine and the sizes."""
    head = "\n".join(f"{name}: {value}" for name, value in table.attrs.items())
    shown = pd.DataFrame(
        {
            "measure": table["measure"],
            "value": [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in table["value"]],
            "unit": table["unit"],
            "at floor": ["" if v != v else f"{v:,.3g}" if v < 100 else f"{v:,.0f}" for v in table["at_floor"]],
            "share": ["" if share != share else f"{share:.0%}" for share in table["share"]],
        }
    )
    return f"{head}\n\n{shown.to_string(index=False)}"


def _bench(encoder: str, device: torch.device, large: bool, n_given: int | None) -> Bench:
    n_cells = 4000 if device.type == "cpu" else 20_000
    sizes: dict[str, Any] = {"n_genes": 3000, "n_classes": 20, "encoder": encoder}
    batch_size, pass_size, n_expressed = 128 if encoder == "additive" else 32, 512, 500
    if encoder in ("transformer", "scgpt"):
        n_cells, batch_size, pass_size = (128, 8, 16) if device.type == "cpu" else (4096, 128, 256)
    if large:
        sizes |= {"encoder": "transformer", "d_model": 512, "n_layers": 12, "n_heads": 8}
        batch_size, pass_size, n_expressed = (1, 1, 1200) if device.type == "cpu" else (32, 64, 1200)
        n_cells = 4 * batch_size
    n_cells = n_given or n_cells
    batch_size, pass_size = min(batch_size, n_cells), min(pass_size, n_cells)
    cells = synthetic_cells(n_cells, n_expressed=n_expressed)
    precision = choose_precision("auto", device)
    return Bench(cells, NetworkConfig(**sizes), batch_size, pass_size, device, precision, large)


# ---- ceilings ----


def _ceilings(bench: Bench) -> tuple[Ceilings, list[dict[str, Any]]]:
    device = bench.device
    is_cpu = device.type == "cpu"
    size, products = 1024 if is_cpu else 8192, {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        products[name] = 2 * size**3 / _best_seconds(partial(torch.mm, a, b), device)
    n_weights = sum(weights.numel() for weights in build_network(bench.config, 0).parameters())
    bandwidth = {}
    # Weights, gradients and moments are as large as source and target together.
    for name, n_values in (("memory", 2**26 if is_cpu else 2**30), ("weights", 2 * n_weights)):
        source = torch.ones(n_values, device=device)
        target, n_copies = torch.empty_like(source), max(1, 2**22 // n_values)

        def copy(source: Tensor = source, target: Tensor = target, n: int = n_copies) -> None:
            for _ in range(n):
                target.copy_(source)

        bandwidth[name] = 8 * n_values * n_copies / _best_seconds(copy, device)
    rows = [_row(f"matrix product, {name}", v / 1e9, "GFLOP/s") for name, v in products.items()]
    rows += [_row(f"copy, {name}", value / 1e9, "GB/s") for name, value in bandwidth.items()]
    used = products[bench.precision]
    return Ceilings(used, bandwidth["memory"], bandwidth["weights"]), rows


# ---- parts ----


@dataclass(frozen=True)
class Timed:
    """A measurement: ``n_cells`` cells took ``seconds`` for ``work``. is_detailed: list its operations and bytes."""

    measure: str
    n_cells: int
    seconds: float
    work: Work
    is_detailed: bool = False
    extra: tuple[dict[str, Any], ...] = ()

    def rows(self, ceilings: Ceilings) -> list[dict[str, Any]]:
        """Rows of the table."""
        floor = self.work.seconds(ceilings)
        rate = _row(self.measure, self.n_cells / self.seconds, "cells/s")
        rate |= {"at_floor": self.n_cells / floor, "share": floor / self.seconds}
        if not self.is_detailed:
            return [rate, *self.extra]
        used = 100 * self.work.products / self.seconds / ceilings.products
        n_bytes = self.work.streamed + self.work.tables
        return [
            rate,
            _row(f"{self.measure}, time", self.seconds * 1e3, "ms"),
            _row(f"{self.measure}, operations", self.work.products / 1e6, "MFLOP"),
            _row(f"{self.measure}, bytes", n_bytes / 1e6, "MB"),
            _row(f"{self.measure}, of the product ceiling", used, "%"),
        ]


def _tokenizer(bench: Bench) -> list[Timed]:
    X, tokenizer = bench.cells.X, Tokenizer()
    genes = np.arange(X.shape[1], dtype=np.int32)
    rows = np.split(np.arange(X.shape[0]), range(128, X.shape[0], 128))[:20]
    n_cells = sum(map(len, rows))
    cpu = torch.device("cpu")

    def compiled() -> None:
        for block in rows:
            tokenizer(X, genes, rows=block)

    seconds = _seconds(compiled, cpu)
    n_looped = min(40, X.shape[0])
    looped = _seconds(lambda: numpy_loop(X[:n_looped]), cpu) * n_cells / n_looped
    extra = (
        _row("tokenizer, per non-zero", 1e9 * seconds / (n_cells * bench.n_tokens), "ns"),
        _row("tokenizer, than a NumPy row loop", looped / seconds, "times faster"),
    )
    work = tokenizer_work(bench.n_tokens, n_cells)
    return [Timed("tokenizer", n_cells, seconds, work, extra=extra)]


def numpy_loop(X: sparse.csr_matrix, n_bins: int = 51) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bins and expression of each row by NumPy: the reference of the tokenizer."""
    found = []
    for start, end in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        values = X.data[start:end]
        edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
        found.append((np.digitize(values, edges), np.log1p(values * (1e4 / values.sum()))))
    return found


def _network(bench: Bench) -> list[Timed]:
    """Forward pass and training step on tokens in memory."""
    config, n_cells = bench.config, (bench.pass_size, bench.batch_size)
    network = build_network(config, 0).to(bench.device)
    n_runs = 1 if bench.is_large and bench.device.type == "cpu" else 20
    forward = _seconds(_forward(bench, network), bench.device, n_runs)
    step = _seconds(_step(bench, network), bench.device, n_runs)
    work = forward_work(config, bench.n_tokens, bench.pass_size)
    return [
        Timed("forward pass", n_cells[0], forward, work, is_detailed=True),
        Timed("training step", n_cells[1], step, _step_work(bench), is_detailed=True),
    ]


def _step_work(bench: Bench) -> Work:
    network = build_network(bench.config, 0)
    n_weights = sum(w.numel() for name, w in network.named_parameters() if not name.startswith("evidence"))
    n_kept = bench.n_tokens * (1 - bench.config.dropout_rate)
    return training_work(bench.config, n_kept, bench.batch_size, n_weights)


def _forward(bench: Bench, network: GeneTransformer) -> Callable[[], Any]:
    X = bench.cells.X[: bench.pass_size]
    tokens = Tokenizer()(X, np.arange(X.shape[1], dtype=np.int32))
    parts = [part.to(bench.device) for part in tokens]

    def run() -> None:
        network.eval()
        with torch.inference_mode(), autocast(bench.device, bench.precision):
            network(*parts)

    return run


def _step(bench: Bench, network: GeneTransformer) -> Callable[[], Any]:
    """A training step of ``TrainingPlan`` without Lightning, beside a solved evidence table."""
    X, n = bench.cells.X[: bench.batch_size], bench.batch_size
    tokens = Tokenizer()(
        X,
        np.arange(X.shape[1], dtype=np.int32),
        token_dropout=bench.config.dropout_rate,
        seeds=np.arange(n, dtype=np.uint64),
    )
    labels = bench.cells.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)
    minibatch = Minibatch(tokens, torch.from_numpy(labels[:n]), torch.arange(n)).to(bench.device)
    config = TrainingConfig(max_epochs=1, batch_size=n, device=bench.device)
    counts = np.maximum(np.bincount(labels, minlength=bench.config.n_classes), 1)
    if network.evidence is not None:
        network.evidence.requires_grad_(False)
    plan = TrainingPlan(network, counts, config).to(bench.device)
    made = one_cycle(parameter_groups(network, config), config, 10_000)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    def run() -> None:
        network.train()
        with autocast(bench.device, bench.precision):
            loss = plan.loss_of(minibatch)
        plan.losses.clear()
        optimizer.zero_grad()
        loss.backward()
        plan.clip_gradient()
        optimizer.step()
        schedule.step()

    return run


def _model(bench: Bench, accelerator: str) -> list[Timed]:
    """``train`` and ``predict`` as users call them; an epoch is the difference of a long and a short training."""
    n_cells, n_tokens = bench.cells.n_obs, bench.n_tokens
    Celler.setup_anndata(bench.cells, labels_key="cell_type")

    def train(n_epochs: int) -> tuple[float, Celler]:
        model = Celler(bench.cells, encoder=bench.config.encoder)
        start = _now(bench.device)
        options: dict[str, Any] = {"refit": False, "show_progress": False}
        model.train(n_epochs, accelerator, train_size=1.0, batch_size=bench.batch_size, **options)
        return _now(bench.device) - start, model

    train(1)
    n_more = 4 if bench.config.encoder in ("additive", "latent") else 1
    one, (many, model) = train(1)[0], train(1 + n_more)
    # On a busy machine the long training can take no longer than the short one: an epoch takes at least half of the
    # long training's mean.
    epoch = max((many - one) / n_more, many / (2 * (1 + n_more)))
    per_step = _step_work(bench) + tokenizer_work(n_tokens, bench.batch_size)
    predict = _seconds(lambda: model.predict(bench.cells), bench.device, 1, 3)
    # The floor is one pass, although the correction of shift needs a second one.
    read = forward_work(bench.config, n_tokens, n_cells) + tokenizer_work(n_tokens, n_cells)
    return [
        Timed("train, an epoch", n_cells, epoch, per_step * (n_cells / bench.batch_size)),
        Timed("predict", n_cells, predict, read),
    ]


# ---- clocks ----


def _seconds(run: Callable[[], Any], device: torch.device, n_runs: int = 1, n_rounds: int = N_ROUNDS) -> float:
    """Median time of a run over rounds, after a warm-up."""
    run()
    rounds = []
    for _ in range(n_rounds):
        start = _now(device)
        for _ in range(n_runs):
            run()
        rounds.append((_now(device) - start) / n_runs)
    return median(rounds)


def _best_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Shortest time of ten runs, for a ceiling."""
    times = []
    run()
    for _ in range(2 * N_ROUNDS):
        start = _now(device)
        run()
        times.append(_now(device) - start)
    return min(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_mb()


def _row(measure: str, value: float, unit: str) -> dict[str, Any]:
    return {"measure": measure, "value": value, "unit": unit, "at_floor": np.nan, "share": np.nan}


def main() -> None:
    """Print the table, and write it to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--encoder",
        choices=["additive", "latent", "transformer"],
        default="additive",
        help="default: additive",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="default: auto")
    parser.add_argument("--large", action="store_true", help="a network of scGPT's size")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--cells", type=int, help="default: cells for half a minute")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the table")
    options = parser.parse_args()
    table = measure_speed(
        options.encoder,
        accelerator=options.device,
        large=options.large,
        n_threads=options.threads,
        n_cells=options.cells,
    )
    print(speed_text(table))
    if options.out is not None:
        table.to_csv(options.out, index=False)
        print(f"\nwrote {options.out}")


if __name__ == "__main__":
    main()
