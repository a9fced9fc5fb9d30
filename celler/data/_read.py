"""Read: the one way from a file of cells, of any usual format, to an AnnData; a damaged one is refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import io, sparse

from celler._utils._matrix import check_sparse
from celler._utils._messages import agreed, listed, warn
from celler._utils._modalities import of_expression
from celler.data._formats import ForeignFile, UnreadableFile, format_of
from celler.data._gene_table import find_genes

#: Most bytes that a byte of a file can stand for: above what gzip reaches with zeros alone.
MOST_UNPACKED = 2000


def read_cells(path: str | os.PathLike[str]) -> AnnData:
    """Read the cells of a file or folder into memory.

    ``.h5ad``, ``.zarr``, ``.h5mu`` (its gene expression), ``.loom``, Cell Ranger's ``.h5`` and its folders of
    ``matrix.mtx``, and a clear table of cells by genes. Raises ``FileNotFoundError`` and ``UnreadableFile``, a
    ``ValueError``, with the path and what to do.
    """
    path = Path(path)
    kind = format_of(path)
    with reading(path):
        adata = READERS[kind](path)
    check_read(adata, path)
    return adata


@contextmanager
def reading(path: object, cure: str | None = None) -> Iterator[None]:
    """Turn what any library raises for a damaged file into :class:`UnreadableFile`, or one that ends in ``cure``."""
    try:
        yield
    except (UnreadableFile, PermissionError):
        raise
    except Exception as error:  # anndata's own error has no public name
        reason = " ".join(str(error).split()) or type(error).__name__
        if cure is not None:
            raise ValueError(f"{path} cannot be read: {reason[:300].rstrip('.')}. {cure}") from error
        raise UnreadableFile(path, reason[:300].rstrip(".")) from error


def _read_h5ad(path: Path) -> AnnData:
    check_hdf5(path)
    return _quietly(anndata.read_h5ad, path)


def _read_zarr(path: Path) -> AnnData:
    import zarr

    group = zarr.open_group(path, mode="r")
    if group.attrs.get("encoding-type") == "MuData" or "mod" in group:
        return _modality(group["mod"], path)
    if "obs" not in group or "var" not in group:
        raise ForeignFile(path, "a zarr store without the groups obs and var of an AnnData")
    check_zarr(group, path)
    return _quietly(anndata.read_zarr, path)


def _read_mudata(path: Path) -> AnnData:
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        return _modality(file["mod"], path)


def _modality(group: Any, path: Path) -> AnnData:
    """Read the gene expression of a MuData, whose modalities are AnnData."""
    names = list(group)
    found = of_expression(names)
    if found is None:
        raise ForeignFile(path, f"a MuData whose modalities are {names}, none of them 'rna'; write one as .h5ad")
    return _quietly(anndata.io.read_elem, group[found])


def _quietly(read: Callable[[Any], AnnData], place: Any) -> AnnData:
    """Read without the warnings of anndata about names, which Celler reports in its own words."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(names are not unique|Consolidated metadata|OldFormat)")
        warnings.filterwarnings("ignore", category=anndata.OldFormatWarning)
        return read(place)


def _read_10x(path: Path) -> AnnData:
    """Read Cell Ranger's .h5, of version 2 with a genome's name or of 3 and later, and CellBender's."""
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        genomes = [name for name in file if name == "matrix"] or [name for name in file if "barcodes" in file[name]]
        if len(genomes) > 1:
            raise ForeignFile(path, f"Cell Ranger's of several genomes, {genomes}; write one of them as .h5ad")
        group = file[genomes[0]]
        n_vars, n_obs = map(int, group["shape"][:])
        X = sparse.csr_matrix(
            (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]), (n_obs, n_vars)
        )
        features = group.get("features", group)
        names, ids = ("name", "id") if "features" in group else ("gene_names", "genes")
        var = {"gene_ids": _text(features[ids])} | {
            key: _text(features[name]) for key, name in (("feature_types", "feature_type"), ("genome", "genome"))
            if name in features and features[name].shape == (n_vars,)
        }  # fmt: skip
        return _of_genes(X, _text(group["barcodes"]), _text(features[names]), pd.DataFrame(var))


