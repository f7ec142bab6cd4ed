"""Starting torch and transformers without what text generation never uses: about half of the time that they take.

For hfpipe's own process alone: in a program of the user's, other code may want these modules.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

# transformers imports these where they are installed: for assisted decoding, losses of detection models, and images.
_OPTIONAL = ("scipy", "sklearn", "torchvision")
_DYNAMO = "torch._dynamo"
_LIGHT = "torch._dynamo._trace_wrapped_higher_order_op"


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports make many objects and no garbage; looking for it takes a fifth of their time. What stands afterwards is
    never looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave_out_unused() -> None:
    """Call it before torch is imported."""
    for name in _OPTIONAL:
        # To an import, None means that the package is not installed.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    torch = importlib.util.find_spec("torch")
    if torch and torch.submodule_search_locations and "torch" not in sys.modules:
        sys.modules[_DYNAMO] = _Dynamo(f"{torch.submodule_search_locations[0]}/_dynamo")
        sys.meta_path.insert(0, _Submodules())


class _Dynamo(ModuleType):
    """Stands for torch's compiler, a fifth of the start-up, until somebody compiles.

    While nothing is compiled, excluding a function from compilation leaves it as it is. Anything else that is asked for
    puts the real module in its place.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(_DYNAMO)
        # With a path it is a package, and the one light submodule that transformers needs can be imported.
        self.__path__ = [folder]

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return _as_it_is if fn is None else fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(_DYNAMO), name)


class _Submodules(MetaPathFinder):
    """An import hook: a submodule is imported after the real package, which imports most of them itself."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(_DYNAMO + ".") or fullname == _LIGHT:
            return None
        return spec_from_loader(fullname, _Loaded(_real(fullname)))


class _Loaded(Loader):
    """The loader of a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

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


def _as_it_is(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn
