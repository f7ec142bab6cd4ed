"""Chat templates: a conversation as the one text that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hfpipe.errors import TemplateError


class ChatTemplate:
    """A model's own Jinja template, rendered sandboxed, as transformers' `apply_chat_template(tokenize=False)` does.

    `special_tokens` maps names such as bos_token to their text; `name` is the model's, for error messages.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], name: str) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.name = name

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The conversation as text, up to where the answer begins. `extra` are further variables, such as tools.

        Raises TemplateError for a template that does not compile, fails, or refuses the conversation.
        """
        variables = {"tools": None, "documents": None, **self.special_tokens, **extra}
        variables |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return self._attempt(lambda: self._compiled.render(variables))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _environment().from_string(self.source)

    def _attempt(self, render: Callable[[], str]) -> str:
        try:
            return render()
        # A template is a program that came with a model: whatever it raises is an error of that model.
        except Exception as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateError(
                f"The chat template of {self.name}: {detail}{line}",
                hint="The template raw or qa, or one of your own, does without it.",
            ) from error


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training. To render, it is its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
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
