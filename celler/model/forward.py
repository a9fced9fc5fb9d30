"""Forward passes over any AnnData: read in chunks, tokenized, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from celler.decision import Decision
from celler.devices import autocast, cpu_threads
from celler.door import warn
from celler.inputs import bad_value, warn_of_binned
from celler.model.query import Query
from celler.network import GeneTransformer
from celler.prefetch import prefetch
from celler.shift import Profile, profile, shift_factors
from celler.tokenizer import TARGET_SUM, BadValueError, TokenBatch, Tokenizer

if TYPE_CHECKING:
    from celler.model.celler import Celler

#: Cells from which a query's shift is estimated.
SHIFT_CELLS = 5000
#: A cell that is of a class with less probability than this is left out of its profile.
NEGLIGIBLE = 1e-6
#: Cells read at once, and the tokens (cells x longest cell) of one forward pass.
CHUNK_SIZE = 4096
TOKENS_PER_PASS = 2**18


@dataclass(frozen=True)
class Propagation:
    """probabilities: ``(N, C)``, after they were spread over the neighbours with the weight ``neighbor_weight``.

    n_labelled: labelled cells that were held at their labels. n_cells: cells that were not.
    """

    probabilities: np.ndarray
    n_labelled: int
    n_cells: int
    neighbor_weight: float


@dataclass(frozen=True)
class Outputs:
    """logits: ``(N, C)``. embedding: ``(N, D)``. has_counts: ``(N,)``, False for a cell without any.

    factors: ``(n_genes,)``, by which each gene's expression was multiplied, ``None`` where there were none.
    novelty: ``(N,)``, where it was asked for. novelty_threshold: cells above it are unknown, ``None`` for none.
    propagation: probabilities that take the place of those of the logits, where it was asked for.
    """

    logits: np.ndarray
    embedding: np.ndarray
    has_counts: np.ndarray
    factors: np.ndarray | None = None
    novelty: np.ndarray | None = None
    novelty_threshold: float | None = None
    propagation: Propagation | None = None

    @property
    def is_unknown(self) -> np.ndarray:
        """Cells ``(N,)`` that get no label whatever their probabilities: without counts, or too novel."""
        if self.novelty is None or self.novelty_threshold is None:
            return ~self.has_counts
        return ~self.has_counts | (self.novelty > self.novelty_threshold)

    @property
    def shift(self) -> float:
        """Standard deviation over genes of the log2 factors that were applied, 0 where there were none."""
        return 0.0 if self.factors is None else float(np.log2(self.factors).std())


@dataclass(frozen=True)
class Forward:
    """A model's way from the cells of a query to :class:`Outputs`, on the device the network is on."""

    network: GeneTransformer
    tokenizer: Tokenizer
    decision: Decision
    profile: Profile | None
    precision: str

    @classmethod
    def of(cls, model: Celler) -> Forward:
        """The way of ``model``; one that is not trained corrects no shift."""
        profile = model._fitted.profile if model.is_trained else None
        return cls(model.module, model._tokenizer, model._decision, profile, model._precision)

    def __call__(
        self, query: Query, index: np.ndarray, *, batch_size: int | None, correct_shift: bool
    ) -> Outputs:
        """Outputs for the rows ``index (N,)``, with :func:`celler.shift.shift_factors` of a sample of all rows."""
        warn_of_binned(query.reader)
        outputs, factors, n_cells = None, None, query.adata.n_obs
        if correct_shift and len(index):
            rows = np.arange(n_cells)
            if n_cells > SHIFT_CELLS:
                rows = np.sort(np.random.default_rng(0).choice(rows, SHIFT_CELLS, replace=False))
            plain, factors = self.shift(query, rows, batch_size)
            if plain is not None and factors is None and len(rows) == n_cells:
                parts = (plain.logits, plain.embedding, plain.has_counts)  # the outputs already
                outputs = Outputs(*(part[index] for part in parts))
        if outputs is None:
            outputs = self.outputs(query, index, batch_size, factors)
        report_empty(outputs.has_counts, index, query.adata)
        return outputs

    def shift(
        self, query: Query, rows: np.ndarray, batch_size: int | None
    ) -> tuple[Outputs | None, np.ndarray | None]:
        """Plain outputs of ``rows`` and, by them, the factors of the model's genes, ``None`` where there is no shift.

        No outputs either where nothing that is corrected is looked at.
        """
        if self.profile is None or not self.network.config.reads_expression:
            return None, None
        plain = self.outputs(query, rows, batch_size)
        weights = self.decision.probabilities(plain.logits) * plain.has_counts[:, None]
        weights[weights < NEGLIGIBLE] = 0
        found = profile(
            lambda block: query.values(rows[block], query.is_shared),
            lambda block: weights[block],
            len(rows),
            is_log=query.is_log,
            block_size=CHUNK_SIZE,
        )
        factors = np.ones(query.n_genes)
        reference = self.profile.restricted(query.is_shared)
        factors[query.is_shared] = shift_factors(reference, found)
        return plain, None if (factors == 1).all() else factors

    @torch.inference_mode()
    def outputs(
        self,
        query: Query,
        index: np.ndarray,
        batch_size: int | None,
        factors: np.ndarray | None = None,
    ) -> Outputs:
        """Outputs of the network for the rows ``index (N,)``.

        batch_size: cells per pass, ``None`` for what a fixed number of tokens allows.
        factors: ``(n_genes,)``, by which the expression of each gene is multiplied.
        """
        config, device = self.network.config, self.network.device
        logits = np.zeros((len(index), config.n_classes), np.float32)
        embedding = np.zeros((len(index), config.d_model), np.float32)
        has_counts = np.zeros(len(index), bool)
        self.network.eval()
        passes = token_passes(self.tokenizer, query, index, batch_size=batch_size, factors=factors)
        with cpu_threads():
            for rows, tokens in passes:
                with autocast(device, self.precision):
                    output = self.network(*(part.to(device) for part in tokens))
                logits[rows] = output.logits.cpu().numpy()
                embedding[rows] = output.embedding.cpu().numpy()
                has_counts[rows] = ~tokens.padding_mask.all(1).numpy()
        return Outputs(logits, embedding, has_counts, factors)


