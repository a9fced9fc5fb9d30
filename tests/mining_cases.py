"""Hard-cell replay written slowly, and the process that watches its part of an epoch."""

import inspect

import numpy as np
import torch


class Slow:
    """:class:`celler.mining.HardCells` in loops over every cell, from the docstrings of it and Replay."""

    def __init__(self, labels, n_per_class: int, max_share: float, patience: int) -> None:
        self.n_per_class, self.patience = n_per_class, patience
        self.n_most = int(max_share * len(labels))
        self.n_classes = max(labels) + 1
        self.n_failed = [0] * len(labels)
        self.replayed: list[int] = []
        self.found: list[tuple[int, int, int]] = []

    def end_of_epoch(self, passes) -> None:
        """Passes are (index, label, prediction, probability)."""
        wrong = [one for one in passes if one[1] != one[2]]
        hard = {cell for cell, *_ in wrong}
        for cell, n in enumerate(self.n_failed):
            was_tried = cell in self.replayed or n >= self.patience
            self.n_failed[cell] = n + 1 if was_tried and cell in hard else 0
        self.found = [one[:3] for ranking in self.rankings(wrong) for one in ranking]
        stays = [one for one in wrong if self.n_failed[one[0]] < self.patience]
        self.replayed = self.by_turns(self.rankings(stays))

    def rankings(self, wrong) -> list[list[tuple]]:
        """For each predicted class its surest cells, each once."""
        rankings = []
        for j in range(self.n_classes):
            ranking: list[tuple] = []
            for one in sorted((p for p in wrong if p[2] == j), key=lambda p: (-p[3], p[0])):
                if one[0] not in [other[0] for other in ranking]:
                    ranking.append(one)
            rankings.append(ranking[: self.n_per_class])
        return rankings

    def by_turns(self, rankings) -> list[int]:
        """Each class's surest cell, then each one's second, while there is room."""
        chosen: list[int] = []
        for turn in range(self.n_per_class):
            of_turn = [ranking[turn] for ranking in rankings if len(ranking) > turn]
            for cell, *_ in sorted(of_turn, key=lambda p: (-p[3], p[0])):
                if cell not in chosen and len(chosen) < self.n_most:
                    chosen.append(cell)
        return chosen


def outcomes(cells: np.ndarray, rank: int, epoch: int) -> tuple[torch.Tensor, ...]:
    """Index, labels and logits over four classes; a cell's logits differ from rank to rank."""
    logits = np.array([np.random.default_rng((cell, rank, epoch)).normal(size=4) for cell in cells])
    return torch.as_tensor(cells), torch.as_tensor(cells % 4), torch.as_tensor(logits)


#: Runs one rank: where to write, which rank, of how many, epochs, cells and cells per minibatch.
CHILD = f"""
import sys
import numpy as np
import torch
from celler.data._samplers import ShuffledSampler
from celler.mining import HardCells, Replay

{inspect.getsource(outcomes)}

folder, (rank, n_ranks, n_epochs, n_cells, batch_size) = sys.argv[1], map(int, sys.argv[2:])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=n_ranks
)
hard = HardCells(Replay(n_per_class=3, max_share=0.2, patience=2), np.full(4, n_cells / 4))
minibatches = ShuffledSampler(np.arange(n_cells), batch_size, 0, hard)
seen = {{}}
for epoch in range(n_epochs):
    parts = list(minibatches)
    assert len(parts) == len(minibatches)
    for cells in parts:
        hard.watch(*outcomes(cells, rank, epoch))
    hard.choose()
    seen |= {{f"cells {{epoch}}": np.concatenate(parts), f"sizes {{epoch}}": [*map(len, parts)]}}
    seen |= {{f"replayed {{epoch}}": hard.replayed, f"found {{epoch}}": hard.found}}
    seen |= {{f"n_failed {{epoch}}": hard.n_failed(np.arange(n_cells))}}
np.savez(f"{{folder}}/{{rank}}.npz", **seen)
torch.distributed.destroy_process_group()
"""
