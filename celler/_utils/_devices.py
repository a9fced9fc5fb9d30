"""Devices: where the network runs, with how many threads, in which precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
import torch

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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context manager in which the network computes in ``precision``."""
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


def choose_device(accelerator: str = "auto", devices: int | str | list[int] = "auto") -> torch.device:
    """Return the device to train on; a ``ValueError`` lists the available ones."""
    available = ["cpu"]
    available += ["gpu"] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    kind = {"cuda": "gpu", "auto": "gpu" if "gpu" in available else "cpu"}.get(accelerator, accelerator)
    if kind not in available:
        raise ValueError(
            f"accelerator={accelerator!r} is not available here; there is {available}. "
            "accelerator='auto' chooses the best of them."
        )
    n_devices = torch.cuda.device_count() if kind == "gpu" else 1
    chosen = devices if isinstance(devices, list) else [0]
    n_here, n_machines = choose_processes(devices)
    if (n_here, n_machines) != (1, 1):
        chosen = [int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))]
        if kind == "mps" or (kind == "gpu" and n_here > n_devices):
            found = f"{n_here} processes need a GPU each, there are {n_devices}"
            raise ValueError(f"devices={devices!r} was given; {found}.")
    elif devices not in ("auto", 1, "1") and (
        not isinstance(devices, list) or len(chosen) != 1 or not 0 <= chosen[0] < n_devices
    ):
        raise ValueError(
            f"devices={devices!r} was given; one device is 'auto', 1, or [i] with i one of "
            f"{list(range(n_devices))}; for several processes pass their number."
        )
    return torch.device("cuda", chosen[0]) if kind == "gpu" else torch.device(kind)


def choose_processes(devices: int | str | list[int]) -> tuple[int, int]:
    """Return the number of processes per machine and of machines; torchrun and srun take precedence."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        n_here = int(env["LOCAL_WORLD_SIZE"])
        return n_here, int(env["WORLD_SIZE"]) // n_here
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        n_machines = int(env["SLURM_NNODES"])
        return int(env["SLURM_NTASKS"]) // n_machines, n_machines
    return (devices, 1) if isinstance(devices, int) and devices > 1 else (1, 1)
