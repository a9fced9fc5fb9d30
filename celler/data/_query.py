"""Queries: the cells of any AnnData, and how its genes become the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from celler._utils._kinds import genes_among
from celler._utils._messages import collect, warn
from celler._utils._prefetch import prefetch
from celler._utils._text import as_names
from celler.data._content import content_of
from celler.data._expression import ExpressionReader, bad_value, is_log
from celler.data._gene_names import are_row_numbers, check_unique, gene_names
from celler.data._genes import GeneAlignment, align_genes, selector, with_learned_rows
from celler.data._mismatch import names_elsewhere
from celler.data._tokenizer import TARGET_SUM, BadValueError, FlatTokens, TokenBatch, Tokenizer
from celler.data._values import IN_RAW, query_reader

CHUNK_SIZE = 4096  #: cells read at once
TOKENS_PER_PASS = 2**18  #: cells x longest cell of one forward pass, or tokens made at once without padding
FEW_RENAMED = 0.1  #: share of the genes whose names may differ, as between two releases, before it is said
CELLS_PER_PASS = 512  #: cells of one forward pass without padding
Tokens = TypeVar("Tokens", TokenBatch, FlatTokens)


_NUMBERED = (
    " The model's genes are row numbers, which name no gene: its labels are right only if the query has the same genes "
    "in the same order. Set the reference up again with gene_key= and train a new model."
)


@dataclass(frozen=True)
class Genes:
    """Genes of a model."""

    names: pd.Index  # (n_genes,)
    share: np.ndarray  # mean share of a reference cell's counts that each carries (n_genes,)
    key: str | None = None  # column of var with the names; None is var_names
    is_vocabulary: bool = False  # all genes of a species rather than those of a reference
    orthologs: bool = False  # whether genes of the other species count, through one-to-one orthologs
    are_of_query: bool = False  # whether they were chosen among those of the query, which was said then

    @cached_property
    def are_numbers(self) -> bool:
        """Whether the names are row numbers, as in a model of an earlier version."""
        return are_row_numbers(self.names)

    def names_of(self, adata: AnnData) -> pd.Index:
        """Gene names of a query, from its var column ``key`` or else ``var_names``."""
        if self.key is not None and self.key in adata.var.columns:
            return gene_names(adata.var, self.key)
        names = gene_names(adata.var, None)
        check_unique(names, "the query's genes")
        return names

    def read(
        self, adata: AnnData, of_setup: str | None, layer: str | None, reported: set[str]
    ) -> tuple[ExpressionReader, GeneAlignment, float]:
        """Reader of a query's values, which may be those of its ``raw``, and what :meth:`align` says of their genes."""
        aligned: dict[int, tuple[GeneAlignment, float]] = {}
        count = lambda cells: aligned.setdefault(id(cells), self.align(cells))[0].n_matched
        reader = query_reader(adata, of_setup, layer, count, partial(warn_once, reported=reported))
        place = "query.raw.var_names" if reader.place == IN_RAW else "query.var_names"
        return reader, *(aligned.get(id(reader.adata)) or self.align(reader.adata, place))

    def align(self, adata: AnnData, place: str = "query.var_names") -> tuple[GeneAlignment, float]:
        """Alignment of a query and the share of the reference's expression its genes carry; see :func:`align_genes`."""
        names = self.names_of(adata)
        alignment = align_genes(
            names,
            self.names,
            adata.var,
            is_vocabulary=self.is_vocabulary,
            orthologs=self.orthologs,
            place=place,
            others=names_elsewhere(adata),
        )
        key = self.key if self.key in adata.var.columns else alignment.column
        rows = as_names(adata.var_names if key is None else adata.var[key])
        alignment = with_learned_rows(alignment, rows, adata.var, self.names)
        matched = alignment.gene_map[alignment.gene_map >= 0]
        return alignment, float(self.share[matched].sum())

    def report(self, alignment: GeneAlignment, share: float, reader: ExpressionReader) -> str | None:
        """Describe an alignment in words; ``None`` where every gene is there, or it was said before."""
        if self.are_of_query:
            return None
        if not self.is_vocabulary:
            is_whole = not len(alignment.missing) and alignment.column is None
            has_news = sum(alignment.n_inexact.values()) > FEW_RENAMED * alignment.n_matched
            is_told = is_whole and not has_news and not alignment.others and not self.are_numbers
            return None if is_told else alignment.describe(share) + _NUMBERED * self.are_numbers
        if (alignment.gene_map >= 0).all() and not alignment.n_inexact and not alignment.column:
            return None
        X = reader.probe()
        X = X.expm1() if is_log(reader) else X
        by_gene = np.asarray(X.sum(axis=0)).ravel()
        read = by_gene[alignment.gene_map >= 0].sum() / max(by_gene.sum(), 1e-9)
        return alignment.describe_extra(float(read))


