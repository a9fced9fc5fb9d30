"""Write: files whole or not at all, never onto what they are made from nor onto what nobody asked to replace.

A file is written beside its place and renamed. What a killed writer left beside it, the next one removes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from celler._utils._lock import locked
from celler._utils._owner import Owner, is_left_behind, owner_of, this_process

PART, FIGURE_MARK = ".part", "Celler (figure)"
#: The system's and HDF5's words for a disk without room.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = [f"errno = {number}," for number in NO_ROOM] + ["No space left", "Disk quota", "File too large"]


def check_out(path: Path, *, overwrite: bool, inputs: Iterable[Path | str | None] = (), how: str = "overwrite") -> None:
    """Raise where a file may not or cannot be written to ``path``; ``how`` names the option that allows it.

    A file of the ``inputs``, by whatever name or link, or one within a folder of theirs, is never replaced.
    """
    if not path.name:
        raise IsADirectoryError(f"{path} is a folder; name a file in it.")
    for given in inputs:
        if given is not None and _is_of(path, Path(given)):
            raise FileExistsError(f"{path} is a file of {given}, which is read; name another file.")
    if os.path.lexists(path):
        _check_replaceable(path, overwrite=overwrite, how=how)
    there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, so {path} cannot be written; name a file in a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} may not be written; name a file in another folder than {path.parent}.")


def _check_replaceable(path: Path, *, overwrite: bool, how: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file.")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise FileExistsError(f"{path} is a device or pipe; name a file.")
    if not overwrite:
        raise FileExistsError(f"{path} exists; pass {how} to replace it, or name another file.")


def _is_of(path: Path, given: Path) -> bool:
    """Return whether ``path`` is the file ``given``, or one of the folder ``given``, by whatever name."""
    if path.resolve() == given.resolve():
        return True
    if not given.exists():
        return False
    if given.is_dir() and path.resolve().is_relative_to(given.resolve()):
        return path.exists() or any((given / name).exists() for name in ("zarr.json", ".zgroup"))
    others = given.iterdir() if given.is_dir() else [given]
    return path.is_file() and any(os.path.samefile(path, other) for other in others if other.is_file())


@contextmanager
def whole(
    path: Path, *, overwrite: bool, inputs: Iterable[Path | str | None] = (), how: str = "overwrite"
) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of ``path`` at the end, after no error."""
    inputs = list(inputs)
    check_out(path, overwrite=overwrite, inputs=inputs, how=how)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_behind(path)
        part = part_of(path)
        try:
            yield part
            _synced(part)
            check_out(path, overwrite=overwrite, inputs=inputs, how=how)  # hours may have passed
            if path.exists():
                shutil.copymode(path, part)
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_h5ad(
    adata: Any, path: Path, *, overwrite: bool, inputs: Iterable[Path | str | None] = (), how: str = "overwrite"
) -> None:
    """Write an AnnData, whole or not at all."""
    with whole(path, overwrite=overwrite, inputs=inputs, how=how) as part:
        try:
            adata.write_h5ad(part)
        except OSError:
            raise
        except Exception as error:  # anndata's own error has no public name
            raise ValueError(f"{path} cannot be written as .h5ad: {' '.join(str(error).split())}") from error


