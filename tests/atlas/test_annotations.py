"""Tables of labels: read as written, and one of the two is there at every moment of an overwrite."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("annbatch")  # without it there is no store to annotate

from celler.atlas import _annotations
from celler.atlas._annotations import read_annotation, write_annotation


class Killed(BaseException):
    """What no handler of the package may catch."""


def parts(names):
    """A table of six cells in two parts, whose categories differ."""
    table = pd.DataFrame(
        {"label": pd.Categorical(names), "confidence": np.linspace(0, 1, 6)},
        index=[f"cell {i}" for i in range(6)],
    )
    for rows in (np.arange(4), np.arange(4, 6)):
        part = table.iloc[rows].copy()
        part["label"] = part["label"].cat.remove_unused_categories()
        yield rows, part


OLD, NEW = list("aabbbc"), list("dddeee")


def labels_of(store):
    return read_annotation(store, "key")["label"].astype(str).to_list()


def test_read_annotation_gives_what_was_written(tmp_path):
    write_annotation(tmp_path, "key", parts(OLD), overwrite=False)
    table = read_annotation(tmp_path, "key")
    assert table["label"].astype(str).to_list() == OLD
    assert sorted(table["label"].cat.categories) == ["a", "b", "c"]
    np.testing.assert_array_equal(table["confidence"], np.linspace(0, 1, 6))
    assert list(table.index) == [f"cell {i}" for i in range(6)]
    with pytest.raises(KeyError, match=r"no annotation 'other'; it has \['key'\]"):
        read_annotation(tmp_path, "other")


def test_write_annotation_overwrites_only_where_wanted(tmp_path):
    write_annotation(tmp_path, "key", parts(OLD), overwrite=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_annotation(tmp_path, "key", parts(NEW), overwrite=False)
    write_annotation(tmp_path, "key", parts(NEW), overwrite=True)
    assert labels_of(tmp_path) == NEW
    assert [path.name for path in (tmp_path / "annotations").iterdir()] == ["key.zarr"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("n_call", range(1, 7))
def test_write_annotation_killed_while_it_overwrites(tmp_path, monkeypatch, n_call, after):
    """A kill before or after each rename and each removal leaves the old table or the new one."""
    write_annotation(tmp_path, "key", parts(OLD), overwrite=False)
    n_calls = [0]

    def dying(call):
        def wrapped(*args, **kwargs):
            n_calls[0] += 1
            if n_calls[0] == n_call and not after:
                raise Killed
            result = call(*args, **kwargs)
            if n_calls[0] == n_call:
                raise Killed
            return result

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(_annotations.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            write_annotation(tmp_path, "key", parts(NEW), overwrite=True)
    assert labels_of(tmp_path) in (OLD, NEW)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_annotation(tmp_path, "key", parts(NEW), overwrite=False)
    write_annotation(tmp_path, "key", parts(NEW), overwrite=True)
    assert labels_of(tmp_path) == NEW
