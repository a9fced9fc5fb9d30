"""Fitting: a registered AnnData becomes minibatches of tokens, and the network is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from celler._utils._devices import autocast
from celler._utils._distributed import rank_and_size
from celler._utils._messages import warn
from celler.atlas._datamodule import DataModule
from celler.atlas._source import StoreCells
from celler.data._expression import ExpressionReader
from celler.data._loader import Minibatches, TokenLoader
from celler.data._profile import Profile, profile
from celler.data._samplers import split
from celler.data._sources import CellSource, InMemoryCells
from celler.data._tokenizer import Tokenizer
from celler.inference._calibration import TYPICAL_TEMPERATURE, Decision, fit_temperature
from celler.inference._novelty import Novelty, fit_novelty
from celler.labels import LabelTree
from celler.mining import HardCells, rank_in_class
from celler.model._state import HARD_CELL_COLUMNS, Fitted
from celler.network._network import GeneTransformer
from celler.training._plan import TrainingConfig
from celler.training._run import fit, has_bars, validation_logits

if TYPE_CHECKING:
    from celler.model._celler import Celler

#: Below this many labelled cells the network is trained once more on all of them: a tenth held out
#: of a class of ten costs more there than the second training.
REFIT_BELOW = 5000


def training_source(
    reader: ExpressionReader,
    labels: pd.Series,
    tree: LabelTree,
    known: Collection[int] = (),
    columns: np.ndarray | None = None,
) -> InMemoryCells:
    """All cells of a registered AnnData with label codes, −1 where unlabelled.

    known: codes of classes that the model knows already, which need no cells.
    columns: those of the model's genes ``(n_genes,)``, in its order; ``None`` is all.

    Raises ``ValueError`` for fewer than two classes or a labelled cell without counts, and warns of
    classes with fewer than three cells.
    """
    check_classes(tree.classes)
    codes, X = tree.encode(labels.to_numpy().astype(object)), reader.matrix()
    if columns is not None and not np.array_equal(columns, np.arange(X.shape[1])):
        X = X[:, columns]
    empty = np.flatnonzero((codes >= 0) & (np.asarray(X.sum(axis=1)).ravel() == 0))
    if len(empty):
        raise ValueError(
            f"{len(empty):,} labelled cells have no counts (first: {str(labels.index[empty[0]])!r}); remove them "
            "before setup_anndata: sc.pp.filter_cells(adata, min_counts=1)."
        )
    warn_of_small_classes(codes, tree.classes, known)
    return InMemoryCells(X, codes)


class TrainingCells(NamedTuple):
    """Cells to train on, whether their values are logarithms, and names of cells by index, empty for those drawn."""

    source: CellSource
    names: Callable[[np.ndarray], Iterable[object]]
    is_log: bool


def fit_network(
    network: GeneTransformer,
    tokenizer: Tokenizer,
    cells: TrainingCells,
    *,
    classes: tuple[str, ...],
    train_size: float,
    validation_size: float | None,
    refit: bool | None,
    config: TrainingConfig,
) -> Fitted:
    """Train ``network`` in place on the labelled ``cells`` (label codes >= 0)."""
    source, cell_names, is_log = cells
    labelled = np.flatnonzero(source.labels >= 0)
    train, validation = (
        labelled[part]
        for part in split(
            source.labels[labelled],
            train_size=train_size,
            validation_size=validation_size,
            seed=config.seed,
            max_validation=source.max_validation,
        )
    )
    loaders = prepared(network, loaders_for(source, tokenizer, is_log, config), labelled, config)
    trained = nn.ModuleList([network, *filter(None, [config.masked_task])])
    initial = {name: weights.clone() for name, weights in trained.state_dict().items()}
    held_out = loaders.ordered(validation) if len(validation) else None
    history, hard_cells = run(network, loaders, train, held_out, config)
    decision = Decision(TYPICAL_TEMPERATURE)
    if held_out is not None:
        logits, labels = validation_logits(network, held_out, config.precision)
        decision = Decision(fit_temperature(logits, labels))
        if len(labelled) < REFIT_BELOW if refit is None else refit:
            train = labelled
            trained.load_state_dict(initial)
            _, hard_cells = run(network, loaders, train, None, of_refit(config), "Refitting")
    expression = class_profile(source, train, len(classes), is_log=is_log)
    expression = Profile(*(values.astype(np.float32) for values in vars(expression).values()))
    return Fitted(
        train_indices=train,
        validation_indices=validation,
        class_counts=loaders.class_counts(train),
        gene_share=expression.share,
        decision=decision,
        history=name_classes(history, classes),
        hard_cells=hard_cell_table(hard_cells, cell_names, classes),
        profile=expression,
        seed=config.seed,
        encoder_share=network.encoder_share,
        novelty=class_novelty(source, labelled, expression, is_log=is_log, seed=config.seed),
    )


def loaders_for(
    source: CellSource, tokenizer: Tokenizer, is_log: bool, config: TrainingConfig
) -> TokenLoader:
    """TokenLoader of ``source`` with the minibatches of ``config``."""
    return TokenLoader(
        source,
        tokenizer,
        is_log,
        config.batch_size,
        config.seed,
        token_dropout=config.token_dropout,
        device=config.device,
    )


def run(
    network: GeneTransformer,
    loaders: TokenLoader,
    rows: np.ndarray,
    held_out: Minibatches | None,
    config: TrainingConfig,
    title: str = "Training",
) -> tuple[dict[str, list[float]], HardCells | None]:
    """One training on ``rows`` of the source: its curves, and the hard cells it ended with."""
    counts = loaders.class_counts(rows)
    hard_cells = None if config.replay is None else HardCells(config.replay, counts)
    train = loaders.shuffled(rows, hard_cells)
    curves = fit(network, train, held_out, counts, config, hard_cells=hard_cells, title=title)
    return curves, hard_cells


def of_refit(config: TrainingConfig) -> TrainingConfig:
    """With a checkpoint of its own, beside that of the first training."""
    path = config.ckpt_path
    return replace(config, ckpt_path=path and path.with_name(path.name + ".refit"))


def name_classes(
    curves: dict[str, list[float]], classes: tuple[str, ...]
) -> dict[str, list[float]]:
    """``replayed_<code>`` becomes ``replayed <class>``; classes that were never replayed are left out."""
    by_class = {f"replayed_{code}": name for code, name in enumerate(classes)}
    named = {name: values for name, values in curves.items() if name not in by_class}
    for code, name in by_class.items():
        if any(curves.get(code, [])):
            named[f"replayed {name}"] = curves[code]
    return named


def hard_cell_table(
    hard_cells: HardCells | None,
    names: Callable[[np.ndarray], Iterable[object]],
    classes: tuple[str, ...],
) -> dict[str, list[Any]]:
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
    """Expression of each class among ``rows`` of the source, and how many cells it has there."""
    typical, labels = source.typical(rows), source.labels
    found = profile(
        lambda block: source.rows(typical[block]),
        lambda block: np.eye(n_classes)[labels[typical[block]]],
        len(typical),
        is_log=is_log,
        block_size=2000,
    )
    return replace(found, n_cells=np.bincount(labels[rows], minlength=n_classes).astype(float))


def class_novelty(
    source: CellSource, labelled: np.ndarray, reference: Profile, *, is_log: bool, seed: int
) -> Novelty | None:
    """How novel a cell is to the classes of the ``labelled`` rows of the source."""
    codes = source.labels[labelled]
    return fit_novelty(
        lambda cells: source.rows(labelled[cells]), codes, reference, is_log=is_log, seed=seed
    )


def schedule(source: CellSource, max_epochs: int | None, batch_size: int | None) -> tuple[int, int]:
    """Epochs and cells per minibatch, chosen by the number of labelled cells where ``None``.

    Minibatches of 32 generalise better up to 10,000 cells, beyond that 128; 12 epochs up to 4,000
    cells, then fewer as the root of their number, and at least 600 steps in at most 200 epochs.
    """
    n_cells = source.n_labelled
    if batch_size is None:
        batch_size = 32 if n_cells <= 10_000 else 128
    if max_epochs is None:
        n_epochs = round(12 * min(1.0, (4000 / n_cells) ** 0.5))
        n_steps = -(-n_cells // max(1, batch_size))
        max_epochs = max(3, n_epochs, min(200, -(-600 // n_steps)))
    return max_epochs, batch_size


def check_classes(classes: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for fewer than two classes."""
    if len(classes) < 2:
        raise ValueError(
            f"there are labelled cells of {len(classes)} class {list(classes)}; two classes are needed "
            "to train. Check labels_key and unlabeled_category in setup_anndata."
        )


