"""Chat templates: a conversation as the one text that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser

from hfpipe.errors import TemplateError
from hfpipe.text.sandbox import BoundedEnvironment, start_budget

_T = TypeVar("_T")
# Marks the end of a message that is to be continued.
_FINAL = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A model's own Jinja template, rendered sandboxed, as transformers' `apply_chat_template(tokenize=False)` does.

    `special_tokens` maps names such as bos_token to their text; `name` is the model's, for error messages.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], name: str) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.name = name

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **extra: Any,
    ) -> str:
        """The conversation as text, up to where the answer begins, or with `continue_final_message` up to where the
        last message ends. `extra` are further variables, such as tools.

        Raises TemplateError for a template that does not compile, fails, refuses the conversation, or has no end.
        """
        messages = list(messages)
        final = str(messages[-1]["content"]) if continue_final_message else ""
        if continue_final_message:
            messages[-1] = {**messages[-1], "content": final + _FINAL}
        variables = {"tools": None, "documents": None, **self.special_tokens, **extra}
        variables |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        start_budget(messages)
        text = self._attempt(lambda: _compiled(self.source).render(variables))
        return self._cut(text, final) if continue_final_message else text

    @property
    def variables(self) -> set[str]:
        """The names of the variables that a caller may set."""
        environment = _environment()
        used = self._attempt(lambda: find_undeclared_variables(environment.parse(self.source)))
        return used - {*environment.globals, *self.special_tokens, "messages", "add_generation_prompt"}

    def _cut(self, text: str, final: str) -> str:
        """`text` up to the end of the final message, as transformers cuts it."""
        end = text.rfind(_FINAL.strip())
        if end < 0 or final.strip() not in text:
            raise TemplateError(
                f"The chat template of {self.name} does not show the last message, so it cannot be continued.",
                hint="End the conversation with a message of the user.",
            )
        # A template that trims messages trims the end of this one too.
        return text[:end] if text.startswith(_FINAL, end) else text[:end].rstrip()

    def _attempt(self, render: Callable[[], _T]) -> _T:
        try:
            return render()
        # A template is a program that came with a model: whatever it raises is an error of that model.
        except Exception as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateError(
                f"The chat template of {self.name}: {detail}{line}",
                hint="The template raw or qa, or one of your own, does not need it.",
            ) from error


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training. To render, it is its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.guard_filters()
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
