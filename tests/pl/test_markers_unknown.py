"""Genes and groups that marker_bubble does not find."""

import anndata as ad
import pytest
from toy import cells

import celler as cl


@pytest.fixture
def query() -> ad.AnnData:
    return cells(60, seed=1)


def test_marker_bubble_with_an_unknown_gene_and_an_empty_group(query):
    groups = query.obs["cell_type"].astype("category").cat.add_categories(["empty"])
    query.obs["cell_type"] = groups
    genes = [*query.var_names[:2], "no such gene"]
    with pytest.warns(UserWarning, match="no such gene"):
        axes = cl.pl.marker_bubble(query, genes, groupby="cell_type", show=False)
    assert axes
