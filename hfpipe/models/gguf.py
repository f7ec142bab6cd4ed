"""A GGUF file -> the transformers folder that it was converted to, once."""

from __future__ import annotations

from pathlib import Path

from hfpipe import store
from hfpipe.errors import ModelError
from hfpipe.types import Reporter

# The number counts up when the conversion changes: what an older one made is then made anew.
KIND = "gguf-1"


def converted(file: Path, reporter: Reporter) -> Path:
    """The transformers folder of `file`, an absolute path.

    Its key in the cache is the sha256 of the content, so a copy or a renamed file is not converted again.
    """
    _require_magic(file)
    digest = store.digest(file, reporter=reporter)
    if folder := store.cached(KIND, digest):
        return folder
    reporter.note(f"Converting {file.name}: this happens once.")

    def make(folder: Path) -> None:
        convert(file, folder, reporter)

    return store.build_once(KIND, digest, make, model=file.name, form="transformers", reporter=reporter)


def convert(file: Path, folder: Path, reporter: Reporter) -> None:
    """Convert `file` into the empty `folder`, in a child process. Both are absolute."""
    from hfpipe.process import run_child

    _require_magic(file)
    arguments = {"file": str(file), "folder": str(folder)}
    run_child("hfpipe.models.gguf_worker", arguments, what=f"The conversion of {file.name}", reporter=reporter)


def _require_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise ModelError(f"{file} is not a GGUF file.", hint="It may be a half-finished download: fetch it again.")
