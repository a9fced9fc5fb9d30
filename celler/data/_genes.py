"""Genes: which gene of a reference each gene of a query is, matched by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse

from celler._utils._kinds import kinds_of_rows, other_rows
from celler._utils._messages import agreed, counted
from celler._utils._text import without_separators
from celler.data._gene_names import are_row_numbers, describe_spreadsheet, gene_names, text_columns
from celler.data._gene_table import COPY, WAYS, Found, find_genes, human_rows, release
from celler.data._mismatch import MIN_OVERLAP, Mismatch, orthologs_line, other_case_line, other_kinds

MIN_LEARNED = 0.5  #: share of the rows that are no genes from which a model that has their names has learned them


@dataclass(frozen=True)
class GeneAlignment:
    """Which gene of a reference each gene of a query is; ``str()`` puts it in words.

    Attributes
    ----------
    gene_map
        Reference row of each query gene ``(n_vars,)``, int32; -1 if the reference lacks it.
    missing
        Names of the reference's genes that the query lacks.
    n_extra
        Number of query genes that the reference lacks.
    n_inexact
        Number of genes whose names are not equal, by the way they were matched.
    repeated
        Reference row ``(n_vars,)``, int32, of query genes that claim the same gene, which is missing then; else -1.
    column
        Column of ``var`` used because ``var_names`` do not match, or ``None``.
    kinds
        Kinds of names of the query and the reference, if they differ.
    expression_share
        Share of the reference's expression that the matched genes carry, if known.
    n_other_case
        Number of missing genes that would match if case were ignored, as those of another species do.
    n_orthologs
        Number of missing genes that would match by one-to-one orthologs; 0 where both are of one species.
    others
        Rows of ``var`` that are no genes by its ``feature_types``, in words; they match nothing.
    spoiled
        Names that a spreadsheet made of symbols and that match nothing, in words.
    """

    gene_map: np.ndarray
    missing: np.ndarray
    n_extra: int
    n_inexact: dict[str, int] = field(default_factory=dict)
    repeated: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    column: str | None = None
    kinds: str = ""
    expression_share: float | None = None
    n_other_case: int = 0
    n_orthologs: int = 0
    others: str = ""
    spoiled: str = ""

    @property
    def n_matched(self) -> int:
        """Number of genes that both have."""
        return len(np.unique(self.gene_map[self.gene_map >= 0]))

    @property
    def n_repeated(self) -> int:
        """Number of the reference's genes that several query genes claim."""
        return len(np.unique(self.repeated[self.repeated >= 0]))

    @property
    def is_exact(self) -> bool:
        """Whether the query has every gene of the reference under the same name."""
        return not (len(self.missing) or self.n_inexact or self.column is not None)

    def describe(self, expression_share: float | None = None) -> str:
        """Report the match; ``expression_share`` is what the matched genes carry."""
        n_genes = self.n_matched + len(self.missing)
        carried = missed = ""
        if expression_share is not None:
            carried = f" and carry {expression_share:.0%} of the reference's expression"
            missed = f" with the other {max(0.0, 1 - expression_share):.0%}"
        return (
            f"{self.n_matched:,} of the model's {n_genes:,} genes {agreed(self.n_matched, 'are')} in the "
            f"query{carried}; {counted(len(self.missing), 'are')} missing{missed if len(self.missing) else ''} "
            f"(masked, not taken for zero) and {counted(self.n_extra, 'extra ones are')} ignored.{self._how()}"
        )

    def describe_extra(self, expression_share: float) -> str:
        """Report the match with a vocabulary; ``expression_share`` is of the query's expression."""
        n_genes = len(self.gene_map)
        return (
            f"{self.n_matched:,} of {n_genes:,} genes are in the model's vocabulary and carry {expression_share:.0%} "
            f"of the cells' expression; the other {counted(n_genes - self.n_matched, 'are')} not read.{self._how()}"
        )

    def __str__(self) -> str:
        return self.describe(self.expression_share)

    def _how(self) -> str:
        """How the names were matched, beyond equal ``var_names``, in sentences."""
        found = []
        if self.others:
            found.append(self.others)
        if self.column is not None:
            found.append(f"The names are those of adata.var[{self.column!r}], because var_names do not match.")
        if self.n_inexact:
            ways = ", ".join(f"{n:,} {way}" for way, n in self.n_inexact.items())
            table = f" (table of {release()})" if BY_TABLE & set(self.n_inexact) else ""
            found.append(f"Not by equal names: {ways}{table}.")
        if self.n_inexact.get(IN_ANOTHER_CASE, 0) > self.n_matched / 2:
            found.append("Most names differ in case: check that both are of one species.")
        if self.n_orthologs:
            found.append(f"{orthologs_line(self.n_orthologs)}.")
        elif self.n_other_case:
            found.append(other_case_line(self.n_other_case))
        if self.n_repeated:
            found.append(
                f"{counted(self.n_repeated, 'are')} claimed by several genes of the query and left out; "
                "cl.pp.align_genes(..., duplicates='sum') adds those up."
            )
        if self.spoiled:
            found.append(f"Of those that match nothing, {self.spoiled}")
        if self.kinds and len(self.missing):
            found.append(f"The query's names are {self.kinds}.")
        return "".join(" " + sentence for sentence in found)


