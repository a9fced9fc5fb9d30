"""Values: which matrix of a query is read: a layer, ``X`` or ``raw``, as scanpy leaves them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd
from anndata import AnnData

from celler._utils._matrix import check_view
from celler._utils._messages import closest, warn
from celler.data._expression import ExpressionReader
from celler.data._read import read_cells

X, RAW = "X", "raw"  #: what ``layer=`` calls these, unless a layer has the name
IN_RAW = "adata.raw.X"
#: Times as many of the model's genes as ``X`` that ``raw`` must have to be read instead of values that can be used.
MORE_GENES = 1.1


def opened(adata: AnnData | str | os.PathLike[str]) -> AnnData:
    """Return the cells; those of a path are read into memory."""
    return adata if isinstance(adata, AnnData) else read_cells(adata)


def query_reader(
    adata: AnnData,
    of_setup: str | None,
    layer: str | None,
    count: Callable[[AnnData], int],
    say: Callable[[str], None] = warn,
) -> ExpressionReader:
    """Reader of a query's ``layer``, or where none is named of that of the setup, of ``X``, or of ``raw``.

    ``raw`` is read where the values of ``X`` cannot be used, such as scaled ones, and where ``X`` has only some of its
    genes; ``count`` counts the model's genes that an AnnData has, and may raise ``ValueError`` for too few.
    """
    if layer is not None:
        return _named(adata, layer)
    if of_setup is not None and of_setup not in adata.layers:
        say(f"the model was set up with layer={of_setup!r}, which this AnnData lacks; its X is used instead.")
        of_setup = None
    has_raw = not adata.isbacked and adata.raw is not None and isinstance(adata.raw.var, pd.DataFrame)
    if not has_raw:
        return ExpressionReader(adata, of_setup)
    if of_setup is None and (adata[:0] if adata.is_view else adata).X is None:
        say(f"adata.X is None; {IN_RAW} is read instead.")
        return _raw_reader(adata)
    reader = ExpressionReader(adata, of_setup)
    if not reader.state.is_usable:
        if (raw := _usable_raw(adata)) is None:
            return reader  # whose values raise, with what to pass
        say(f"{reader.name} cannot be used: {reader.state.evidence}. {IN_RAW} ({raw.state.kind}) is read instead.")
        return raw
    if adata.raw.n_vars > adata.n_vars and (raw := _usable_raw(adata)) is not None:
        n_raw, n_genes = _n_genes(count, raw.adata), _n_genes(count, adata)
        if n_raw >= max(1, MORE_GENES * n_genes):
            say(
                f"{IN_RAW} has {n_raw:,} of the model's genes, {reader.name} {n_genes:,}; {IN_RAW} is read. "
                f"layer={of_setup or X!r} reads {reader.name}."
            )
            return raw
    return reader


def _named(adata: AnnData, layer: str) -> ExpressionReader:
    """Return the reader of what ``layer=`` names."""
    if layer in adata.layers:
        return ExpressionReader(adata, layer)
    if layer == X:
        return ExpressionReader(adata)
    if layer == RAW:
        if adata.raw is None:
            raise KeyError("layer='raw' was given; adata.raw is None. Leave layer out for adata.X.")
        if adata.isbacked:
            raise ValueError(
                "layer='raw' was given for a file in backed mode, whose raw is not read by parts; take it into memory: "
                "adata = adata.to_memory()."
            )
        return _raw_reader(adata)
    names = [X, *([RAW] if adata.raw is not None else []), *(name for name in adata.layers if name is not None)]
    raise KeyError(f"layer={layer!r} is not in adata.layers; there are {names}.{closest(layer, names)}")


def _usable_raw(adata: AnnData) -> ExpressionReader | None:
    """Return the reader of ``raw`` where its values can be used."""
    try:
        reader = _raw_reader(adata)
        return reader if reader.state.is_usable else None
    except (OSError, TypeError, ValueError):
        return None


def _raw_reader(adata: AnnData) -> ExpressionReader:
    """Reader of ``raw``, whose matrix is not copied."""
    check_view(adata, "raw")
    obs = pd.DataFrame(index=adata.obs_names, columns=pd.Index([], dtype=str))
    var, own = adata.raw.var, adata.var
    others = [name for name in own.columns if name not in var.columns]
    if others and own.index.is_unique and var.index.isin(own.index).all():
        var = var.join(own[others])  # such as a column of names that was added after raw was kept
    return ExpressionReader(AnnData(adata.raw.X, obs=obs, var=var), place=IN_RAW)


def _n_genes(count: Callable[[AnnData], int], adata: AnnData) -> int:
    """Count the model's genes, 0 where they are too few or cannot be told."""
    try:
        return count(adata)
    except ValueError:
        return 0
