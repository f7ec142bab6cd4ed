"""The files that a benchmark leaves: a report, pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hfpipe.batch.disk import replace_file
from hfpipe.errors import HFPipeError, UsageError, is_disk_full


def check_place(path: Path) -> None:
    """Raise UsageError where `path` could not be written: that is to be known before hours of measuring."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{path} has no folder: {path.parent} is none.", hint="Make it first.")
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder.", hint="Name another file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", hint="Name another file.") from error


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
