"""Where an export is made: in a folder beside its output, renamed when it is whole. What stands under the output's name
is finished, whatever happened; what a killed export left beside it, the next one removes."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hfpipe.errors import HFPipeError, UsageError
from hfpipe.store import settle, writing

_SUFFIX = ".hfpipe-export"
_MODEL, _TEMPORARY, _LOCK, _OLD, _REPLACED = "model", "tmp", "lock", "old", "replaced"
# A folder with one of these was made by an exporter.
_MARKS = ("hfpipe.json", "openvino_model.xml", "openvino_encoder_model.xml")


@contextmanager
def workplace(output: Path, *, variable: str = "OUTPUT") -> Iterator[Workplace]:
    """A place to work beside `output`, removed in the end. Raises HFPipeError where another export is at work on it;
    `variable` is what the user can set to have it elsewhere."""
    with writing(output.parent, variable=variable):
        made = _make_parents(output)
        try:
            remove_leftovers(output, variable=variable)
            with _locked_folder(output) as work:
                yield Workplace(work, output)
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def _locked_folder(output: Path) -> Iterator[Path]:
    """It has its name only once it is locked: what has the name and no lock is a leftover."""
    work = output.with_name(f".{output.name}.{secrets.token_hex(4)}{_SUFFIX}")
    nameless = work.with_suffix(".new")
    nameless.mkdir()
    try:
        with FileLock(nameless / _LOCK):
            nameless.rename(work)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Workplace:
    """`model` is the empty folder to fill, `temporary` one for what is not to be kept."""

    def __init__(self, work: Path, output: Path) -> None:
        self._work = work
        self._output = output
        self.model = work / _MODEL
        self.temporary = work / _TEMPORARY
        self.model.mkdir()
        self.temporary.mkdir()

    def finish(self) -> None:
        """Give the model its name, in place of an old export. Raises UsageError where something else stands there."""
        settle(self.model)
        # Something else may have come there while the export was made.
        check_replaceable(self._output)
        try:
            if self._output.exists():
                self._output.rename(self._work / _OLD)
            self.model.rename(self._output)
        except BaseException:
            _restore(self._work, self._output)
            raise
        if (self._work / _OLD).exists():
            # While it is being removed it is no export any more, and never comes back.
            (self._work / _OLD).rename(self._work / _REPLACED)


def _restore(work: Path, output: Path) -> None:
    """Bring the old export back where the work ended between the two renames."""
    if (work / _OLD).exists() and not output.exists():
        (work / _OLD).rename(output)


def check_replaceable(output: Path) -> None:
    """Raise UsageError where `output` holds something else than an export: it is not for us to remove."""
    is_export = output.is_dir() and (any((output / name).exists() for name in _MARKS) or not any(output.iterdir()))
    if output.exists() and not is_export:
        raise UsageError(f"{output} is not an export, and stays as it is.", hint="Name another OUTPUT.")


def _make_parents(output: Path) -> list[Path]:
    """Make the folders above `output`; those that were made, the innermost first."""
    missing = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    return missing


def remove_leftovers(output: Path, *, variable: str = "OUTPUT") -> None:
    """Remove what killed exports left, and bring back what one of them was about to replace. Raises HFPipeError where
    another export is at work on `output`."""
    try:
        for leftover in output.parent.glob(f".{_escaped(output.name)}.*{_SUFFIX}"):
            with FileLock(leftover / _LOCK, timeout=0):
                _restore(leftover, output)
                shutil.rmtree(leftover, ignore_errors=True)
    except Timeout as error:
        raise HFPipeError(
            f"Another hfpipe is exporting to {output}.", hint=f"Wait for it, or name another {variable}."
        ) from error


def _escaped(name: str) -> str:
    """As itself in a pattern of glob."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def same_disk_environment(folder: Path) -> dict[str, str]:
    """Where libraries are to put temporary files: the system's place may be too small for a model."""
    return dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
