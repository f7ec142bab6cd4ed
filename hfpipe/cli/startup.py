"""How a command starts: libraries that are silent and send nothing, and the order that puts the first token soonest.

For hfpipe's own process alone: a program of the user's may want what is changed or left out here.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hfpipe.process import quiet_environment

if TYPE_CHECKING:
    from hfpipe.cli.terminal import Terminal
    from hfpipe.langchain import HFPipe
    from hfpipe.types import GenerationOptions, LoadOptions

# Variables by which LangChain and LangSmith are told to send prompts somewhere, or to import more.
_TRACING = ("LANGCHAIN_", "LANGSMITH_")
# transformers imports these where they are installed: for assisted decoding, losses of detection models, and images.
# Of 3.0 s to a torch model's answer, without this: scipy and sklearn 0.8 s more, torchvision 0.7 s.
# httpx imports its own command line, and Rich for it: 0.05 s.
_OPTIONAL = ("scipy", "sklearn", "torchvision", "httpx._main")
# torch's compiler, and what transformers imports of it: 0.6 s more without the stand-ins (tried with torch 2.14).
_COMPILER = ("torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op")


def _others() -> int:
    """The threads of other processes that run at this moment; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1
    return 0


# Seen twice, some milliseconds apart, another process is at work.
_AT_IMPORT = _others()


def silence(*, verbose: bool) -> None:
    """Have libraries say and send nothing, and share a busy machine. Call it before they are imported: most read their
    environment then."""
    os.environ.update(quiet_environment(verbose=verbose))
    others = min(_AT_IMPORT, _others())
    if others > 0 and others + len(os.sched_getaffinity(0)) > (os.cpu_count() or 1):
        # torch's threads spin while they wait for each other, which is faster only while each has a processor: on two
        # cores, alone 48 tokens/s against 30, beside one other process 12 against 33.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in [name for name in os.environ if name.startswith(_TRACING)]:
        del os.environ[name]
    if not verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)


def load_pipe(model: str, loading: LoadOptions, generation: GenerationOptions, terminal: Terminal) -> HFPipe:
    """Find the model, import the engine, and have a thread read the weights; meanwhile LangChain is imported, which
    takes as long. All at once would be slower: Python imports in one thread at a time."""
    if not loading.trust_remote_code:
        leave_out_unused()
    # Imports make many objects and no garbage: looking for it takes a fifth of their time (0.6 s of torch's 3.6).
    gc.disable()
    try:
        with terminal.waiting(f"Finding {model}"):
            from hfpipe.generator import find_model, load_in_thread

            found = find_model(model, loading, terminal)
        with terminal.waiting(f"Starting {found.choice.name}"):
            from hfpipe import backends

            backends.engine(found.choice.name)
        with terminal.waiting(f"Loading {found.source.reference}"):
            generator = load_in_thread(found, loading, terminal)
            from hfpipe.langchain import HFPipe

            return HFPipe(model=found.source.reference, generator=generator.result(), **asdict(generation))
    finally:
        # What exists now is never looked at again.
        gc.freeze()
        gc.enable()


def leave_out_unused() -> None:
    """Start torch and transformers without what text generation never uses. Call it before torch is imported."""
    for name in _OPTIONAL:
        # To an import, None means that the package is not installed.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    if _COMPILER[0] not in sys.modules:
        sys.modules.update({name: _Late(name) for name in _COMPILER})


class _Late(ModuleType):
    """In the place of a part of torch's compiler until more is asked of it than this, which is so while nothing is
    compiled: to exclude a function from compilation leaves it as it is. A submodule is imported by way of __path__."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (_COMPILER[0], "__path__"):
            raise AttributeError(name)
        for part in _COMPILER:
            if isinstance(sys.modules.get(part), _Late):
                del sys.modules[part]
        return getattr(importlib.import_module(self.__name__), name)

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return self.allow_in_graph if fn is None else fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    def TransformGetItemToIndex(self) -> Any:
        return self.__getattr__("TransformGetItemToIndex")()