def _read_loom(path: Path) -> AnnData:
    """Read a loom file: its matrix is of genes by cells, and its names are attributes."""
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        matrix = file["matrix"]
        step = max(1, 2**24 // max(1, matrix.shape[0]))
        parts = [sparse.csr_matrix(matrix[:, i : i + step].T) for i in range(0, matrix.shape[1], step)]
        X = sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix(matrix.shape[::-1])
        var, obs = (
            _attributes(file[name], n) for name, n in zip(("row_attrs", "col_attrs"), matrix.shape, strict=True)
        )
    names = next((var[key] for key in ("Gene", "gene", "var_names", "gene_names", "Accession") if key in var), None)
    cells = next((obs[key] for key in ("CellID", "cell_id", "obs_names", "cell_names") if key in obs), None)
    if names is None or cells is None:
        raise ForeignFile(path, f"a loom file without Gene in {list(var)} or CellID in {list(obs)}; name them so")
    adata = AnnData(X, obs, var)
    adata.obs_names, adata.var_names = cells.astype(str), names.astype(str)
    return adata


def _attributes(group: Any, n: int) -> pd.DataFrame:
    """Return the attributes of a loom file that have a value for each of its ``n`` rows or columns."""
    values = {name: group[name] for name in group if getattr(group[name], "shape", None) == (n,)}
    return pd.DataFrame(
        {name: _text(array) if array.dtype.kind in "OS" else array[:] for name, array in values.items()},
        index=pd.RangeIndex(n).astype(str),
    )


def _read_mtx(path: Path) -> AnnData:
    """Read a folder of Cell Ranger, version 2 or 3, or of STARsolo: a matrix with its features and barcodes."""
    names = sorted(child.name for child in path.iterdir())
    (matrix, *others) = [name for name in names if name.removesuffix(".gz").endswith("matrix.mtx")]
    if others:
        raise ForeignFile(path, f"a folder of several matrices, {[matrix, *others]}; name a folder with one of them")
    prefix = matrix.removesuffix(".gz").removesuffix("matrix.mtx")
    wanted = {what: [f"{prefix}{stem}.tsv" for stem in stems] for what, stems in (
        ("features.tsv or genes.tsv", ("features", "genes")), ("barcodes.tsv", ("barcodes",))
    )}  # fmt: skip
    found = {
        what: next((name for file in files for name in (file, f"{file}.gz") if name in names), None)
        for what, files in wanted.items()
    }
    if missing := [what for what, name in found.items() if name is None]:
        raise ForeignFile(path, f"a folder with {matrix} but without {prefix}{' and '.join(missing)} (or .gz)")
    tables = [pd.read_csv(path / str(name), sep="\t", header=None, dtype=str, quoting=3) for name in found.values()]
    genes, cells = (table.fillna("") for table in tables)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default value for `spmatrix`")  # either is turned into CSR
        X = sparse.csr_matrix(io.mmread(path / matrix).T, dtype=np.float32)
    if X.shape != (len(cells), len(genes)):
        raise UnreadableFile(
            path, f"{matrix} is of {X.shape[1]:,} genes and {X.shape[0]:,} cells; there are names of {len(genes):,} "
            f"genes and {len(cells):,} cells",
        )  # fmt: skip
    var = pd.DataFrame({"gene_ids": genes[0]})
    if genes.shape[1] > 2:
        var["feature_types"] = genes[2]
    return _of_genes(X, cells[0].to_numpy(), genes[min(1, genes.shape[1] - 1)].to_numpy(), var)


def _read_table(path: Path) -> AnnData:
    """Read a table of text with a row for each cell, where its column names are genes and its row names are not."""
    table = read_table(path)
    is_number = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    rows, columns = (find_genes(pd.Index(names.astype(str))).organism for names in (table.index, table.columns))
    how = "; in Python, write it as .h5ad: ad.AnnData(table).write_h5ad('cells.h5ad')"
    if rows and not columns:
        how = how.replace("table)", "table.T)")
        raise ForeignFile(path, f"a table with genes in rows; cells are needed in rows{how}")
    if not columns or rows or not all(is_number):
        raise ForeignFile(path, f"a table that is not clearly of cells in rows, genes in columns and numbers{how}")
    X = sparse.csr_matrix(table.to_numpy(np.float32))
    return AnnData(X, table[[]].rename(str), pd.DataFrame(index=table.columns))


def read_table(path: Path) -> pd.DataFrame:
    """Read a .csv or .tsv, packed or not, with names in its first column; the separator is that of its first line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; name a .csv or .tsv.")
    with reading(path):
        return pd.read_csv(path, index_col=0, sep=None, engine="python", encoding="utf-8-sig")


def _of_genes(X: sparse.csr_matrix, cells: np.ndarray, symbols: np.ndarray, var: pd.DataFrame) -> AnnData:
    """Return an AnnData whose names are unique symbols; of two rows of one name, the gene keeps it."""
    symbols = np.where(symbols == "", var["gene_ids"], symbols).astype(object)
    is_gene = var.get("feature_types", pd.Series("Gene Expression", var.index)) == "Gene Expression"
    order = np.argsort(~is_gene.to_numpy(), kind="stable")
    names = np.empty(len(order), object)
    names[order] = anndata.utils.make_index_unique(pd.Index(symbols[order]))
    return AnnData(X, pd.DataFrame(index=pd.Index(cells.astype(str))), var.set_axis(pd.Index(names), axis=0))


def _text(array: Any) -> np.ndarray:
    return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array[:]], dtype=object)


READERS: dict[str, Callable[[Path], AnnData]] = {
    "h5ad": _read_h5ad,
    "zarr": _read_zarr,
    "mudata": _read_mudata,
    "10x": _read_10x,
    "loom": _read_loom,
    "mtx": _read_mtx,
    "table": _read_table,
}


def check_hdf5(path: Path, source: object = None) -> None:
    """Raise for an HDF5 file that claims more than it can hold, or lacks chunks, which read as zeros."""
    source = path if source is None else source
    most = MOST_UNPACKED * path.stat().st_size

    def check(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        if item.size * item.dtype.itemsize > most:
            raise UnreadableFile(source, f"{name} would take {item.size * item.dtype.itemsize:,} bytes")
        if item.chunks is not None:
            n_needed = int(np.prod([-(-n // step) for n, step in zip(item.shape, item.chunks, strict=True)]))
            n_present = item.id.get_num_chunks()
            if n_present < n_needed:
                raise UnreadableFile(source, f"{n_present:,} of the {n_needed:,} chunks of {name} are there")

    with reading(source), h5py.File(path, "r") as file:
        file.visititems(check)


def check_zarr(group: Any, path: Path) -> None:
    """Raise for a zarr store of which a matrix lacks chunks, which read as zeros."""
    for name in ("X", "raw/X", *(f"layers/{key}" for key in group.get("layers", ()))):
        for part in ("data", "indices", "indptr"):
            array: Any = group.get(f"{name}/{part}") if name in group else None
            n_present = getattr(array, "nchunks_initialized", None)
            if n_present is not None and n_present < array.nchunks:
                raise UnreadableFile(path, f"{n_present:,} of the {array.nchunks:,} chunks of {name}/{part} are there")


def check_read(adata: AnnData, path: Path) -> None:
    """Raise for sparse matrices whose indices lie, which would be read beyond their ends."""
    places = {"X": adata.X, **{f"layers[{key!r}]": adata.layers[key] for key in adata.layers if key is not None}}
    places |= {f"{field}[{key!r}]": getattr(adata, field)[key] for field in ("obsm", "obsp", "varm", "varp")
               for key in getattr(adata, field)}  # fmt: skip
    if adata.raw is not None:
        places["raw.X"] = adata.raw.X
    for name, X in places.items():
        if sparse.issparse(X) and X.format in ("csr", "csc") and not _is_sound(X):
            raise UnreadableFile(path, f"the indices of {name} do not fit its {X.shape[0]:,} x {X.shape[1]:,} values")


def _is_sound(X: Any) -> bool:
    """Return whether the indices of a sparse matrix lie within it, and a file has no others."""
    try:
        check_sparse(X, "X")
    except ValueError:
        return False
    return bool(X.indptr[-1] == len(X.indices) == len(X.data))


def with_labels(adata: AnnData, path: Path, key: str | None) -> str:
    """Add the labels of a table to ``adata.obs``, by the names of the cells, and return the name of their column."""
    table = read_table(path)
    column = key if key is not None else str(table.columns[0]) if table.shape[1] == 1 else None
    if column not in table.columns:
        raise KeyError(f"labels_key={key!r} is not a column of {path}; it has {listed(table.columns)}.")
    names = table.index.astype(str)
    if names.has_duplicates:
        raise ValueError(f"{path} names cells twice: {listed(names[names.duplicated()].unique())}.")
    labels = table[column].set_axis(names).reindex(adata.obs_names.astype(str))
    n_found = int(adata.obs_names.astype(str).isin(names).sum())
    if not n_found:
        raise ValueError(
            f"{path} names none of the {adata.n_obs:,} cells: it has {listed(names, 2)}, and they are "
            f"{listed(adata.obs_names, 2)}. Its first column must hold the names of the cells."
        )
    if n_found < adata.n_obs:
        warn(
            f"{path} has labels for {n_found:,} of the {adata.n_obs:,} cells; the "
            f"{agreed(adata.n_obs - n_found, 'others are')} unlabelled."
        )
    adata.obs[column] = labels.to_numpy()
    return str(column)
