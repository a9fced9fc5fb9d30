"""A store at an address reads as the folder that it is a copy of."""

import fsspec
import numpy as np
import pandas as pd
import pytest
import toy

from celler.atlas import DataModule, build, summary
from celler.model import Celler

pytest.importorskip("annbatch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("place") / "atlas"
    build({"one": toy.cells(600)}, out, labels_key="cell_type")
    return out


@pytest.fixture
def address(folder):
    """A copy in the memory of fsspec, whose files have no path."""
    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/bucket/atlas/", recursive=True)
    yield "memory://bucket/atlas"
    files.rm("/bucket", recursive=True)


def test_datamodule_of_an_address_trains_and_labels_as_its_folder(folder, address):
    histories, labels = [], []
    for path in (folder, f"{address}/"):
        dm = DataModule(path, labels_key="cell_type")
        model = Celler(registry=dm.registry, **toy.SMALL)
        model.train(datamodule=dm, **toy.QUICK)
        histories.append(model.history)
        labels.append(model.predict(dataloader=dm.inference_dataloader()))
    pd.testing.assert_frame_equal(*histories)
    np.testing.assert_array_equal(*labels)


def test_summary_of_an_address(folder, address):
    pd.testing.assert_frame_equal(summary(address).counts, summary(folder).counts)


def test_datamodule_of_an_address_without_a_store():
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none is no store: it has no manifest\.json"):
        DataModule("memory://bucket/none")


def test_datamodule_of_an_address_with_damage(address):
    files = fsspec.filesystem("memory")
    genes = "/bucket/atlas/cells.zarr/dataset_0/var/_index/c/0"
    whole = files.cat_file(genes)
    damaged = {
        "is missing": None,
        f"has 3 bytes and not {len(whole):,}": whole[:3],
        "has other contents than were written": bytes(len(whole)),
    }
    for message, contents in damaged.items():
        files.rm(genes) if contents is None else files.pipe_file(genes, contents)
        with pytest.raises(ValueError, match=f"memory://.*var/_index/c/0 {message}.*copy it again"):
            DataModule(address)


def test_datamodule_of_an_address_with_damaged_counts(address):
    files = fsspec.filesystem("memory")
    dm = DataModule(address)
    for name in files.find("/bucket/atlas/cells.zarr/dataset_0/X/data/c"):
        files.rm(name)  # zarr reads zeros for what is missing
    with pytest.raises(ValueError, match="holds other counts than were written"):
        dm.store.counts(np.arange(600))


def test_datamodule_of_an_address_that_does_not_answer(address, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "_open", unreachable)
    with pytest.raises(ValueError, match="cannot be read: no route to host. Check the address, the connection and"):
        DataModule(address)


def test_annotate_store_of_an_address(address):
    dm = DataModule(address, labels_key="cell_type")
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.train(datamodule=dm, **toy.QUICK | {"max_epochs": 1})
    for call in (lambda: model.annotate_store(dm), lambda: dm.annotation("celler")):
        with pytest.raises(
            ValueError, match=r"memory://bucket/atlas is an address\. Label its cells by model\.predict"
        ):
            call()


def test_datamodule_of_an_unknown_address():
    with pytest.raises(ValueError, match="'unknown://bucket/atlas' is no address that fsspec knows"):
        DataModule("unknown://bucket/atlas")


def test_build_to_an_address():
    with pytest.raises(ValueError, match="out='memory://bucket/new' is an address; name a folder"):
        build({"one": toy.cells(60)}, "memory://bucket/new", labels_key="cell_type")
