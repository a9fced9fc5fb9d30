"""Place: the files of a store, in a folder or at an address such as s3://bucket/my_atlas."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, cast

#: What to do where a file is damaged.
ANEW = "Build the store anew, or copy it again from where it is whole."


class Folder:
    """Files in a folder, by their names."""

    #: What to do where a file cannot be read.
    cure = ANEW

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def of(self, name: str) -> Folder:
        """Return the folder ``name`` in it."""
        return Folder(self.path / name)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; raise ``FileNotFoundError`` for a missing one."""
        return (self.path / name).open("rb")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, in folders too, by name; none where the folder is missing."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}

    def group(self) -> Any:
        """Return its zarr group."""
        import zarr

        return zarr.open_group(self.path, mode="r")


class Address:
    """Files of an object store or another file system that fsspec knows, by their names; the same as a folder's."""

    cure = "Check the address, the connection and the credentials; where these are right, copy the store there again."

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        try:
            self._files, self._root = url_to_fs(self.url)
        except ValueError as error:
            raise ValueError(f"{url!r} is no address that fsspec knows, such as 's3://bucket/my_atlas'.") from error

    def __str__(self) -> str:
        return self.url

    def of(self, name: str) -> Address:
        return Address(f"{self.url}/{name}")

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self._files.open(f"{self._root}/{name}", "rb"))

    def sizes(self) -> dict[str, int]:
        self._files.invalidate_cache()  # another process may have written since it was listed
        found = self._files.find(self._root, detail=True)
        return {str(PurePosixPath(path).relative_to(self._root)): int(file["size"]) for path, file in found.items()}

    def group(self) -> Any:
        import zarr

        return zarr.open_group(zarr.storage.FsspecStore.from_url(self.url, read_only=True), mode="r")


Place: TypeAlias = Folder | Address


def place_of(path: str | os.PathLike[str]) -> Place:
    """Return the folder, or what has the form of an address."""
    return Address(os.fspath(path)) if is_address(path) else Folder(Path(path))


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` has the form of an address."""
    return "://" in os.fspath(path)
