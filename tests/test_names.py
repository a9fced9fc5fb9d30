"""Names: a missing column names the closest one, whatever table it is missing from."""

import pandas as pd
import pytest

from celler._utils._messages import closest, column


def test_a_missing_column_suggests_the_closest():
    obs = pd.DataFrame({"cell_type": ["a"], "donor": ["b"], 3: ["c"]})
    assert column(obs, "donor", "batch_key") is not None
    message = r"labels_key='celltype' is not a column of adata\.obs\. Closest: 'cell_type'\. "
    with pytest.raises(KeyError, match=message + r"Columns: \['cell_type', 'donor', '3'\]"):
        column(obs, "celltype", "labels_key")
    with pytest.raises(KeyError, match=r"batch_key='zzz' is not a column of adata\.obs\. Columns"):
        column(obs, "zzz", "batch_key")
    with pytest.raises(KeyError, match=r"gene_key='x' is not a column of adata\.var\. Columns"):
        column(obs, "x", "gene_key", "adata.var")


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [("Bcell", ["T cell", "B cell"], " Closest: 'B cell'."), ("B", ["T"], ""), (3, [], "")],
)
def test_the_closest_name_is_said_only_where_one_is_close(name, names, expected):
    assert closest(name, names) == expected
