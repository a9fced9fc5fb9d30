"""Files from elsewhere: each format is read, each other or damaged one refused by name; no mutation ends a process."""

import gzip
import json
import os
import shutil
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import h5py
import mutation_cases
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import toy
from scipy import io, sparse
from stores import write_zarr

from celler.cli._main import main
from celler.data._formats import UnreadableFile
from celler.data._read import read_cells

#: Mutations of each file; ``python tests/mutation_cases.py 500`` tries more.
N_MUTATIONS = int(os.environ.get("CELLER_MUTATIONS", 12))
GENES = ["CD3D", "CD8A", "MS4A1", "LYZ", "NKG7", "GNLY", "CD79A", "CST3", "FCER1A", "PPBP", "IL7R", "CCR7"]


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(rng.poisson(1.0, (30, len(GENES))).astype(np.float32))
    return ad.AnnData(X, pd.DataFrame(index=[f"AC{i}-1" for i in range(30)]), pd.DataFrame(index=GENES))


def as_bytes(names):
    return np.array([name.encode() for name in names])


def write_10x(path, adata, genome=None, kinds=None):
    """Cell Ranger's layout: of version 2 under the genome's name, else of version 3 with kinds of features."""
    X, ids = adata.X.tocsr(), [f"ENSG{i}" for i in range(adata.n_vars)]
    with h5py.File(path, "w") as file:
        group = file.create_group(genome or "matrix")
        group["data"], group["indices"] = X.data.astype("i4"), X.indices.astype("i8")
        group["indptr"], group["shape"] = X.indptr.astype("i8"), np.array(adata.shape[::-1], "i4")
        group["barcodes"] = as_bytes(adata.obs_names)
        if genome:
            group["genes"], group["gene_names"] = as_bytes(ids), as_bytes(adata.var_names)
        else:
            features = group.create_group("features")
            features["id"], features["name"] = as_bytes(ids), as_bytes(adata.var_names)
            features["feature_type"] = as_bytes(kinds or ["Gene Expression"] * adata.n_vars)
            features["genome"], features["_all_tag_keys"] = as_bytes(["GRCh38"] * adata.n_vars), as_bytes(["genome"])
    return path


def write_mtx(folder, adata, features="features.tsv", packed=True, prefix=""):
    folder.mkdir()
    ending, opened = (".gz", gzip.open) if packed else ("", open)
    io.mmwrite(folder / "plain", adata.X.T.astype(int))
    matrix = (folder / "plain.mtx").read_bytes()
    (folder / "plain.mtx").unlink()
    kind = "" if features == "genes.tsv" else "\tGene Expression"
    texts = {
        "matrix.mtx": matrix,
        features: "".join(f"ENSG{i}\t{name}{kind}\n" for i, name in enumerate(adata.var_names)).encode(),
        "barcodes.tsv": "".join(f"{name}\n" for name in adata.obs_names).encode(),
    }
    for name, text in texts.items():
        with opened(folder / f"{prefix}{name}{ending}", "wb") as file:
            file.write(text)
    return folder


def write_loom(path, adata):
    with h5py.File(path, "w") as file:
        file["matrix"] = adata.X.toarray().T
        file.create_group("row_attrs")["Gene"] = as_bytes(adata.var_names)
        file.create_group("col_attrs")["CellID"] = as_bytes(adata.obs_names)
    return path


