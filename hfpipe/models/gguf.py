"""A GGUF file -> the transformers folder that it was converted to, once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hfpipe.errors import ModelError
from hfpipe.store import build_once, cached
from hfpipe.types import Reporter

# The number counts up when the conversion changes: what an older one made is then made anew.
KIND = "gguf-1"

_DIGESTS = "gguf-digests"
_BLOCK = 1 << 22


def converted(file: Path, reporter: Reporter) -> Path:
    """The transformers folder of `file`, an absolute path.

    Its key in the cache is the sha256 of the content, so a copy or a renamed file is not converted again. Reading
    gigabytes each time would cost seconds: the digest is remembered by path, size and time of change.
    """
    digest = _digest(file, reporter)
    if folder := cached(KIND, digest):
        return folder
    reporter.note(f"Converting {file.name}: this happens once.")
    return build_once(KIND, digest, lambda folder: convert(file, folder, reporter), reporter=reporter)


def convert(file: Path, folder: Path, reporter: Reporter) -> None:
    """Convert `file` into the empty `folder`, in a child process. Both are absolute."""
    from hfpipe.process import run_child

    _require_magic(file)
    arguments = {"file": str(file), "folder": str(folder)}
    run_child("hfpipe.models.gguf_worker", arguments, what=f"The conversion of {file.name}", reporter=reporter)


def _digest(file: Path, reporter: Reporter) -> str:
    status = file.stat()
    identity = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"

    def make(folder: Path) -> None:
        _require_magic(file)
        (folder / "sha256").write_text(sha256(file, f"Reading {file.name}", reporter))

    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    return (build_once(_DIGESTS, key, make, reporter=reporter) / "sha256").read_text()


def sha256(file: Path, task: str, reporter: Reporter) -> str:
    """The digest of the content, as 64 hexadecimal digits."""
    total, done, digest = file.stat().st_size, 0, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            reporter.progress(task, done, total)
    return digest.hexdigest()


def _require_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise ModelError(f"{file} is not a GGUF file.", hint="It may be a half-finished download: fetch it again.")
