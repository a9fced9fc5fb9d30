"""Sources of a build, cut into several blocks and datasets."""

import pytest
from stores import cut_small, use_any_engine, write_forms, write_sources


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
