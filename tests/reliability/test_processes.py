"""Environments of clusters, forks, Ctrl-C, kills, and trainings that fail: never a hang, never a changed model."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reliability_cases
import torch
import toy
from scipy import sparse

from celler._utils._lock import LockedError
from celler.model import Celler
from celler.training import _callbacks
from celler.training._plan import TrainingPlan

TESTS = Path(__file__).parents[1]
HOW = {"max_epochs": 2, "batch_size": 64, "show_progress": False, "accelerator": "cpu", "refit": False}


def start(*arguments: object, **env: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{TESTS.parent}:{TESTS}"
    command = [sys.executable, str(TESTS / "reliability_cases.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, env=clean | {"PYTHONPATH": path} | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], timeout: int = 100) -> str:
    """What a process printed; it must have ended well and in time."""
    try:
        printed, error = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, error[-3000:]
    return printed


# ---- the environment ----
JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train.sh", "SLURM_NNODES": "1", "SLURM_NODELIST": "node1"}
SLURM = {
    "batch-script": JOB | {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "batch-script-per-node": JOB
    | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "salloc": JOB | {"SLURM_NTASKS": "4"},
    "srun-pty": JOB
    | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "4711"},
    "srun-one-task": JOB | {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    "task-3-of-an-array": JOB | {"SLURM_NTASKS": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
    "ranks-of-another": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "no.such.host"},
    "lsf": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/none", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "4"},
    "kubeflow": {
        "KUBERNETES_PORT": "1", "MASTER_ADDR": "no.such.host", "MASTER_PORT": "1", "WORLD_SIZE": "4", "RANK": "1"
    },
}  # fmt: skip


@pytest.mark.parametrize("env", SLURM.values(), ids=SLURM)
def test_train_is_one_process_whatever_the_job_may_start(env, monkeypatch, tmp_path):
    """Each of these ended in an error, waited for ever, or started processes."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    model = toy.fit(toy.cells(120), **HOW, ckpt_path=tmp_path / "last.ckpt")
    assert model.is_trained
    assert (tmp_path / "last.ckpt").is_file()
    for name, value in env.items():
        assert os.environ[name] == value


@pytest.mark.slow
def test_train_in_two_tasks_of_srun():
    """They make one model, as two processes of torchrun do."""
    import socket

    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    step = JOB | {
        "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_PORT": port,
        "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "SLURM_NODEID": "0",
    }  # fmt: skip
    running = [start("train", **step, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in ("0", "1")]
    one, other = map(ended, running)
    assert "labels" in one
    assert one == other


# ---- children ----
@pytest.mark.slow
def test_predict_in_children_of_a_process_that_has_predicted(tmp_path):
    """After a fork the threads of OpenMP are gone, and waiting for them hung for good."""
    printed = ended(start("children", tmp_path / "model", OMP_NUM_THREADS="2"))
    for how in ("fork", "inherited", "loky", "threading"):
        assert f"{how} True" in printed


# ---- Ctrl-C and kill ----
def test_train_raises_keyboard_interrupt():
    """Lightning ended the interpreter, and would have ignored the next Ctrl-C."""
    printed = ended(start("interrupted"))
    assert printed.split("\n")[:3] == ["KeyboardInterrupt False", "KeyboardInterrupt False", "trained True"]


def test_train_after_kill_9_makes_the_same_model(tmp_path):
    path = tmp_path / "last.ckpt"
    process, until = start("endless", path), time.monotonic() + 60
    while time.monotonic() < until and not path.exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    epoch = torch.load(path, weights_only=True)["epoch"]
    assert epoch < 39
    with torch.random.fork_rng():
        resumed, whole = (reliability_cases.endless(str(place)) for place in (path, tmp_path / "whole.ckpt"))
    np.testing.assert_array_equal(resumed, whole)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["last.ckpt", "whole.ckpt"]  # no lock is left


def test_train_while_another_writes_the_same_file(tmp_path, monkeypatch):
    """Both wrote it in turn, and the one that ended last decided what a later call took up."""
    path, adata = tmp_path / "last.ckpt", toy.cells(120)
    step, seen = TrainingPlan.training_step, []

    def watched(self, minibatch, i):
        if not seen:
            seen.append(path.with_name("last.ckpt.lock").is_file())
            with pytest.raises(LockedError, match=rf"last.ckpt' is being written by process {os.getpid()} on") as error:
                toy.fit(toy.cells(120), **HOW, ckpt_path=path)
            assert "delete" in str(error.value)
        return step(self, minibatch, i)

    monkeypatch.setattr(TrainingPlan, "training_step", watched)
    toy.fit(adata, **HOW, ckpt_path=path)
    assert seen == [True]
    assert [place.name for place in tmp_path.iterdir()] == ["last.ckpt"]


# ---- what fails half way leaves the model as it was ----
class Broken(RuntimeError):
    pass


def breaks(after: int, error: BaseException):
    left = [after]

    def loss(logits, labels, class_counts, generator):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    return loss


def state_of(model: Celler) -> dict[str, np.ndarray]:
    return {name: values.clone().numpy() for name, values in model.module.state_dict().items()}


def assert_same(model: Celler, before: dict[str, np.ndarray], network: torch.nn.Module) -> None:
    assert model.module is network
    for name, values in state_of(model).items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)


