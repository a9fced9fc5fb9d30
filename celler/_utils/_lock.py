"""Lock: one writer at a time, across processes; the lock of a process that was killed is taken over."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from celler._utils._owner import Owner, this_process

#: Seconds between two tries for a lock.
PAUSE = 0.05


class LockedError(RuntimeError):
    """Another process writes there."""


@contextmanager
def locked(path: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the file ``path`` as a lock on ``what``, trying for ``wait`` seconds before :class:`LockedError`."""
    own = _record(this_process())
    end = time.monotonic() + wait
    while not _taken(path, own):
        holder = _holder(path)
        if holder is not None and holder[1].lives() is False:
            _remove(path, holder[0])
        elif holder is None and not path.exists():
            continue  # it was let go just now
        elif time.monotonic() >= end:
            who = "another process" if holder is None else f"process {holder[1].pid} on {holder[1].host.split()[0]}"
            raise LockedError(
                f"{what} is being written by {who}. Wait for it to end; if it no longer runs, delete {path}."
            )
        else:
            time.sleep(PAUSE)
    try:
        _remove_left_behind(path)
        yield
    finally:
        _remove(path, own)


def _remove_left_behind(path: Path) -> None:
    """Remove locks that killed processes had made and not yet put into place, or had put aside."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 32}"):
        holder = _holder(part)
        # Without contents it is of a process that was killed before it wrote them, or of one that makes its lock
        # at this moment, which then goes the way of file systems without links.
        if holder is None or holder[1].lives() is False:
            part.unlink(missing_ok=True)


def _record(owner: Owner) -> str:
    return json.dumps({**owner._asdict(), "id": uuid4().hex})


def _taken(path: Path, own: str) -> bool:
    """Make the lock with its contents in one step, unless it is there."""
    part = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        part.write_text(own)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return _made(path, own)
    finally:
        part.unlink(missing_ok=True)
    return True


def _made(path: Path, own: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(own)
    except FileExistsError:
        return False
    return True


def _holder(path: Path) -> tuple[str, Owner] | None:
    """Return the contents of a lock and its owner, ``None`` where it is gone or no lock of ours."""
    try:
        text = path.read_text()
        record = json.loads(text)
        return text, Owner(str(record["host"]), int(record["pid"]), str(record["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path, text: str) -> None:
    """Remove the lock with this contents; one that another process took in the meantime is put back."""
    aside = path.with_name(f"{path.name}.{uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_text() != text:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()
