"""What a loss costs of a training step, and the replay's bookkeeping of an epoch.

    python docs/benchmarks/losses.py [FILE.h5ad --labels-key KEY] [--batch-size 32]

Without a file: 3,000 synthetic cells of 15 types. Each loss is timed forward and backward on logits
of the shape training gives it, the bookkeeping (watching every minibatch, choosing at the end of
the epoch) on the outcomes of a real epoch; both are printed as shares of a step and of an epoch,
measured in turns in the same run. A loss is what it takes more than the sum of the logits in its
place: starting a backward pass is not its doing.
"""

import argparse
import time

import anndata as ad
import numpy as np
import pandas as pd
import torch

from celler.data._loader import Minibatch
from celler.data._tokenizer import Tokenizer
from celler.datasets import toy_long_tail
from celler.losses import HDM, RIDE, BalancedSoftmax, CrossEntropy, Focal, GInf
from celler.mining import HardCells, Replay
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training._plan import TrainingConfig, TrainingPlan

LOSSES = {
    "Cross-entropy": CrossEntropy(),
    "Focal": Focal(),
    "RIDE": RIDE(),
    "Balanced softmax": BalancedSoftmax(),
    "GInf": GInf(),
    "GInf + HDM": HDM(),
}
N_ROUNDS = 5


def minibatches(adata: ad.AnnData, labels: np.ndarray, batch_size: int) -> list[Minibatch]:
    """The cells in random order, as minibatches of tokens with token dropout."""
    rng, tokenizer = np.random.default_rng(0), Tokenizer()
    genes = np.arange(adata.n_vars, dtype=np.int32)
    made = []
    for rows in np.array_split(rng.permutation(adata.n_obs), -(-adata.n_obs // batch_size)):
        seeds = rng.integers(2**63, size=len(rows)).astype(np.uint64)
        tokens = tokenizer(adata.X[rows], genes, token_dropout=0.3, seeds=seeds)
        made.append(Minibatch(tokens, torch.from_numpy(labels[rows]), torch.from_numpy(rows)))
    return made


def step_seconds(plan: TrainingPlan, epoch: list[Minibatch]) -> float:
    """Mean time of a training step: forward, loss, backward, clipping, AdamW."""
    optimizer = torch.optim.AdamW(plan.network.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    for minibatch in epoch:
        optimizer.zero_grad()
        plan.loss_of(minibatch).backward()
        plan.clip_gradient()
        optimizer.step()
    return (time.perf_counter() - start) / len(epoch)


def loss_seconds(plan: TrainingPlan, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean time of one loss, forward and backward, on logits ``(E, B, C)``, less that of their sum."""
    seconds = []
    for loss in (lambda: plan.expert_loss(logits, labels), lambda: logits.sum((0, 2))):
        start = time.perf_counter()
        for _ in range(300):
            loss().mean().backward()
        seconds.append((time.perf_counter() - start) / 300)
    return seconds[0] - seconds[1]


def bookkeeping_seconds(epoch: list[Minibatch], logits: list[torch.Tensor], counts) -> float:
    """Time of one epoch's watching and choosing."""
    hard_cells = HardCells(Replay(), counts)
    start = time.perf_counter()
    for minibatch, z in zip(epoch, logits, strict=True):
        hard_cells.watch(minibatch.source_index, minibatch.labels, z)
    hard_cells.choose()
    return time.perf_counter() - start


def main() -> None:
    """Print both tables: medians over rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--labels-key", default="cell_type")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as train() does for minibatches up to 255 cells
    adata = ad.read_h5ad(options.file) if options.file else toy_long_tail(3000, 2000, 15)
    labels = adata.obs[options.labels_key].astype("category").cat.codes.to_numpy().astype(np.int64)
    counts = np.bincount(labels)
    epoch = minibatches(adata, labels, options.batch_size)
    network = build_network(NetworkConfig(n_genes=adata.n_vars, n_classes=len(counts)), 0).train()
    plans = {}
    for name, loss in LOSSES.items():
        config = TrainingConfig(max_epochs=1, batch_size=options.batch_size, loss=loss)
        plans[name] = TrainingPlan(network, counts, config)
        plans[name].log = lambda *_, **__: None
    step_seconds(plans["Cross-entropy"], epoch[:20])  # warm-up
    outputs = [network(*minibatch.tokens) for minibatch in epoch]
    expert_logits = outputs[0].expert_logits.detach().requires_grad_()
    means = [output.logits.detach() for output in outputs]
    rows = []
    for _ in range(N_ROUNDS):
        step = step_seconds(plans["GInf + HDM"], epoch)
        row = {name: loss_seconds(plan, expert_logits, epoch[0].labels) / step for name, plan in plans.items()}
        row["replay"] = bookkeeping_seconds(epoch, means, counts) / (step * len(epoch))
        rows.append(row | {"step, ms": step * 1e3})
    shares = pd.DataFrame(rows)
    print(f"{adata.n_obs:,} cells, {len(counts)} types, minibatches of {options.batch_size}")
    print(f"a training step: {shares.pop('step, ms').median():.1f} ms")
    print("percent of a step by loss (forward and backward), percent of an epoch by the replay:")
    print((100 * shares).agg(["median", "min", "max"]).T.round(2).to_string())


if __name__ == "__main__":
    main()