def write_mudata(path, adata, name="rna"):
    """A MuData is a group of AnnData."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        for key, part in ((name, adata), ("adt", adata[:, :3].copy())):
            ad.io.write_elem(file.require_group("mod"), key, part)
    return path


def write_zarr_store(path, adata):
    write_zarr(path, adata)
    return path


def frame(adata):
    return pd.DataFrame(adata.X.toarray().astype(int), adata.obs_names, adata.var_names)


READ = {
    "h5ad": lambda d, a: (a.write_h5ad(d / "a.h5ad"), d / "a.h5ad")[1],
    "h5ad by another name": lambda d, a: (a.write_h5ad(d / "a.h5ad"), (d / "a.h5ad").rename(d / "cells"))[1],
    "zarr": lambda d, a: write_zarr_store(d / "a.zarr", a),
    "10x 3": lambda d, a: write_10x(d / "a.h5", a),
    "10x 2": lambda d, a: write_10x(d / "a.h5", a, genome="hg19"),
    "10x 3 as h5ad": lambda d, a: write_10x(d / "a.h5ad", a),
    "mtx 3": lambda d, a: write_mtx(d / "m", a),
    "mtx 2": lambda d, a: write_mtx(d / "m", a, "genes.tsv", packed=False),
    "mtx of STARsolo": lambda d, a: write_mtx(d / "m", a, packed=False),
    "mtx of GEO": lambda d, a: write_mtx(d / "m", a, prefix="GSM1_"),
    "loom": lambda d, a: write_loom(d / "a.loom", a),
    "mudata": lambda d, a: write_mudata(d / "a.h5mu", a),
    "csv": lambda d, a: (frame(a).to_csv(d / "a.csv"), d / "a.csv")[1],
    "tsv.gz": lambda d, a: (frame(a).to_csv(d / "a.tsv.gz", sep="\t"), d / "a.tsv.gz")[1],
}


@pytest.mark.parametrize("kind", READ)
def test_read_cells_of_each_format(tmp_path, kind):
    adata = cells()
    found = read_cells(READ[kind](tmp_path, adata))
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.var_names) == GENES


def test_read_cells_as_scanpy_does(tmp_path):
    """With names that come twice, which get the same new names."""
    adata = cells()
    adata.var_names = [*GENES[:-2], "CD3D", "CD3D"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default value for `spmatrix`")  # scanpy's
        theirs = sc.read_10x_mtx(write_mtx(tmp_path / "m", adata))
    for found in (read_cells(tmp_path / "m"), read_cells(write_10x(tmp_path / "a.h5", adata))):
        assert list(found.var_names) == list(theirs.var_names)
        assert list(found.var["gene_ids"]) == list(theirs.var["gene_ids"])
        assert set(found.var["feature_types"]) == {"Gene Expression"}
        np.testing.assert_array_equal(found.X.toarray(), theirs.X.toarray())


def test_read_cells_keeps_the_name_of_a_gene_before_that_of_an_antibody(tmp_path):
    adata = cells()
    adata.var_names = ["CD4", "CD8A", *GENES[2:-2], "CD4", "CD8A"]
    kinds = ["Antibody Capture"] * 2 + ["Gene Expression"] * 10
    found = read_cells(write_10x(tmp_path / "a.h5", adata, kinds=kinds))
    assert list(found.var_names) == ["CD4-1", "CD8A-1", *GENES[2:-2], "CD4", "CD8A"]
    assert list(found.var["feature_types"]) == kinds


def hdf5(**groups):
    def write(path):
        with h5py.File(path, "w") as file:
            for name in groups:
                file.create_group(name)

    return write


def no_end_of_heap(path):
    """The free space at the end of the heap of texts gets size 0: HDF5 would walk it for ever."""
    cells().write_h5ad(path)
    data = bytearray(path.read_bytes())
    start = data.find(b"GCOL\x01\0\0\0")
    place, end = start + 16, start + int.from_bytes(data[start + 8 : start + 16], "little")
    while int.from_bytes(data[place : place + 2], "little"):
        place += 16 + (int.from_bytes(data[place + 8 : place + 16], "little") + 7) // 8 * 8
        assert place < end
    data[place + 8 : place + 16] = bytes(8)
    path.write_bytes(data)


def in_h5ad(edit):
    def write(path):
        cells().write_h5ad(path)
        with h5py.File(path, "a") as file:
            edit(file)

    return write


def put(name, place, value):
    return in_h5ad(lambda file: file[name].__setitem__(place, value))


def lost_chunk(file):
    del file["X"]["data"]
    file["X"].create_dataset("data", shape=(400,), chunks=(8,), dtype="f4")


#: A file that cannot be read, and words of the message; the path is in each.
REFUSED = {
    "nothing there": (lambda path: None, "does not exist"),
    "a name with a mistake": (lambda path: cells().write_h5ad(path.with_name("x.h5da")), "Closest: 'x.h5da'"),
    "empty": (lambda path: path.write_bytes(b""), "empty, of 0 bytes"),
    "text": (lambda path: path.write_text("no"), "not clearly of cells in rows"),
    "random": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(900)), "unknown format, or damaged"),
    "cut": (lambda path: (cells().write_h5ad(path), os.truncate(path, 9000)), "truncated file"),
    "cut within the signature": (lambda path: path.write_bytes(b"\x89HDF\r\n"), "cut short or damaged"),
    "HDF5 of others": (hdf5(x=1), r"without the groups obs and var.*\['x'\]"),
    "h5Seurat": (hdf5(assays=1, **{"cell.names": 1}), "SeuratDisk::Convert"),
    "molecule_info": (hdf5(barcode_idx=1, feature_idx=1), "filtered_feature_bc_matrix.h5"),
    "RDS": (lambda path: path.write_bytes(gzip.compress(b"X\n\0\0\0\3\0\4")), "zellkonverter::writeH5AD"),
    "RData": (lambda path: path.write_bytes(gzip.compress(b"RDX3\nX\n\0")), "SaveH5Seurat"),
    "RDS unpacked": (lambda path: path.write_bytes(b"X\n\0\0\0\3\0\4"), "SeuratDisk"),
    "zip": (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "zip archive"),
    "tar": (lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(300)), "tar -xf"),
    "packed HDF5": (lambda path: path.write_bytes(gzip.compress(b"\x89HDF\r\n\x1a\n")), "unpack it by gunzip"),
    "cut gzip": (lambda path: path.write_bytes(gzip.compress(b"a,b\n" * 999)[:20]), "cannot be read"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "download it again"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(9)), "may run code and is not opened"),
    "numpy": (lambda path: path.write_bytes(b"\x93NUMPY\1\0v\0{"), "NumPy array without names"),
    "parquet": (lambda path: path.write_bytes(b"PAR1" + bytes(9)), "Parquet"),
    "matrix alone": (lambda path: path.write_text("%%MatrixMarket matrix\n"), "name the folder that holds it"),
    "genes in rows": (lambda path: frame(cells()).T.to_csv(path), "genes in rows"),
    "words in a table": (lambda path: frame(cells()).assign(CD3D="a").to_csv(path), "not clearly"),
    "folder": (lambda path: path.mkdir(), "a folder without a matrix"),
    "folder of files": (lambda path: (path.mkdir(), cells().write_h5ad(path / "a.h5ad")), r"name one of \['a.h5ad'\]"),
    "folder of mtx alone": (lambda path: (path.mkdir(), (path / "matrix.mtx").write_text("")), "but without features"),
    "several matrices": (
        lambda path: (path.mkdir(), [(path / f"{i}_matrix.mtx").write_text("") for i in "ab"]),
        "several matrices",
    ),
    "model": (lambda path: (path.mkdir(), (path / "model.safetensors").touch()), "a saved model"),
    "pipe": (lambda path: os.mkfifo(path), "a device or pipe"),
    "mudata without rna": (lambda path: write_mudata(path, cells(), "atac"), r"\['adt', 'atac'\]"),
    "a heap without end": (no_end_of_heap, "a heap of its texts is damaged"),
    "without obs": (in_h5ad(lambda file: file.pop("obs")), "without the groups obs and var"),
    "without indices": (in_h5ad(lambda file: file["X"].pop("indices")), "cannot be read"),
    "negative column": (put("X/indices", 0, -1), "the indices of X do not fit its 30 x 12"),
    "column too high": (put("X/indices", 5, 12), "the indices of X"),
    "falling indptr": (put("X/indptr", 3, 10**6), "cannot be read"),
    "negative indptr": (put("X/indptr", 0, -4), "cannot be read"),
    "lost chunks": (in_h5ad(lost_chunk), r"0 of the 50 chunks of X/data"),
    "absurd size": (
        in_h5ad(lambda file: file.create_dataset("big", (10**12,), "f8", chunks=(9,))),
        "would take 8,000,0",
    ),
    "other shape": (in_h5ad(lambda file: file["X"].attrs.__setitem__("shape", [31, 12])), "cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_read_cells_refuses_by_name(tmp_path, kind):
    make, words = REFUSED[kind]
    path = tmp_path / "x.h5ad"
    make(path)
    with pytest.raises((UnreadableFile, FileNotFoundError), match=words) as caught:
        read_cells(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "cut", "HDF5 of others", "RDS", "folder", "negative column", "nothing there"])
@pytest.mark.parametrize("command", ["annotate", "train", "benchmark", "atlas"])
def test_commands_say_it_in_one_line(tmp_path, capsys, monkeypatch, command, kind):
    path, out = tmp_path / "x.h5ad", str(tmp_path / "out")
    REFUSED[kind][0](path)
    monkeypatch.setattr("celler.model.Celler.load", lambda *_, **__: toy.trained())
    monkeypatch.setattr("celler.atlas._build.require_engine", lambda: None)
    words = {
        "annotate": ["annotate", "model", path, "--out", out],
        "train": ["train", path, "--labels-key", "cell_type", "--out", out],
        "benchmark": ["benchmark", "compare", path, path, "--labels-key", "cell_type", "--out", out],
        "atlas": ["atlas", "build", path, "--labels-key", "cell_type", "--out", out],
    }[command]
    assert main(list(map(str, words))) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("celler ")]
    assert str(path) in line
    assert not Path(out).exists()


def test_annotate_of_cell_ranger(tmp_path, capsys):
    query = toy.cells(40, seed=3)
    toy.trained().save(tmp_path / "model")
    write_10x(tmp_path / "q.h5", query)
    assert main(["annotate", str(tmp_path / "model"), str(tmp_path / "q.h5"), "--out", str(tmp_path / "o.h5ad")]) == 0
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "o.h5ad").obs["celler"], toy.trained().predict(query))


@pytest.mark.slow
def test_no_mutation_ends_a_process_or_gives_another_result(tmp_path):
    """Bit flips, pieces and cuts: refused in our words, or the result of the file as it was.

    An .h5ad has no checksums: where a value was changed, the labels are those of the value that stands there.
    """
    names = ["h5ad", "model", "checkpoint", *(["store"] if find_spec("annbatch") else [])]
    found = list(mutation_cases.outcomes(names, range(N_MUTATIONS), tmp_path))
    right = {mutation_cases.REFUSED, mutation_cases.SAME, mutation_cases.ITS_OWN}
    assert [outcome for outcome in found if outcome[2] not in right] == []
    for name in names:
        n_refused = sum(kind == mutation_cases.REFUSED for other, _, kind, _ in found if other == name)
        assert n_refused > N_MUTATIONS / 3, name


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("X/data/c/0", "is missing|bytes and not|checksum"),
        ("X/indices/c/0", "is missing|bytes and not|checksum"),
        ("obs/cell_type/codes/c/0", "is missing|bytes and not|other contents"),
        ("var/_index/c/0", "is missing|bytes and not|other contents"),
        ("zarr.json", "is missing|bytes and not|other contents"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_store_with_a_damaged_file(tmp_path, store, name, words, how):
    from celler.atlas import DataModule

    shutil.copytree(store, tmp_path / "store")
    path = tmp_path / "store" / "cells.zarr" / "dataset_0" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"cut": data[:-3], "flipped": data, "missing": b""}[how])
    if how == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=words) as caught:
        for _ in DataModule(tmp_path / "store", labels_key="cell_type").inference_dataloader():
            pass
    assert str(tmp_path / "store") in str(caught.value)


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_store_with_a_flipped_bit_anywhere_in_its_counts(tmp_path, store):
    """Engines that read a part of a chunk do not look at the chunk's checksum: each cell has one of its own."""
    from celler.atlas import DataModule

    counts = DataModule(store).store.counts(np.arange(240)).toarray()
    for path in sorted((store / "cells.zarr").glob("dataset_*/X/*/c/*")):
        for share in (0.1, 0.4, 0.7):
            shutil.copytree(store, tmp_path / "store", dirs_exist_ok=True)
            data = bytearray(path.read_bytes())
            data[int(share * len(data))] ^= 1
            (tmp_path / "store" / path.relative_to(store)).write_bytes(data)
            with suppress(ValueError):
                found = DataModule(tmp_path / "store").store.counts(np.arange(240)).toarray()
                np.testing.assert_array_equal(found, counts)


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
@pytest.mark.parametrize("edit", [lambda text: text[:-9], lambda text: text.replace('"n_cells": 2', '"n_cells": 3', 1)])
def test_store_with_a_damaged_manifest(tmp_path, store, edit):
    from celler.atlas import DataModule

    shutil.copytree(store, tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match="manifest.json .*[bB]uild the store anew"):
        DataModule(tmp_path / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return mutation_cases.make_store(tmp_path_factory.mktemp("store"))


def test_model_with_an_edited_config(tmp_path):
    """A value that a model could have, but that Celler did not write."""
    from celler.model import Celler

    toy.trained().save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["fitted"]["n_labelled" if "n_labelled" in config["fitted"] else "seed"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json has other contents than Celler wrote"):
        Celler.load(tmp_path / "model")