def align_genes(
    query: pd.Index,
    reference: pd.Index,
    var: pd.DataFrame | None = None,
    *,
    is_vocabulary: bool = False,
    ignore_case: bool = False,
    orthologs: bool = False,
    place: str = "query.var_names",
    others: Mapping[str, pd.Index] | None = None,
) -> GeneAlignment:
    """Match genes by name: equal names first, then names that can only mean the same gene.

    What remains is compared without the version of Ensembl ids, then without the ``-1`` of ``var_names_make_unique``,
    then by the table of genes, across species with ``orthologs`` only, then with other separators, as R writes them,
    then with ``ignore_case`` in any case. An ambiguous name is not matched, nor are the numbers of rows. A text column
    of the query's ``var`` that matches more than twice as many genes as ``query`` replaces it. Raises ``ValueError`` if
    under 20 % of the reference's genes match, or of the query's where the reference ``is_vocabulary``, all genes of a
    species; it names the cause, also among the names of ``others``, and ``place``, where the query's names are.
    """
    # The numbers of rows mean nothing elsewhere, whatever they equal, such as Entrez ids.
    has_names = are_row_numbers(query) == are_row_numbers(reference)
    found, column = _Match(query if has_names else pd.Index([""] * len(query)), reference), None
    n_expected = len(query) if is_vocabulary else len(reference)
    needed = MIN_OVERLAP * n_expected
    n_of = lambda match: match.n_matched + (match.n_other_case if ignore_case else 0)
    for by_table in (False, True):
        if by_table:
            found.add_by_table(orthologs)
        if var is None or column is not None or 2 * n_of(found) >= n_expected:
            continue
        for name in text_columns(var):
            other = _Match(gene_names(var, name), reference)
            if by_table:
                other.add_by_table(orthologs)
            if n_of(other) >= max(needed, 2 * n_of(found) + 1):
                found, column = other, str(name)
    found.add(WITH_SEPARATORS)
    if ignore_case:
        found.add(IN_ANOTHER_CASE)
    if found.n_matched < needed:
        raise _mismatch(query, found, var, place, others or {}, is_vocabulary=is_vocabulary).error
    missing = np.delete(reference.to_numpy(), found.gene_map[found.gene_map >= 0])
    return GeneAlignment(
        found.gene_map,
        missing,
        int((found.gene_map < 0).sum()),
        n_inexact=found.n_inexact,
        repeated=found.repeated,
        column=column,
        kinds=other_kinds(found.query, reference) if len(missing) else "",
        n_other_case=found.n_other_case if len(missing) and BY_ORTHOLOG not in found.n_inexact else 0,
        n_orthologs=found.n_orthologs,
        others="" if var is None else describe_others(var, found.gene_map),
        spoiled=describe_spreadsheet(found.query[found.gene_map < 0]) if len(missing) else "",
    )


def describe_others(var: pd.DataFrame, gene_map: np.ndarray) -> str:
    """Say which rows are no genes, and how many of them are read all the same; ``""`` where all are genes."""
    kinds = kinds_of_rows(var)
    if kinds is None or not kinds.others:
        return ""
    if not kinds.is_gene.any():
        return f"{kinds}; they are read as if they were genes."
    n_read = int((gene_map[~kinds.is_gene] >= 0).sum())
    return f"{kinds}; " + (
        f"{counted(n_read, 'are')} read, as the model learned {agreed(n_read, 'them')}."
        if n_read
        else f"{agreed(kinds.others.total(), 'they are')} left out."
    )