def warn_of_small_classes(
    labels: np.ndarray, classes: tuple[str, ...], known: Collection[int]
) -> None:
    """Warn of classes with fewer than three labelled cells: they train, but cannot be validated."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    small = {classes[k]: int(n) for k, n in enumerate(counts) if n < 3 and k not in known}
    if small:
        warn(
            f"classes with fewer than 3 labelled cells: {small}. They are trained on, but none of their cells "
            "can be held out for validation, so expect little of them."
        )


#: Cells in which the embedding of a pretrained encoder is measured.
MEASURED_CELLS = 256


def prepared(
    network: GeneTransformer, loaders: TokenLoader, rows: np.ndarray, config: TrainingConfig
) -> TokenLoader:
    """The loaders, with the embedding of the cells ``rows`` where the encoder is frozen.

    A pretrained encoder's embedding is measured once, for the head to be given it standardized.
    """
    if network.standardize is None:
        return loaders
    is_frozen = not any(weights.requires_grad for weights in network.encoder.parameters())
    if not is_frozen:
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.permutation(rows)[:MEASURED_CELLS])
    if is_frozen or not network.standardize.is_measured:
        embedding = embed(network, loaders, rows, config)
    if not network.standardize.is_measured:
        network.standardize.measure(embedding[rows])
    return replace(loaders, embedding=embedding) if is_frozen else loaders


@torch.no_grad()
def embed(
    network: GeneTransformer, loaders: TokenLoader, rows: np.ndarray, config: TrainingConfig
) -> Tensor:
    """Embedding ``(n_cells, D)`` of the cells ``rows`` of the source, zeros elsewhere.

    Processes that are connected already share the cells; all get the embedding of all.
    """
    embedding = torch.zeros(len(loaders.source), network.config.d_model)
    network.to(config.device).eval()
    minibatches = loaders.ordered(rows)
    for minibatch in tqdm(minibatches, "Embedding", disable=not has_bars(config)):
        with autocast(config.device, config.precision):
            output = network(*(part.to(config.device) for part in minibatch.tokens))
        embedding[minibatch.source_index] = output.embedding.float().cpu()
    if rank_and_size()[1] == 1:
        return embedding
    embedding = embedding.to(config.device)
    distributed.all_reduce(embedding)
    return embedding.cpu()


def streamed_cells(self: Celler, datamodule: DataModule) -> TrainingCells:
    """The labelled training cells of a store; raises ``ValueError`` where the model was not made for it."""
    check_fits(self, datamodule)
    if datamodule.labels_key is None:
        raise ValueError(
            "this data module has no labels_key, which is enough for pretrain alone; name the column of cell types: "
            f"DataModule(path, labels_key=...). Columns: {datamodule.store.columns}."
        )
    check_classes(tuple(datamodule.classes))
    warn_of_small_classes(datamodule.labels, tuple(datamodule.classes), ())
    source = StoreCells(datamodule.store, datamodule.labels, datamodule.class_balance)
    return TrainingCells(source, datamodule.store.names, False)


def check_fits(
    self: Celler, datamodule: DataModule, keys: Iterable[str] = ("gene_names", "classes", "parents")
) -> None:
    """Raise ``ValueError`` unless genes and classes of the model are those of the store."""
    if not isinstance(datamodule, DataModule):
        raise TypeError(
            f"datamodule is a {type(datamodule).__name__}; a celler.atlas.DataModule is needed: "
            "dm = cl.atlas.DataModule(path, labels_key=...)."
        )
    described = datamodule.registry["celler"]
    differing = [key for key in keys if list(described[key]) != list(self._described.get(key, []))]
    if differing:
        raise ValueError(
            f"the model and the store differ in {', '.join(differing)}; make the model of the same data module: "
            "model = Celler(registry=dm.registry)."
        )
    if self._scgpt or self._knowledge is not None:
        raise ValueError(
            "models of from_pretrained and load_query_data train on an AnnData alone; leave datamodule out."
        )
