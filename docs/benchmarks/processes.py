"""Measurements in a process of their own, whose peak of memory is theirs alone. A helper of other scripts here."""

import json
import subprocess
import sys
from typing import Any

from celler.benchmark._process import memory_mb


def measure_alone(script: str, *arguments: str) -> dict[str, Any]:
    """What ``script``, a path, prints as JSON in its last line. Raise ``RuntimeError`` where it fails."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> float:
    """MiB that this process has held at most."""
    return memory_mb("VmHWM")
