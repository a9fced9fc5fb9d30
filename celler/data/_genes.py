"""Gene identity: which column of a query is which gene of the model, and how that was found out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from celler._utils._messages import column

#: Share of the model's genes a query must hold.
MIN_OVERLAP = 0.2
#: Names looked at to tell what kind they are, and the share from which a second kind is mentioned.
N_PROBED = 2000
MIN_SHARE_OF_KIND = 0.1
_KINDS = {
    "human Ensembl ids": r"ENSG\d+",
    "mouse Ensembl ids": r"ENSMUSG\d+",
    "Ensembl transcript ids": r"ENS[A-Z]*T\d+",
    "Ensembl ids of another species": r"ENS[A-Z]+G\d+",
    "numbers": r"\d+(\.0)?$",
}


@dataclass(frozen=True)
class GeneAlignment:
    """How the genes of a query map onto those of a reference; ``str()`` says it in words.

    gene_map: ``(n_vars,)`` int32, reference row of each query column, −1 for one the reference lacks.
    missing: the reference's genes the query lacks. n_extra: query genes the reference lacks.
    n_inexact: number of genes matched otherwise than by equal names, for each way.
    repeated: ``(n_vars,)`` int32, reference row of the query columns that several claim, −1 for the
        others. Which of them is the gene cannot be told, so it counts as missing.
    column: column of ``var`` whose names were taken because ``var_names`` do not match.
    kinds: what the query's names are where some are of another kind than the reference's.
    expression_share: share of the reference's expression that the matched genes carry, if known.
    """

    gene_map: np.ndarray
    missing: np.ndarray
    n_extra: int
    n_inexact: dict[str, int] = field(default_factory=dict)
    repeated: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    column: str | None = None
    kinds: str = ""
    expression_share: float | None = None

    @property
    def n_matched(self) -> int:
        """Number of genes both have."""
        return len(np.unique(self.gene_map[self.gene_map >= 0]))

    @property
    def n_repeated(self) -> int:
        """Number of the reference's genes that several query genes claim."""
        return len(np.unique(self.repeated[self.repeated >= 0]))

    @property
    def is_exact(self) -> bool:
        """Whether every gene of the reference was found, and under its own name."""
        return not (len(self.missing) or self.n_inexact or self.column is not None)

    def describe(self, expression_share: float | None = None) -> str:
        """What to tell the user; ``expression_share`` is what the matched genes carry."""
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
        """What to tell of a query whose reference is a vocabulary; the matched genes carry the share."""
        n_genes = len(self.gene_map)
        return (
            f"{self.n_matched:,} of {n_genes:,} genes are in the model's vocabulary and carry {expression_share:.0%} "
            f"of the cells' expression; the other {n_genes - self.n_matched:,} are not read.{self._how()}"
        )

    def __str__(self) -> str:
        return self.describe(self.expression_share)

    def _how(self) -> str:
        """What was done beyond comparing ``var_names``, in words."""
        said = []
        if self.column is not None:
            said.append(
                f"The names are those of adata.var[{self.column!r}], because var_names do not match."
            )
        if self.n_inexact:
            ways = ", ".join(f"{n:,} {way}" for way, n in self.n_inexact.items())
            said.append(f"Not by equal names: {ways}.")
        if self.n_inexact.get(IN_ANOTHER_CASE, 0) > self.n_matched / 2:
            said.append("Most names differ in case: check that both are of one species.")
        if self.n_repeated:
            said.append(
                f"{self.n_repeated:,} are claimed by several genes of the query and left out; "
                "cl.pp.align_genes(..., duplicates='sum') adds those up."
            )
        if self.kinds and len(self.missing):
            said.append(f"The query's names are {self.kinds}.")
        return "".join(" " + sentence for sentence in said)