@pytest.mark.parametrize("error", [Broken("stop"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__)
def test_second_train_that_stops_leaves_the_model(error):
    reference, query = toy.cells(200), toy.cells(50, seed=1)
    model = toy.fit(reference, **HOW)
    before, adata = model.predict(query, soft=True), toy.snapshot(reference)
    flags = [weights.requires_grad for weights in model.module.parameters()]
    with pytest.raises(type(error)):
        model.train(**HOW, loss=breaks(4, error))
    toy.assert_equal_frames(model.predict(query, soft=True), before)
    toy.assert_unchanged(reference, adata)
    assert flags == [weights.requires_grad for weights in model.module.parameters()]


def test_second_pretrain_that_stops_leaves_the_model(monkeypatch):
    from celler.training import _masked

    model = toy.pretrained(toy.cells(200))
    before, network = state_of(model), model.module
    decoder = {name: values.clone() for name, values in model._state.pretrained.decoder.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(_masked.PretrainingPlan, "on_train_epoch_end", lambda self: breaks(0, Broken())(0, 0, 0, 0))
        with pytest.raises(Broken):
            model.pretrain(2, show_progress=False, accelerator="cpu")
    assert_same(model, before, network)
    for name, values in model._state.pretrained.decoder.state_dict().items():
        assert torch.equal(values, decoder[name])


def test_train_of_an_extended_model_that_stops_leaves_it():
    old = toy.fit(toy.cells(200), **HOW)
    model = Celler.load_query_data(toy.cells(80, seed=3), old)
    before, network, of_old = state_of(model), model.module, state_of(old)
    with pytest.raises(Broken):
        model.train(**HOW, loss=breaks(4, Broken()))
    assert_same(model, before, network)
    assert_same(old, of_old, old.module)
    model.train(**HOW)
    assert model.is_trained


# ---- trainings that diverge ----
def not_finite(logits, labels, class_counts, generator):
    return logits.sum(1) * float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": not_finite}, "training diverged in epoch 1: train_loss is nan; .* lower learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate=inf was given"),
        ({"learning_rate": float("nan")}, "learning_rate=nan was given"),
        ({"learning_rate": 1e38}, "diverged|learning_rate="),
    ],
)
def test_train_that_diverges_is_an_error(options, message, tmp_path):
    model = toy.fit(toy.cells(200), **HOW)
    before, network = state_of(model), model.module
    with pytest.raises((RuntimeError, ValueError), match=message):
        model.train(**HOW | options, ckpt_path=tmp_path / "last.ckpt")
    assert_same(model, before, network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["predict", "soft", "annotate", "get_latent_representation"])
def test_predict_with_weights_that_are_not_finite_is_an_error(how):
    model, query = toy.fit(toy.cells(200), **HOW), toy.cells(20, seed=1)
    with torch.no_grad():
        for weights in model.module.parameters():
            weights.fill_(float("nan"))
    before = toy.snapshot(query)
    method = getattr(model, "predict" if how == "soft" else how)
    with pytest.raises(ValueError, match="not finite"):
        method(query, **({"soft": True} if how == "soft" else {}))
    toy.assert_unchanged(query, before)


# ---- the file of a training ----
def permuted(adata):
    adata.X = sparse.csr_matrix(adata.X.toarray()[:, ::-1])


def other_cells(adata):
    adata.X[0, 0] += 1


def other_genes(adata):
    adata.var_names = [f"{name}x" for name in adata.var_names]


def dealt(adata):
    adata.obs["cell_type"] = np.roll(adata.obs["cell_type"].to_numpy(), 1)


def renamed(adata):
    adata.obs["cell_type"] = [f"{name} cell" for name in adata.obs["cell_type"]]


@pytest.mark.filterwarnings("ignore:Changing the sparsity")
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (permuted, "values"),
        (other_cells, "values"),
        (other_genes, "gene names"),
        (dealt, "labels of cells"),
        (renamed, "class names"),
    ],
)
def test_train_refuses_the_file_of_other_data(change, differing, tmp_path):
    """A finished file silently gave the model of the data before they were mended."""
    path = tmp_path / "last.ckpt"
    toy.fit(toy.cells(120), **HOW, ckpt_path=path)
    whole, other = path.read_bytes(), toy.cells(120)
    change(other)
    with pytest.raises(ValueError, match=f"belongs to a training with other .*{differing}"):
        toy.fit(other, **HOW, ckpt_path=path)
    assert path.read_bytes() == whole