def write_text(
    text: str, path: Path, *, overwrite: bool, inputs: Iterable[Path | str | None] = (), how: str = "overwrite"
) -> None:
    """Write text in UTF-8, whole or not at all."""
    with whole(path, overwrite=overwrite, inputs=inputs, how=how) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure as PNG in place of none or of one that Celler made, by the mark in it."""
    check_figure(path)
    with whole(path, overwrite=True) as part:
        figure.savefig(part, metadata={"Software": FIGURE_MARK}, **options)


def check_figure(path: Path) -> None:
    """Raise where a figure would replace a file that Celler did not make."""
    if path.is_file() and FIGURE_MARK.encode() not in path.read_bytes()[:2000]:
        raise FileExistsError(f"{path} exists and is no figure of Celler; move it away, or name another folder.")


def write_table(table: Any, path: Path) -> None:
    """Write a DataFrame as CSV in place of none or of one with the same columns."""
    text = table.to_csv()
    check_table(path, text.partition("\n")[0])
    with whole(path, overwrite=True) as part:
        part.write_text(text, encoding="utf-8")


def check_table(path: Path, header: str) -> None:
    """Raise where a table would replace a file of other columns."""
    if path.is_file() and path.read_bytes().partition(b"\n")[0].strip() != header.strip().encode():
        raise FileExistsError(f"{path} exists and has other columns; move it away, or name another folder.")


def check_key(key: str, argument: str) -> None:
    """Raise for a name under which a file could not hold a column."""
    if not isinstance(key, str):
        raise TypeError(f"{argument}={key!r} is a {type(key).__name__}; the name of a column is needed.")
    if key in ("", ".", "..") or "/" in key or "\0" in key:
        raise ValueError(f"{argument}={key!r} cannot be the name of a column in a file; name it without '/'.")


def part_of(path: Path) -> Path:
    """Return a new hidden name beside ``path``, of the same suffix, that names the process that writes."""
    stem = path.name.removesuffix(path.suffix)[:100]
    return path.with_name(f".{stem}-{this_process().token}-{uuid4().hex[:8]}{PART}{path.suffix}")


def remove_left_behind(path: Path) -> None:
    """Remove what killed writers of ``path`` left beside it."""
    start = f".{path.name.removesuffix(path.suffix)[:100]}-"
    for part in path.parent.iterdir():
        owner = owner_in(part, path.suffix) if part.name.startswith(start) else None
        if owner is not None and is_left_behind(part, owner):
            remove(part)


def owner_in(part: Path, suffix: str) -> Owner | None:
    """Return the process in a name that :func:`part_of` made, ``None`` for any other name."""
    if not part.name.endswith(PART + suffix):
        return None
    return owner_of("-".join(part.name.removesuffix(PART + suffix).split("-")[-4:-1]))


def remove(path: Path) -> None:
    """Remove a file or folder of ours, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def append_rows(path: Path, table: Any) -> None:
    """Add the rows of a DataFrame to a CSV file, all or none, one writer at a time.

    A last row that a killed writer cut short is taken away first. Raises ``ValueError`` for a file of other columns.
    """
    header, rows = table.iloc[:0].to_csv(index=False).encode(), table.to_csv(index=False, header=False).encode()
    with explained(path), locked(path.with_name(f".{path.name}.lock"), str(path), wait=60.0):
        before = whole_rows(path)
        size = len(before)
        text = path.read_bytes() if path.is_file() and not size else before
        if not (text.startswith(header) or header.startswith(text)):
            raise ValueError(
                f"{path} has other columns than {list(table.columns)}; it is not from this command. Name another "
                "folder, or move it away."
            )
        # Without a buffer, of which closing would write what was taken away again.
        with path.open("ab", buffering=0) as file:
            file.truncate(size)
            try:
                left = memoryview(rows if size else header + rows)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                os.truncate(path, size)
                raise


def whole_rows(path: Path) -> bytes:
    """Return the text of a CSV file without a last row that a killed writer cut short."""
    text = path.read_bytes() if path.is_file() else b""
    end = text.rfind(b"\n") + 1
    while text[:end].count(b'"') % 2:  # a line break within a value
        end = text.rfind(b"\n", 0, end - 1) + 1
    return text[:end]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what keeps ``path`` from being written, and that what was there is as it was."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5's are RuntimeError where a file is closed
        number = getattr(error, "errno", None)
        words = "".join([str(error), *getattr(error, "__notes__", ())])
        if number in NO_ROOM or any(part in words for part in NO_ROOM_WORDS):
            told: OSError = OSError(f"{path} cannot be written: no room is left on its disk. Nothing was changed.")
            told.errno = number if number in NO_ROOM else errno.ENOSPC
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            told = PermissionError(f"{path} may not be written, as its folder is read-only. Nothing was changed.")
            told.errno = number
        else:
            raise
        raise told from error


def _synced(path: Path) -> None:
    """Bring a file to the disk, before its name says that it is whole."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
