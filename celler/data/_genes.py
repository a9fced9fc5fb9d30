"""Genes: which gene of a reference each gene of a query is, matched by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from celler._utils._messages import column
from celler.data._gene_table import WAYS, Found, find_genes, human_rows, release

MIN_OVERLAP = 0.2  #: share of the model's genes that a query must have
N_PROBED = 2000  #: names read to recognise their kind
MIN_SHARE_OF_KIND = 0.1  #: share of names above which a second kind is reported
_KINDS = {
    "human Ensembl ids": r"ENSG\d+",
    "mouse Ensembl ids": r"ENSMUSG\d+",
    "Ensembl transcript ids": r"ENS[A-Z]*T\d+",
    "Ensembl ids of another species": r"ENS[A-Z]+G\d+",
    "numbers": r"\d+(\.0)?$",
}


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
            f"{self.n_matched:,} of the model's {n_genes:,} genes are in the query{carried}; "
            f"{len(self.missing):,} are missing{missed if len(self.missing) else ''} (masked, not taken for zero) "
            f"and {self.n_extra:,} extra ones are ignored.{self._how()}"
        )

    def describe_extra(self, expression_share: float) -> str:
        """Report the match with a vocabulary; ``expression_share`` is of the query's expression."""
        n_genes = len(self.gene_map)
        return (
            f"{self.n_matched:,} of {n_genes:,} genes are in the model's vocabulary and carry {expression_share:.0%} "
            f"of the cells' expression; the other {n_genes - self.n_matched:,} are not read.{self._how()}"
        )

    def __str__(self) -> str:
        return self.describe(self.expression_share)

    def _how(self) -> str:
        """How the names were matched, beyond equal ``var_names``, in sentences."""
        found = []
        if self.column is not None:
            found.append(f"The names are those of adata.var[{self.column!r}], because var_names do not match.")
        if self.n_inexact:
            ways = ", ".join(f"{n:,} {way}" for way, n in self.n_inexact.items())
            table = f" (table of {release()})" if BY_TABLE & set(self.n_inexact) else ""
            found.append(f"Not by equal names: {ways}{table}.")
        if self.n_inexact.get(IN_ANOTHER_CASE, 0) > self.n_matched / 2:
            found.append("Most names differ in case: check that both are of one species.")
        if self.n_orthologs:
            found.append(f"{_orthologs(self.n_orthologs)}.")
        elif self.n_other_case:
            found.append(_other_case(self.n_other_case))
        if self.n_repeated:
            found.append(
                f"{self.n_repeated:,} are claimed by several genes of the query and left out; "
                "cl.pp.align_genes(..., duplicates='sum') adds those up."
            )
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
) -> GeneAlignment:
    """Match genes by name: equal names first, then names that can only mean the same gene.

    What remains is compared without the version of Ensembl ids, then without the ``-1`` of ``var_names_make_unique``,
    then by the table of genes, across species with ``orthologs`` only, then with ``ignore_case`` in any case. An
    ambiguous name is not matched. A text column of the query's ``var`` that matches more than twice as many genes as
    ``query`` replaces it. Raises ``ValueError`` if under 20 % of the reference's genes match, or of the query's where
    the reference ``is_vocabulary``, all genes of a species.
    """
    found, column = _Match(query, reference), None
    n_expected = len(query) if is_vocabulary else len(reference)
    needed = MIN_OVERLAP * n_expected
    n_of = lambda match: match.n_matched + (match.n_other_case if ignore_case else 0)
    for by_table in (False, True):
        if by_table:
            found.add_by_table(orthologs)
        if var is None or column is not None or 2 * n_of(found) >= n_expected:
            continue
        for name in _text_columns(var):
            other = _Match(gene_names(var, name), reference)
            if by_table:
                other.add_by_table(orthologs)
            if n_of(other) >= max(needed, 2 * n_of(found) + 1):
                found, column = other, str(name)
    if ignore_case:
        found.add(IN_ANOTHER_CASE)
    if found.n_matched < needed:
        raise _too_few(found, var, is_vocabulary=is_vocabulary)
    missing = np.delete(reference.to_numpy(), found.gene_map[found.gene_map >= 0])
    return GeneAlignment(
        found.gene_map,
        missing,
        int((found.gene_map < 0).sum()),
        n_inexact=found.n_inexact,
        repeated=found.repeated,
        column=column,
        kinds=_other_kinds(found.query, reference) if len(missing) else "",
        n_other_case=found.n_other_case if len(missing) and BY_ORTHOLOG not in found.n_inexact else 0,
        n_orthologs=found.n_orthologs,
    )


def _text_columns(var: pd.DataFrame) -> pd.Index:
    """Columns of ``var`` that can hold names."""
    is_text = [isinstance(kind, pd.CategoricalDtype) or pd.api.types.is_string_dtype(kind) for kind in var.dtypes]
    return var.columns[is_text]


