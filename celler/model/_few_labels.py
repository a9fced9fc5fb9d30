"""Few labels: after pretraining, means of unlabelled cells stand in for labelled ones in training."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import sparse

from celler.data._augmentation import mean_share, neighbourhoods, with_class_means
from celler.data._sources import InMemoryCells, Views
from celler.inference._labels import Question
from celler.model._fit import Split, TrainingCells, describe_reference, fit_network
from celler.model._forward import Reading
from celler.model._predict import Cells, embedding, predict
from celler.model._state import ModelState
from celler.training._plan import TrainingConfig

#: Unlabelled cells used at most: more do not help, and all pairs are compared.
MAX_UNLABELLED = 20_000


def with_neighbourhoods(
    state: ModelState, cells: TrainingCells, registered: Cells, config: TrainingConfig
) -> TrainingCells:
    """Show labelled cells also as means of unlabelled ones: of their nearest, and of some of their class.

    The classes of unlabelled cells come from a first training, titled "First labels". Nothing is added for a model
    that was not pretrained, without unlabelled cells, and where labels are many. ``state.network`` is what training
    starts from; it stays as it is.
    """
    source, pretrained = cells.source, state.pretrained
    share = mean_share(source.n_labelled, len(state.tree.classes))
    if pretrained is None or state.old is not None or state.fitted is not None or not share:
        return cells
    # Full attention does not predict presence of genes from its cell token, which then knows little of types.
    if pretrained.decoder.token is not None or not isinstance(source, InMemoryCells):
        return cells
    rows = _compared_rows(source, config.seed)
    labels = source.labels[rows]
    if (labels >= 0).all():
        return cells

    def values(positions: np.ndarray) -> sparse.csr_matrix:
        return source.rows(rows[positions])

    compared = replace(registered, index=rows)
    placed = state.on(config.device, config.precision)
    points = embedding(placed, compared, Reading(), normalize=False)
    near = partial(neighbourhoods, values, labels, points, share, is_log=cells.is_log)
    found = _first_labels(state, _with_views(cells, source, near(), rows), compared, config)
    # Most neighbours of a rare type's cell are of other types; the first training separates them.
    views = with_class_means(near(found=found), values, labels, found, config.seed, is_log=cells.is_log)
    return _with_views(cells, source, views, rows)


def _compared_rows(source: InMemoryCells, seed: int) -> np.ndarray:
    """Return the labelled cells and up to 20,000 others with counts, in order."""
    has_counts = np.asarray(source.X.sum(axis=1)).ravel() > 0
    free = np.flatnonzero((source.labels < 0) & has_counts)
    if len(free) > MAX_UNLABELLED:
        free = np.random.default_rng(seed).choice(free, MAX_UNLABELLED, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(source.labels >= 0), free]))


def _first_labels(state: ModelState, cells: TrainingCells, compared: Cells, config: TrainingConfig) -> np.ndarray:
    """Codes ``(n,)`` that a first training and propagation give the cells ``compared``."""
    # The embedding left the network in evaluation mode.
    network, config = deepcopy(state.network).train(), replace(config, ckpt_path=None)
    how = Split(train_size=1.0, validation_size=None, refit=False)
    found = fit_network(network, state.tokenizer, cells, how, config, title="First labels")
    fitted = describe_reference(found, cells, state.tree.classes, config)
    guide = replace(state, network=network).with_fitted(fitted)
    # What is reported of the guide does not count as reported of the model.
    compared = replace(compared, reference=replace(compared.reference, reported=set()))
    labels = predict(guide, compared, Question(), Reading(), soft=False, propagate=True)
    return state.tree.encode(np.asarray(labels))


def _with_views(cells: TrainingCells, source: InMemoryCells, views: Views, rows: np.ndarray) -> TrainingCells:
    """Return the cells with other rows to show in training; ``views`` are of positions in ``rows``."""
    of_cell = np.full((len(source), views.of_cell.shape[1]), -1)
    of_cell[rows] = views.of_cell
    views = replace(views, of_cell=of_cell)
    return cells._replace(source=InMemoryCells(source.X, source.labels, source.target_sums, views))
