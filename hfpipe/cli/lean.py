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
from types import ModuleType
from typing import Any

# transformers imports these where they are installed: for assisted decoding, losses of detection models, and images.
_OPTIONAL = ("scipy", "sklearn", "torchvision")


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
        sys.modules["torch._dynamo"] = _Dynamo(f"{torch.submodule_search_locations[0]}/_dynamo")


class _Dynamo(ModuleType):
    """Stands for torch's compiler, a fifth of the start-up, until somebody compiles.

    While nothing is compiled, excluding a function from compilation leaves it as it is. Anything else that is asked for
    loads the real module.
    """

    def __init__(self, folder: str) -> None:
        super().__init__("torch._dynamo")
        # With a path it is a package, and its light submodules can be imported.
        self.__path__ = [folder]

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return _as_it_is if fn is None else fn

    def allow_in_graph(self, fn: Any) -> Any:
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _as_it_is(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn
