"""Spooling: sources by name, and AnnData objects copied to disk, where they are sources like any other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from celler.atlas.plan import write_json
from celler.atlas.settings import COLUMNS, PRIMARY, Settings, of_source
from celler.atlas.sources import Source

SUFFIXES = (".h5ad", ".zarr")


def name_sources(sources: Any, folder: Path, settings: Settings) -> list[Source]:
    """Sources with names; AnnData objects are written to ``folder`` and named by their place."""
    if isinstance(sources, str | Path | AnnData):
        raise TypeError(f"sources is one {type(sources).__name__}; pass a list, or a dict by name.")
    if isinstance(sources, Mapping):
        pairs: Iterable[tuple[str | None, Any]] = ((str(k), v) for k, v in sources.items())
    else:
        pairs = ((None, source) for source in sources)
    found = []
    for number, (name, source) in enumerate(pairs):
        if isinstance(source, AnnData):
            found.append(_spooled(name or f"source_{number}", number, source, folder, settings))
        elif isinstance(source, str | Path):
            path = Path(source)
            found.append(Source(name or _stem(path), path.absolute()))
        else:
            raise TypeError(
                f"sources holds a {type(source).__name__}; paths of .h5ad or .zarr, or AnnData, are needed."
            )
    repeated = [name for name, n in Counter(source.name for source in found).items() if n > 1]
    if repeated:
        raise ValueError(
            f"several sources are named {repeated}; pass a dict with a name for each path."
        )
    if not found:
        raise ValueError("sources is empty; name at least one file.")
    return found


def _stem(path: Path) -> str:
    return path.stem if path.suffix in SUFFIXES else path.name


def _spooled(name: str, number: int, adata: AnnData, folder: Path, settings: Settings) -> Source:
    """What the build needs of an AnnData, on disk; one that is there already must be of the same cells."""
    path = folder / f"source_{number:05d}.h5ad"
    ends = [str(adata.obs_names[i]) for i in (0, -1)] if adata.n_obs else []
    cells = {"name": name, "n_obs": adata.n_obs, "n_vars": adata.n_vars, "ends": ends}
    record = path.with_suffix(".json")
    if record.exists():
        before = json.loads(record.read_text())
        if before != cells:
            raise ValueError(
                f"source {number} was {before} when the build was begun and is {cells} now; an unfinished "
                "build needs the same AnnData in the same order. Delete the folder to begin anew."
            )
        return Source(name, path)
    keys = {of_source(option, name) for option in (settings.labels_key, *settings.columns.values())}
    keys |= {key for defaults in COLUMNS.values() for key in defaults} | {PRIMARY}
    obs = adata.obs[[key for key in adata.obs.columns if key in keys]].copy()
    part = path.with_suffix(".part.h5ad")
    _slim(adata, obs, of_source(settings.layer, name)).write_h5ad(part)
    part.replace(path)
    write_json(record, cells)
    return Source(name, path)


def _slim(adata: AnnData, obs: pd.DataFrame, layer: str | None) -> AnnData:
    """The matrices that may be read, with their genes."""
    whole = adata.to_memory() if adata.isbacked else adata
    names = [layer] if layer not in (None, "X", "raw") else []
    layers = {name: whole.layers[name] for name in names if name in whole.layers}
    slim = AnnData(
        X=None if layers or layer == "raw" else whole.X,
        obs=obs,
        var=whole.var.copy(),
        layers=layers,
    )
    if layer in (None, "raw") and whole.raw is not None:
        slim.raw = AnnData(X=whole.raw.X, obs=obs[[]], var=whole.raw.var.copy())
    return slim
