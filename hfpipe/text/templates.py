"""Prompt templates: what turns the variables of a request into a prompt, and which one a model is asked in."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from hfpipe.errors import MissingVariable, TemplateError, UnsupportedOption, UsageError, nearest

if TYPE_CHECKING:
    from hfpipe.text.chat import ChatTemplate
    from hfpipe.text.tokenizer import Tokenizer

BUILT_IN = {
    "qa": "Question: {question}\n\nAnswer: Let's think step by step.",
    "chat": "{prompt}",
    "raw": "{prompt}",
}
_FORMS = 'A template is qa, chat, raw, a text with {variables} such as "Translate: {question}", or @FILE.'
_SHORT = 40


@dataclass(frozen=True, slots=True)
class Template:
    """A template and its variables, in order of appearance. `name` is what error messages call it.

    `chat` and `raw` have the one variable `prompt`. For chat it is what the user says: a chat template does the rest.
    """

    name: str
    text: str
    variables: tuple[str, ...]
    # The text as pairs of a literal and the variable after it.
    pieces: tuple[tuple[str, str | None], ...]
    # A name of BUILT_IN, or custom.
    kind: str

    def prompt_variable(self, given: Collection[str] = ()) -> str | None:
        """The variable that the prompt fills, where those of `given` have values: `prompt` or `question`, else the only
        one left, or None. Raises TemplateError if several are left.
        """
        left = [variable for variable in self.variables if variable not in given]
        for usual in ("prompt", "question"):
            if usual in left:
                return usual
        if len(left) > 1:
            names = ", ".join(f"{{{variable}}}" for variable in left)
            hint = f"Give all but one with --var, as in --var {left[0]}=..., or call one of them {{prompt}}."
            raise TemplateError(f"The prompt could be any of {names} in {self.name}.", hint=hint)
        return left[0] if left else None


class Conversation(str):
    """A prompt that a server puts into its own chat template: `messages`, and `variables` of that template. As text it
    is the JSON of the messages."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any]

    def __new__(cls, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> Conversation:
        made = super().__new__(cls, json.dumps(messages, ensure_ascii=False))
        made.messages, made.variables = messages, variables
        return made


@dataclass(frozen=True, slots=True)
class ServerTemplate:
    """In the place of a ChatTemplate that only a server has. Which `variables` it knows is for the server to say."""

    variables: Collection[str]
    source: str = "the server's chat template"

    def render(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> Conversation:
        return Conversation(messages, extra)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template as one model fills it (made by `prompt_template`).

    `chat` is the model's own chat template, None where it has none. `system` begins every conversation that has no
    system message of its own. `variables` are values for every prompt: for the fields of `template`, else for the chat
    template, as JSON where they are JSON ("false" is then False).
    """

    template: Template
    model: str
    chat: ChatTemplate | ServerTemplate | None = None
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    # Whether the tokenizer adds its own to what `fill` returns; a chat template holds them already.
    add_special_tokens: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "add_special_tokens", self.template.kind != "chat")
        if self.template.kind != "chat":
            if self.system is not None:
                message = f"A system message needs a chat template, and {self.template.name} is not one."
                hint = "Leave the system message (--system) out, or put it into a template of your own."
                raise UsageError(message, hint=hint)
            return
        if self.chat is None:
            hint = "Use the template qa, raw, or a text of your own (--template)."
            raise TemplateError(f"{self.model} has no chat template.", hint=hint)
        if extra := self._chat_variables():
            known = self.chat.variables
            if unknown := sorted(extra.keys() - known):
                raise TemplateError(
                    f"The chat template of {self.model} has no variable {unknown[0]!r}.",
                    hint=nearest(unknown[0], known) or f"It has: {', '.join(sorted(known)) or 'none'}.",
                )

    @property
    def text(self) -> str:
        """What the prompt depends on: the source of the chat template, or the text with its {variables}."""
        return self.chat.source if self.template.kind == "chat" and self.chat else self.template.text

    def fill(self, variables: Mapping[str, Any], prompt: str | None = None) -> str:
        """The prompt for `variables`, which win over those of every prompt; a `prompt` fills the one that is left.

        Values are taken as they are, and what the text lacks is ignored. Raises TemplateError, MissingVariable if one
        has no value.
        """
        values = {**self.variables, **variables}
        if prompt is not None:
            place = self.template.prompt_variable(values)
            if place is None:
                raise TemplateError(f"The prompt has no place in {self.template.name}: all its variables are given.")
            values[place] = prompt
        elif "question" in values and self.template.variables == ("prompt",):
            # The usual name of what is asked fits the built-in templates, whichever the model has.
            values = {"prompt": values["question"], **values}
        for needed in self.template.variables:
            if needed not in values:
                given = ", ".join(values) or "nothing"
                message = f"No value for {{{needed}}} in {self.template.name}; given: {given}."
                raise MissingVariable(message, hint=f"Give it as --var {needed}=...")
        pieces = self.template.pieces
        text = "".join([literal + ("" if name is None else values[name]) for literal, name in pieces])
        return self.render([{"role": "user", "content": text}]) if self.template.kind == "chat" else text

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as the chat template writes it, whatever the kind of `template`. A last message of the
        assistant is continued. Raises TemplateError."""
        if self.chat is None:
            raise TemplateError(f"Messages need a chat template, and {self.model} has none by default.")
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.chat.render(messages, **self._chat_variables())

    def _chat_variables(self) -> dict[str, Any]:
        own = {*self.template.variables, "prompt", "question"}
        return {name: json_or_text(value) for name, value in self.variables.items() if name not in own}


def prompt_template(
    tokenizer: Tokenizer | None,
    model: str,
    template: str | Template | None = None,
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
    chat_template_name: str | None = None,
    plain: str = "qa",
) -> PromptTemplate:
    """How prompts are put to `model`. A `template` of None is chat where the model has a chat template, else `plain`.
    Where a server has the tokenizer and the chat template, the `tokenizer` is None.

    Raises TemplateError where the model has no such chat template, or several and none was named; UsageError for a
    `system` message where it has no place.
    """
    if isinstance(template, str):
        template = parse_template(template)
    if tokenizer is None:
        if chat_template_name is not None:
            message = "The endpoint backend cannot honour --chat-template-name: the server chooses its chat template."
            raise UnsupportedOption(message, hint="Leave it out.")
        chat_of_server = ServerTemplate(variables or ())
        return PromptTemplate(template or parse_template("chat"), model, chat_of_server, system, variables or {})
    sources, name = tokenizer.chat_templates, chat_template_name
    known = ", ".join(sources) or "none"
    if name is not None and name not in sources:
        hint = nearest(name, sources) or f"It has: {known}."
        raise TemplateError(f"{model} has no chat template {name!r}.", hint=hint)
    if name is None:
        name = next(iter(sources)) if len(sources) == 1 else "default"
    chat = None
    if name in sources:
        # Jinja2 is needed only here.
        from hfpipe.text.chat import ChatTemplate

        chat = ChatTemplate(sources[name], tokenizer.special_tokens, model)
    elif sources and (template is None or template.kind == "chat"):
        hint = "Choose one by its name with --chat-template-name."
        raise TemplateError(f"{model} has several chat templates: {known}.", hint=hint)
    return PromptTemplate(template or parse_template("chat" if chat else plain), model, chat, system, variables or {})


def json_or_text(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_template(text: str) -> Template:
    """The template that the user means by `text`: a built-in name, @FILE, or the template itself.

    Fields are plain {names}, and {{ and }} stand for braces. The newline that ends a file is not part of its template.
    Raises TemplateError for any other field, for no field at all, and for a file that cannot be read.
    """
    if text in BUILT_IN:
        body, name, hint = BUILT_IN[text], text, None
    elif text.startswith("@"):
        body, name, hint = _read(Path(text[1:]), text), text, _FORMS
    else:
        body, name = text, f'the template "{_shortened(text)}"'
        hint = nearest(text.lower(), BUILT_IN) or _FORMS
    try:
        pieces = tuple(_pieces(body))
    except ValueError as error:
        hint = "Fields are plain, as in {question}; write {{ and }} for braces."
        raise TemplateError(f"Cannot use {name}: {error}.", hint=hint) from error
    variables = tuple(dict.fromkeys(variable for _, variable in pieces if variable is not None))
    if not variables:
        raise TemplateError(f"There is no {{variable}} in {name}.", hint=hint)
    return Template(name, body, variables, pieces, name if name in BUILT_IN else "custom")


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise TemplateError(f"Cannot read the template {name}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise TemplateError(f"Cannot read the template {name}: it is not UTF-8 text.") from error


def _pieces(body: str) -> Iterator[tuple[str, str | None]]:
    """Pairs of literal text and the variable after it. Raises ValueError for what is not a plain field."""
    for literal, variable, spec, conversion in Formatter().parse(body):
        if variable is not None and (spec or conversion or not variable.isidentifier()):
            field = variable + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"{{{_shortened(field)}}} is not a plain variable")
        yield literal, variable


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"
