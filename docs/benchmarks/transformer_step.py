"""A training step of ``encoder="transformer"`` beside a bare torch.nn one: python docs/benchmarks/transformer_step.py

The bare network has the same matrix products: an embedding of genes and one of bins, as many
``nn.TransformerEncoderLayer`` over as many tokens, the output at the first, two dense layers, cross-entropy, AdamW.
Ours has losses of two experts, clipping and the schedule on top. Processor time, both in turns.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from synthetic import synthetic_cells
from torch import nn

from celler.data._loader import Minibatch
from celler.data._tokenizer import Tokenizer
from celler.losses import DEFAULT
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training._plan import TrainingConfig, TrainingPlan, one_cycle, parameter_groups

N_GENES, N_CLASSES = 3000, 20


class Bare(nn.Module):
    """Embeddings, torch's encoder layers, a head."""

    def __init__(self, d: int, n_layers: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.gene, self.value = nn.Embedding(N_GENES, d), nn.Embedding(51, d)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d, n_heads, 4 * d, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(n_layers)
        )
        for layer in self.layers:  # the weights of attention are not dropped in ours
            layer.self_attn.dropout = 0.0
        self.head = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, N_CLASSES))

    def forward(self, gene_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        x = self.gene(gene_ids) + self.value(values)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def main() -> None:
    """Print milliseconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    n, d = options.batch_size, options.width
    cells = synthetic_cells(n, n_genes=N_GENES, n_expressed=options.tokens, n_classes=N_CLASSES)
    tokens = Tokenizer()(cells.X, np.arange(N_GENES, dtype=np.int32))
    labels = torch.from_numpy(np.arange(n) % N_CLASSES)
    minibatch = Minibatch(tokens, labels, torch.arange(n)).to(device)
    config = NetworkConfig(
        N_GENES, N_CLASSES, encoder="transformer", n_layers=options.layers, d_model=d,
        n_heads=max(4, d // 64),
    )  # fmt: skip
    network = build_network(config, 0).to(device).train()
    training = TrainingConfig(max_epochs=1, batch_size=n, loss=DEFAULT, device=device)
    plan = TrainingPlan(network, np.ones(N_CLASSES), training).to(device)
    made = one_cycle(parameter_groups(network, training), training, 10_000)
    bare = Bare(d, options.layers, config.n_heads, config.dropout_rate).to(device).train()
    adamw = torch.optim.AdamW(bare.parameters(), fused=True)
    gene_ids, values = minibatch.tokens.gene_ids.long(), minibatch.tokens.values.long()

    def ours() -> None:
        made["optimizer"].zero_grad()
        plan.loss_of(minibatch).backward()
        plan.clip_gradient()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()

    def theirs() -> None:
        adamw.zero_grad()
        F.cross_entropy(bare(gene_ids, values), minibatch.labels).backward()
        adamw.step()

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(options.rounds + 2):
        for name, step in (("ours", ours), ("bare", theirs)):
            start = now()
            step()
            seconds[name].append(now() - start)
    ms = {name: 1e3 * median(each[2:]) for name, each in seconds.items()}
    print(
        f"{options.tokens} tokens, width {d}, {options.layers} layers, minibatches of {n}: "
        f"ours {ms['ours']:.1f} ms, bare {ms['bare']:.1f} ms, ratio {ms['ours'] / ms['bare']:.2f}"
    )


if __name__ == "__main__":
    main()