def selector(gene_map: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Matrix ``(n_vars, n_genes)`` that adds up the columns of each gene; -1 is left out."""
    columns = np.flatnonzero(gene_map >= 0)
    ones = np.ones(len(columns), np.float32)
    return sparse.csr_matrix((ones, (columns, gene_map[columns])), shape=(len(gene_map), n_genes))


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
_EXACT, IN_ANOTHER_CASE, BY_ORTHOLOG = "by equal names", "in another case", "by one-to-one ortholog"
_BY_WAY = tuple(f"by {way}" for way in WAYS)
BY_TABLE = {*_BY_WAY, BY_ORTHOLOG}  #: ways of matching that need the table of genes
#: In order: what makes a name of the query and one of the reference comparable.
_WAYS: dict[str, tuple[_Key, _Key]] = {
    _EXACT: (_unchanged, _unchanged),
    "without the version of Ensembl ids": (without_version, without_version),
    "without the suffix of var_names_make_unique": (without_suffix, _unchanged),
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
            if way != IN_ANOTHER_CASE:
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
        is_clear = ~keys.duplicated(keep=False)
        rows = np.flatnonzero(is_free)[is_clear]
        wanted = query_key(self.query[columns])
        place = keys[is_clear].get_indexer(wanted)
        is_hit = (place >= 0) & (wanted != "")
        return columns[is_hit], rows[place[is_hit]], wanted[is_hit].duplicated(keep=False)


def gene_names(var: pd.DataFrame, gene_key: str | None) -> pd.Index:
    """Column ``gene_key`` of ``var``, or ``var_names``; a missing name is ``""`` and matches nothing."""
    if gene_key is None:
        return var.index
    names = column(var, gene_key, "gene_key", "adata.var").astype(object)
    return pd.Index(names.where(names.notna(), "").astype(str))


def kinds_of(names: pd.Index) -> pd.Series:
    """Share of each kind among up to 2,000 evenly spaced names, most frequent first."""
    probed = names[:: max(1, len(names) // N_PROBED)]
    kinds = np.full(len(probed), "symbols", dtype=object)
    for kind, pattern in reversed(_KINDS.items()):
        kinds[np.asarray(probed.str.match(pattern), bool)] = kind
    return pd.Series(kinds, dtype=object).value_counts(normalize=True)


def _in_words(kinds: pd.Series) -> str:
    shown = kinds[kinds >= MIN_SHARE_OF_KIND]
    if len(shown) == 1:
        return str(shown.index[0])
    return " and ".join(f"{kind} ({share:.0%})" for kind, share in shown.items())


def _other_kinds(query: pd.Index, reference: pd.Index) -> str:
    """Kinds of both, if the query has one that the reference lacks."""
    of_query, of_reference = kinds_of(query), kinds_of(reference)
    main = of_query[of_query >= MIN_SHARE_OF_KIND].index
    if set(main) <= set(of_reference[of_reference >= MIN_SHARE_OF_KIND].index):
        return ""
    return f"{_in_words(of_query)}, the model's {_in_words(of_reference)}"


def _other_case(n_genes: int) -> str:
    return (
        f"{n_genes:,} more would match if case were ignored, as symbols of another species do; if both are of "
        "one species, cl.pp.align_genes(..., ignore_case=True) matches them."
    )


def _orthologs(n_genes: int) -> str:
    return (
        f"{n_genes:,} of the model's genes have a one-to-one ortholog in the query, which is of another species; "
        "cl.pp.align_genes(..., orthologs=True) matches them"
    )


def _too_few(match: _Match, var: pd.DataFrame | None, *, is_vocabulary: bool) -> ValueError:
    """Return the error for a query of other genes: what both have, and what would connect them."""
    query, reference = match.query, match.reference
    query_kinds, reference_kinds = _in_words(kinds_of(query)), _in_words(kinds_of(reference))
    if match.n_orthologs:
        what_to_do = _orthologs(match.n_orthologs)
    elif n_other_case := match.n_other_case:
        what_to_do = _other_case(n_other_case)[:-1]
    elif query_kinds == reference_kinds or BY_TABLE & set(match.n_inexact):
        what_to_do = "Both look alike: pass the query with all measured genes, of the same species"
    else:
        what_to_do = (
            f"Bring both to the same kind of name: put {reference_kinds} into query.var_names, or let "
            "cl.pp.align_genes(query, model) do it, with gene_key= for the var column that holds "
            f"{reference_kinds} or mapping= for a dict or Series from {query_kinds} to {reference_kinds}"
        )
    if query_kinds == reference_kinds and not match.n_orthologs:
        what_to_do += (
            ". Genes of another species need their orthologs, cl.pp.align_genes(query, model, orthologs=True) between "
            "human and mouse or else mapping={'old name': 'new name'}"
        )
    found = f"only {match.n_matched:,} of the model's {len(reference):,} genes are in the query"
    if is_vocabulary:
        found = f"only {match.n_matched:,} of the query's {len(query):,} genes are in the model's vocabulary"
    return ValueError(
        f"{found}; at least {MIN_OVERLAP:.0%} are needed. The model has {reference_kinds} such as "
        f"{list(reference[:4])}, the query {query_kinds} such as {list(query[:4])}; columns of its var: "
        f"{[] if var is None else list(map(str, var.columns))}. {what_to_do}."
    )


def check_unique(names: pd.Index, what: str) -> None:
    """Raise ``ValueError`` where a gene name occurs twice."""
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"{what} hold {len(repeated):,} names more than once (for example {list(repeated[:3])}); genes are "
            "aligned by name, so each must be unique. adata.var_names_make_unique() renames the repeats."
        )
