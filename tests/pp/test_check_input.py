"""The report on expression values: kind, source and what else the AnnData holds."""

import anndata as ad
import numpy as np
import pytest
from toy import assert_unchanged, cells, snapshot, trained

import celler as cl


@pytest.fixture
def query() -> ad.AnnData:
    adata = cells(60, seed=1)
    adata.layers["counts"] = adata.X.copy()
    return adata


def test_check_input_reports_source_and_kind(query):
    report = cl.pp.check_input(query)
    assert (report.source, report.kind, report.is_usable) == ("adata.X", "counts", True)
    assert report.elsewhere == {"layer='counts'": "counts"}
    assert "adata.X holds counts: whole numbers" in str(report)
    query.X = query.X.log1p() / np.log(2)
    assert "adata.X holds log2 values: 2^x - 1" in str(cl.pp.check_input(query))
    assert "are multiplied by ln 2" in str(cl.pp.check_input(query))
    assert cl.pp.check_input(query, "counts").elsewhere == {"adata.X (layer=None)": "log2"}
    with pytest.raises(AttributeError):
        report.kind = "log1p"


def test_check_input_with_scaled_values_reports_what_to_use_instead(query):
    query.raw = query.copy()
    query.X = query.X.toarray() - 0.5
    before = snapshot(query)
    report = cl.pp.check_input(query)
    assert (report.kind, report.is_usable) == ("scaled", False)
    assert report.elsewhere == {"layer='counts'": "counts", "adata.raw.to_adata()": "counts"}
    assert "cannot be used" in str(report)
    assert "There are also layer='counts' (counts), adata.raw" in str(report)
    assert_unchanged(query, before)
    for advice in (query.raw.to_adata(), ad.AnnData(query.layers["counts"], query.obs, query.var)):
        assert len(trained().predict(advice)) == 60


def test_check_input_with_a_view_a_missing_layer_and_no_anndata(query):
    query.raw = query.copy()
    view = query[5:25, 10:]
    assert cl.pp.check_input(view).elsewhere["adata.raw.to_adata()"] == "counts"
    assert view.is_view
    with pytest.raises(KeyError, match="Closest: 'counts'"):
        cl.pp.check_input(query, "count")
    with pytest.raises(TypeError, match="of type str; an AnnData is needed"):
        cl.pp.check_input("query.h5ad")
