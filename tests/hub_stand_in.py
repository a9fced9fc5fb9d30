"""A stand-in for a Hugging Face hub on localhost: repositories with commits, as far as the client asks for them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


class Repository:
    """Commits by id and branches by name; a commit is the bytes of each file."""

    def __init__(self, *, private: bool = False) -> None:
        self.private, self.gated = private, False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = before | files
        name = hashlib.sha1(repr((len(self.commits), message, sorted(after))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = after, name
        self.messages.append(message)
        return name

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The hub: ``url`` is its endpoint; ``refuse`` makes every request fail with a status."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse: int | None = None
        self.url = ""

    def sizes(self, files: dict[str, bytes]) -> dict[str, int]:
        """Sizes that the hub tells, which a test may change."""
        return {name: len(data) for name, data in files.items()}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int = 200, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self) -> None:
        n = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(n)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.hub.refuse is not None:
            self.answer(self.hub.refuse, {"error": "refused"})
        elif path == "/api/validate-yaml":
            self.answer(body={"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create()
        elif path.startswith("/objects/"):
            self.hub.objects[path.split("/")[-1]] = self.body
            self.answer()
        else:
            self.of_repository(path.strip("/").split("/"))

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.is_owner:
            return self.answer(401, {"error": "Invalid username or password."})
        is_new = name not in self.hub.repositories
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repositories.setdefault(name, Repository(private=private))
        return self.answer(200 if is_new else 409, {"url": f"{self.hub.url}/{name}"})

    def of_repository(self, parts: list[str]) -> None:
        if parts[:2] == ["api", "models"]:
            owner, name, *rest = parts[2:]
        else:
            owner, name, *rest = parts
        self.name = f"{owner}/{name.removesuffix('.git')}"
        repository = self.hub.repositories.get(self.name)
        if repository is None or (repository.private and not self.is_owner):
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        kind = rest[0] if rest else "revision"
        if self.command == "POST":
            return self.write(repository, kind, rest[1:])
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.resolve(revision)
        if commit is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        if kind == "resolve":
            return self.download(repository, commit, "/".join(rest[2:]))
        sizes = self.hub.sizes(repository.commits[commit])
        if kind == "tree":
            return self.answer(body=[{"type": "file", "path": f, "size": n, "oid": f} for f, n in sizes.items()])
        siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        return self.answer(body={"id": self.name, "sha": commit, "siblings": siblings, "tags": []})

    def download(self, repository: Repository, commit: str, file: str) -> None:
        if repository.gated:
            return self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        data = repository.commits[commit].get(file)
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.answer(body=data, ETag=etag, X_Repo_Commit=commit)

    def write(self, repository: Repository, kind: str, rest: list[str]) -> None:
        if not self.is_owner:
            return self.answer(403, {"error": "Forbidden"})
        if kind == "branch":
            is_new = rest[0] not in repository.branches
            repository.branches.setdefault(rest[0], repository.branches["main"])
            return self.answer(200 if is_new else 409, {})
        if kind == "preupload":
            files = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {file: "lfs" if file.endswith("safetensors") else "regular" for file in files}
            listed = [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]
            return self.answer(body={"files": listed})
        if kind == "info":  # of git-lfs
            objects = json.loads(self.body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}
            return self.answer(body={"objects": objects, "transfer": "basic"})
        return self.commit(repository, rest[0])

    def commit(self, repository: Repository, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        name = repository.commit(branch, files, message)
        self.answer(body={"commitUrl": f"{self.hub.url}/{self.name}/commit/{name}", "commitOid": name})


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port of localhost."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
