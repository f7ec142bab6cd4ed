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
from typing import TYPE_CHECKING, Any, ClassVar

from hfpipe import backends
from hfpipe.process import quiet_environment
from hfpipe.types import CHOSEN

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

# Imported with the first prompt otherwise, when there are no weights to wait for.
_OF_AN_ANSWER = ("hfpipe.text.chat", "langchain_core.tracers.context")


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
    # Code of others may use what hfpipe does not.
    if not loading.trust_remote_code and loading.backend in (*backends.BACKENDS, *CHOSEN):
        leave_out_unused()
    # Imports make many objects and no garbage: looking for it takes a fifth of their time (0.6 s of torch's 3.6).
    gc.disable()
    try:
        with terminal.waiting(f"Finding {model}"):
            from hfpipe.generator import find_model, load_in_thread

            found = find_model(model, loading, terminal)
        with terminal.waiting(f"Starting {found.choice.name}"):
            backends.engine(found.choice.name)
        with terminal.waiting(f"Loading {found.source.reference}"):
            loaded = load_in_thread(found, terminal)
            from hfpipe.langchain import HFPipe

            # A server fills the chat template itself.
            for name in _OF_AN_ANSWER if found.choice.name != "endpoint" else ():
                importlib.import_module(name)
            return HFPipe(model=found.source.reference, generator=loaded(), **asdict(generation))
    finally:
        # What exists now is never looked at again.
        gc.freeze()
        gc.enable()


def leave_out_unused() -> None:
    """Start libraries without what text generation never uses. Call it before they are imported."""
    for name in _OPTIONAL:
        # To an import, None means that the package is not installed.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    for kind in (_Compiler, _Converter, _Tracing):
        if kind.parts[0] not in sys.modules:
            sys.modules.update({name: kind(name) for name in kind.parts})


class _Late(ModuleType):
    """In the place of a part of a library, until more is asked of it than the class has: the `parts` of a class are
    then imported."""

    parts: ClassVar[tuple[str, ...]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._imported(), name)

    def _imported(self) -> ModuleType:
        for part in self.parts:
            if isinstance(sys.modules.get(part), _Late):
                del sys.modules[part]
        return importlib.import_module(self.__name__)


class _Compiler(_Late):
    """torch's compiler, and what transformers imports of it: 0.6 s (tried with torch 2.14). While nothing is compiled,
    to exclude a function from compilation leaves it as it is."""

    parts = ("torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op")

    def __getattr__(self, name: str) -> Any:
        # By way of __path__ a submodule is imported.
        if (self.__name__, name) == (self.parts[0], "__path__"):
            return self._imported().__path__
        return super().__getattr__(name)

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return self.allow_in_graph if fn is None else fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    def TransformGetItemToIndex(self) -> Any:
        return self._imported().TransformGetItemToIndex()


class _Converter(_Late):
    """What makes OpenVINO models of other programs' files: 0.05 s of OpenVINO's 0.14 (tried with 2026.4)."""

    parts = ("openvino.tools.ovc",)

    def convert_model(self, *arguments: Any, **options: Any) -> Any:
        return self._imported().convert_model(*arguments, **options)


class _Tracing(_Late):
    """LangSmith: LangChain imports it to ask whether it traces, which takes three quarters of the import of LangChain
    (tried with langchain-core 1.8 and langsmith 0.15)."""

    parts = tuple(f"langsmith.{part}" for part in ("address", "client", "run_helpers", "run_trees", "utils"))
    RunTree = Client = type("Untraced", (), {})

    def tracing_is_enabled(self) -> bool:
        return False

    def get_tracing_context(self) -> dict[str, Any]:
        return dict.fromkeys(("parent", "project_name", "tags", "metadata", "enabled", "client"))

    def _set_tracing_context(self, context: object) -> None:
        """Nothing is traced in it."""
