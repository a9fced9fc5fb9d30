"""Build a store on disk from many files of cells, in bounded memory; a build that was killed can go on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from tqdm.auto import tqdm

from celler._utils._check import checked
from celler._utils._digest import digest_of
from celler._utils._lock import locked
from celler._utils._matrix import as_csr
from celler._utils._messages import check_columns, has_progress
from celler._utils._text import as_names
from celler._utils._write import NO_ROOM, explained
from celler.atlas._checksums import files_of
from celler.atlas._curate import as_text, cell_names
from celler.atlas._files import AtlasFile
from celler.atlas._options import COLUMNS, PRIMARY, PerSource, Settings, Storage, of_source, read_mapping, read_parents
from celler.atlas._place import Folder, is_address
from celler.atlas._plan import Plan, make_manifest, make_plan, write_json
from celler.atlas._store import FILE_NAME, FORMAT_VERSION, STORE_NAME, WORK_NAME, require_engine
from celler.atlas._summary import Summary, count_cells, summary
from celler.atlas._work import LOCK, MARK, PLAN, SETTINGS, check_out, clear, read_settings, remove_work
from celler.atlas._write import close_collection, types_of, write_blocks, write_dataset
from celler.data._formats import ForeignFile, UnreadableFile, format_of
from celler.data._read import read_cells
from celler.labels._tree import LabelTree


class UnfinishedBuild(ValueError):
    """A folder holds the work of another build."""


@checked
def build(
    sources: Iterable[str | Path | AnnData] | Mapping[str, str | Path | AnnData],
    out: str | os.PathLike[str],
    *,
    labels_key: PerSource,
    genes: str | Iterable[str] = "union",
    gene_key: PerSource = None,
    layer: PerSource = None,
    columns: Mapping[str, PerSource] | None = None,
    mapping: Mapping[str, str | None] | pd.Series | pd.DataFrame | str | Path | None = None,
    parents: Mapping[str, str] | pd.Series | LabelTree | None = None,
    drop: Iterable[str] = (),
    test_size: float = 0.1,
    seed: int = 0,
    storage: Storage | None = None,
) -> Summary:
    """Build a store of raw counts from many files: one gene space, one set of columns, shuffled once.

    An interrupted build is finished by the same call. Cells are left out that repeat a barcode and dataset,
    that ``is_primary_data`` marks as counted elsewhere, or that have no counts; the manifest counts them.
    Needs Python 3.12 and ``pip install "celler[atlas]"``.

    Parameters
    ----------
    sources
        Paths of files of cells, named by their stems, or a dict from name to path. ``.h5ad`` and ``.zarr`` are read by
        blocks; AnnData, also from an iterator, and files of other formats, such as Cell Ranger's ``.h5``, are first
        copied to disk one by one. A repeated call must give them in the same order.
    out
        Folder to write. It is a store once it holds ``manifest.json``, which is written last.
    labels_key
        Column of ``obs`` with the cell types; missing values, texts for them such as "NA", and "unknown" are
        unlabelled. Here and in ``gene_key``,
        ``layer`` and ``columns``, a dict gives the name for each source.
    genes
        ``"union"`` or ``"intersection"`` of the sources' genes, or a list of names. Names match as in
        :func:`celler.pp.align_genes`; a gene that a source lacks counts 0 there.
    gene_key
        Column of ``var`` with the gene names. By default ``var_names``, or the column that matches.
    layer
        Matrix of the raw counts: ``"X"``, ``"raw"`` or a layer. By default ``X`` if it holds counts, else ``raw``.
    columns
        Columns of ``obs`` for ``parent_type``, ``tissue``, ``disease``, ``donor``, ``assay``, ``dataset`` and
        ``is_primary_data``, ``None`` to leave one out. By default those of the same names, ``donor_id``
        and ``dataset_id``; without a column, ``dataset`` is the name of the source.
    mapping
        New label for each label of the sources, ``None`` for unlabelled: a dict, a table of two columns or
        its path, or an ontology (``.obo``), whose names replace ids and synonyms.
    parents
        Parent of each class. By default from ``parent_type``, where each class has one.
    drop
        Labels, before or after ``mapping``, whose cells are left out, such as doublets.
    test_size
        Share of the cells for testing, in whole donors; 0 for none.
    seed
        Seed of the order of the cells and of the split.
    storage
        Type of the counts and most memory. By default ``Storage()``: uint16 and 4 GB.

    Returns
    -------
    The numbers of cells by type, tissue, disease, dataset and split.

    Raises
    ------
    ImportError
        Without annbatch.
    KeyError
        For a column or layer that a source lacks.
    ValueError
        For an unreadable file, a value that is no count, other genes or an unfit option. Earlier work is kept.
    FileExistsError
        If ``out`` is a finished store or holds other files.
    RuntimeError
        While another process builds there.

    Examples
    --------
    >>> import celler as cl
    >>> cl.atlas.build(["lung.h5ad", "liver.h5ad"], "my_atlas", labels_key="cell_type")  # doctest: +SKIP
    """
    require_engine()
    settings = Settings(
        labels_key,
        genes if isinstance(genes, str) else tuple(map(str, genes)),
        gene_key,
        layer,
        dict(columns or {}),
        read_mapping(mapping),
        read_parents(parents),
        tuple(map(str, drop)),
        test_size,
        seed,
        storage or Storage(),
    )
    if is_address(out):
        raise ValueError(f"out={os.fspath(out)!r} is an address; name a folder, and copy the store there afterwards.")
    out = Path(out)
    check_out(out)
    folder, is_new = out / WORK_NAME, not out.exists()
    with explained(out):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, f"the store {out}"), _explained(out, folder):
            check_out(out)  # another build may have finished just now
            if not (out / FILE_NAME).exists():
                _build(out, folder, sources, settings)
            remove_work(out)
    finally:
        with suppress(OSError):  # they hold the work so far
            folder.rmdir()
        with suppress(OSError):
            if is_new:
                out.rmdir()
    return summary(out)


def _build(out: Path, folder: Path, sources: Any, settings: Settings) -> None:
    """All steps but the last; each goes on where an interrupted build stopped."""
    _check_same(folder, settings)
    plan = Plan.load(folder)
    files = name_sources(sources, folder, settings)
    settings.check_sources([file.name for file in files])
    if plan is None:
        with _bar(None, "Scan") as bar:
            plan = make_plan(folder, files, settings, bar)
    _check_unchanged(plan, files)
    store = out / STORE_NAME
    if not store.exists():
        _check_room(plan)
        _write_cells(plan, files)
        (folder / STORE_NAME).rename(store)
    counts, datasets = count_cells(Folder(store), plan.categories.get("cell_type", []))
    manifest = make_manifest(plan, counts, datasets) | {"files": files_of(store)}
    write_json(out / FILE_NAME, manifest | {"digest": digest_of(manifest)})


def _write_cells(plan: Plan, files: list[AtlasFile]) -> None:
    n_cells = sum(record["n_cells"] for record in plan.sources)
    with _bar(n_cells, "Shuffle") as bar:
        for number, file in enumerate(files):
            for n_rows in write_blocks(plan, number, file):
                bar.update(n_rows)
    with _bar(plan.n_kept, "Write") as bar:
        for bucket in range(plan.n_buckets):
            bar.update(write_dataset(plan, bucket))
    close_collection(plan.folder / STORE_NAME)


def _bar(total: int | None, title: str) -> Any:
    return tqdm(total=total, desc=title, unit="cell", unit_scale=True, disable=not has_progress())


def name_sources(sources: Any, folder: Path, settings: Settings) -> list[AtlasFile]:
    """Name the files; AnnData objects are copied to ``folder`` and named by their number."""
    if isinstance(sources, str | Path | AnnData):
        raise TypeError(f"sources is one {type(sources).__name__}; pass a list, or a dict by name.")
    is_named = isinstance(sources, Mapping)
    files = []
    for number, item in enumerate(sources.items() if is_named else sources):
        name, source = (str(item[0]), item[1]) if is_named else (None, item)
        if isinstance(source, AnnData):
            files.append(_copied(name or f"source_{number}", number, source, folder, settings))
        elif isinstance(source, str | Path):
            path = Path(source).absolute()
            stem = path.stem if path.suffix in (".h5ad", ".zarr") else path.name
            name = name or stem
            if _is_read_by_blocks(path):
                files.append(AtlasFile(name, path))
            else:
                files.append(_copied(name, number, read_cells(path), folder, settings))
        else:
            raise TypeError(
                f"sources holds a {type(source).__name__}; paths of .h5ad or .zarr, or AnnData, are needed."
            )
    if repeated := [name for name, n in Counter(file.name for file in files).items() if n > 1]:
        raise ValueError(f"several sources are named {repeated}; pass a dict with a name for each path.")
    if not files:
        raise ValueError("sources is empty; name at least one file.")
    return files


def _is_read_by_blocks(path: Path) -> bool:
    """Return whether a file is an AnnData, or is refused later, with its name; others are read and copied."""
    try:
        kinds = ("h5ad", "zarr", "table") if path.suffix == ".h5ad" else ("h5ad", "zarr")
        return not path.exists() or format_of(path) in kinds
    except ForeignFile:
        raise
    except UnreadableFile:
        return True


def _copied(name: str, number: int, adata: AnnData, folder: Path, settings: Settings) -> AtlasFile:
    """Copy what a build needs of an AnnData to a file; one of the same cells is kept."""
    path = folder / f"source_{number:05d}.h5ad"
    record, part = path.with_suffix(".json"), path.with_suffix(".part.h5ad")
    ends = adata.obs_names[[0, -1]].astype(str).to_list() if adata.n_obs else []
    cells = {"name": name, "n_obs": adata.n_obs, "n_vars": adata.n_vars, "ends": ends}
    if not record.exists():
        _needed(adata, name, settings).write_h5ad(part)
        part.replace(path)
        write_json(record, cells)
    elif (before := json.loads(record.read_text())) != cells:
        raise UnfinishedBuild(
            f"source {number} was {before} when the build was begun and is {cells} now; an unfinished build needs the "
            "same AnnData in the same order. Delete the folder to begin anew."
        )
    return AtlasFile(name, path)


def _needed(adata: AnnData, name: str, settings: Settings) -> AnnData:
    """Return the columns and matrices of an AnnData that a build may read."""
    check_columns(adata)
    keys = {of_source(option, name) for option in (settings.labels_key, *settings.columns.values())}
    keys |= {PRIMARY, *chain(*COLUMNS.values())}
    obs = adata.obs[[key for key in adata.obs.columns if key in keys]].copy()
    layer = of_source(settings.layer, name)
    obs = as_text(obs.set_axis(cell_names(adata.obs_names, name)))
    whole = adata.to_memory() if adata.isbacked else adata
    layers = {layer: whole.layers[layer]} if layer not in (None, "X", "raw") and layer in whole.layers else {}
    layers = {key: as_csr(X, f"layer {key!r} of source {name!r}", dtype=None) for key, X in layers.items()}
    has_X = not layers and layer != "raw" and whole.X is not None
    X = as_csr(whole.X, f"X of source {name!r}", dtype=None) if has_X else None
    with warnings.catch_warnings():
        # Genes without a name have the same one, and are left out later.
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        needed = AnnData(X, obs, _named(whole.var), layers=layers)
    if layer in (None, "raw") and whole.raw is not None:
        raw = as_csr(whole.raw.X, f"raw of source {name!r}", dtype=None)
        needed.raw = AnnData(X=raw, obs=obs[[]], var=_named(whole.raw.var))
    return needed


def _named(var: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of var with text as names and in its columns, which can be written."""
    return as_text(var.set_axis(as_names(var.index)))


