"""What training and prediction lose to the tokenizer: python docs/benchmarks/tokenizer_overlap.py [--rounds 7]

The default network and 8,000 synthetic cells. Wall time with the tokenizer in its thread, and with tokens that were
made before, in turns; the ratio of the medians is what is lost. Two idle cores are needed to say anything.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
from synthetic import synthetic_cells

from celler._utils._devices import choose_device
from celler.data._loader import Minibatch, TokenLoader
from celler.data._samplers import ShuffledSampler
from celler.data._sources import InMemoryCells
from celler.data._tokenizer import Tokenizer
from celler.model import Celler
from celler.model import _forward as forward_module
from celler.network._config import NetworkConfig
from celler.network._network import build_network
from celler.training._plan import TrainingConfig
from celler.training._run import fit

CELLS = synthetic_cells(8000)
LABELS = CELLS.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)


class Made:
    """Minibatches that are there already."""

    def __init__(self, minibatches: list[Minibatch]) -> None:
        self.minibatches = minibatches

    def __len__(self) -> int:
        return len(self.minibatches)

    def __iter__(self) -> Iterator[Minibatch]:
        return iter(self.minibatches)

    def set_epoch(self, epoch: int) -> None:
        pass


def train(*, is_made: bool) -> float:
    """Seconds of two epochs."""
    config = TrainingConfig(max_epochs=2, batch_size=32, device=choose_device("cpu"), show_progress=False)
    minibatches = TokenLoader(
        InMemoryCells(CELLS.X, LABELS),
        Tokenizer(),
        ShuffledSampler(np.arange(len(LABELS)), config.batch_size, config.seed),
        is_log=False,
        token_dropout=config.token_dropout,
    )
    minibatches = Made(list(minibatches)) if is_made else minibatches
    network = build_network(NetworkConfig(n_genes=CELLS.n_vars, n_classes=20), 0)
    start = time.perf_counter()
    fit(network, minibatches, None, np.bincount(LABELS), config)
    return time.perf_counter() - start


def predict(model: Celler, *, is_made: bool) -> float:
    """Seconds of one pass over the cells, without the shift; what it takes to make tokens before is left out."""
    whole, seconds = forward_module.token_passes, [0.0]

    def made(*args, **kwargs):
        start = time.perf_counter()
        passes = list(whole(*args, **kwargs))
        seconds[0] = time.perf_counter() - start
        return iter(passes)

    forward_module.token_passes = made if is_made else whole
    start = time.perf_counter()
    try:
        model.predict(CELLS, correct_shift=False)
    finally:
        forward_module.token_passes = whole
    return time.perf_counter() - start - seconds[0]


def main() -> None:
    """Print both losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    n_rounds = parser.parse_args().rounds
    Celler.setup_anndata(CELLS, "cell_type")
    model = Celler(CELLS)
    model.train(1, refit=False, show_progress=False)
    for name, run in (("training", train), ("prediction", lambda **how: predict(model, **how))):
        times = {is_made: [] for is_made in (False, True)}
        for _ in range(n_rounds):
            for is_made, seconds in times.items():
                seconds.append(run(is_made=is_made))
        usual, made = median(times[False]), median(times[True])
        print(f"{name}: {usual:.2f} s, {made:.2f} s with tokens made before: {usual / made - 1:.1%} lost")


if __name__ == "__main__":
    main()
