"""The files that a benchmark leaves: a report, pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hfpipe.batch.disk import replace_file
from hfpipe.errors import HFPipeError, UsageError, is_disk_full


def check_output(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError for an unsupported suffix, and for a place where nothing can be written."""
    if path.suffix.lower() not in suffixes:
        supported = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UsageError(f"{option}: unsupported file type {path.suffix or path.name} (use {supported}).")
    check_place(path)


def check_place(path: Path) -> None:
    """Raise UsageError where `path` could not be written: that is to be known before hours of measuring."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"Cannot write {path}: the folder {path.parent} does not exist.", hint="Create it first.")
    if path.is_dir():
        raise UsageError(f"Cannot write {path}: it is a folder.", hint="Choose another file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.", hint="Choose another file.") from error


def write_file(path: Path, data: bytes) -> None:
    """Beside its place and renamed into it. Raises HFPipeError, and leaves what stood there, where that fails."""
    try:
        replace_file(path, data)
    except OSError as error:
        if is_disk_full(error):
            raise HFPipeError(
                f"The disk of {path} is full.", hint="Free some space, or choose another disk."
            ) from error
        raise HFPipeError(f"Cannot write {path}: {error.strerror or error}.") from error