def _check_same(folder: Path, settings: Settings) -> None:
    """Raise where the unfinished build has other options; without a plan yet, begin anew."""
    record, before = settings.as_record(), read_settings(folder)
    other = [name for name, value in record.items() if before.get(name) != value]
    if other and Plan.load(folder) is not None:
        changes = ", ".join(f"{name} {before.get(name)!r} -> {record[name]!r}" for name in other)
        raise UnfinishedBuild(
            f"{folder.parent} holds an unfinished build with other options: {changes}. Call with those of before to "
            "finish it, or delete the folder to begin anew."
        )
    if other:
        clear(folder)
        write_json(folder / SETTINGS, record | {MARK: FORMAT_VERSION})


def _check_unchanged(plan: Plan, files: list[AtlasFile]) -> None:
    before = [(record["name"], record["path"]) for record in plan.sources]
    now = [(file.name, str(file.path)) for file in files]
    if before != now:
        changed = sorted({name for name, _ in set(before) ^ set(now)}) or ["the order"]
    else:
        changed = sorted(
            file.name
            for file, record in zip(files, plan.sources, strict=True)
            if file.stamp() != record["stamp"] and file.checksum() != record["sha256"]
        )
    if changed:
        raise UnfinishedBuild(
            f"{plan.folder.parent} holds an unfinished build of other sources; changed: {changed}. "
            "Give those of before to finish it, or delete the folder to begin anew."
        )


