"""Numbers of cells, against those of the sources."""

import pandas as pd
import pytest
from stores import build


def test_summary_by_column_counts_the_cells(files, tmp_path):
    cells, paths = files
    summary = build(paths, tmp_path / "out")
    obs = pd.concat([source.obs for source in cells.values()])
    by_tissue = summary.by("tissue")
    for tissue, n in obs["tissue"].value_counts().items():
        assert by_tissue.loc[tissue, "cells"] == n == by_tissue.loc[tissue, ["train", "test"]].sum()
        assert by_tissue.loc[tissue, "types"] == obs.loc[obs["tissue"] == tissue, "label"].nunique()
    assert summary.by("cell_type")["cells"].to_dict() == obs["label"].value_counts().to_dict()
    assert "360 cells" in str(summary)
    with pytest.raises(KeyError, match="tisue.*Closest: 'tissue'"):
        summary.by("tisue")
