"""Sources of a build, cut into several blocks and datasets, and a store with a model that was trained on it."""

import pytest
import toy
from store_cases import SETUP, reference, write_store
from stores import cut_small, use_any_engine, write_forms, write_sources

from celler.atlas import DataModule
from celler.model import Celler


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    use_any_engine(monkeypatch)
    cut_small(monkeypatch)


@pytest.fixture
def files(tmp_path):
    """Three sources of different forms and genes: the cells by name, and the paths."""
    return write_forms(tmp_path)


@pytest.fixture
def paths(tmp_path):
    """Three sources of the same form."""
    return write_sources(tmp_path)


@pytest.fixture(scope="module")
def cells():
    return reference(1500, ["a", "b"])


@pytest.fixture(scope="module")
def folder(cells, tmp_path_factory):
    pytest.importorskip("annbatch")
    return write_store(tmp_path_factory.mktemp("store"), cells, n_datasets=3)


@pytest.fixture(scope="module")
def dm(folder):
    return DataModule(folder, **SETUP)


@pytest.fixture(scope="module")
def streamed(dm):
    model = Celler(registry=dm.registry, **toy.SMALL)
    model.train(datamodule=dm, **toy.QUICK)
    return model
