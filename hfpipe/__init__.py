"""hfpipe runs Hugging Face language models on your own machine.

import hfpipe
llm = hfpipe.load("smollm2", max_tokens=50)
print(llm.invoke("What is EEG?"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hfpipe.errors import HFPipeError

if TYPE_CHECKING:
    from hfpipe.export import run as export
    from hfpipe.langchain import HFPipe
    from hfpipe.langchain.chat import ChatHFPipe

__version__ = "0.1.0"
__all__ = ["ChatHFPipe", "HFPipe", "HFPipeError", "export", "load", "load_chat"]


def load(model: str, **options: Any) -> HFPipe:
    """Load a model as a LangChain LLM.

    `model` is a folder, a Hub id, `pypi:PACKAGE`, `smollm2` or a GGUF file. `options` are those of loading (device,
    device_map, backend, dtype, ov_config, model_kwargs, batch_size, ...) and of generation (max_tokens, temperature,
    stop, seed, ...). Raises an HFPipeError that says what is wrong and, in `hint`, what to do.
    """
    from hfpipe.langchain import HFPipe

    return HFPipe.load(model, **options)


def load_chat(model: str, **options: Any) -> ChatHFPipe:
    """Load a model that has a chat template as a LangChain chat model. Arguments and errors are those of `load`."""
    from hfpipe.langchain.chat import ChatHFPipe

    return ChatHFPipe.load(model, **options)


# Names that are imported when they are first used: these modules take long. A use case is the package of its name.
_LATE = {
    "HFPipe": "hfpipe.langchain",
    "ChatHFPipe": "hfpipe.langchain.chat",
    "batch": "hfpipe.batch",
    "bench": "hfpipe.bench",
    "export": "hfpipe.export",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'hfpipe' has no attribute {name!r}")
    module = importlib.import_module(_LATE[name])
    return module if module.__name__ == f"hfpipe.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