def align_genes(
    query: pd.Index,
    reference: pd.Index,
    var: pd.DataFrame | None = None,
    *,
    is_vocabulary: bool = False,
) -> GeneAlignment:
    """Align by name: equal names first, then what can only mean the same gene.

    What is left of both sides after equal names is compared without the version of Ensembl ids,
    then without the ``-1`` that ``var_names_make_unique`` appends, then in any case; a name that
    several share on either side is not matched that way.

    var: ``adata.var`` of the query. A text column that matches more than twice as many genes as
        ``query`` does is used instead.
    is_vocabulary: the reference names all genes of a species, so few of them are expected.

    Raises ``ValueError`` with less than 20 % of the reference's genes, or of the query's where the
    reference is a vocabulary.
    """
    found, column = _Match.of(query, reference), None
    n_expected = len(query) if is_vocabulary else len(reference)
    needed = MIN_OVERLAP * n_expected
    if var is not None and 2 * found.n_matched < n_expected:
        for name, names in _text_columns(var).items():
            other = _Match.of(names, reference)
            if other.n_matched >= max(needed, 2 * found.n_matched + 1):
                found, column, query = other, name, names
    if found.n_matched < needed:
        raise _too_few(found.n_matched, query, reference, var, is_vocabulary=is_vocabulary)
    is_found = np.zeros(len(reference), bool)
    is_found[found.gene_map[found.gene_map >= 0]] = True
    missing = reference[~is_found].to_numpy()
    return GeneAlignment(
        found.gene_map,
        missing,
        int((found.gene_map < 0).sum()),
        n_inexact=found.n_inexact,
        repeated=found.repeated,
        column=column,
        kinds=_other_kinds(query, reference) if len(missing) else "",
    )


