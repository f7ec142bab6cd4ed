"""A record as the request that a generator answers: its template filled, or its messages rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import Self

from hfpipe.batch.records import Record
from hfpipe.errors import TemplateError, UsageError
from hfpipe.text.chat import ChatTemplate
from hfpipe.text.templates import Template, parse_template
from hfpipe.text.tokenizer import Tokenizer
from hfpipe.types import GenerationOptions, TextRequest


@dataclass(frozen=True, slots=True)
class Prompts:
    """`template` is that of the run, `chat` the model's own, None where it has none; `given` are variables for every
    record, `system` a message before those of a chat."""

    template: Template
    chat: ChatTemplate | None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    given: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None

    def __post_init__(self) -> None:
        if self.template.kind == "chat" and self.chat is None:
            raise TemplateError(
                "This model has no chat template.", hint="Use --template qa, raw, or a text of your own."
            )
        if self.system is not None and self.chat is None:
            raise UsageError(
                "A system message needs a chat template, and this model has none.",
                hint="Leave --system out, or put it into a template of your own.",
            )

    @classmethod
    def for_model(
        cls,
        tokenizer: Tokenizer,
        model: str,
        template: Template | None = None,
        options: GenerationOptions | None = None,
        given: Mapping[str, str] | None = None,
        system: str | None = None,
    ) -> Self:
        """Those for the model with this tokenizer. A `template` of None is its own chat template, else `qa`."""
        chat = None
        if tokenizer.chat_template:
            chat = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens, model)
        chosen = template or parse_template("chat" if chat else "qa")
        return cls(chosen, chat, options or GenerationOptions(), given or {}, system)

    def request(self, request_id: str, record: Record) -> TextRequest:
        """What `record` asks, with its own options over those of the run. Raises TemplateError or UsageError."""
        options = record.options(self.options)
        if record.messages:
            return self._conversation(request_id, record.messages, options)
        variables = self._variables(record)
        if self.template.kind == "chat":
            message = {"role": "user", "content": self.template.fill(variables)}
            return self._conversation(request_id, [message], options)
        return TextRequest(request_id, self.template.fill(variables), options)

    def _conversation(
        self, request_id: str, messages: Sequence[Mapping[str, str]], options: GenerationOptions
    ) -> TextRequest:
        if self.chat is None:
            raise TemplateError("Messages need a chat template, and this model has none.")
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return TextRequest(request_id, self.chat.render(messages), options, add_special_tokens=False)

    def _variables(self, record: Record) -> dict[str, str]:
        variables = {**self.given, **record.variables}
        if record.prompt is not None:
            variables[self._place(variables)] = record.prompt
        elif self.template.variables == ("prompt",) and "prompt" not in variables and "question" in variables:
            # The usual name of what is asked fits the built-in templates, whichever the model has.
            variables["prompt"] = variables["question"]
        return variables

    def _place(self, variables: Mapping[str, str]) -> str:
        """The variable that a lone prompt stands for."""
        place = self.template.prompt_variable(variables)
        if place is None:
            raise TemplateError(f"There is no place for the prompt in {self.template.name}: all of it is given.")
        return place
