"""How a command loads its model: in the order that puts the first token soonest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from hfpipe.cli.lean import leave_out_unused, without_garbage_collection

if TYPE_CHECKING:
    from hfpipe.cli.terminal import Terminal
    from hfpipe.generator import Found
    from hfpipe.langchain import HFPipe
    from hfpipe.types import GenerationOptions, LoadOptions

_T = TypeVar("_T")


def load_pipe(model: str, loading: LoadOptions, generation: GenerationOptions, talk: Terminal) -> HFPipe:
    """Find the model and load it."""
    return load_found(find(model, loading, talk), loading, generation, talk)


def find(model: str, loading: LoadOptions, talk: Terminal) -> Found:
    """Everything before the weights, the import of the engine included."""
    if not loading.trust_remote_code:
        leave_out_unused()
    with talk.waiting(f"Finding {model}"), without_garbage_collection():
        from hfpipe.generator import find_model

        return find_model(model, loading, talk)


def load_found(found: Found, loading: LoadOptions, generation: GenerationOptions, talk: Terminal) -> HFPipe:
    """Have a thread read the weights; meanwhile import LangChain, which takes as long.

    All at once would be slower: Python imports in one thread at a time.
    """
    model = found.source.reference
    with talk.waiting(f"Loading {model}"), without_garbage_collection():
        from hfpipe.generator import load_generator

        generator = in_background(lambda: load_generator(found, loading, talk))
        from hfpipe.langchain import HFPipe

        return HFPipe(model=model, generator=generator.result(), **asdict(generation))


def in_background(work: Callable[[], _T]) -> Future[_T]:
    """A daemon thread: Ctrl-C must not wait for it."""
    future: Future[_T] = Future()

    def run_it() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run_it, daemon=True).start()
    return future
