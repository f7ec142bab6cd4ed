"""`prompt | llm`: a template, a model, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import Runnable, RunnableLambda
from typing_extensions import override

from hfpipe.errors import TemplateError, UsageError
from hfpipe.langchain.llm import HFPipe
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import Template, parse_template


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


def chain(llm: HFPipe, template: Template | None, system: str | None) -> Runnable[dict[str, Any], str]:
    """`prompt | llm`, from the template's variables to the answer. Without a template: chat where the model has a chat
    template, else qa. Raises UsageError for `system` where it has no place."""
    tokenizer = llm.generator.tokenizer
    template = template or parse_template("chat" if tokenizer.chat_template else "qa")
    if template.kind != "chat":
        if system is not None:
            raise UsageError(
                f"A system message needs a chat template, and this run uses {template.name}.",
                hint="Leave --system out, or put it into a template of your own.",
            )
        return RunnableLambda(partial(_filled, template)) | llm
    if tokenizer.chat_template is None:
        raise TemplateError(f"{llm.model} has no chat template.", hint="Use --template qa, raw, or a text of your own.")
    chat = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens, llm.model)

    def render(variables: dict[str, Any]) -> StringPromptValue:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return StringPromptValue(text=chat.render([*messages, {"role": "user", "content": variables["prompt"]}]))

    return RunnableLambda(render) | llm.bind(add_special_tokens=False)


def _filled(template: Template, variables: dict[str, Any]) -> StringPromptValue:
    return StringPromptValue(text=template.fill(variables))
