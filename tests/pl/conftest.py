"""Every test of a plot begins with matplotlib's defaults and closes its figures."""

import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from pl_cases import annotated


@pytest.fixture(autouse=True)
def _figures():
    with plt.style.context("default"):
        yield
    plt.close("all")


@pytest.fixture
def adata():
    return annotated()


@pytest.fixture
def no_autoshow():
    before = sc.settings.autoshow
    sc.settings.autoshow = False
    yield
    sc.settings.autoshow = before
