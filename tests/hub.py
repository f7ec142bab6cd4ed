"""A Hub on this machine: as much of huggingface.co's HTTP as huggingface_hub needs to list and download models.

    with LoopbackHub({"gpt2": folder}) as hub:
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(empty), "HF_HUB_OFFLINE": "0"})
        assert hub.paths("GET") == [...]

huggingface_hub reads its variables when it is imported: `settings` reads them anew in this process.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import close_session, constants
from typing_extensions import Self

from tests.loopback import Loopback


@contextmanager
def settings(**environment: str) -> Iterator[None]:
    """huggingface_hub, in this process, under these variables and none of this machine's proxies and certificates."""
    before = dict(os.environ)
    for name in before:
        if name.upper().endswith("_PROXY") or name.startswith("SSL_CERT_"):
            del os.environ[name]
    os.environ.update(environment)
    try:
        importlib.reload(constants)
        close_session()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        importlib.reload(constants)
        close_session()


_API = re.compile(r"/api/models/(?P<id>.+?)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<id>.+?)/tree/(?P<revision>[^/]+)(?P<under>/.+)?")
_FILE = re.compile(r"/(?P<id>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Request:
    """One request as it came; `range` is its Range header, `token` what followed Bearer, `agent` its User-Agent."""

    method: str
    path: str
    range: str | None = None
    token: str | None = None
    agent: str = ""


@dataclass
class LoopbackHub(Loopback):
    """Serves the files of `repos` (id -> folder), at the branch `main` and at the commit that `commit` gives.

    `refuse` maps an id to (status, X-Error-Code), for example (403, "GatedRepo"), or to (200, page). Each GET of a file
    of more than 1,000 bytes takes one number off `cuts`: so many bytes are sent before the connection is closed.
    Without `ranges` the Range header counts for nothing. With `pause_s` a file waits so long after its first half.
    Weights are redirected to the server `store`, as the Hub does, where there is one.
    """

    repos: Mapping[str, Path]
    refuse: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    pause_s: float = 0.0
    store: str | None = None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.resume = threading.Event()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.resume.set()
        super().__exit__(*error)

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return self.address

    def commit(self, repo: str) -> str:
        """The repo's only commit: 40 hexadecimal digits over its name and its files."""
        digest = hashlib.sha1(repo.encode())
        for name, path in self.files(repo):
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, repo: str) -> Iterator[tuple[str, Path]]:
        root = self.repos[repo]
        for path in sorted(root.rglob("*")):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path

    def paths(self, method: str) -> list[str]:
        """What was asked for with `method`: the API's path, or the name of a file."""
        named = [(request, _FILE.fullmatch(request.path)) for request in self.requests if request.method == method]
        return [match["file"] if match else request.path for request, match in named]


class _Handler(BaseHTTPRequestHandler):
    owner: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        agent = self.headers.get("User-Agent", "")
        self.owner.requests.append(Request(self.command, path, self.headers.get("Range"), token, agent))
        tree = _TREE.fullmatch(path)
        match = tree or _API.fullmatch(path) or _FILE.fullmatch(path)
        if not match or match["id"] not in {*self.owner.repos, *self.owner.refuse}:
            return self._refuse(404, "RepoNotFound")
        if match["id"] in self.owner.refuse:
            return self._refuse(*self.owner.refuse[match["id"]])
        if match["revision"] not in {None, "main", self.owner.commit(match["id"])}:
            return self._refuse(404, "RevisionNotFound")
        if tree:
            return self._tree(match["id"], (match["under"] or "/")[1:])
        return self._file(**match.groupdict()) if "file" in match.groupdict() else self._info(match["id"])

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, code.encode() if status == 200 else b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _info(self, repo: str) -> None:
        siblings = [{"rfilename": name, "size": path.stat().st_size} for name, path in self.owner.files(repo)]
        info = {"id": repo, "modelId": repo, "sha": self.owner.commit(repo), "siblings": siblings}
        info |= {"pipeline_tag": "text-generation", "library_name": "transformers", "tags": ["transformers"]}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _tree(self, repo: str, under: str) -> None:
        """All files below a folder."""
        files = [(name, path) for name, path in self.owner.files(repo) if name.startswith(under)]
        if not files:
            return self._refuse(404, "EntryNotFound")
        listed = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": name} for name, path in files]
        return self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def _file(self, id: str, revision: str, file: str) -> None:
        path = dict(self.owner.files(id)).get(file)
        if path is None:
            return self._refuse(404, "EntryNotFound")
        data = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.owner.commit(id),
            "Accept-Ranges": "bytes",
        }
        if self.owner.store and file.endswith(".safetensors"):
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            return self._send(302, b"", {**headers, **linked, "Location": self.owner.store + self.path})
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted or not self.owner.ranges:
            return self._send(200, data, headers)
        start = int(wanted[1])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(206, data[start:], headers)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.owner.cuts and len(data) > 1000:
            self.wfile.write(data[: self.owner.cuts.pop(0)])
            self.close_connection = True
            return
        half = len(data) // 2
        self.wfile.write(data[:half])
        if half > 500:
            self.owner.resume.wait(self.owner.pause_s)
        with suppress(ConnectionError):
            self.wfile.write(data[half:])


LoopbackHub.handler = _Handler