@dataclass(frozen=True)
class Query:
    """Cells of an AnnData, read in the genes of a model."""

    reader: ExpressionReader
    alignment: GeneAlignment
    expression_share: float  # of the reference's counts that the query's genes carry there
    n_genes: int  # of the model
    reported: set[str] = field(default_factory=set)  # messages that were given

    @property
    def adata(self) -> AnnData:
        """The AnnData of the cells."""
        return self.reader.adata

    @property
    def gene_map(self) -> np.ndarray:
        """The model's gene of each column ``(n_vars,)``, -1 for none."""
        return self.alignment.gene_map

    @cached_property
    def is_log(self) -> bool:
        """Whether the values are logarithms."""
        return is_log(self.reader)

    @cached_property
    def is_shared(self) -> np.ndarray:
        """Which of the model's genes are there ``(n_genes,)``."""
        return np.isin(np.arange(self.n_genes), self.gene_map)

    @cached_property
    def is_exact(self) -> bool:
        """Whether the columns are the model's genes, in their order."""
        return np.array_equal(self.gene_map, np.arange(self.n_genes))

    @cached_property
    def content(self) -> np.ndarray:
        """A number of each cell ``(n_obs,)`` that follows from its values alone; all cells are read once."""
        every, step = np.arange(self.adata.n_obs), CHUNK_SIZE
        found = [self.content_at(every[i : i + step]) for i in range(0, len(every), step)]
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def content_at(self, rows: np.ndarray) -> np.ndarray:
        """:attr:`content` of ``rows (n,)``, without reading the others."""
        return content_of(self.reader.rows(rows), self.gene_map)

    def block(self, adata: AnnData) -> Query:
        """Return the same with the cells of ``adata``, whose ``X`` has the same columns and kind of values."""
        reader = ExpressionReader(adata, has_others=self.reader.has_others, known=self.reader.state)
        return replace(self, reader=reader)

    def of_stored(self, X: sparse.csr_matrix) -> Query:
        """Return the same with the rows ``X (n, n_vars)``, as the reader's ``stored`` gives them, without names."""
        reader = ExpressionReader(AnnData(X), place=self.reader.name, has_others=True, known=self.reader.state)
        return replace(self, reader=reader)

    def values(self, rows: np.ndarray, kept: np.ndarray | None = None) -> sparse.csr_matrix:
        """Values of ``rows (n,)`` in the model's genes, or the ``kept (n_genes,)`` of them; 0 where one is missing."""
        X = self.reader.rows(rows)
        if self.is_exact and (kept is None or kept.all()):
            return X
        to_genes = selector(self.gene_map, self.n_genes)
        return X @ (to_genes if kept is None else to_genes[:, kept])


def align_query(
    genes: Genes,
    adata: AnnData,
    of_setup: str | None,
    reported: set[str] | None = None,
    layer: str | None = None,
) -> Query:
    """Match a query's genes with the model's, and warn of what is missing, unless ``reported`` holds the message.

    The values are those of ``layer``; ``None`` is the layer ``of_setup``, or what the query has instead.
    """
    reported = set() if reported is None else reported
    reader, alignment, share = genes.read(adata, of_setup, layer, reported)
    is_gene = genes_among(reader.adata.var)
    if is_gene is not None and (alignment.gene_map[~is_gene] >= 0).any():  # the model learned what is no gene
        reader = replace(reader, has_others=True)
    # Raises for scaled values, before the report: one that is made once would be lost with the error.
    is_log(reader)
    report = genes.report(alignment, share, reader)
    if report is not None:
        warn_once(report, reported)
    return Query(reader, alignment, share, len(genes.names), reported)


def warn_once(message: str, reported: set[str]) -> None:
    """Warn unless ``reported`` holds the message, and add it."""
    collect(message)
    if message not in reported:
        reported.add(message)
        warn(message)