def test_train_refuses_the_file_of_another_start(tmp_path):
    path, more = tmp_path / "last.ckpt", toy.cells(300, seed=5)
    model = toy.pretrained(toy.cells(120), {"labels_key": "cell_type"})
    model.train(**HOW, ckpt_path=path)
    other = toy.pretrained(toy.cells(120), {"labels_key": "cell_type"}, adata=more)
    with pytest.raises(ValueError, match="with other starting model"):
        other.train(**HOW, ckpt_path=path)
    with pytest.raises(ValueError, match="with other .*starting model"):
        toy.fit(toy.cells(120), **HOW, ckpt_path=path)


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, lambda X: X.toarray().astype("float64")])
def test_train_takes_up_the_same_values_in_another_format(layout, tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    first = toy.fit(toy.cells(120), **HOW, ckpt_path=path)
    again = toy.cells(120)
    again.X = layout(again.X)
    second = toy.fit(again, **HOW | {"show_progress": True}, ckpt_path=path)
    assert f"{path} holds this training, finished, and is taken up as it is." in "".join(capsys.readouterr())
    for name, values in state_of(second).items():
        np.testing.assert_array_equal(values, state_of(first)[name])


def test_train_takes_up_a_training_that_stopped_early(tmp_path, monkeypatch):
    """One epoch more would make another model."""
    first = _callbacks.BestWeights.__init__
    monkeypatch.setattr(_callbacks.BestWeights, "__init__", lambda self, module, _: first(self, module, 1))
    how = HOW | {"max_epochs": 60, "learning_rate": 3.0, "loss": torch_loss}
    models = [toy.fit(toy.cells(200), **how, ckpt_path=tmp_path / "last.ckpt") for _ in range(2)]
    assert 1 < len(models[0].history) < 60
    pd.testing.assert_frame_equal(models[0].history, models[1].history)


def torch_loss(logits, labels, class_counts, generator):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    place = len(data) // 3
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut": cut,
    "flipped": flipped,
    "text": lambda data: b"thesis",
    "pickle": lambda data: b"\x80\x02cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_train_refuses_a_damaged_file_by_name(damage, tmp_path):
    path = tmp_path / "last.ckpt"
    toy.fit(toy.cells(120), **HOW, ckpt_path=path)
    path.write_bytes(damaged := damage(path.read_bytes()))
    model = toy.cells(120)
    with pytest.raises(ValueError, match="last.ckpt.* cannot be taken up: it is damaged or of another program"):
        toy.fit(model, **HOW, ckpt_path=path)
    assert path.read_bytes() == damaged


def edit(path: Path, change) -> None:
    found = torch.load(path, weights_only=True)
    change(found)
    torch.save(found, path)


EDITS = {
    "without weights": lambda found: found.pop("state_dict"),
    "without curves": lambda found: found["celler"].pop("curves"),
    "without celler": lambda found: found.pop("celler"),
    "other epochs": lambda found: found.update(epoch=7),
    "a weight less": lambda found: found["state_dict"].popitem(),
    "another shape": lambda found: found["state_dict"].update({"class_counts": torch.ones(9)}),
    "NaN": lambda found: [values.fill_(float("nan")) for values in found["state_dict"].values() if values.ndim > 1],
    "weights as text": lambda found: found.update(state_dict="none"),
    "random state": lambda found: found["celler"].update(random=[]),
    "curves as numbers": lambda found: found["celler"].update(curves=[1, 2]),
    "no callbacks": lambda found: found.update(callbacks={}),
    "optimizer": lambda found: found.update(optimizer_states=[{"state": {0: 1}, "param_groups": []}]),
    "loops": lambda found: found.update(loops={"fit_loop": {}}),
    "callbacks as list": lambda found: found.update(callbacks=[1]),
}


@pytest.fixture(scope="module", params=["finished", "stopped"])
def written(request, tmp_path_factory):
    """The file of a training, at its end or when it was stopped half way."""
    path = tmp_path_factory.mktemp("written") / "last.ckpt"
    if request.param == "finished":
        toy.fit(toy.cells(120), **HOW, ckpt_path=path)
        return path
    step = TrainingPlan.training_step

    def stopping(self, minibatch, i):
        if self.trainer.current_epoch == 1:
            raise Broken
        return step(self, minibatch, i)

    with pytest.MonkeyPatch.context() as patch, suppress(Broken):
        patch.setattr(TrainingPlan, "training_step", stopping)
        toy.fit(toy.cells(120), **HOW, ckpt_path=path)
    return path


@pytest.mark.parametrize("name", EDITS)
def test_train_refuses_other_contents(name, written, tmp_path, request):
    path = tmp_path / "last.ckpt"
    path.write_bytes(written.read_bytes())
    edit(path, EDITS[name])
    if "finished" in request.node.callspec.id and name in ("random state", "optimizer"):
        return  # not read of a finished training
    with pytest.raises(ValueError, match="last.ckpt.* cannot be taken up"):
        toy.fit(toy.cells(120), **HOW, ckpt_path=path)


def test_train_refuses_a_file_that_cannot_be_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or a pipe"):
        toy.fit(toy.cells(120), **HOW, ckpt_path=tmp_path / "pipe")


def test_train_on_a_full_disk_names_the_file(tmp_path, monkeypatch):
    from lightning.pytorch import Trainer

    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="last.ckpt.* could not be written"):
        toy.fit(toy.cells(120), **HOW, ckpt_path=tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_bit_flips_of_a_file_are_found(tmp_path, rng):
    """Refused by name, or without a difference."""
    path = tmp_path / "last.ckpt"
    whole = toy.fit(toy.cells(120), **HOW, ckpt_path=path)
    data = path.read_bytes()
    assert zipfile.is_zipfile(path)
    for place in rng.integers(len(data), size=12):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :])
        again = None
        with suppress(ValueError):
            again = toy.fit(toy.cells(120), **HOW, ckpt_path=path)
        if again is None:
            continue
        for name, values in state_of(again).items():
            np.testing.assert_array_equal(values, state_of(whole)[name])


