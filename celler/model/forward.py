"""Forward passes over any AnnData: read in chunks, tokenized, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from celler.decision import Decision
from celler.devices import autocast, cpu_threads
from celler.door import warn
from celler.genes import GeneAlignment, align_genes, check_unique, gene_names, selector
from celler.inputs import ExpressionReader, bad_value, is_log, warn_of_binned
from celler.network import GeneTransformer
from celler.prefetch import prefetch
from celler.shift import Profile, profile, shift_factors
from celler.tokenizer import TARGET_SUM, BadValueError, TokenBatch, Tokenizer

#: Cells from which a query's shift is estimated.
SHIFT_CELLS = 5000
#: Cells read at once, and the tokens (cells x longest cell) of one forward pass.
CHUNK_SIZE = 4096
TOKENS_PER_PASS = 2**18


@dataclass(frozen=True)
class Genes:
    """The model's genes: ``names`` and each one's mean share of a reference cell's counts ``(n_genes,)``.

    is_vocabulary: they are all genes of a species and not those of a reference.
    """

    names: pd.Index
    share: np.ndarray
    key: str | None = None
    is_vocabulary: bool = False

    def names_of(self, adata: AnnData) -> pd.Index:
        """Gene names of a query: its var column ``key`` where it has one, else ``var_names``."""
        if self.key is not None and self.key in adata.var.columns:
            return gene_names(adata.var, self.key)
        check_unique(adata.var_names, "the query's genes")
        return adata.var_names

    def columns_of(self, adata: AnnData) -> np.ndarray:
        """Columns ``(n_genes,)`` of a registered AnnData, which has all of them."""
        return gene_names(adata.var, self.key).get_indexer(self.names)

    def align(self, adata: AnnData) -> tuple[GeneAlignment, float]:
        """Alignment of a query and the share of the reference's expression its genes carry."""
        names = self.names_of(adata)
        alignment = align_genes(names, self.names, adata.var, is_vocabulary=self.is_vocabulary)
        matched = alignment.gene_map[alignment.gene_map >= 0]
        return alignment, float(self.share[matched].sum())

    def report(
        self, alignment: GeneAlignment, share: float, reader: ExpressionReader
    ) -> str | None:
        """What there is to tell of an alignment, ``None`` where all is as it should be."""
        if not self.is_vocabulary:
            return None if alignment.is_exact else alignment.describe(share)
        if (alignment.gene_map >= 0).all() and not alignment.n_inexact and not alignment.column:
            return None
        X = reader.probe()
        X = X.expm1() if is_log(reader) else X
        by_gene = np.asarray(X.sum(axis=0)).ravel()
        read = by_gene[alignment.gene_map >= 0].sum() / max(by_gene.sum(), 1e-9)
        return alignment.describe_extra(float(read))


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
    """A trained model's way from the cells of a reader to :class:`Outputs`."""

    network: GeneTransformer
    tokenizer: Tokenizer
    genes: Genes
    decision: Decision
    profile: Profile | None
    precision: str

    def __call__(
        self,
        reader: ExpressionReader,
        index: np.ndarray,
        alignment: GeneAlignment,
        expression_share: float,
        *,
        batch_size: int | None,
        correct_shift: bool,
    ) -> Outputs:
        """Outputs for the rows ``index (N,)``, with :func:`celler.shift.shift_factors` of a sample of all rows."""
        target = (self.network, self.tokenizer, alignment.gene_map, expression_share, reader)
        options: dict[str, Any] = {"batch_size": batch_size, "precision": self.precision}
        warn_of_binned(reader)
        outputs, factors, n_cells = None, None, reader.adata.n_obs
        if correct_shift and len(index):
            rows = np.arange(n_cells)
            if n_cells > SHIFT_CELLS:
                rows = np.sort(np.random.default_rng(0).choice(rows, SHIFT_CELLS, replace=False))
            plain, factors = self.shift(reader, rows, alignment, expression_share, batch_size)
            if plain is not None and factors is None and len(rows) == n_cells:
                parts = (plain.logits, plain.embedding, plain.has_counts)  # the outputs already
                outputs = Outputs(*(part[index] for part in parts))
        if outputs is None:
            outputs = forward(*target, index, factors=factors, **options)
        report_empty(outputs.has_counts, index, reader.adata)
        return outputs

    def shift(
        self,
        reader: ExpressionReader,
        rows: np.ndarray,
        alignment: GeneAlignment,
        expression_share: float,
        batch_size: int | None,
    ) -> tuple[Outputs | None, np.ndarray | None]:
        """Plain outputs of ``rows`` and, by them, the factors of the model's genes, ``None`` where there is no shift.

        No outputs either where nothing that is corrected is looked at.
        """
        if self.profile is None or not self.network.config.reads_expression:
            return None, None
        target = (self.network, self.tokenizer, alignment.gene_map, expression_share, reader)
        plain = forward(*target, rows, batch_size=batch_size, precision=self.precision)
        return plain, self._factors(plain, reader, rows, alignment.gene_map)

    def _factors(
        self, plain: Outputs, reader: ExpressionReader, rows: np.ndarray, gene_map: np.ndarray
    ) -> np.ndarray | None:
        """Factors of the model's genes ``(n_genes,)``, ``None`` where there is no shift."""
        reference, n_genes = self.profile, len(self.genes.names)
        assert reference is not None
        is_shared = np.isin(np.arange(n_genes), gene_map)
        is_exact = np.array_equal(gene_map, np.arange(n_genes))
        to_shared = None if is_exact else selector(gene_map, n_genes)[:, is_shared]
        weights = self.decision.probabilities(plain.logits) * plain.has_counts[:, None]
        query = profile(
            lambda block: in_genes(reader.rows(rows[block]), to_shared),
            lambda block: weights[block],
            len(rows),
            is_log=is_log(reader),
            block_size=CHUNK_SIZE,
        )
        factors = np.ones(n_genes)
        factors[is_shared] = shift_factors(reference.restricted(is_shared), query)
        return None if (factors == 1).all() else factors