def token_passes(
    tokenizer: Tokenizer,
    query: Query,
    index: np.ndarray,
    *,
    batch_size: int | None = None,
    factors: np.ndarray | None = None,
    n_tokens: int = TOKENS_PER_PASS,
) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Positions in ``index (N,)`` and the tokens of those cells, pass by pass.

    A query that lacks genes is scaled to the share its genes carry in the reference, so that missing genes are masked
    rather than zero. A pass has ``batch_size`` cells, or those whose tokens fill ``n_tokens``; the expression of each
    gene is multiplied by ``factors (n_genes,)``.
    """
    split = partial(_by_length, batch_size=batch_size, n_tokens=n_tokens)
    by_gene = None if factors is None else torch.as_tensor(factors, dtype=torch.float32)
    for rows, tokens in prefetch(_tokenized(query, index, split, tokenizer)):
        yield rows, tokens if by_gene is None else rescaled(tokens, by_gene)


def flat_passes(
    tokenizer: Tokenizer,
    query: Query,
    index: np.ndarray,
    *,
    batch_size: int | None = None,
    factors: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, FlatTokens]]:
    """As :func:`token_passes`, without padding: a pass has ``batch_size`` cells in their order, or fewer."""
    size = CELLS_PER_PASS if batch_size is None else batch_size
    by_gene = None if factors is None else torch.as_tensor(factors, dtype=torch.float32)
    # Tokens of several passes are made at once: a thread that often takes the GIL would hold up the network's.
    split = partial(_in_order, n_tokens=TOKENS_PER_PASS)
    for rows, tokens in prefetch(_tokenized(query, index, split, tokenizer.flat)):
        tokens = tokens if by_gene is None else rescaled_flat(tokens, by_gene)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], tokens.cells(start, start + size)


def _tokenized(
    query: Query,
    index: np.ndarray,
    split: Callable[[np.ndarray], list[np.ndarray]],
    tokenize: Callable[..., Tokens],
) -> Iterator[tuple[np.ndarray, Tokens]]:
    """Positions in ``index (N,)`` and the tokens of those cells; ``split`` makes passes from lengths."""
    target_sum = TARGET_SUM * query.expression_share
    for start in range(0, len(index), CHUNK_SIZE):
        chunk = index[start : start + CHUNK_SIZE]
        X = query.reader.rows(chunk)
        for rows in split(np.diff(X.indptr)):
            try:
                tokens = tokenize(X, query.gene_map, rows=rows, is_log=query.is_log, target_sum=target_sum)
            except BadValueError as error:
                cell = str(query.adata.obs_names[chunk[rows[error.row]]])
                raise bad_value(error.value, query.reader, cell) from None
            yield start + rows, tokens


def rescaled(tokens: TokenBatch, factors: Tensor) -> TokenBatch:
    """Multiply expression by ``factors (n_genes,)``; a cell's sum of linear values and the bins stay."""
    linear = tokens.expression.expm1()
    changed = linear * factors[tokens.gene_ids.long()]
    # In float64 a sum does not show how many cells of padding follow.
    before, after = (part.sum(1, keepdim=True, dtype=torch.float64) for part in (linear, changed))
    changed *= (before / after.clamp(min=1e-9)).float()
    return tokens._replace(expression=changed.log1p())


def rescaled_flat(tokens: FlatTokens, factors: Tensor) -> FlatTokens:
    """As :func:`rescaled`, without padding."""
    linear, n_cells = tokens.expression.expm1(), len(tokens.starts)
    changed = linear * factors[tokens.gene_ids]
    cell = torch.arange(n_cells).repeat_interleave(tokens.lengths)
    before, after = (torch.zeros(n_cells).index_add_(0, cell, part) for part in (linear, changed))
    changed *= (before / after.clamp(min=1e-9))[cell]
    return tokens._replace(expression=changed.log1p())


def rows_of(adata: AnnData, indices: np.ndarray | list[int] | None) -> np.ndarray:
    """Positions ``(N,)`` of ``indices``: positions, a boolean mask, or ``None`` for all."""
    if indices is None:
        return np.arange(adata.n_obs)
    index = np.asarray(indices)
    if index.dtype == bool and index.ndim == 1:
        if len(index) != adata.n_obs:
            raise IndexError(f"a mask of {len(index):,} values was given for {adata.n_obs:,} cells.")
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise TypeError(
            f"indices={indices!r} was given; a list or array of whole numbers or a boolean mask is needed. "
            "For names: adata.obs_names.get_indexer(names)."
        )
    if index.size and not (-adata.n_obs <= index.min() and index.max() < adata.n_obs):
        raise IndexError(
            f"indices run from {index.min()} to {index.max()}; there are {adata.n_obs:,} cells, 0 to {adata.n_obs - 1}."
        )
    return index.astype(np.int64) % max(1, adata.n_obs)


def _by_length(lengths: np.ndarray, batch_size: int | None, n_tokens: int) -> list[np.ndarray]:
    """Rows in groups of similar length, which keeps padding short."""
    order = np.argsort(lengths, kind="stable")
    if batch_size is None:
        batch_size = max(1, n_tokens // max(1, int(lengths.max(initial=1))))
    return np.array_split(order, -(-len(order) // batch_size))


def _in_order(lengths: np.ndarray, n_tokens: int) -> list[np.ndarray]:
    """Rows in groups of about ``n_tokens``."""
    n_groups = -(-int(lengths.sum()) // n_tokens)
    return np.array_split(np.arange(len(lengths)), min(max(1, n_groups), len(lengths)))