def with_learned_rows(
    alignment: GeneAlignment, names: pd.Index, var: pd.DataFrame, reference: pd.Index
) -> GeneAlignment:
    """Match rows that are no genes with what a model learned before such rows were told apart.

    ``names (n_vars,)`` are those of all rows. A model has learned them if at least half of them have the very names of
    its genes that no gene of the query is.
    """
    kinds = other_rows(var)
    if kinds is None or not len(alignment.missing):
        return alignment
    is_free = ~kinds.is_gene & names.isin(alignment.missing) & ~names.duplicated(keep=False)
    if is_free.sum() < MIN_LEARNED * kinds.others.total():
        return alignment
    gene_map = np.where(is_free, reference.get_indexer(names), alignment.gene_map).astype(np.int32)
    return replace(
        alignment,
        gene_map=gene_map,
        missing=np.delete(reference.to_numpy(), gene_map[gene_map >= 0]),
        n_extra=int((gene_map < 0).sum()),
        others=describe_others(var, gene_map),
    )


def _mismatch(
    query: pd.Index,
    found: _Match,
    var: pd.DataFrame | None,
    place: str,
    others: Mapping[str, pd.Index],
    *,
    is_vocabulary: bool,
) -> Mismatch:
    """Return what is known of a query of which too few genes match."""
    return Mismatch(
        query,
        found.reference,
        n_matched=found.n_matched,
        n_orthologs=found.n_orthologs,
        n_other_case=found.n_other_case,
        knows_both=bool(BY_TABLE & set(found.n_inexact)),
        is_vocabulary=is_vocabulary,
        var=var,
        place=place,
        others=others,
        count=lambda names: _Match(names, found.reference).n_matched,
    )


