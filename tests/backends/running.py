"""What the tests of engines share: how they load, and what their streams come to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfpipe import backends, models
from hfpipe.backends.base import Backend
from hfpipe.errors import HFPipeError
from hfpipe.types import LoadOptions, Reporter, TokenRequest


def load(name: str, folder: Path, reporter: Reporter | None = None, **options: Any) -> Backend:
    source = models.resolve(str(folder), allow_pickle=bool(options.get("allow_pickle")))
    return backends.load(name, source, LoadOptions(**options), reporter)


def answers(backend: Backend, requests: Iterable[TokenRequest | None]) -> dict[str, list[int] | HFPipeError]:
    """By request its token ids, or the error that ended it."""
    found: dict[str, list[int]] = {}
    errors: dict[str, HFPipeError] = {}
    for event in backend.stream(requests):
        found.setdefault(event.request_id, []).extend(event.token_ids)
        if event.error:
            errors[event.request_id] = event.error
    assert not getattr(backend, "_active", None)
    return {**found, **errors}


def failures(answers: dict[str, list[int] | HFPipeError]) -> dict[str, type]:
    """The classes of the errors, which are taken out of `answers`."""
    failed = [name for name, answer in answers.items() if isinstance(answer, HFPipeError)]
    return {name: type(answers.pop(name)) for name in failed}
