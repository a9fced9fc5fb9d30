"""Kinds: which rows of var are genes, and which antibodies, peaks and others, where a column says it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from celler._utils._messages import agreed, listed
from celler._utils._text import text_of

#: Columns of var in which 10x Genomics, scanpy and muon say what a row measures, and what they call a gene there.
KIND_COLUMNS = ("feature_types", "feature_type", "modality")
GENE_KINDS = ("gene expression", "gex", "rna", "mrna", "gene", "genes")
#: What else they call a row.
OTHER_KINDS = (
    "antibody capture", "adt", "antibody", "protein", "prot", "peaks", "peak", "atac", "crispr guide capture", "custom",
    "multiplexing capture", "hto", "antigen capture", "vdj",
)  # fmt: skip


class Kinds(NamedTuple):
    """What the rows of var measure, by one of its columns."""

    column: str
    is_gene: np.ndarray  # (n_vars,)
    others: Counter[str]  # rows by what they measure instead

    def __str__(self) -> str:
        shown = listed([f"{n:,} {kind}" for kind, n in self.others.most_common()])
        n = self.others.total()
        return f"{n:,} of {len(self.is_gene):,} rows {agreed(n, 'are no genes')} by adata.var[{self.column!r}]: {shown}"


def kinds_of_rows(var: pd.DataFrame) -> Kinds | None:
    """Read which rows are genes; ``None`` where no column says it. A row of no kind is a gene."""
    for key in KIND_COLUMNS:
        if key not in var.columns or isinstance(var[key], pd.DataFrame):
            continue
        values = pd.Categorical(var[key])
        texts = [text_of(value) or "" for value in values.categories]
        plain = [re.sub(r"[\s_.-]+", " ", text.strip().casefold()) for text in texts]
        if not set(plain) & {*GENE_KINDS, *OTHER_KINDS}:
            continue
        is_other = np.array([*(kind not in ("", "nan", "none", *GENE_KINDS) for kind in plain), False])
        found = is_other[values.codes]
        return Kinds(key, ~found, Counter(np.array([*texts, ""], object)[values.codes[found]].tolist()))
    return None


def genes_among(var: Any) -> np.ndarray | None:
    """Return which rows are genes ``(n_vars,)`` where some are not, else ``None``."""
    kinds = other_rows(var)
    return None if kinds is None else kinds.is_gene


def other_rows(var: Any) -> Kinds | None:
    """Return the kinds where some rows are genes and some are not, else ``None``, as of a table read lazily."""
    kinds = kinds_of_rows(var) if isinstance(var, pd.DataFrame) else None
    return kinds if kinds is not None and kinds.others and kinds.is_gene.any() else None
