"""How a command starts: libraries that are silent and send nothing, and the order that puts the first token soonest.

For hfpipe's own process alone: a program of the user's may want what is changed or left out here.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from hfpipe.process import telemetry_off_environment

if TYPE_CHECKING:
    from hfpipe.cli.terminal import Terminal
    from hfpipe.generator import Found
    from hfpipe.langchain import HFPipe
    from hfpipe.types import GenerationOptions, LoadOptions

_T = TypeVar("_T")

_NO_NOISE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "HF_HUB_VERBOSITY": "critical",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}
# Variables by which LangChain and LangSmith are told to send prompts somewhere, or to import more.
_TRACING = ("LANGCHAIN_", "LANGSMITH_")
# transformers imports these where they are installed: for assisted decoding, losses of detection models, and images.
# Of 3.0 s to a torch model's answer, without this: scipy and sklearn 0.8 s more, torchvision 0.7 s.
_OPTIONAL = ("scipy", "sklearn", "torchvision")
# torch's compiler: 0.5 s more without the stand-in (torch 2.14).
_DYNAMO = "torch._dynamo"
_LIGHT = "torch._dynamo._trace_wrapped_higher_order_op"


def silence(*, verbose: bool) -> None:
    """Have libraries say and send nothing. Call it before they are imported: most read their environment then. Of the
    variables that only make them quiet, what the user has set stays."""
    os.environ.update(telemetry_off_environment())
    for name in [name for name in os.environ if name.startswith(_TRACING)]:
        del os.environ[name]
    if verbose:
        return
    for name, value in _NO_NOISE.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


def load_pipe(model: str, loading: LoadOptions, generation: GenerationOptions, terminal: Terminal) -> HFPipe:
    """Find the model and load it."""
    return load_found(find(model, loading, terminal), loading, generation, terminal)


def find(model: str, loading: LoadOptions, terminal: Terminal) -> Found:
    """Everything before the weights, the import of the engine included."""
    if not loading.trust_remote_code:
        leave_out_unused()
    with terminal.waiting(f"Finding {model}"), without_garbage_collection():
        from hfpipe.generator import find_model

        found = find_model(model, loading, terminal)
    with terminal.waiting(f"Starting {found.choice.name}"), without_garbage_collection():
        from hfpipe import backends

        backends.engine(found.choice.name)
    return found


def load_found(found: Found, loading: LoadOptions, generation: GenerationOptions, terminal: Terminal) -> HFPipe:
    """Have a thread read the weights; meanwhile import LangChain, which takes as long.

    All at once would be slower: Python imports in one thread at a time.
    """
    model = found.source.reference
    with terminal.waiting(f"Loading {model}"), without_garbage_collection():
        from hfpipe.generator import load_generator

        generator = in_background(lambda: load_generator(found, loading, terminal))
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


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports make many objects and no garbage: looking for it takes a fifth of their time (0.6 s of torch's 3.6).
    What exists afterwards is never looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_out_unused() -> None:
    """Start torch and transformers without what text generation never uses. Call it before torch is imported."""
    for name in _OPTIONAL:
        # To an import, None means that the package is not installed.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    torch = importlib.util.find_spec("torch")
    if torch is None or "torch" in sys.modules:
        return
    folder = Path(*(torch.submodule_search_locations or ()), _DYNAMO.removeprefix("torch."))
    if folder.is_dir():
        sys.modules[_DYNAMO] = _Dynamo(str(folder))
        sys.meta_path.insert(0, _Submodules())


class _Dynamo(ModuleType):
    """In the place of torch's compiler until somebody compiles.

    While nothing is compiled, excluding a function from compilation leaves it as it is. Anything else that is asked for
    puts the real module in its place.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(_DYNAMO)
        # With a path it is a package, and the one light submodule that transformers needs can be imported.
        self.__path__ = [folder]

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return _unchanged if fn is None else fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(_DYNAMO), name)


class _Submodules(MetaPathFinder, Loader):
    """An import hook: a submodule is imported after the real package, which imports most of them itself."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(_DYNAMO + ".") or fullname == _LIGHT:
            return None
        self._module = _real(fullname)
        self._spec = self._module.__spec__
        return spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _real(name: str) -> ModuleType:
    """The module `name` once the stand-in has gone."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Submodules)]
    if isinstance(sys.modules[_DYNAMO], _Dynamo):
        del sys.modules[_DYNAMO]
    return importlib.import_module(name)


def _unchanged(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn
