"""A method in a process of its own: its memory is its own, and if it crashes, nothing else does.

The process is given no labels of the query, and says nothing unless it fails.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import joblib

if TYPE_CHECKING:
    import pandas as pd

CELLS, RESULT = "cells.pickle", "result.pickle"


class Measured(NamedTuple):
    """scores: a row per cell and a column per type. fit_seconds, predict_seconds: wall-clock time.
    peak_memory_mb: MiB at the peak of training and predicting, beyond packages and cells."""

    scores: pd.DataFrame
    fit_seconds: float
    predict_seconds: float
    peak_memory_mb: float


def run_alone(module: str, labels_key: str, seed: int, folder: Path) -> Measured:
    """``fit`` of ``module`` on the ``(reference, query)`` pickled in ``folder``, then its prediction.

    Raises ``RuntimeError`` with the reason where the process fails.
    """
    arguments = [module, labels_key, str(seed)]
    environment = {
        # As many threads as there are cores, which sleep while they wait.
        "OMP_NUM_THREADS": str(joblib.cpu_count()),
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "TMPDIR": str(folder),  # what a method leaves behind goes with it
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(_reason(done))
    return Measured(*pickle.loads((folder / RESULT).read_bytes()))


def main(module: str, labels_key: str, seed: str) -> None:
    """What happens in the process, in its working directory."""
    reference, query = pickle.loads(Path(CELLS).read_bytes())
    fit = import_module(module).fit
    memory_before, start = memory_mb("VmRSS"), time.perf_counter()
    predict = fit(reference, labels_key, query, int(seed))
    trained = time.perf_counter()
    scores = predict(query)
    end = time.perf_counter()
    peak = max(0.0, memory_mb("VmHWM") - memory_before)
    Path(RESULT).write_bytes(pickle.dumps((scores, trained - start, end - trained, peak)))


def memory_mb(field: str) -> float:
    """MiB that this process holds: ``VmRSS`` now, ``VmHWM`` at most; without /proc, the most in both cases.

    Where there is a choice, ``ru_maxrss`` is not it: Linux has a child inherit its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
        return int(match[1]) / 2**10 if match else float("nan")
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed: its exception, or the signal that ended it."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with status {done.returncode}"


if __name__ == "__main__":
    main(*sys.argv[1:])
