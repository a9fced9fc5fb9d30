"""Modalities: the part of a MuData or SpatialData that holds gene expression."""

import pytest
from toy import cells, trained

from celler._utils._modalities import of_expression


class MuData:
    """Stand-in: the package need not be installed to be recognised."""

    def __init__(self, **mod) -> None:
        self.mod = mod


class SpatialData:
    def __init__(self, **tables) -> None:
        self.tables = tables


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["prot", "rna"], "rna"), (["GEX", "ADT"], "GEX"), (["table"], "table"), (["a", "b"], None), ([], None)],
)
def test_of_expression(names, expected):
    assert of_expression(names) == expected


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (MuData(rna=1, prot=2), r"Pass its gene expression: mdata\['rna'\]\.$"),
        (MuData(a=1, b=2), r"Pass one of its AnnData: mdata\['a'\] or mdata\['b'\]\.$"),
        (SpatialData(table=1), r"sdata\['table'\]\.$"),
        ([1], "an AnnData, or the path of one, is needed.$"),
    ],
)
def test_predict_with_a_container_names_the_part_to_pass(given, advice):
    with pytest.raises(TypeError, match=advice):
        trained().predict(given)


def test_setup_anndata_with_a_container_names_the_part_to_pass():
    with pytest.raises(TypeError, match=r"an AnnData is needed. Pass its gene expression: mdata\['rna'\]"):
        type(trained()).setup_anndata(MuData(rna=cells(), prot=None), "cell_type")