def selector(gene_map: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Matrix ``(n_vars, n_genes)`` that adds up the columns of each gene; -1 is left out."""
    columns = np.flatnonzero(gene_map >= 0)
    ones = np.ones(len(columns), np.float32)
    return sparse.csr_matrix((ones, (columns, gene_map[columns])), shape=(len(gene_map), n_genes))


def take_columns(X: sparse.csr_matrix, columns: np.ndarray) -> sparse.csr_matrix:
    """Return ``X[:, columns]``; ``X`` itself where these are all columns in order."""
    return X if np.array_equal(columns, np.arange(X.shape[1])) else X[:, columns]


def without_version(names: pd.Index) -> pd.Index:
    """``ENSG00000156738.17`` -> ``ENSG00000156738``; other names stay."""
    version = re.compile(r"(ENS[A-Z]*[GT]\d+)\.\d+")
    # A plain loop is five times faster than the methods of .str on 60,000 names.
    stripped = [match[1] if name.startswith("ENS") and (match := version.fullmatch(name)) else name for name in names]
    return pd.Index(stripped, dtype=object)


def without_suffix(names: pd.Index) -> pd.Index:
    """``TBCE-1`` -> ``TBCE``."""
    parts = (name.rpartition("-") for name in names)
    return pd.Index([base if base and n.isdecimal() else base + dash + n for base, dash, n in parts], dtype=object)


_Key = Callable[[pd.Index], pd.Index]
_unchanged: _Key = lambda names: names
_upper: _Key = lambda names: pd.Index([name.upper() for name in names], dtype=object)
_plain: _Key = lambda names: pd.Index([without_separators(name) if name else "" for name in names], dtype=object)
_EXACT, IN_ANOTHER_CASE, BY_ORTHOLOG = "by equal names", "in another case", "by one-to-one ortholog"
WITH_SEPARATORS = "with other separators, as R writes them"
_BY_WAY = tuple(f"by {way}" for way in WAYS)
BY_TABLE = {*_BY_WAY, BY_ORTHOLOG}  #: ways of matching that need the table of genes
#: In order: what makes a name of the query and one of the reference comparable.
_WAYS: dict[str, tuple[_Key, _Key]] = {
    _EXACT: (_unchanged, _unchanged),
    "without the version of Ensembl ids": (without_version, without_version),
    "without the suffix of var_names_make_unique": (without_suffix, _unchanged),
    WITH_SEPARATORS: (_plain, _plain),
    IN_ANOTHER_CASE: (_upper, _upper),
}


class _Match:
    """The genes of ``query`` found in ``reference``, the arrays of a :class:`GeneAlignment`."""

    def __init__(self, query: pd.Index, reference: pd.Index) -> None:
        self.query, self.reference = query, reference
        self.gene_map, self.repeated = np.full((2, len(query)), -1, np.int32)
        self.n_inexact: dict[str, int] = {}
        self.n_orthologs = 0
        for way in _WAYS:
            if way not in (IN_ANOTHER_CASE, WITH_SEPARATORS):
                self.add(way)

    @property
    def n_matched(self) -> int:
        return int((self.gene_map >= 0).sum())

    def add(self, way: str) -> None:
        """Match free genes in one way."""
        columns, rows, is_shared = self._hits(way)
        self.gene_map[columns[~is_shared]] = rows[~is_shared]
        self.repeated[columns[is_shared]] = rows[is_shared]
        if way != _EXACT and not is_shared.all():
            self.n_inexact[way] = int((~is_shared).sum())

    def add_by_table(self, orthologs: bool) -> None:
        """Match free genes by the table of genes, those of another species with ``orthologs`` only."""
        is_free = self._free()
        if (self.gene_map >= 0).all() or not is_free.any():
            return
        query, reference = find_genes(self.query), find_genes(self.reference).unique()
        if not query.organism or not reference.organism:
            return
        is_across = query.organism != reference.organism
        genes, targets = (human_rows(found) if is_across else found.rows for found in (query, reference))
        row_of_gene = np.full(max(genes.max(), targets.max()) + 2, -1, np.int32)
        known = np.flatnonzero(is_free & (targets >= 0))
        row_of_gene[targets[known]] = known
        row_of_gene[-1] = -1
        rows = np.where(self._is_open(), row_of_gene[genes], -1)
        columns = np.flatnonzero(rows >= 0)
        if is_across and not orthologs:
            self.n_orthologs = len(np.unique(rows[columns]))
            return
        self._claim(columns, rows[columns], query)
        matched = columns[self.gene_map[columns] >= 0]
        ways = np.maximum(query.ways[matched], reference.ways[self.gene_map[matched]])
        names = [BY_ORTHOLOG] * len(ways) if is_across else [_BY_WAY[way] for way in ways]
        self.n_inexact |= Counter(names)

    def _claim(self, columns: np.ndarray, rows: np.ndarray, query: Found) -> None:
        """Give each row to the column that claims it, of several to the one under the gene's current name."""
        n_columns = np.bincount(rows, minlength=len(self.reference))
        is_current = query.is_current[columns]
        n_current = np.bincount(rows[is_current], minlength=len(self.reference))
        is_first = (n_columns[rows] == 1) | (is_current & (n_current[rows] == 1))
        self.gene_map[columns[is_first]] = rows[is_first]
        is_shared = (n_columns[rows] > 1) & (n_current[rows] != 1)
        self.repeated[columns[is_shared]] = rows[is_shared]

    def _is_open(self) -> np.ndarray:
        """Whether a gene of the query is neither matched nor one of several that claim a gene ``(n_vars,)``."""
        return (self.gene_map < 0) & (self.repeated < 0)

    def _free(self) -> np.ndarray:
        """Whether no gene of the query claims a gene of the reference ``(n_genes,)``."""
        is_free = np.ones(len(self.reference), bool)
        is_free[self.gene_map[self.gene_map >= 0]] = False
        is_free[self.repeated[self.repeated >= 0]] = False
        return is_free

    @property
    def n_other_case(self) -> int:
        """Genes that would match as well if case were ignored."""
        return int((~self._hits(IN_ANOTHER_CASE)[2]).sum())

    def _hits(self, way: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Free query genes found among the free reference genes, their rows, and whether several claim it."""
        is_free, columns = self._free(), np.flatnonzero(self._is_open())
        if not len(columns) or not is_free.any():
            return columns[:0], columns[:0], np.zeros(0, bool)
        query_key, reference_key = _WAYS[way]
        keys = reference_key(self.reference[is_free])
        wanted = query_key(self.query[columns])
        if way == WITH_SEPARATORS:
            keys = keys.where(~self._are_copies(self.reference[is_free]), "")
            wanted = wanted.where(~self._are_copies(self.query[columns]), "")
        is_clear = ~keys.duplicated(keep=False)
        rows = np.flatnonzero(is_free)[is_clear]
        place = keys[is_clear].get_indexer(wanted)
        is_hit = (place >= 0) & (wanted != "")
        return columns[is_hit], rows[place[is_hit]], wanted[is_hit].duplicated(keep=False)

    def _are_copies(self, names: pd.Index) -> np.ndarray:
        """Whether names may be what R's ``make.unique`` made of another: ``MIR9.1`` where there is a ``MIR9``."""
        bases = [copy[1] if (copy := COPY.fullmatch(name)) else "" for name in names]
        return np.array([base != "" and (base in self._all) for base in bases], bool)

    @cached_property
    def _all(self) -> set[str]:
        return {*self.query, *self.reference}
