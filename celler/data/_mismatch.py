"""Mismatch: why the names of a query and of a reference do not meet, told from the names, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from celler._utils._messages import agreed
from celler._utils._text import as_names
from celler.data._gene_names import are_row_numbers

MIN_OVERLAP = 0.2  #: share of the model's genes that a query must have
MIN_PANEL = 0.8  #: share of a query's genes that the model has, from which the query is a panel of them
MAX_PANEL, MIN_OF_PANEL = 6000, 20  #: genes that a panel has at most, and that it shares with a model at least
N_PROBED = 2000  #: names read to recognise their kind
MIN_SHARE_OF_KIND = 0.1  #: share of names above which a second kind is reported
_KINDS = {
    "human Ensembl ids": r"ENSG\d+",
    "mouse Ensembl ids": r"ENSMUSG\d+",
    "Ensembl transcript ids": r"ENS[A-Z]*T\d+",
    "Ensembl ids of another species": r"ENS[A-Z]+G\d+",
    "numbers": r"\d+(\.0)?$",
}
_SEPARATORS = ("___", "__", "_", "-", "|", ":", ".", "/", " ")


@dataclass(frozen=True)
class Mismatch:
    """Names of a query of which too few are a reference's; :attr:`error` says what would connect them."""

    query: pd.Index
    reference: pd.Index
    n_matched: int
    n_orthologs: int
    n_other_case: int
    knows_both: bool  # the table of genes knows names of both
    is_vocabulary: bool
    var: pd.DataFrame | None
    place: str  # of the query's names, as an expression
    others: Mapping[str, pd.Index]  # names elsewhere in the query's AnnData, by what to pass instead
    count: Callable[[pd.Index], int]  # matches of other names with the reference

    @property
    def error(self) -> ValueError:
        """The error, with the first cause that can be told."""
        query, reference, n = self.query, self.reference, self.n_matched
        found = f"only {n:,} of the model's {len(reference):,} genes {agreed(n, 'are')} in the query"
        if self.is_vocabulary:
            found = f"only {n:,} of the query's {len(query):,} genes {agreed(n, 'are')} in the model's vocabulary"
        return ValueError(
            f"{found}; at least {MIN_OVERLAP:.0%} are needed. The model has {in_words(kinds_of(reference))} such as "
            f"{list(reference[:4])}, the query {in_words(kinds_of(query))} such as {list(query[:4])}; columns of its "
            f"var: {[] if self.var is None else list(map(str, self.var.columns))}. {self.advice}."
        )

    @property
    def advice(self) -> str:
        """What to do."""
        causes = (self._elsewhere, self._numbers, self._orthologs, self._renamed, self._panel, self._other_case)
        for cause in causes:
            if advice := cause():
                return advice
        return self._kinds()

    def _needed(self, n_query: int) -> float:
        return MIN_OVERLAP * (n_query if self.is_vocabulary else len(self.reference))

    def _elsewhere(self) -> str:
        """Genes that stand in another place of the AnnData, such as ``obs_names`` of a transposed one."""
        for instead, names in self.others.items():
            n_found = self.count(as_names(names))
            if n_found > self.n_matched and n_found >= self._needed(len(names)):
                where = "query.obs_names hold" if instead.endswith(".T") else "query.raw has"
                return f"{where} {n_found:,} of the model's genes: pass {instead}"
        return ""

    def _numbers(self) -> str:
        if (self.query == "").all():
            return "The query has no names of genes: put them into query.var_names, or into a column of query.var"
        if are_row_numbers(self.reference):
            return (
                "The model's genes are row numbers, which name no gene: set its reference up again with gene_key=, the "
                "column of var that holds the names of the genes"
            )
        if are_row_numbers(self.query):
            return "The query's names are row numbers, which name no gene: put the names into query.var_names"
        return ""

    def _orthologs(self) -> str:
        return orthologs_line(self.n_orthologs) if self.n_orthologs else ""

    def _renamed(self) -> str:
        """Names of which a part is a name of the reference, such as ``GRCh38_CD3E``."""
        names = [name for name in self.query if name]
        best, n_best, how, code = "", 0, "", ""
        for part, words, expression in _parts(names):
            n_found = self.count(pd.Index(part, dtype=object).unique())
            if n_found > n_best:
                best, n_best, how, code = part[0], n_found, words, expression
        if n_best < max(self._needed(len(names)), self.n_matched + 1):
            return ""
        return (
            f"{how} are the model's genes, {n_best:,} of them (such as {best!r}): rename the query's, "
            f"query.var_names = [{code} for name in query.var_names], or put those into a column of query.var"
        )

    def _panel(self) -> str:
        names = self.query[self.query != ""]
        n_genes = len(names)
        if self.is_vocabulary or not self.n_matched or self.n_matched < MIN_PANEL * n_genes:
            return ""
        all_of = f"All {n_genes:,}" if self.n_matched == n_genes else f"{self.n_matched:,} of the {n_genes:,}"
        found = f"{all_of} genes of the query are among the model's {len(self.reference):,}"
        return f"{found}: the query is a panel. Train {self._on_panel}"

    @property
    def _on_panel(self) -> str:
        return f"a model on its genes: Celler.setup_anndata(reference, ..., genes={self.place})"

    def _other_case(self) -> str:
        if not self.n_other_case:
            return ""
        return f"{other_case_line(self.n_other_case)[:-1]}. {_OTHER_SPECIES}"

    def _kinds(self) -> str:
        query, reference = in_words(kinds_of(self.query)), in_words(kinds_of(self.reference))
        if not self.is_vocabulary and self.n_matched >= MIN_OF_PANEL and len(self.query) <= MAX_PANEL:
            return f"If the query is a gene panel: train {self._on_panel}"
        if query == reference:
            return f"Both look alike: pass the query with all measured genes, of the same species. {_OTHER_SPECIES}"
        if self.knows_both:
            return "Both look alike: pass the query with all measured genes, of the same species"
        return (
            f"Bring both to the same kind of name: put {reference} into query.var_names, or let "
            "cl.pp.align_genes(query, model) do it, with gene_key= for the var column that holds "
            f"{reference} or mapping= for a dict or Series from {query} to {reference}"
        )


