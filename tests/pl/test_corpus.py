"""Cells by tissue, disease and type, against pandas."""

import matplotlib as mpl
import numpy as np
import pytest

from celler import pl

mpl.use("Agg")


def test_cells_by_with_cells_for_testing(adata):
    obs = adata.obs.assign(split=np.where(adata.obs["donor"] == "donor 1", "test", "train"))
    panels = pl.cells_by(obs, ["cell_type", "donor"], n_most=4, show=False)
    counts = obs["cell_type"].value_counts()
    names = [text.get_text() for text in panels["cell_type"].get_yticklabels()]
    assert names == [*counts.index[:3], "3 others"]
    bars, test = panels["cell_type"].containers
    assert [bar.get_width() for bar in bars] == [*counts[:3], counts[3:].sum()]
    expected = obs.loc[obs["split"] == "test", "cell_type"].value_counts()[counts.index]
    assert [bar.get_width() for bar in test] == [*expected[:3], expected[3:].sum()]
    with pytest.raises(KeyError, match=r"columns='doner'.*Closest: 'donor'"):
        pl.cells_by(obs, ["doner"])
    with pytest.raises(TypeError, match="of type str; a list of texts"):
        pl.cells_by(obs, "donor")
