"""Hub: models on a Hugging Face hub, addressed as ``hf://owner/name`` or ``hf://owner/name@revision``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celler._utils._version import __version__
from celler.model._folder import CARD, CONFIG, MAX_OF, WEIGHTS

FILES = [CONFIG, WEIGHTS, CARD]
ADDRESS = re.compile(r"hf:/{1,2}([^@]*)(?:@(.*))?", flags=re.DOTALL)  # a Path has one slash
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token of yours"


@dataclass(frozen=True)
class Located:
    """A folder with a model, and what to call the model: the address of its commit, or the folder's name."""

    folder: Path
    origin: str | None


@dataclass(frozen=True)
class Upload:
    """Options of :meth:`celler.model.Celler.push_to_hub`, with the hub's names."""

    private: bool | None
    token: str | None
    revision: str | None
    commit_message: str | None


def is_address(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is an address on a hub and not a folder."""
    return os.fspath(path).startswith("hf:/")


def locate(path: str | os.PathLike[str]) -> Located:
    """Return the folder of a model: ``path`` itself, or what is downloaded from an address, from the cache at best."""
    if not is_address(path):
        # the name alone: where it lies on this machine is nobody else's business
        return Located(Path(path), Path(os.path.abspath(path)).name or None)
    match = ADDRESS.fullmatch(os.fspath(path))
    assert match is not None  # it matches all that begin like an address
    repo_id, revision = match[1], match[2]
    address = address_of(repo_id, revision)
    library = _library()
    with _explained(address):
        sizes = _sizes(library, repo_id, revision)
    if sizes is not None:
        _check_sizes(address, sizes)
    with _explained(address):
        folder = Path(library.snapshot_download(repo_id, revision=revision, allow_patterns=FILES, **_client()))
    return Located(folder, f"hf://{repo_id}@{folder.name}")


def address_of(repo_id: str, revision: str | None) -> str:
    """Return the address of a repository; raise ``ValueError`` where its name or revision cannot be one."""
    address = f"hf://{repo_id}" + ("" if revision is None else f"@{revision}")
    is_good = REPOSITORY.fullmatch(repo_id) and (revision is None or REVISION.fullmatch(revision))
    if not is_good or ".." in address:
        raise ValueError(
            f"{address!r} is no address of a model; hf://owner/name is needed, or hf://owner/name@revision with a "
            "branch, a tag or a commit. For push_to_hub: 'owner/name'."
        )
    return address


def push(folder: Path, repo_id: str, upload: Upload, keep: Callable[[Path], None]) -> str:
    """Upload a folder in one commit and return its address; ``keep`` gets a folder with the present card, if any."""
    address, library = address_of(repo_id, upload.revision), _library()
    where = {"repo_id": repo_id, "revision": upload.revision}
    with _explained(address):
        api = library.HfApi(token=upload.token, **_client())
        api.create_repo(repo_id, private=upload.private, exist_ok=True)
        if upload.revision is not None:
            api.create_branch(repo_id, branch=upload.revision, exist_ok=True)
        has_card = CARD in {file.rfilename for file in api.model_info(**where).siblings or ()}
        theirs = api.snapshot_download(**where, allow_patterns=[CONFIG, CARD]) if has_card else None
    if theirs is not None:
        keep(Path(theirs))
    with _explained(address):
        message = upload.commit_message or f"Celler model, written by Celler {__version__}"
        commit = api.upload_folder(**where, folder_path=folder, commit_message=message, allow_patterns=FILES)
    return f"hf://{repo_id}@{commit.oid}"


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            'models on a hub need huggingface_hub, which is not installed: pip install "celler[hub]".'
        ) from error
    return huggingface_hub


def _client() -> dict[str, Any]:
    """Return who calls which hub: HF_ENDPOINT, or huggingface.co."""
    return {
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
        "library_name": "celler",
        "library_version": __version__,
    }


def _sizes(library: Any, repo_id: str, revision: str | None) -> dict[str, int] | None:
    """Return the size of each file of a repository; ``None`` where the hub does not say, and the cache may do."""
    from huggingface_hub.errors import HFValidationError

    try:
        info = library.HfApi(**_client()).model_info(repo_id, revision=revision, files_metadata=True)
    except HFValidationError:
        raise
    except _http_errors() + (ConnectionError,):
        return None
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _check_sizes(address: str, sizes: dict[str, int]) -> None:
    """Raise for a repository without a model, or with files that are too large for one, before the download."""
    missing = [name for name in (CONFIG, WEIGHTS) if name not in sizes]
    if missing:
        raise FileNotFoundError(
            f"{address} holds no Celler model: there is no {' and no '.join(missing)}, which push_to_hub() writes. It "
            f"has {sorted(sizes)[:8]}."
        )
    for name, most in MAX_OF.items():
        if sizes.get(name, 0) > most:
            raise ValueError(
                f"{address} has a {name} of {sizes[name]:,} bytes; a Celler model has at most {most:,}. It was not "
                "downloaded."
            )


def _http_errors() -> tuple[type[Exception], ...]:
    """Return what the library raises of its HTTP client, which depends on its version."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__mro__ if kind not in (OSError, Exception, BaseException, object))


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Raise the library's errors as Python's own, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise PermissionError(
            f"{address} is gated: its owner admits readers one by one. Ask for access on its page, then: {LOG_IN}."
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"{address} has no such revision; name a branch, a tag or a commit, or leave @revision out."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{address} does not exist, or is private and you may not see it. Check the name. {LOG_IN}."
        ) from None
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):  # the hub answered
            raise _http_error(address, error.__cause__) from None
        raise ConnectionError(
            f"{address} is not in the cache of downloaded models and the hub cannot be reached. Check the connection "
            "and HF_HUB_OFFLINE, load it once online, or pass the folder of a saved model."
        ) from None
    except errors.LocalTokenNotFoundError:
        raise PermissionError(f"{address} needs a login. {LOG_IN}.") from None
    except _http_errors() as error:
        raise _http_error(address, error) from None
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(f"{address} could not be reached: {_first_line(error)} Check the connection.") from None
    except ValueError as error:
        raise ValueError(f"{address}: {error}") from None


def _http_error(address: str, error: Exception) -> OSError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return PermissionError(
            f"{address}: the hub refuses access ({status}). {LOG_IN} that may read it, or write to it for push_to_hub."
        )
    return ConnectionError(
        f"{address} could not be reached: {_first_line(error)} Check the connection, then try again."
    )


def _first_line(error: Exception) -> str:
    """Return the first line of what went wrong, in the words of the library."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:") + "."
