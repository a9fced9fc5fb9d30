"""Devices: where the network runs, with how many threads, in which precision."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import joblib
import threadpoolctl
import torch

from celler._utils._distributed import rank_and_size

P = ParamSpec("P")
R = TypeVar("R")
CPU_INFO = Path("/proc/cpuinfo")  #: where Linux lists what the processor can do


@contextmanager
def cpu_threads(n_most: int | None = None) -> Iterator[None]:
    """Limit torch to ``n_most`` CPU threads and to the cores this process may use."""
    before = torch.get_num_threads()
    # torch counts the cores of the machine; joblib respects the CPU affinity and a container's quota.
    n = min(before, joblib.cpu_count(), before if n_most is None else n_most)
    if n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if n != before:
            torch.set_num_threads(before)


def one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Leave one thread to the matrix products of NumPy and SciPy while ``function`` runs.

    Their threads wait in a loop for the next product, and so do torch's: products that take turns with torch's, most of
    them small, then fight for the same cores and take ten times as long.
    """
    limited: Callable[P, R] = threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")(function)
    return limited


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context manager in which the network computes in ``precision``."""
    if device.type == "cuda" and _lost_gpu:
        raise RuntimeError(FORKED)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on GPUs that support it and CPUs with AMX (AVX512-bf16 was no faster), else float32."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={precision!r} was given; choose 'auto', 'float32' or 'bfloat16'.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and _has_amx() else "float32"


def _has_amx() -> bool:
    """Whether Linux reports bfloat16 matrix units; no public function of torch 2.6 does."""
    if not CPU_INFO.is_file():
        return False
    with CPU_INFO.open() as lines:
        return "amx_bf16" in next((line for line in lines if line.startswith("flags")), "").split()


def choose_device(accelerator: str = "auto") -> torch.device:
    """Return the device to predict on; a ``ValueError`` lists the available ones."""
    kind, n_devices = _available(accelerator)
    if kind != "gpu":
        return torch.device(kind)
    # Each process that was started beside others on this machine has a GPU of its own, where there are as many.
    process = launched()
    return torch.device("cuda", 0 if process is None else process.local_rank % n_devices)


def choose_training_device(accelerator: str, devices: int | str | list[int]) -> torch.device:
    """Return the device of this process to train on; a ``ValueError`` lists the available ones."""
    kind, n_devices = _available(accelerator)
    n_here, n_machines = choose_processes(devices)
    if (n_here, n_machines) != (1, 1):
        if kind == "mps" or (kind == "gpu" and n_here > n_devices):
            found = f"{n_here} processes need a GPU each, there are {n_devices}"
            raise ValueError(f"devices={devices!r} was given; {found}.")
        process = launched()
        index = int(os.environ.get("LOCAL_RANK", "0")) if process is None else process.local_rank
        return torch.device("cuda", index) if kind == "gpu" else torch.device(kind)
    is_index = isinstance(devices, list) and len(devices) == 1 and 0 <= devices[0] < n_devices
    if devices not in ("auto", 1, "1") and not is_index:
        raise ValueError(
            f"devices={devices!r} was given; one device is 'auto', 1, or [i] with i one of "
            f"{list(range(n_devices))}; for several processes pass their number."
        )
    index = devices[0] if isinstance(devices, list) else 0
    return torch.device("cuda", index) if kind == "gpu" else torch.device(kind)


def choose_prediction_devices(devices: int | str | list[int], device: torch.device) -> tuple[torch.device, ...]:
    """Return a device for each process that labels cells with a model on ``device``; none where this one does."""
    if devices in ("auto", 1, "1") or (device.type == "cuda" and devices == [device.index or 0]):
        return ()
    given = f"devices={devices!r} was given"
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if isinstance(devices, list):
        if not n_gpus:
            raise ValueError(f"{given}, numbers of GPUs; the model is on {device.type}. Pass a number of processes.")
        if not devices or len(set(devices)) < len(devices) or max(devices) >= n_gpus:
            raise ValueError(f"{given}; GPUs to label on, each once, are some of {list(range(n_gpus))}.")
        found = devices
    elif isinstance(devices, str) or devices < 1:
        raise ValueError(f"{given}; 'auto', a number of processes of at least 1, or a list of GPUs is needed.")
    else:
        found = list(range(devices))
    if device.type == "mps" or (device.type == "cuda" and len(found) > n_gpus):
        raise ValueError(f"{given}; {len(found)} processes need a GPU each, there are {max(1, n_gpus)}.")
    _check_may_start(given)
    return tuple(torch.device("cuda", i) if n_gpus else device for i in found)


def _check_may_start(given: str) -> None:
    """Raise ``RuntimeError`` where this process is one of several, or may start no others."""
    if launched() is not None or rank_and_size()[1] > 1:
        raise RuntimeError(
            f"{given} in one of several processes, as torchrun, srun or train(devices=...) start them: each has a "
            "device, and of a dataloader each reads its part. Leave devices out there."
        )
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            f"{given} in a daemon process, as multiprocessing.Pool starts them, which may start no others. Leave "
            "devices out there, or call from the main process."
        )


def _available(accelerator: str) -> tuple[str, int]:
    """Kind of the device, and the number of them; raise ``ValueError`` where there is none."""
    available = ["cpu"]
    if _lost_gpu and accelerator in ("gpu", "cuda"):
        raise RuntimeError(FORKED)
    available += ["gpu"] if not _lost_gpu and torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    kind = {"cuda": "gpu", "auto": "gpu" if "gpu" in available else "cpu"}.get(accelerator, accelerator)
    if kind not in available:
        raise ValueError(
            f"accelerator={accelerator!r} is not available here; there is {available}. "
            "accelerator='auto' chooses the best of them."
        )
    return kind, torch.cuda.device_count() if kind == "gpu" else 1


# ---- processes ----
class Launched(NamedTuple):
    """One of several processes that torchrun or srun started."""

    rank: int
    local_rank: int
    machine: int
    n_here: int  # processes on this machine
    n_machines: int
    by_srun: bool


def launched() -> Launched | None:
    """Return this process among those that torchrun or srun started; ``None`` where it was started alone.

    SLURM sets ``SLURM_NTASKS`` and ``SLURM_PROCID`` in the batch script too, where they say what the job may start.
    Only in a step that srun started ``SLURM_STEP_NUM_TASKS`` is above 1; a shell or an interpreter that someone types
    into is one process whatever the step has.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        n_here, size = _number("LOCAL_WORLD_SIZE"), _number("WORLD_SIZE")
        local_rank, machine = _number("LOCAL_RANK", 0), _number("GROUP_RANK", 0)
        found = Launched(_number("RANK", 0), local_rank, machine, n_here, size // max(1, n_here), by_srun=False)
    elif "SLURM_PROCID" in env and not _is_interactive():
        n_tasks, n_machines = _number("SLURM_STEP_NUM_TASKS", 1), _number("SLURM_STEP_NUM_NODES", 1)
        if n_tasks % max(1, n_machines):
            raise ValueError(
                f"srun started {n_tasks} processes on {n_machines} machines; give each machine the same number, "
                "srun --ntasks-per-node=n, or start one process for a training."
            )
        rank, local_rank, machine = (_number(f"SLURM_{name}", 0) for name in ("PROCID", "LOCALID", "NODEID"))
        found = Launched(rank, local_rank, machine, n_tasks // max(1, n_machines), n_machines, by_srun=True)
    else:
        return None
    return None if found.n_here * found.n_machines <= 1 else found


def _number(name: str, default: int | None = None) -> int:
    """Return a whole number of the environment; raise ``ValueError`` for what is none."""
    given = os.environ.get(name, "" if default is None else str(default))
    if not given.strip().isdecimal():
        raise ValueError(
            f"the environment variable {name} is {given!r}, a whole number is needed: it says how torchrun or srun "
            "started this process. Unset it, or start the process again."
        )
    return int(given)


def _is_interactive() -> bool:
    """Whether someone types into this process, or into the shell that srun started for it."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive", "sh", "zsh", "tcsh")
    is_worker = multiprocessing.parent_process() is not None  # of one of the tasks
    return is_shell or is_worker or "SLURM_PTY_PORT" in os.environ or hasattr(sys, "ps1")


def choose_processes(devices: int | str | list[int]) -> tuple[int, int]:
    """Return the number of processes per machine and of machines; torchrun and srun take precedence."""
    found = launched()
    if found is not None:
        return found.n_here, found.n_machines
    return (devices, 1) if isinstance(devices, int) and devices > 1 else (1, 1)


FORKED = (
    "this process was forked from one that had used the GPU, which a forked process cannot use. Start it with "
    "multiprocessing.get_context('spawn') or with joblib's loky, or predict on the CPU: Celler.load(folder, "
    "accelerator='cpu')."
)
_lost_gpu = False


def _after_fork(had_gpu: bool) -> None:
    """Leave one thread to a forked process: the other threads of OpenMP stay behind, and waiting for them hangs."""
    global _lost_gpu
    _lost_gpu = _lost_gpu or had_gpu
    torch.set_num_threads(1)
    # scikit-learn brings an OpenMP of its own.
    threadpoolctl.threadpool_limits(1, user_api="openmp")


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    _had_gpu: list[bool] = []
    os.register_at_fork(
        before=lambda: _had_gpu.append(torch.cuda.is_initialized()),
        after_in_parent=_had_gpu.clear,
        after_in_child=lambda: _after_fork(any(_had_gpu)),
    )
