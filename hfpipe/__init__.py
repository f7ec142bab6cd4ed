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
    from pathlib import Path

    from typing_extensions import Unpack

    from hfpipe.batch import run as batch
    from hfpipe.bench import run as bench
    from hfpipe.export import run as export
    from hfpipe.langchain import HFPipe
    from hfpipe.langchain.base import Options
    from hfpipe.langchain.chat import ChatHFPipe

__version__ = "0.1.0"
__all__ = ["ChatHFPipe", "HFPipe", "HFPipeError", "batch", "bench", "export", "load", "load_chat"]


def load(model: str | Path, **options: Unpack[Options]) -> HFPipe:
    """Load a model as a LangChain LLM: text in, text out.

    As in `hfpipe run`, a prompt is put into the model's chat template where it has one; else the model continues it.
    `template="raw"` gives it the text as it is (`template="qa"` is what `hfpipe run` does with a model without one).

    Args:
        model: A folder, a Hub id, `pypi:PACKAGE`, `smollm2`, or a GGUF file.
        options: Of loading (device, device_map, backend, dtype, ov_config, model_kwargs, batch_size, ...), of
            generation (max_tokens, temperature, top_p, stop, seed, ...), and of the prompt (template, system).

    Returns:
        The model, loaded: a LangChain Runnable.

    Raises:
        HFPipeError: Its message says what is wrong, its `hint` what to do. A UsageError for an option that is unknown
            or has a wrong value, a ModelError for a model that cannot be found or read.

    Example:
        >>> import hfpipe
        >>> llm = hfpipe.load("smollm2", max_tokens=50)
        >>> answer = "".join(llm.stream("What is EEG?"))
    """
    from hfpipe.langchain import HFPipe

    return HFPipe(model, **options)


def load_chat(model: str | Path, **options: Unpack[Options]) -> ChatHFPipe:
    """Load a model that has a chat template as a LangChain chat model: messages in, a message out.

    Args:
        model: A folder, a Hub id, `pypi:PACKAGE`, `smollm2`, or a GGUF file.
        options: Those of `load`.

    Returns:
        The model, loaded: a LangChain chat model.

    Raises:
        HFPipeError: As `load`. A TemplateError, at the first call, for a model without a chat template.

    Example:
        >>> import hfpipe
        >>> chat = hfpipe.load_chat("smollm2", max_tokens=50)
        >>> answer = chat.invoke("What is EEG?").content
    """
    from hfpipe.langchain.chat import ChatHFPipe

    return ChatHFPipe(model, **options)


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