def interrupting(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["register_fields", "CategoricalObsField"])
def test_setup_anndata_that_stops_leaves_the_cells(place, monkeypatch):
    from scvi.data import AnnDataManager

    from celler.model import _setup

    adata = toy.cells(50)
    before = toy.snapshot(adata)
    monkeypatch.setattr(AnnDataManager if place == "register_fields" else _setup, place, interrupting)
    with pytest.raises(KeyboardInterrupt):
        Celler.setup_anndata(adata, labels_key="cell_type")
    toy.assert_unchanged(adata, before)


def test_load_query_data_that_stops_leaves_cells_and_model(monkeypatch):
    from celler.model import _extend

    old, adata = toy.fit(toy.cells(200), **HOW), toy.cells(80, seed=3)
    before, weights = toy.snapshot(adata), state_of(old)
    monkeypatch.setattr(_extend, "extended_state", interrupting)
    with pytest.raises(KeyboardInterrupt):
        Celler.load_query_data(adata, old)
    toy.assert_unchanged(adata, before)
    assert_same(old, weights, old.module)


@pytest.mark.parametrize("is_second", [False, True])
def test_annotate_that_stops_leaves_the_cells(is_second, monkeypatch):
    """While it writes: the second call also replaces columns of the first."""
    import celler.model._predict as predict

    adata = toy.cells(30, seed=1)
    if is_second:
        toy.trained().annotate(adata)
    before, write = toy.snapshot(adata), predict.write_annotation

    def stopping(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "write_annotation", stopping)
    with pytest.raises(KeyboardInterrupt):
        toy.trained().annotate(adata, threshold=0.9)
    toy.assert_unchanged(adata, before)


@pytest.mark.parametrize("method", ["predict", "check_labels"])
def test_method_that_stops_says_its_warning_again(method, monkeypatch):
    import celler.model._predict as predict

    model, adata = toy.fit(toy.cells(100), **HOW), toy.cells(30, seed=1)[:, 5:].copy()
    adata.obs["celler"] = adata.obs["cell_type"]
    with monkeypatch.context() as patch:
        patch.setattr(predict, "forward", interrupting)
        patch.setattr(predict._check_labels, "check_labels", interrupting)
        with pytest.warns(UserWarning, match="genes"), pytest.raises(KeyboardInterrupt):
            getattr(model, method)(adata)
    with pytest.warns(UserWarning, match="genes"):
        getattr(model, method)(adata)


def test_train_with_genes_that_the_base_has_never_seen():
    """Their score is −∞, which is no divergence."""
    from base_cases import known_cells, untrained

    adata = known_cells(200)
    adata.var_names = [*adata.var_names[:-3], "none1", "none2", "none3"]
    model = untrained(adata)
    assert not torch.isfinite(model.module.encoder.score).all()
    model.train(**HOW)
    assert model.is_trained
