"""Unchanged: an AnnData that an operation writes to is as it was before, where the operation fails half way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anndata import AnnData


@contextmanager
def unchanged_on_error(adata: AnnData) -> Iterator[None]:
    """Put back obs and uns after an error or Ctrl-C; nothing else of an AnnData is written to in place."""
    if adata.is_view:  # is not written to, and putting back would make it a copy
        yield
        return
    obs, uns = adata.obs.copy(deep=False), dict(adata.uns)
    try:
        yield
    except BaseException:
        for name in [name for name in adata.obs.columns if name not in obs.columns]:
            del adata.obs[name]
        for name in obs.columns:
            if name not in adata.obs.columns or adata.obs[name] is not obs[name]:
                adata.obs[name] = obs[name]
        for name in [name for name in adata.uns if name not in uns]:
            del adata.uns[name]
        for name, value in uns.items():
            if adata.uns.get(name) is not value:
                adata.uns[name] = value
        raise