def in_genes(X: sparse.csr_matrix, to_genes: sparse.csr_matrix | None) -> sparse.csr_matrix:
    """``X`` times ``to_genes``, and ``X`` itself where its columns are the genes already."""
    return X if to_genes is None else X @ to_genes


@torch.inference_mode()
def forward(
    network: GeneTransformer,
    tokenizer: Tokenizer,
    gene_map: np.ndarray,
    expression_share: float,
    reader: ExpressionReader,
    index: np.ndarray,
    *,
    batch_size: int | None,
    precision: str,
    factors: np.ndarray | None = None,
) -> Outputs:
    """Network outputs for the rows ``index (N,)``, on the device the network is on.

    gene_map, expression_share: from :meth:`Genes.align`; a query that lacks genes is scaled to the
        share its genes carry in the reference, so that the others read as masked, not as zero.
    batch_size: cells per pass, ``None`` for what a fixed number of tokens allows.
    factors: ``(n_genes,)``, by which the expression of each gene is multiplied.
    """
    config, device = network.config, network.device
    logits = np.zeros((len(index), config.n_classes), np.float32)
    embedding = np.zeros((len(index), config.d_model), np.float32)
    has_counts = np.zeros(len(index), bool)
    network.eval()
    passes = token_passes(
        tokenizer, gene_map, expression_share, reader, index, batch_size=batch_size, factors=factors
    )
    with cpu_threads():
        for rows, tokens in passes:
            with autocast(device, precision):
                output = network(*(part.to(device) for part in tokens))
            logits[rows] = output.logits.cpu().numpy()
            embedding[rows] = output.embedding.cpu().numpy()
            has_counts[rows] = ~tokens.padding_mask.all(1).numpy()
    return Outputs(logits, embedding, has_counts, factors)


def token_passes(
    tokenizer: Tokenizer,
    gene_map: np.ndarray,
    expression_share: float,
    reader: ExpressionReader,
    index: np.ndarray,
    *,
    batch_size: int | None = None,
    factors: np.ndarray | None = None,
    n_tokens: int = TOKENS_PER_PASS,
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Positions in ``index (N,)`` and the tokens of those cells, pass by pass; arguments as in :func:`forward`.

    n_tokens: tokens of a pass, where ``batch_size`` is ``None``.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} was given; at least 1 is needed, or None.")
    by_gene = None if factors is None else torch.as_tensor(factors, dtype=torch.float32)
    target_sum = TARGET_SUM * expression_share
    passes = _tokenized(tokenizer, gene_map, target_sum, reader, index, batch_size, n_tokens)
    for rows, tokens in prefetch(passes):
        yield rows, tokens if by_gene is None else rescaled(tokens, by_gene)


def _tokenized(
    tokenizer: Tokenizer,
    gene_map: np.ndarray,
    target_sum: float,
    reader: ExpressionReader,
    index: np.ndarray,
    batch_size: int | None,
    n_tokens: int,
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """As :func:`token_passes`, before any factors."""
    values_are_log = is_log(reader)
    for start in range(0, len(index), CHUNK_SIZE):
        chunk = index[start : start + CHUNK_SIZE]
        X = reader.rows(chunk)
        for rows in _passes(np.diff(X.indptr), batch_size, n_tokens):
            try:
                tokens = tokenizer(
                    X, gene_map, rows=rows, is_log=values_are_log, target_sum=target_sum
                )
            except BadValueError as error:
                cell = str(reader.adata.obs_names[chunk[rows[error.row]]])
                raise bad_value(error.value, reader, cell) from None
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
