"""Formats: what a file or folder of cells is, told by its contents and not by its name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any

import h5py

from celler._utils._messages import closest
from celler.data._heaps import has_endless_heap

N_PEEK = 1024
#: What to do with a file that is not read, for each beginning of one; the first that fits counts.
FOREIGN: list[tuple[tuple[bytes, ...], str]] = [
    ((b"RDX2", b"RDX3", b"X\n\0\0\0"), "of R (.rds or .RData); in R, {r}"),
    ((b"PK\x03\x04",), "a zip archive; unpack it, and name what is in it"),
    ((b"version https://git-lfs",), "a pointer of Git LFS and not the file itself; get that by git lfs pull"),
    ((b"%%MatrixMarket",), "a matrix without names; name the folder that holds it with its features and barcodes"),
    ((b"PAR1",), "a Parquet table; in Python, ad.AnnData(pd.read_parquet(path)).write_h5ad('cells.h5ad')"),
    ((b"\x93NUMPY",), "a NumPy array without names; put it into an AnnData with names, and write_h5ad"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle, which may run code and is not opened"),
    ((b"<!doctype", b"<html", b"<?xml"), "a web page, such as an error in place of a download; download it again"),
    ((b"%PDF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\xd0\xcf\x11\xe0"), "no file of cells"),
]
#: How to write an .h5ad from R.
FROM_R = (
    "a Seurat object is written by SeuratDisk (SaveH5Seurat, then Convert(..., dest = 'h5ad')), "
    "a SingleCellExperiment by zellkonverter::writeH5AD"
)
READ = "Celler reads .h5ad, .zarr, .h5mu, .loom, Cell Ranger's .h5 and its folders of matrix.mtx"
PACKERS: list[tuple[bytes, Any, str]] = [(b"\x1f\x8b", gzip, "gunzip"), (b"BZh", bz2, "bunzip2")]
PACKERS += [(b"\xfd7zXZ", lzma, "unxz")]


class UnreadableFile(ValueError):
    """A file that is damaged, half-written or of a format that is not read."""

    def __init__(self, source: object, reason: object) -> None:
        super().__init__(
            f"{source} cannot be read: {reason}. It may be corrupt, half-written or no AnnData in .h5ad or "
            ".zarr; write or download it again, or leave it out."
        )


class ForeignFile(UnreadableFile):
    """A file of another format, which the message names."""

    def __init__(self, source: object, what: str) -> None:
        ValueError.__init__(self, f"{source} cannot be read as cells: it is {what}. {READ}.")


def format_of(path: Path) -> str:
    """Return ``h5ad``, ``zarr``, ``mudata``, ``10x``, ``loom``, ``mtx`` or ``table``; raise for any other file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.{_closest_path(path)}")
    if path.is_dir():
        return _format_of_folder(path)
    if not path.is_file():
        raise ForeignFile(path, "a device or pipe")
    try:
        with path.open("rb") as file:
            start = file.read(N_PEEK)
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read; ask its owner.") from error
    if not start:
        raise ForeignFile(path, "empty, of 0 bytes; write or download it again")
    if h5py.is_hdf5(path):
        return _format_of_hdf5(path)
    return _format_of_bytes(path, start)


def _closest_path(path: Path) -> str:
    return closest(path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [])


def _format_of_folder(path: Path) -> str:
    names = {child.name for child in path.iterdir()}
    if names & {".zgroup", "zarr.json", ".zattrs", ".zmetadata"}:
        return "zarr"
    if {name for name in names if name.removesuffix(".gz").endswith("matrix.mtx")}:
        return "mtx"
    if "model.safetensors" in names or "model.pt" in names:
        raise ForeignFile(path, "a folder of a saved model; name a file of cells")
    if {"manifest.json", "cells.zarr"} <= names:
        raise ForeignFile(path, "a store of cl.atlas.build; open it by cl.atlas.DataModule")
    found = sorted(name for name in names if name.endswith((".h5ad", ".h5", ".zarr", ".loom", ".h5mu", "_matrix")))
    raise ForeignFile(path, f"a folder; name one of {found[:5]} in it" if found else "a folder without a matrix in it")


def _format_of_hdf5(path: Path) -> str:
    """Tell an HDF5 file by its groups."""
    if has_endless_heap(path):
        raise UnreadableFile(path, "a heap of its texts is damaged")
    try:
        with h5py.File(path, "r") as file:
            names, kind = set(file), str(file.attrs.get("encoding-type", ""))
            is_10x = "matrix" in names and isinstance(file["matrix"], h5py.Group)
            groups = [file[name] for name in names if isinstance(file.get(name), h5py.Group)]
            is_legacy_10x = any({"barcodes", "genes", "indptr"} <= set(group) for group in groups)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UnreadableFile(path, error) from error
    if kind == "MuData" or "mod" in names:
        return "mudata"
    if {"obs", "var"} <= names:
        return "h5ad"
    if is_10x or is_legacy_10x:
        return "10x"
    if {"row_attrs", "col_attrs", "matrix"} <= names:
        return "loom"
    if {"assays", "cell.names"} <= names:
        raise ForeignFile(path, "of SeuratDisk (.h5Seurat); in R, SeuratDisk::Convert(file, dest = 'h5ad')")
    if {"barcode_idx", "feature_idx"} <= names:
        raise ForeignFile(path, "Cell Ranger's molecule_info; name its filtered_feature_bc_matrix.h5")
    raise ForeignFile(path, f"HDF5 without the groups obs and var of an AnnData; it has {sorted(names)[:8]}")


def _format_of_bytes(path: Path, start: bytes) -> str:
    """Tell a file that is not HDF5 by its first bytes, unpacked."""
    how = ""
    for sign, packer, command in PACKERS:
        if start.startswith(sign):
            how = command
            try:
                with packer.open(path) as file:
                    start = file.read(N_PEEK)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise UnreadableFile(path, error) from error
    if start.startswith(b"\x89HDF"):
        what = f"packed HDF5; unpack it by {how}" if how else "HDF5 that is cut short or damaged; get it again"
        raise ForeignFile(path, what)
    if start[257:262] == b"ustar":
        raise ForeignFile(path, "a tar archive; unpack it by tar -xf, and name what is in it")
    for signs, what in FOREIGN:
        if start.lower().startswith(tuple(sign.lower() for sign in signs)):
            raise ForeignFile(path, what.format(r=FROM_R))
    if not any(byte < 9 or 13 < byte < 32 for byte in start):  # text of any encoding
        return "table"
    raise ForeignFile(path, "of an unknown format, or damaged")
