"""Owner: the process that writes a file or holds a lock, by which leftovers of a killed one are told."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: Seconds after which what a process of another machine left is taken for left behind.
FOREIGN_SECONDS = 24 * 3600


class Owner(NamedTuple):
    """A process: its machine or container, its number, and when it started, since numbers come again."""

    host: str
    pid: int
    started: str

    @property
    def token(self) -> str:
        """The owner in a file name; :func:`owner_of` reads it."""
        host = hashlib.sha256(self.host.encode()).hexdigest()[:8]
        return f"{host}-{self.pid}-{self.started or 0}"

    def lives(self) -> bool | None:
        """Return whether the process runs; ``None`` where that cannot be told from here."""
        if self.host not in (_host(), this_process().token.partition("-")[0]) or os.name == "nt":
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return True
        state, started = _state(self.pid)
        return state != "Z" and (started == self.started or not started)


def this_process() -> Owner:
    """Return the process that calls."""
    return Owner(_host(), os.getpid(), _state(os.getpid())[1])


def owner_of(token: str) -> Owner | None:
    """Return the owner of :attr:`Owner.token`, with a digest for its host, ``None`` for any other text."""
    parts = token.split("-")
    if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return None
    return Owner(parts[0], int(parts[1]), "" if parts[2] == "0" else parts[2])


def is_left_behind(path: Path, owner: Owner) -> bool:
    """Return whether ``path`` was left by a process that was killed; of another machine, by its age."""
    lives = owner.lives()
    if lives is not None:
        return not lives
    try:
        return time.time() - path.stat().st_mtime > FOREIGN_SECONDS
    except OSError:  # just removed
        return False


@cache
def _host() -> str:
    """Return the machine and, in a container, its space of process numbers."""
    name = socket.gethostname()
    with suppress(OSError):
        name += " " + os.readlink("/proc/self/ns/pid")
    return name


def _state(pid: int) -> tuple[str, str]:
    """Return the state of a process and when it started, empty where the system does not say."""
    try:
        # The name of the program stands in brackets and may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
