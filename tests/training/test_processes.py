"""Two real processes train and label as one does; each start of them serves many tests."""

import os
import pickle
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy

ROOT = Path(__file__).parents[2]


N_CELLS = 400


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def start(folder: Path, store: str, nodes: int) -> list[dict]:
    """Two processes under torchrun's environment, on one machine or, for all they know, on ``nodes``."""
    port, running = str(free_port()), []
    for rank in range(2):
        env = os.environ | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": str(2 // nodes), "LOCAL_RANK": str(rank % (2 // nodes)),
            "GROUP_RANK": str(rank // (2 // nodes)), "GROUP_WORLD_SIZE": str(nodes),
        }  # fmt: skip
        command = [sys.executable, str(ROOT / "tests" / "process_cases.py"), str(folder), store]
        running.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, error = process.communicate(timeout=500)
        assert process.returncode == 0, error[-3000:]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    if find_spec("annbatch") is None:
        return "none"
    from store_cases import shuffled, write_store

    folder = tmp_path_factory.mktemp("store")
    return str(write_store(folder, shuffled(toy.cells(600))))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, store):
    return start(tmp_path_factory.mktemp("ranks"), store, nodes=1)


def test_train_in_two_processes_shares_the_cells(ranks):
    assert [rank["rank"] for rank in ranks] == [(0, 2), (1, 2)]
    of_rank = [[part for _, part in rank["visited"]] for rank in ranks]
    assert len(of_rank[0]) == len(of_rank[1])
    first = np.concatenate([part for rank in ranks for epoch, part in rank["visited"] if epoch == 1])
    train = np.setdiff1d(np.arange(N_CELLS), ranks[0]["validation"])
    np.testing.assert_array_equal(np.sort(first), train)


def test_train_in_two_processes_makes_one_model(ranks):
    one, other = ranks
    for name in ("validation", "class_counts", "labels"):
        np.testing.assert_array_equal(one[name], other[name])
    assert one["temperature"] == other["temperature"]
    for name, weights in one["weights"].items():
        np.testing.assert_array_equal(weights, other["weights"][name])
    pd.testing.assert_frame_equal(one["history"], other["history"])
    pd.testing.assert_frame_equal(one["hard"], other["hard"])


def test_train_in_two_processes_splits_as_in_one(ranks):
    alone = toy.fit(toy.cells(N_CELLS), max_epochs=1)
    np.testing.assert_array_equal(ranks[0]["validation"], alone.validation_indices_)
    np.testing.assert_array_equal(ranks[0]["class_counts"], alone.class_counts_)


def test_train_in_two_processes_draws_other_noise(ranks):
    assert (ranks[0]["noise"] != ranks[1]["noise"]).any()


def test_train_in_two_processes_scores_all_validation_cells(ranks):
    """Scored again in one process, with the weights that were kept."""
    from sklearn.metrics import f1_score

    adata = toy.cells(N_CELLS)
    model = toy.fit(adata, max_epochs=1)
    model.module.load_state_dict({k: torch.tensor(v) for k, v in ranks[0]["weights"].items()})
    held_out = ranks[0]["validation"]
    labels = model.predict(adata[held_out].copy(), correct_shift=False)
    score = f1_score(toy.truth(adata)[held_out], labels, average="macro")
    assert np.isclose(ranks[0]["history"]["validation_macro_f1"], score, atol=1e-6).any()


def test_train_in_two_processes_learns_as_in_one(ranks):
    query = toy.cells(200, seed=1)
    alone = toy.fit(toy.cells(N_CELLS), max_epochs=6).predict(query)
    right = [(labels == toy.truth(query)).mean() for labels in (ranks[0]["labels"], alone)]
    assert right[0] > right[1] - 0.06


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_predict_of_a_store_in_two_processes(ranks, store):
    from celler.atlas import DataModule

    pd.testing.assert_frame_equal(ranks[0]["streamed_history"], ranks[1]["streamed_history"])
    pd.testing.assert_frame_equal(ranks[0]["streamed"], ranks[1]["streamed"])
    dm = DataModule(store, labels_key="cell_type")
    assert list(ranks[0]["streamed"].index) == list(dm.store.names(np.arange(len(dm))))


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_train_in_two_processes_resumes(ranks):
    for rank in ranks:
        pd.testing.assert_frame_equal(rank["resumed_history"], rank["streamed_history"])
        pd.testing.assert_frame_equal(rank["resumed"], rank["streamed"])


@pytest.mark.skipif(find_spec("annbatch") is None, reason="stores need annbatch")
def test_pretrain_from_a_store_in_two_processes(ranks):
    pd.testing.assert_frame_equal(ranks[0]["pretrained"], ranks[1]["pretrained"])
    np.testing.assert_array_equal(*(rank["pretrained_weights"] for rank in ranks))
    assert len(ranks[0]["pretrained"]) == 2


@pytest.mark.skipif(find_spec("annbatch") is None, reason="the longer half runs with the stores")
def test_train_in_two_processes_stops_at_one_epoch(ranks):
    pd.testing.assert_frame_equal(ranks[0]["stopped"], ranks[1]["stopped"])
    assert 1 < len(ranks[0]["stopped"]) < 60


@pytest.mark.skipif(find_spec("annbatch") is None, reason="the longer half runs with the stores")
def test_embed_in_two_processes(ranks):
    from process_cases import embedded

    model = toy.fit(toy.cells(N_CELLS), max_epochs=1)
    weights = {k: torch.tensor(v) for k, v in ranks[0]["weights"].items()}
    model.module.load_state_dict(weights)
    alone: dict = {}
    embedded(alone, model)
    for rank in ranks:
        np.testing.assert_allclose(rank["embedding"], alone["embedding"], atol=1e-5)
    assert alone["embedding"].shape == (100, 16)
    assert (alone["embedding"] != 0).any(1).all()


@pytest.mark.skipif(find_spec("annbatch") is None, reason="the longer half runs with the stores")
@pytest.mark.parametrize("name", ["base", "base_again"])
def test_learn_profiles_and_train_in_two_processes(ranks, name):
    """Both make one model, the same each time."""
    first = ranks[0]["base"]
    for weights in (rank[name] for rank in ranks):
        for part, values in weights.items():
            np.testing.assert_array_equal(values, first[part], err_msg=part)


@pytest.mark.slow
def test_train_on_two_machines(ranks, tmp_path):
    """The same training in one process on each of two machines, both of them this one."""
    apart = start(tmp_path, "none", nodes=2)
    for name, weights in ranks[0]["weights"].items():
        np.testing.assert_allclose(apart[1]["weights"][name], weights, atol=1e-6)
    pd.testing.assert_frame_equal(apart[0]["history"], ranks[0]["history"])
