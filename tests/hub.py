"""A Hub on this machine: as much of huggingface.co's HTTP as huggingface_hub needs to list, download and upload models.

    with LoopbackHub({"gpt2": folder}) as hub:
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(empty), "HF_HUB_OFFLINE": "0"})
        assert hub.paths("GET") == [...]

huggingface_hub reads its variables when it is imported: `settings` reads them anew in this process.
"""

from __future__ import annotations

import base64
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
_UPLOAD = re.compile(r"/api/models/(?P<id>.+?)/(?P<step>preupload|commit)/main")
_BATCH = re.compile(r"/(?P<id>.+?)\.git/info/lfs/objects/batch")
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

    What is uploaded comes into `uploads`, a folder for repositories that are created, by one commit; .bin files come by
    Git LFS. `refuse` also maps the step of an upload ("whoami", "create", "preupload", "batch", "put", "commit").
    """

    repos: dict[str, Path]
    refuse: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    pause_s: float = 0.0
    store: str | None = None
    uploads: Path | None = None
    private: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.resume = threading.Event()
        self.objects: dict[str, bytes] = {}
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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._logged()
        if path == "/api/validate-yaml":
            return self._json({})
        if path == "/api/repos/create":
            return None if self._is_refused("create") else self._create(json.loads(body))
        upload, batch = _UPLOAD.fullmatch(path), _BATCH.fullmatch(path)
        step = upload["step"] if upload else "batch"
        if self._is_refused(step):
            return None
        if batch:
            return self._batch(json.loads(body))
        if upload is None or upload["id"] not in self.owner.repos:
            return self._refuse(404, "RepoNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        return self._preupload(lines[0]) if step == "preupload" else self._commit(upload["id"], lines)

    def do_PUT(self) -> None:
        oid = self._logged().rpartition("/")[2]
        if self._is_refused("put"):
            # As a connection is cut: the file is not read.
            self.close_connection = True
            return
        self.owner.objects[oid] = self._sent()
        self._send(200, b"", {})

    def _sent(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        blocks = []
        while size := int(self.rfile.readline(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _is_refused(self, step: str) -> bool:
        if step in self.owner.refuse:
            self._refuse(*self.owner.refuse[step])
        return step in self.owner.refuse

    def _json(self, data: object) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _create(self, asked: dict[str, str]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        folder = self.owner.uploads / repo
        folder.mkdir(parents=True)
        self.owner.repos[repo] = folder
        if asked.get("visibility") == "private":
            self.owner.private.add(repo)
        self._json({"url": f"{self.owner.url}/{repo}"})

    def _preupload(self, asked: dict[str, list[dict[str, str]]]) -> None:
        modes = {file["path"]: "lfs" if file["path"].endswith(".bin") else "regular" for file in asked["files"]}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self._json({"files": files})

    def _batch(self, asked: dict[str, list[dict[str, str]]]) -> None:
        objects = [dict(one) for one in asked["objects"]]
        for one in objects:
            if one["oid"] not in self.owner.objects:
                one["actions"] = {"upload": {"href": f"{self.owner.url}/objects/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines[1:]:
            file, value = self.owner.repos[repo] / line["value"]["path"], line["value"]
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "deletedFile":
                file.unlink()
            else:
                content = self.owner.objects[value["oid"]] if "oid" in value else base64.b64decode(value["content"])
                file.write_bytes(content)
        commit = self.owner.commit(repo)
        url = f"{self.owner.url}/{repo}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _logged(self) -> str:
        path = unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        agent = self.headers.get("User-Agent", "")
        self.owner.requests.append(Request(self.command, path, self.headers.get("Range"), token, agent))
        return path

    def _answer(self) -> None:
        path = self._logged()
        if path == "/api/whoami-v2":
            return None if self._is_refused("whoami") else self._json({"name": "me", "type": "user"})
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
        info |= {"private": repo in self.owner.private}
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