def _check_room(plan: Plan) -> None:
    """Raise before hours of work where the blocks will not fit on the disk."""
    n_values, n_cells = (sum(record[name] for record in plan.sources) for name in ("n_values", "n_cells"))
    needed = plan.n_kept / max(1, n_cells) * n_values * sum(dtype.itemsize for dtype in types_of(plan))
    written = sum(path.stat().st_size for path in plan.folder.glob("block_*"))
    free = shutil.disk_usage(plan.folder).free
    if needed > free + written:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.3g} GB are needed for the shuffle and some half of it more for the store, "
            f"{free / 1e9:.3g} GB are free",
            str(plan.folder),
        )


@contextmanager
def _explained(out: Path, folder: Path) -> Iterator[None]:
    """Name the work that is left and how to go on; before the plan exists, there is none to keep."""
    try:
        yield
    except UnfinishedBuild:
        raise
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        if (folder / PLAN).exists():
            how = f"Call again with the same arguments to go on, or delete {out} to begin anew."
            error.add_note(f"The work so far is kept in {folder}. {how}")
        else:
            clear(folder)
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f"no room left on the disk of {out} ({error.strerror}). It is no store yet; the work so far is in "
            f"{WORK_NAME}/. Make room and call again with the same arguments to go on, or delete the folder",
            str(out),
        ) from error
