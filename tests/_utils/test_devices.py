"""Devices and precision on machines of every kind, each simulated."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import threadpoolctl
import torch

from celler._utils import _devices as devices
from celler._utils._devices import (
    autocast,
    choose_device,
    choose_precision,
    choose_prediction_devices,
    choose_processes,
    choose_training_device,
    cpu_threads,
    one_blas_thread,
)

#: The first lines of Linux's list of processors.
INFO = "processor\t: 0\nmodel name\t: amx_bf16 in a name\nflags\t\t: fpu avx512_bf16{}\n\nprocessor\t: 1\n"


def test_choose_precision_by_hardware(monkeypatch, tmp_path):
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        (tmp_path / "cpuinfo").write_text(INFO.format(" amx_bf16 amx_tile" * has_it), "utf-8")
        monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it: has_it)
        assert choose_precision("auto", cpu) == expected
        assert choose_precision("auto", cuda) == expected
        assert choose_precision("auto", mps) == "float32"
        for given in ("float32", "bfloat16"):
            assert choose_precision(given, cpu) == given
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "no such file")
    assert choose_precision("auto", cpu) == "float32"
    with pytest.raises(ValueError, match="precision='16' was given; choose 'auto', 'float32' or"):
        choose_precision("16", cpu)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(cpu, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_choose_device_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for given in ("auto", 1, "1", [0]):
        assert choose_training_device("auto", given) == choose_training_device("cpu", given) == torch.device("cpu")
    for accelerator in ("gpu", "cuda", "mps", "tpu"):
        message = rf"accelerator='{accelerator}' is not available here; there is \['cpu'\]\."
        with pytest.raises(ValueError, match=message):
            choose_device(accelerator)
    for given in ("4", 0, -1, [1], [0, 0], [], [-1]):
        with pytest.raises(ValueError, match=r"devices=.* one device is 'auto', 1, or \[i\]"):
            choose_training_device("cpu", given)
    assert choose_training_device("cpu", 2) == torch.device("cpu")


TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "5"}
STEP = {"SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3"}
JOB = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("env", "processes"),
    [
        ({}, (1, 1)),
        (TORCHRUN, (4, 2)),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, (1, 1)),
        (STEP, (2, 3)),
        (JOB, (1, 1)),  # salloc
        (JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, (1, 1)),  # the batch script
        (JOB | {"SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "4"}, (1, 1)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, (1, 1)),  # one task of srun
        (STEP | {"SLURM_PTY_PORT": "4711"}, (1, 1)),  # srun --pty
        (STEP | {"SLURM_JOB_NAME": "bash"}, (1, 1)),
        (STEP | {"SLURM_JOB_NAME": "interactive"}, (1, 1)),
        (STEP | {"SLURM_JOB_NAME": "train.sh"}, (2, 3)),
    ],
)
def test_choose_processes_with_and_without_a_launcher(monkeypatch, env, processes):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert choose_processes("auto") == processes
    assert choose_processes(3) == ((3, 1) if processes == (1, 1) else processes)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (STEP | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many', a whole number is needed"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "5"}, "srun started 5 processes on 3 machines"),
        ({"TORCHELASTIC_RUN_ID": "a"}, "LOCAL_WORLD_SIZE is '', a whole number is needed"),
    ],
)
def test_choose_processes_with_an_environment_that_contradicts_itself(monkeypatch, env, message):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        choose_processes("auto")


def test_choose_processes_of_someone_who_types(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    assert choose_processes("auto") == (1, 1)


def test_choose_device_does_not_count_processes(monkeypatch):
    """Loading and predicting in four processes on one GPU share it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (STEP | {"SLURM_LOCALID": "3"}).items():
        monkeypatch.setenv(name, value)
    assert choose_device() == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device() == torch.device("cuda", 3)


def test_choose_device_with_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_training_device("gpu", 2) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="devices=3 was given; 3 processes need a GPU each, there are 2"):
        choose_training_device("gpu", 3)


