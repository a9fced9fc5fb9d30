"""What training with few labels makes of unlabelled cells, once a pretrained encoder tells which are alike."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from celler.data._augmentation import mean_share, neighbourhoods, with_class_means
from celler.data._sources import CellSource, InMemoryCells, Views
from celler.model._fit import TrainingCells, fit_network
from celler.model._predict import get_latent_representation, predict
from celler.network._network import GeneTransformer
from celler.training._plan import TrainingConfig

if TYPE_CHECKING:
    from celler.model._celler import Celler

#: Unlabelled cells that are asked at most: more tell nothing new, and comparing all takes the square of the time.
MAX_UNLABELLED = 20_000


def with_neighbourhoods(
    self: Celler, cells: TrainingCells, network: GeneTransformer, config: TrainingConfig
) -> TrainingCells:
    """The cells, the labelled ones also as means of unlabelled cells: their nearest, and some of their class.

    Nothing is added for a model that was not pretrained, without unlabelled cells, and where labels are many.

    network: what training starts from. It is trained once to find the classes of cells, and is then as it was.
    """
    source, before = cells.source, self._pretrained
    share = mean_share(source.n_labelled, len(self._tree.classes))
    if before is None or self._knowledge is not None or self.is_trained or not share:
        return cells
    # The cell token of full attention is not asked which genes are there, and knows little of types.
    if before.decoder.token is not None or not isinstance(source, InMemoryCells):
        return cells
    rows = asked_rows(source, config.seed)
    labels, is_log = source.labels[rows], cells.is_log
    if (labels >= 0).all():
        return cells
    embedding, values = get_latent_representation(self, indices=rows), of_rows(source, rows)
    near = partial(neighbourhoods, values, labels, embedding, share, is_log=is_log)
    found = first_labels(self, with_views(cells, near(), rows), rows, network, config)
    # A rare type's nearest cells are mostly of others, which the first training tells apart.
    views = with_class_means(near(found=found), values, labels, found, config.seed, is_log=is_log)
    return with_views(cells, views, rows)


def asked_rows(source: InMemoryCells, seed: int) -> np.ndarray:
    """The labelled cells and up to 20,000 of the others, in order; without those that have no counts."""
    has_counts = np.asarray(source.X.sum(axis=1)).ravel() > 0
    free = np.flatnonzero((source.labels < 0) & has_counts)
    if len(free) > MAX_UNLABELLED:
        free = np.random.default_rng(seed).choice(free, MAX_UNLABELLED, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(source.labels >= 0), free]))


def of_rows(source: CellSource, rows: np.ndarray) -> Callable[[np.ndarray], sparse.csr_matrix]:
    """Values of positions in ``rows``."""
    return lambda positions: source.rows(rows[positions])


def first_labels(
    self: Celler,
    cells: TrainingCells,
    rows: np.ndarray,
    network: GeneTransformer,
    config: TrainingConfig,
) -> np.ndarray:
    """Codes ``(n,)`` that a first training gives the registered cells ``rows (n,)``, spread over their neighbours."""
    initial = {name: weights.clone() for name, weights in network.state_dict().items()}
    guide = copy(self)
    guide.module = network
    guide._adopt(
        fit_network(
            network,
            self._tokenizer,
            cells,
            classes=self._tree.classes,
            train_size=1.0,
            validation_size=None,
            refit=False,
            config=replace(config, ckpt_path=None),
        )
    )
    found = self._tree.encode(np.asarray(predict(guide, indices=rows, propagate=True)))
    network.load_state_dict(initial)
    return found


def with_views(cells: TrainingCells, views: Views, rows: np.ndarray) -> TrainingCells:
    """The cells with other rows to show in training; ``views`` are of positions in ``rows``."""
    source = cells.source
    assert isinstance(source, InMemoryCells)
    of_cell = np.full((len(source), views.of_cell.shape[1]), -1)
    of_cell[rows] = views.of_cell
    views = replace(views, of_cell=of_cell)
    return cells._replace(source=InMemoryCells(source.X, source.labels, source.target_sums, views))
