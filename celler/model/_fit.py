"""Fit: labelled cells become a trained network, and then what the model keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from celler._utils._devices import autocast
from celler._utils._distributed import rank_and_size
from celler._utils._messages import agreed, counted, listed, warn
from celler.data._balance import ClassBalance
from celler.data._expression import ExpressionReader
from celler.data._genes import take_columns
from celler.data._loader import TokenLoader
from celler.data._profile import Profile, profile
from celler.data._samplers import OrderedSampler, RowSampler, ShuffledSampler, split
from celler.data._sources import CellSource, InMemoryCells
from celler.data._tokenizer import Tokenizer
from celler.inference._calibration import TYPICAL_TEMPERATURE, Decision, fit_temperature
from celler.inference._novelty import Novelty, fit_novelty
from celler.labels._tree import LabelTree
from celler.mining import HardCells, rank_in_class
from celler.model._state import HARD_CELL_COLUMNS, Fitted
from celler.network._heads import LinearHead
from celler.network._network import GeneTransformer
from celler.training._linear import solve_experts
from celler.training._plan import TrainingConfig
from celler.training._run import fit, has_bars, validation_logits

#: Below this many labelled cells the network is trained once more on all of them: a tenth held out
#: of a class of ten costs more there than the second training.
REFIT_BELOW = 5000
#: Class prior where nothing is solved that could choose it: the few cells of a rare class are soon memorised.
UNSOLVED_PRIOR = -0.2
#: Cells from which the embedding of a pretrained encoder is standardized.
MEASURED_CELLS = 256
#: Values of the embedding of all cells that are kept in memory in training: 256 MB.
MAX_KEPT = 2**26


CellNames: TypeAlias = Callable[[np.ndarray], Iterable[object]]


class TrainingCells(NamedTuple):
    """Cells to train on."""

    source: CellSource  # the cells, with label codes, −1 for unlabelled ones
    names: CellNames  # by index; empty for generated cells
    is_log: bool  # whether the values are log1p values


@dataclass(frozen=True)
class Loaders:
    """Makes the token loaders of a training; ``embedding (n_cells, D)`` is that of a frozen encoder."""

    cells: TrainingCells
    tokenizer: Tokenizer
    config: TrainingConfig
    embedding: Tensor | None = None

    def training(self, rows: np.ndarray, hard_cells: HardCells | None) -> TokenLoader:
        """Minibatches of the cells ``rows``, shuffled, with token dropout."""
        config = self.config
        balance = ClassBalance(self.cells.source.labels, config.class_balance)
        return self._over(ShuffledSampler(rows, config.batch_size, config.seed, hard_cells, balance))

    def validation(self, rows: np.ndarray) -> TokenLoader:
        """Minibatches of the cells ``rows`` in order, whole; connected processes share them."""
        return self._over(OrderedSampler(rows, 4 * self.config.batch_size, is_shared=True))

    def all_of(self, rows: np.ndarray) -> TokenLoader:
        """Minibatches of all cells ``rows`` in order, whole, the same for each of several processes."""
        return self._over(OrderedSampler(rows, 4 * self.config.batch_size))

    def class_counts(self, rows: np.ndarray) -> np.ndarray:
        """Cells of each class among ``rows``, ``(C,)``."""
        labels = self.cells.source.labels
        return np.bincount(labels[rows], minlength=labels.max() + 1)

    def _over(self, sampler: RowSampler) -> TokenLoader:
        config = self.config
        return TokenLoader(
            self.cells.source,
            self.tokenizer,
            sampler,
            self.cells.is_log,
            seed=config.seed,
            token_dropout=config.token_dropout,
            device=config.device,
            embedding=self.embedding,
        )


@dataclass(frozen=True)
class Split:
    """Shares of each class that train and validate, and whether to train once more on all; see ``train``."""

    train_size: float = 0.9
    validation_size: float | None = None
    refit: bool | None = None


@dataclass(frozen=True)
class FittedNetwork:
    """What fitting a network leaves, its weights excepted."""

    train: np.ndarray
    validation: np.ndarray
    class_counts: np.ndarray
    decision: Decision
    curves: dict[str, list[float]]
    hard_cells: HardCells | None
    class_prior: float | None


def fit_network(
    network: GeneTransformer,
    tokenizer: Tokenizer,
    cells: TrainingCells,
    how: Split,
    config: TrainingConfig,
    title: str = "Training",
) -> FittedNetwork:
    """Train ``network`` in place on the labelled cells, fit the temperature, and train again on all of them."""
    source = cells.source
    labelled = np.flatnonzero(source.labels >= 0)
    train, validation = (
        labelled[part]
        for part in split(
            source.labels[labelled],
            train_size=how.train_size,
            validation_size=how.validation_size,
            seed=config.seed,
            max_validation=source.max_validation,
        )
    )
    loaders = Loaders(cells, tokenizer, config)
    loaders = replace(loaders, embedding=frozen_embedding(network, loaders, labelled))
    trained = nn.ModuleList([network, *filter(None, [config.masked_task])])
    initial = {name: weights.clone() for name, weights in trained.state_dict().items()}
    held_out = loaders.validation(validation) if len(validation) else None
    has_dropout = network.training
    curves, hard_cells, class_prior = run(network, loaders, train, held_out, title)
    decision = Decision(TYPICAL_TEMPERATURE)
    if held_out is not None:
        decision = Decision(fit_temperature(*validation_logits(network, held_out, config.precision)))
        if len(labelled) < REFIT_BELOW if how.refit is None else how.refit:
            train = labelled
            trained.load_state_dict(initial)
            network.train(has_dropout)  # the first training left evaluation mode
            loaders = replace(loaders, config=_of_refit(config))
            _, hard_cells, class_prior = run(network, loaders, train, None, "Refitting")
    counts = loaders.class_counts(train)
    return FittedNetwork(train, validation, counts, decision, curves, hard_cells, class_prior)


def run(
    network: GeneTransformer, loaders: Loaders, rows: np.ndarray, held_out: TokenLoader | None, title: str
) -> tuple[dict[str, list[float]], HardCells | None, float]:
    """Train once on ``rows`` of the source: its curves, the hard cells it ended with, and the class prior it used."""
    config, counts = loaders.config, loaders.class_counts(rows)
    hard_cells = None if config.replay is None else HardCells(config.replay, counts)
    train = loaders.training(rows, hard_cells)
    source = loaders.cells.source
    # Views, which stand in for labelled cells, come in minibatches alone.
    has_views = isinstance(source, InMemoryCells) and source.views is not None
    class_prior = config.class_prior
    solved: list[nn.Module] = []
    if config.solves_evidence and network.evidence is not None and not has_views:
        solved.append(network.evidence)
        embedding_of = None
        if network.sum is not None and isinstance(network.head, LinearHead):
            known = loaders.embedding
            embedding_of = partial(embed, network, loaders) if known is None else known.__getitem__
            solved.append(network.head)
        class_prior = solve_experts(
            network, loaders.all_of, embedding_of, rows, source.labels, class_prior, config.seed
        )
    elif class_prior is None:
        class_prior = UNSOLVED_PRIOR
    config = replace(config, count_power=1 - class_prior)
    for part in solved:
        part.requires_grad_(False).eval()  # what does not learn needs no dropout
    curves = fit(network, train, held_out, counts, config, hard_cells=hard_cells, title=title)
    for part in solved:
        part.requires_grad_(True)
    return curves, hard_cells, class_prior


def _of_refit(config: TrainingConfig) -> TrainingConfig:
    """Return the same with a checkpoint of its own, next to that of the first training."""
    path = config.ckpt_path
    return replace(config, ckpt_path=path and path.with_name(path.name + ".refit"))


def frozen_embedding(network: GeneTransformer, loaders: Loaders, rows: np.ndarray) -> Tensor | None:
    """Embedding of the cells ``rows`` by a frozen encoder, which then does not run in training; else ``None``.

    The encoder runs in training where the embedding would fill the memory, or a cell is shown with other values. The
    head of a pretrained encoder gets its embedding standardized, which is measured here once.
    """
    if network.standardize is None:
        return None
    source = loaders.cells.source
    is_kept = not any(weights.requires_grad for weights in network.encoder.parameters())
    is_kept &= len(source) * network.config.d_model <= MAX_KEPT
    is_kept &= not (isinstance(source, InMemoryCells) and source.views is not None)
    if not is_kept:
        rng = np.random.default_rng(loaders.config.seed)
        rows = np.sort(rng.permutation(rows)[:MEASURED_CELLS])
    if not is_kept and network.standardize.is_measured:
        return None
    embedding = embed(network, loaders, rows)
    if network.config.encoder == "scgpt":
        network.eval()  # dropout costs an encoder that is fine-tuned on few cells far more than it gives
    if not network.standardize.is_measured:
        network.standardize.measure(embedding)
    if not is_kept:
        return None
    of_all = torch.zeros(len(source), network.config.d_model)
    of_all[rows] = embedding
    return of_all


@torch.no_grad()
def embed(network: GeneTransformer, loaders: Loaders, rows: np.ndarray) -> Tensor:
    """Embedding ``(n, D)`` of the cells ``rows (n,)``, which ascend.

    Connected processes share the cells, and each gets the embedding of all.
    """
    config = loaders.config
    embedding = torch.zeros(len(rows), network.config.d_model)
    is_training = network.training
    network.to(config.device).eval()
    with network.fixed():
        for minibatch in tqdm(loaders.validation(rows), "Embedding", unit="minibatch", disable=not has_bars(config)):
            with autocast(config.device, config.precision):
                output = network(*(part.to(config.device) for part in minibatch.tokens))
            places = np.searchsorted(rows, minibatch.source_index.numpy())
            embedding[places] = output.embedding.float().cpu()
    network.train(is_training)
    if rank_and_size()[1] == 1:
        return embedding
    embedding = embedding.to(config.device)
    distributed.all_reduce(embedding)
    return embedding.cpu()


def describe_reference(
    found: FittedNetwork, cells: TrainingCells, classes: tuple[str, ...], config: TrainingConfig
) -> Fitted:
    """Collect what the model keeps of a training and of its cells: curves, hard cells, class profiles, novelty."""
    source, is_log = cells.source, cells.is_log
    expression = class_profile(source, found.train, len(classes), is_log=is_log)
    expression = Profile(*(values.astype(np.float32) for values in vars(expression).values()))
    return Fitted(
        train_indices=found.train,
        validation_indices=found.validation,
        class_counts=found.class_counts,
        gene_share=expression.share,
        decision=found.decision,
        history=_name_classes(found.curves, classes),
        hard_cells=hard_cell_table(found.hard_cells, cells.names, classes),
        class_prior=found.class_prior,
        profile=expression,
        seed=config.seed,
        novelty=class_novelty(source, expression, is_log=is_log, seed=config.seed),
    )


def _name_classes(curves: dict[str, list[float]], classes: tuple[str, ...]) -> dict[str, list[float]]:
    """``replayed_<code>`` becomes ``replayed <class>``; classes that were never replayed are left out."""
    by_class = {f"replayed_{code}": name for code, name in enumerate(classes)}
    named = {name: values for name, values in curves.items() if name not in by_class}
    for code, name in by_class.items():
        if any(curves.get(code, [])):
            named[f"replayed {name}"] = curves[code]
    return named


def hard_cell_table(hard_cells: HardCells | None, names: CellNames, classes: tuple[str, ...]) -> dict[str, list[Any]]:
    """Columns of :attr:`celler.model.Celler.hard_cells_` as plain lists, a row per cell."""
    if hard_cells is None:
        return {name: [] for name in HARD_CELL_COLUMNS}
    listed = hard_cells.listed
    order = (listed["index"], -listed["log_probability"], -listed["n_epochs"])
    listed = listed[np.lexsort((*order, listed["prediction"]))]
    listed = listed[rank_in_class(listed) < hard_cells.replay.n_per_class]
    listed = listed[np.lexsort((listed["index"], -listed["log_probability"], -listed["n_epochs"]))]
    _, first = np.unique(listed["index"], return_index=True)  # of two predictions the more frequent
    listed = listed[np.sort(first)]
    columns = (
        [str(name) for name in names(listed["index"])],
        [classes[code] for code in listed["label"]],
        [classes[code] for code in listed["prediction"]],
        np.exp(listed["log_probability"].astype(np.float64)).tolist(),
        listed["n_epochs"].tolist(),
        hard_cells.n_failed(listed["index"]).tolist(),
    )
    return dict(zip(HARD_CELL_COLUMNS, columns, strict=True))


def class_profile(source: CellSource, rows: np.ndarray, n_classes: int, *, is_log: bool) -> Profile:
    """Mean expression of each class among ``rows`` of the source, and its number of cells there."""
    typical, labels = source.typical(rows), source.labels
    found = profile(
        lambda block: source.rows(typical[block]),
        lambda block: np.eye(n_classes)[labels[typical[block]]],
        len(typical),
        is_log=is_log,
        block_size=2000,
    )
    return replace(found, n_cells=np.bincount(labels[rows], minlength=n_classes).astype(float))


def class_novelty(source: CellSource, reference: Profile, *, is_log: bool, seed: int) -> Novelty | None:
    """Fit the novelty score to the labelled cells of the source."""
    labelled = np.flatnonzero(source.labels >= 0)
    codes = source.labels[labelled]
    return fit_novelty(lambda cells: source.rows(labelled[cells]), codes, reference, is_log=is_log, seed=seed)


def training_source(
    reader: ExpressionReader,
    labels: pd.Series,
    tree: LabelTree,
    known: Collection[int] = (),
    columns: np.ndarray | None = None,
) -> InMemoryCells:
    """All cells of a registered AnnData with label codes, −1 where unlabelled.

    ``known`` are codes of classes that the model has learned before and that need no cells; ``columns (n_genes,)``
    those of the model's genes, ``None`` for all. Raises ``ValueError`` for fewer than two classes or a labelled cell
    without counts, and warns of classes with fewer than three cells.
    """
    check_classes(tree.classes)
    codes, X = tree.encode(labels.to_numpy().astype(object)), reader.matrix()
    has_counts = np.asarray(X.sum(axis=1)).ravel() > 0
    empty = np.flatnonzero((codes >= 0) & ~has_counts)
    if len(empty):
        raise ValueError(
            f"{counted(len(empty), 'labelled cells have')} no counts (first: {str(labels.index[empty[0]])!r}); remove "
            f"{agreed(len(empty), 'them')} before setup_anndata: sc.pp.filter_cells(adata, min_counts=1)."
        )
    if columns is not None:
        X = take_columns(X, columns)
        codes = _without_empty(codes, np.asarray(X.sum(axis=1)).ravel() > 0, tree.classes)
    warn_of_small_classes(codes, tree.classes, known)
    return InMemoryCells(X, codes)


def _without_empty(codes: np.ndarray, has_counts: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Return −1 as the codes of cells that express none of the model's genes, such as those of a panel."""
    is_empty = (codes >= 0) & ~has_counts
    if not is_empty.any():
        return codes
    kept = np.where(is_empty, -1, codes)
    if gone := [classes[code] for code in np.setdiff1d(codes[is_empty], kept)]:
        raise ValueError(
            f"no cell of {listed(gone)} expresses one of the model's genes; leave these classes out or take more genes."
        )
    n_empty = int(is_empty.sum())
    warn(
        f"{counted(n_empty, 'labelled cells express')} none of the model's genes; {agreed(n_empty, 'they are')} not "
        "trained on."
    )
    return kept


def check_classes(classes: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for fewer than two classes."""
    if len(classes) < 2:
        raise ValueError(
            f"there are labelled cells of {counted(len(classes), 'classes')} {list(classes)}; two classes are needed "
            "to train. Check labels_key and unlabeled_category in setup_anndata."
        )


def warn_of_small_classes(labels: np.ndarray, classes: tuple[str, ...], known: Collection[int] = ()) -> None:
    """Warn of classes with fewer than three labelled cells: they train, but cannot be validated."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    small = [f"{classes[k]!r} ({n})" for k, n in enumerate(counts) if n < 3 and k not in known]
    if small:
        warn(
            f"classes with fewer than 3 labelled cells: {listed(small)}. They are trained on, but none of their cells "
            "can be held out for validation, so expect little of them."
        )