def test_choose_device_with_two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == choose_training_device("gpu", 1) == torch.device("cuda", 0)
    assert choose_training_device("cuda", [1]) == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"devices=\[2\] was given; .* one of \[0, 1\]"):
        choose_training_device("gpu", [2])
    with pytest.raises(ValueError, match=r"'mps' is not available here; there is \['cpu', 'gpu'\]"):
        choose_device("mps")


def test_choose_device_on_a_mac(monkeypatch):
    """Only on request: 'auto' means a CUDA GPU or the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto") == torch.device("cpu")


def test_choose_prediction_devices(monkeypatch):
    cpu, second = torch.device("cpu"), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for given in ("auto", 1, "1"):
        assert choose_prediction_devices(given, cpu) == choose_prediction_devices(given, second) == ()
    assert choose_prediction_devices([1], second) == ()
    assert choose_prediction_devices(3, cpu) == (cpu, cpu, cpu)
    assert choose_prediction_devices(2, second) == (torch.device("cuda", 0), second)
    assert choose_prediction_devices([3, 1], second) == (torch.device("cuda", 3), second)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (0, "cpu", "devices=0 was given; 'auto', a number of processes of at least 1, or a list of GPUs is needed"),
        ("two", "cpu", "devices='two' was given; 'auto', a number of processes"),
        ([0], "cpu", r"devices=\[0\] was given, numbers of GPUs; the model is on cpu. Pass a number of processes"),
        ([], "cuda", r"devices=\[\] was given; GPUs to label on, each once, are some of \[0, 1\]"),
        ([0, 0], "cuda", r"devices=\[0, 0\] was given; GPUs to label on, each once"),
        ([0, 2], "cuda", r"devices=\[0, 2\] was given; GPUs to label on, each once"),
        (3, "cuda", "devices=3 was given; 3 processes need a GPU each, there are 2"),
        (2, "mps", "devices=2 was given; 2 processes need a GPU each, there are 1"),
    ],
)
def test_choose_prediction_devices_that_do_not_exist(monkeypatch, given, kind, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        choose_prediction_devices(given, torch.device(kind))


def test_choose_prediction_devices_in_a_process_that_may_start_none(monkeypatch):
    daemon = SimpleNamespace(daemon=True)
    with monkeypatch.context() as patch:
        patch.setattr(devices.multiprocessing, "current_process", lambda: daemon)
        with pytest.raises(RuntimeError, match="devices=2 was given in a daemon process, .* Leave devices out there"):
            choose_prediction_devices(2, torch.device("cpu"))
        assert choose_prediction_devices(1, torch.device("cpu")) == ()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="devices=2 was given in one of several processes, .* Leave devices out"):
        choose_prediction_devices(2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("n_allowed", "n_most", "expected"),
    [(8, None, 4), (3, None, 3), (8, 2, 2), (1, 2, 1), (8, 9, 4)],
)
def test_cpu_threads_with_a_quota(monkeypatch, n_allowed, n_most, expected):
    """The quota of a container's cgroup is read by joblib."""
    monkeypatch.setattr(devices.joblib, "cpu_count", lambda: n_allowed)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with cpu_threads(n_most):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def blas_threads() -> set[int]:
    """Threads of each library of matrix products that is loaded."""
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_one_blas_thread_in_several_threads():
    """Calls overlap where several threads predict; afterwards there are as many threads as before."""
    both_inside, left = Barrier(2), Barrier(2)
    inside = one_blas_thread(lambda: (both_inside.wait(), blas_threads()))

    def call(_: int) -> set[int]:
        _, found = inside()
        left.wait()
        return found

    before = blas_threads()
    with ThreadPoolExecutor(2) as pool:
        assert {1} in list(pool.map(call, range(2)))
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError):
        one_blas_thread(lambda: 1 / 0)()
    assert blas_threads() == before
