"""A method in a process of its own: its result, its memory, and why it failed."""

import pickle

import pytest
import toy

from celler.benchmark import Method, run
from celler.benchmark._process import CELLS, run_alone
from celler.benchmark.methods import METHODS

METHOD = """
import os, signal, sys, warnings
import numpy as np, pandas as pd

def made_up(reference, labels_key, query, seed):
    assert "colorsys" in sys.modules
    names = sorted(set(reference.obs[labels_key]))
    warnings.warn("not for the user's eyes")
    print("nor this")
    if seed == 1:
        raise ValueError("cannot be learned")
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    large = np.ones(200 * 2**17)  # 200 MiB
    def predict(query):
        return pd.DataFrame(large[0] / len(names), query.obs_names, names)
    return predict
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the module of a method, and cells to train it on."""
    (tmp_path / "my_methods.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    cells = toy.cells(60), toy.cells(40, seed=1)
    (tmp_path / CELLS).write_bytes(pickle.dumps(cells))
    return tmp_path


def alone(folder, seed):
    return run_alone("my_methods:made_up", ["colorsys"], "cell_type", seed, folder)


def test_run_alone_gives_scores_times_and_memory(folder, capfd):
    measured = alone(folder, 0)
    assert list(measured.scores.index) == list(toy.cells(40, seed=1).obs_names)
    assert (measured.scores == 0.25).all(axis=None)
    assert 190 < measured.peak_memory_mb < 300
    assert 0 < measured.fit_seconds < 60
    assert capfd.readouterr() == ("", "")


def test_run_alone_with_a_failing_method(folder, capfd):
    with pytest.raises(RuntimeError, match="^ValueError: cannot be learned$"):
        alone(folder, 1)
    with pytest.raises(RuntimeError, match="^ended by SIGKILL, perhaps out of memory$"):
        alone(folder, 2)
    assert capfd.readouterr() == ("", "")


def test_run_with_a_method_of_the_user(folder, monkeypatch, capsys):
    own = Method("my method", ("numpy",), module="my_methods", imports=("colorsys",))
    monkeypatch.setitem(METHODS, "made_up", own)
    rows = run(toy.cells(60), toy.cells(40), "cell_type", ["made_up"], seeds=1, folder=folder)
    assert rows["error"].isna().all()
    assert "my method, seed 0: macro-F1" in capsys.readouterr().out