def token_passes(
    tokenizer: Tokenizer,
    query: Query,
    index: np.ndarray,
    *,
    batch_size: int | None = None,
    factors: np.ndarray | None = None,
    n_tokens: int = TOKENS_PER_PASS,
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Positions in ``index (N,)`` and the tokens of those cells, pass by pass; arguments as :meth:`Forward.outputs`.

    A query that lacks genes is scaled to the share its genes carry in the reference, so that the others read as
    masked, not as zero.

    n_tokens: tokens of a pass, where ``batch_size`` is ``None``.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} was given; at least 1 is needed, or None.")
    by_gene = None if factors is None else torch.as_tensor(factors, dtype=torch.float32)
    for rows, tokens in prefetch(_tokenized(tokenizer, query, index, batch_size, n_tokens)):
        yield rows, tokens if by_gene is None else rescaled(tokens, by_gene)


def _tokenized(
    tokenizer: Tokenizer, query: Query, index: np.ndarray, batch_size: int | None, n_tokens: int
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """As :func:`token_passes`, before any factors."""
    target_sum = TARGET_SUM * query.expression_share
    for start in range(0, len(index), CHUNK_SIZE):
        chunk = index[start : start + CHUNK_SIZE]
        X = query.reader.rows(chunk)
        for rows in _passes(np.diff(X.indptr), batch_size, n_tokens):
            try:
                tokens = tokenizer(
                    X, query.gene_map, rows=rows, is_log=query.is_log, target_sum=target_sum
                )
            except BadValueError as error:
                cell = str(query.adata.obs_names[chunk[rows[error.row]]])
                raise bad_value(error.value, query.reader, cell) from None
            yield start + rows, tokens


def rescaled(tokens: TokenBatch, factors: Tensor) -> TokenBatch:
    """Expression times ``factors (n_genes,)``, the sum of a cell's linear values as before; bins stay."""
    linear = tokens.expression.expm1()
    changed = linear * factors[tokens.gene_ids.long()]
    changed *= linear.sum(1, keepdim=True) / changed.sum(1, keepdim=True).clamp(min=1e-9)
    return tokens._replace(expression=changed.log1p())


def rows_of(adata: AnnData, indices: np.ndarray | list[int] | None) -> np.ndarray:
    """Positions ``(N,)`` that ``indices`` (positions, a boolean mask, or ``None`` for all) selects."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"a {type(adata).__name__} was given; an AnnData is needed.")
    if indices is None:
        return np.arange(adata.n_obs)
    index = np.asarray(indices)
    if index.dtype == bool and index.ndim == 1:
        if len(index) != adata.n_obs:
            raise IndexError(
                f"a mask of {len(index):,} values was given for {adata.n_obs:,} cells."
            )
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise TypeError(
            f"indices={indices!r} was given; a list or array of whole numbers or a boolean mask is needed. "
            "For names: adata.obs_names.get_indexer(names)."
        )
    if index.size and not (-adata.n_obs <= index.min() and index.max() < adata.n_obs):
        raise IndexError(
            f"indices run from {index.min()} to {index.max()}; there are {adata.n_obs:,} cells, 0 to "
            f"{adata.n_obs - 1}."
        )
    return index.astype(np.int64) % max(1, adata.n_obs)


def _passes(lengths: np.ndarray, batch_size: int | None, n_tokens: int) -> list[np.ndarray]:
    """Rows in groups of like length, so that little of a pass is padding."""
    order = np.argsort(lengths, kind="stable")
    if batch_size is None:
        batch_size = max(1, n_tokens // max(1, int(lengths.max(initial=1))))
    return np.array_split(order, -(-len(order) // batch_size))


def report_empty(has_counts: np.ndarray, index: np.ndarray, adata: AnnData) -> None:
    """Warn of cells that hold none of the model's genes."""
    empty = index[~has_counts]
    if len(empty):
        warn(
            f"{len(empty):,} cells have no counts in the model's genes (first: {str(adata.obs_names[empty[0]])!r}); "
            "nothing can be said of them: they are labelled as unknown, with equal probabilities."
        )