def selector(gene_map: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """``(n_vars, n_genes)``: columns times it are genes, those of one gene added up; −1 is left out."""
    columns = np.flatnonzero(gene_map >= 0)
    ones = np.ones(len(columns), np.float32)
    return sparse.csr_matrix((ones, (columns, gene_map[columns])), shape=(len(gene_map), n_genes))


def without_version(names: pd.Index) -> pd.Index:
    """``ENSG00000156738.17`` -> ``ENSG00000156738``; other names as they are."""
    version = re.compile(r"(ENS[A-Z]*[GT]\d+)\.\d+")
    # A plain loop: five times faster than the methods of .str, on up to 60,000 names.
    stripped = [
        match[1] if name.startswith("ENS") and (match := version.fullmatch(name)) else name
        for name in names
    ]
    return pd.Index(stripped, dtype=object)


def without_suffix(names: pd.Index) -> pd.Index:
    """``TBCE-1`` -> ``TBCE``."""
    parts = (name.rpartition("-") for name in names)
    return pd.Index(
        [base if base and n.isdecimal() else base + dash + n for base, dash, n in parts],
        dtype=object,
    )


def _as_it_is(names: pd.Index) -> pd.Index:
    return names


def _upper(names: pd.Index) -> pd.Index:
    return pd.Index([name.upper() for name in names], dtype=object)


_Key = Callable[[pd.Index], pd.Index]
_EXACT, IN_ANOTHER_CASE = "by equal names", "in another case"
#: In order: how a name of the query and one of the reference are made comparable.
_WAYS: dict[str, tuple[_Key, _Key]] = {
    _EXACT: (_as_it_is, _as_it_is),
    "without the version of Ensembl ids": (without_version, without_version),
    "without the suffix of var_names_make_unique": (without_suffix, _as_it_is),
    IN_ANOTHER_CASE: (_upper, _upper),
}


@dataclass(frozen=True)
class _Match:
    """The arrays of a :class:`GeneAlignment`."""

    gene_map: np.ndarray
    repeated: np.ndarray
    n_inexact: dict[str, int]

    @property
    def n_matched(self) -> int:
        return int((self.gene_map >= 0).sum())

    @classmethod
    def of(cls, query: pd.Index, reference: pd.Index) -> _Match:
        match = cls(np.full(len(query), -1, np.int32), np.full(len(query), -1, np.int32), {})
        for way, (query_key, reference_key) in _WAYS.items():
            n_before = match.n_matched
            match._add(query, reference, query_key, reference_key)
            if way != _EXACT and match.n_matched > n_before:
                match.n_inexact[way] = match.n_matched - n_before
        return match

    def _add(
        self, query: pd.Index, reference: pd.Index, query_key: _Key, reference_key: _Key
    ) -> None:
        """Match what is left of both sides by the keys of their names."""
        is_free = np.ones(len(reference), bool)
        is_free[self.gene_map[self.gene_map >= 0]] = False
        is_free[self.repeated[self.repeated >= 0]] = False
        columns = np.flatnonzero((self.gene_map < 0) & (self.repeated < 0))
        if not len(columns) or not is_free.any():
            return
        keys = reference_key(reference[is_free])
        is_clear = ~keys.duplicated(keep=False)
        rows = np.flatnonzero(is_free)[is_clear]
        wanted = query_key(query[columns])
        place = keys[is_clear].get_indexer(wanted)
        is_hit = (place >= 0) & (wanted != "")
        columns, place, wanted = columns[is_hit], place[is_hit], wanted[is_hit]
        is_shared = wanted.duplicated(keep=False)
        self.gene_map[columns[~is_shared]] = rows[place[~is_shared]]
        self.repeated[columns[is_shared]] = rows[place[is_shared]]


def gene_names(var: pd.DataFrame, gene_key: str | None) -> pd.Index:
    """Gene names of an AnnData: the column ``gene_key`` of its ``var``, or ``var_names``.

    A missing name becomes ``""``, which matches nothing.
    """
    if gene_key is None:
        return var.index
    names = column(var, gene_key, "gene_key", "adata.var").astype(object)
    return pd.Index(names.where(names.notna(), "").astype(str))


def _text_columns(var: pd.DataFrame) -> dict[str, pd.Index]:
    is_text = [
        isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(dtype)
        for dtype in var.dtypes
    ]
    return {str(name): gene_names(var, name) for name in var.columns[is_text]}


def kinds_of(names: pd.Index) -> pd.Series:
    """Share of each kind of name, most frequent first; of up to 2,000 names spread evenly."""
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
    """The query's kinds and the reference's, where the query has one the reference has not."""
    of_query, of_reference = kinds_of(query), kinds_of(reference)
    main = of_query[of_query >= MIN_SHARE_OF_KIND].index
    if set(main) <= set(of_reference[of_reference >= MIN_SHARE_OF_KIND].index):
        return ""
    return f"{_in_words(of_query)}, the model's {_in_words(of_reference)}"


def _too_few(
    n_matched: int,
    query: pd.Index,
    reference: pd.Index,
    var: pd.DataFrame | None,
    *,
    is_vocabulary: bool,
) -> ValueError:
    """The error for a query of other genes: what both sides hold, and what would connect them."""
    query_kinds, reference_kinds = _in_words(kinds_of(query)), _in_words(kinds_of(reference))
    columns = [] if var is None else list(map(str, var.columns))
    if query_kinds == reference_kinds:
        what_to_do = (
            "Both look alike: give the query with all the genes that were measured, of the same species. Genes "
            "of another species need their orthologs, cl.pp.align_genes(query, model, mapping={'old name': 'new name'})"
        )
    else:
        what_to_do = (
            f"Bring both to the same kind of name: put {reference_kinds} into query.var_names, or let "
            "cl.pp.align_genes(query, model) do it, with gene_key= for the var column that holds "
            f"{reference_kinds} or mapping= for a dict or Series from {query_kinds} to {reference_kinds}"
        )
    found = f"only {n_matched:,} of the model's {len(reference):,} genes are in the query"
    if is_vocabulary:
        found = (
            f"only {n_matched:,} of the query's {len(query):,} genes are in the model's vocabulary"
        )
    return ValueError(
        f"{found}; at least "
        f"{MIN_OVERLAP:.0%} are needed. The model has {reference_kinds} such as {list(reference[:4])}, the query "
        f"{query_kinds} such as {list(query[:4])}; columns of its var: {columns}. {what_to_do}."
    )


def check_unique(names: pd.Index, what: str) -> None:
    """Raise ``ValueError`` where a gene name occurs twice."""
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"{what} hold {len(repeated):,} names more than once (for example {list(repeated[:3])}); genes are "
            "aligned by name, so each must be unique. adata.var_names_make_unique() renames the repeats."
        )
