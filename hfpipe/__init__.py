"""hfpipe runs Hugging Face language models on your own machine.

import hfpipe
llm = hfpipe.load("smollm2", max_tokens=50)
print(llm.invoke("What is EEG?"))

`load` is HFPipe, and `load_chat` is ChatHFPipe.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hfpipe.errors import HFPipeError

if TYPE_CHECKING:
    from hfpipe.batch import run as batch
    from hfpipe.bench import run as bench
    from hfpipe.export import run as export
    from hfpipe.langchain import HFPipe
    from hfpipe.langchain.chat import ChatHFPipe

    load, load_chat = HFPipe, ChatHFPipe

__version__ = "0.1.0"
__all__ = ["ChatHFPipe", "HFPipe", "HFPipeError", "batch", "bench", "export", "load", "load_chat"]


# Names that are imported when they are first used, which takes long. A use case is the package of its name.
_LATE = {
    "HFPipe": "hfpipe.langchain.llm:HFPipe",
    "load": "hfpipe.langchain.llm:HFPipe",
    "ChatHFPipe": "hfpipe.langchain.chat:ChatHFPipe",
    "load_chat": "hfpipe.langchain.chat:ChatHFPipe",
    "batch": "hfpipe.batch",
    "bench": "hfpipe.bench",
    "export": "hfpipe.export",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'hfpipe' has no attribute {name!r}")
    module, _, attribute = _LATE[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _UseCase(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.run(*args, **options)


class _Package(ModuleType):
    """hfpipe itself. The import of a part of a use case makes its package an attribute, which must be its function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _LATE.get(name) == f"hfpipe.{name}" and isinstance(value, ModuleType):
            value.__class__ = _UseCase
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