_OTHER_SPECIES = (
    "Genes of another species need their orthologs, cl.pp.align_genes(query, model, orthologs=True) between human and "
    "mouse or else mapping={'old name': 'new name'}"
)


def _parts(names: list[str]) -> Iterator[tuple[list[str], str, str]]:
    """Parts of the names: the names that are left, how they were made in words and as an expression of ``name``."""
    prefix, suffix = os.path.commonprefix(names), os.path.commonprefix([name[::-1] for name in names])[::-1]
    for start in [i for i in range(1, len(prefix) + 1) if i == len(prefix) or prefix[i - 1] in "_-.:| /"]:
        yield _without(names, prefix[:start], "prefix")
    for stop in [i for i in range(len(suffix)) if i == 0 or suffix[i] in "_-.:| /"]:
        yield _without(names, suffix[stop:], "suffix")
    for sign in _SEPARATORS:
        if sum(sign in name for name in names) < MIN_OVERLAP * len(names):
            continue
        ways = (
            ("The parts after the first", "partition", 2),
            ("The parts before the first", "partition", 0),
            ("The parts after the last", "rpartition", 2),
            ("The parts before the last", "rpartition", 0),
        )
        for words, method, place in ways:
            part = [getattr(name, method)(sign)[place] for name in names]
            yield part, f"{words} {sign!r}", f"name.{method}({sign!r})[{place}]"


def _without(names: list[str], part: str, kind: str) -> tuple[list[str], str, str]:
    remove = f"remove{kind}"
    left = [getattr(name, remove)(part) for name in names]
    return left, f"The names without the {kind} {part!r}", f"name.{remove}({part!r})"


def names_elsewhere(adata: AnnData) -> dict[str, pd.Index]:
    """Names in other places of a query's AnnData where genes may be, by what to pass instead."""
    raw = {} if adata.raw is None else {"query.raw.to_adata()": adata.raw.var_names}
    return {"query.T": adata.obs_names} | raw


def kinds_of(names: pd.Index) -> pd.Series:
    """Share of each kind among up to 2,000 evenly spaced names, most frequent first."""
    probed = names[:: max(1, len(names) // N_PROBED)]
    kinds = np.full(len(probed), "symbols", dtype=object)
    for kind, pattern in reversed(_KINDS.items()):
        kinds[np.asarray(probed.str.match(pattern), bool)] = kind
    return pd.Series(kinds, dtype=object).value_counts(normalize=True)


def in_words(kinds: pd.Series) -> str:
    """Name the kinds, with their shares where there are several."""
    shown = kinds[kinds >= MIN_SHARE_OF_KIND]
    if len(shown) == 1:
        return str(shown.index[0])
    return " and ".join(f"{kind} ({share:.0%})" for kind, share in shown.items())


def other_kinds(query: pd.Index, reference: pd.Index) -> str:
    """Kinds of both, if the query has one that the reference lacks."""
    of_query, of_reference = kinds_of(query), kinds_of(reference)
    main = of_query[of_query >= MIN_SHARE_OF_KIND].index
    if set(main) <= set(of_reference[of_reference >= MIN_SHARE_OF_KIND].index):
        return ""
    return f"{in_words(of_query)}, the model's {in_words(of_reference)}"


def other_case_line(n_genes: int) -> str:
    """Say that names differ in case."""
    return (
        f"{n_genes:,} more would match if case were ignored, as symbols of another species do; if both are of "
        "one species, cl.pp.align_genes(..., ignore_case=True) matches them."
    )


def orthologs_line(n_genes: int) -> str:
    """Say that the query is of the other species."""
    return (
        f"{n_genes:,} of the model's genes have a one-to-one ortholog in the query, which is of another species; "
        "cl.pp.align_genes(..., orthologs=True) matches them"
    )
