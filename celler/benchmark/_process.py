"""A method in a process of its own, which gets no labels of the query and prints nothing unless it fails."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import joblib

if TYPE_CHECKING:
    import pandas as pd

CELLS, RESULT = "cells.pickle", "result.pickle"


class Measured(NamedTuple):
    """What a method gave and took."""

    scores: pd.DataFrame  # (n_obs, n_types)
    fit_seconds: float
    predict_seconds: float
    peak_memory_mb: float  # MiB beyond packages and cells


def run_alone(function: str, imports: Sequence[str], labels_key: str, seed: int, folder: Path) -> Measured:
    """Fit and predict with ``module:function`` on the cells in ``folder``; raise ``RuntimeError`` if that fails."""
    environment = {
        # As many threads as cores, which sleep while they wait.
        "OMP_NUM_THREADS": str(joblib.cpu_count()),
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "TMPDIR": str(folder),  # deleted with the files that a method leaves in it
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
    }
    command = [sys.executable, "-P", "-m", __name__, function, labels_key, str(seed), *imports]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(_reason(done))
    return Measured(*pickle.loads((folder / RESULT).read_bytes()))


def main(function: str, labels_key: str, seed: str, *imports: str) -> None:
    """Run in the process, whose working directory has the files."""
    reference, query = pickle.loads(Path(CELLS).read_bytes())
    module, name = function.split(":")
    fit = getattr(import_module(module), name)
    for each in imports:
        import_module(each)
    memory_before, start = memory_mb("VmRSS"), time.perf_counter()
    predict = fit(reference, labels_key, query, int(seed))
    trained = time.perf_counter()
    scores = predict(query)
    end = time.perf_counter()
    peak = max(0.0, memory_mb("VmHWM") - memory_before)
    Path(RESULT).write_bytes(pickle.dumps((scores, trained - start, end - trained, peak)))


def memory_mb(field: str) -> float:
    """Return MiB of this process: ``VmRSS`` now, ``VmHWM`` at the peak; without /proc, the peak for both."""
    # ru_maxrss is the second choice: on Linux a child inherits it from its parent.
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
    """Return why a process failed: its exception, or the signal that ended it."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"ended by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with status {done.returncode}"


if __name__ == "__main__":
    main(*sys.argv[1:])
