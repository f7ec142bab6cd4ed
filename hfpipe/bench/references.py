"""What source models say of a text: scored once in a run, for the exports that it makes and for the quality."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from typing_extensions import Self

from hfpipe.errors import HFPipeError
from hfpipe.quality import Reference, make_reference
from hfpipe.store import cache_root, writing
from hfpipe.types import LoadOptions, ModelSource, Reporter

_Texts = Mapping[str, str] | None


class References:
    """Each is made at its first call, kept on disk, and removed where the `with` ends: it may be of gigabytes."""

    def __init__(self, loading: LoadOptions, reporter: Reporter, *, verbose: bool = False) -> None:
        self._loading = loading
        self._reporter = reporter
        self._verbose = verbose
        self._made: dict[object, Reference | HFPipeError] = {}
        self._folders = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folders.close()

    def of(self, origin: ModelSource, texts: _Texts = None) -> Reference:
        """What a transformers model says of `texts` by kind, None for the held-out ones.

        Raises HFPipeError where it cannot be scored, which is tried once.
        """
        key = origin.folder, None if texts is None else tuple(texts.items())
        if key not in self._made:
            self._made[key] = self._make(origin, texts)
        made = self._made[key]
        if isinstance(made, HFPipeError):
            raise made
        return made

    def _make(self, origin: ModelSource, texts: _Texts) -> Reference | HFPipeError:
        self._reporter.stage(f"Scoring {origin.reference}")
        try:
            # What a failed one wrote goes at once: it may be what filled the disk.
            with ExitStack() as unfinished:
                reference = make_reference(
                    origin,
                    unfinished.enter_context(_temporary_folder()),
                    texts=texts,
                    trust_remote_code=self._loading.trust_remote_code,
                    allow_pickle=self._loading.allow_pickle,
                    reporter=self._reporter,
                    verbose=self._verbose,
                )
                self._folders.enter_context(unfinished.pop_all())
        except HFPipeError as error:
            return error
        return reference


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A place for a reference. What a killed run left is removed."""
    place = cache_root() / "references"
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for folder in place.glob("*.tmp"):
            with suppress(Timeout), FileLock(place / f".{folder.name}.lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        folder = place / f"{secrets.token_hex(8)}.tmp"
        lock = FileLock(place / f".{folder.name}.lock")
        lock.acquire()
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
