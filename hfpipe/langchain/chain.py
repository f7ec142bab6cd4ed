"""`prompt | llm`: a template, a model, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import Runnable, RunnableLambda
from typing_extensions import override

from hfpipe.langchain.llm import HFPipe
from hfpipe.text.templates import PromptTemplate


class Recorder(BaseCallbackHandler):
    """Keeps what passes through a chain beside the text: the prompt that the model gets, and generation_info."""

    raise_error = True

    def __init__(self, on_prompt: Callable[[str], None] | None = None) -> None:
        self.info: dict[str, Any] = {}
        self._on_prompt = on_prompt

    @override
    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        if self._on_prompt:
            self._on_prompt(prompts[0])

    @override
    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.info = response.generations[0][0].generation_info or {}


def chain(llm: HFPipe, template: PromptTemplate) -> Runnable[dict[str, Any], str]:
    """`prompt | llm`, from the template's variables to the answer."""

    def fill(variables: dict[str, Any]) -> StringPromptValue:
        return StringPromptValue(text=template.fill(variables))

    return RunnableLambda(fill) | llm.bind(add_special_tokens=template.add_special_tokens)
