"""A record as the request that a generator answers: its template filled, or its messages rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hfpipe.batch.records import Record
from hfpipe.errors import TemplateError
from hfpipe.text.templates import PromptTemplate
from hfpipe.types import GenerationOptions, TextRequest


@dataclass(frozen=True, slots=True)
class Prompts:
    """`template` is that of the run, `options` are those of the run."""

    template: PromptTemplate
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def request(self, request_id: str, record: Record) -> TextRequest:
        """What `record` asks, with its own options over those of the run. Raises TemplateError or UsageError."""
        options = record.options(self.options)
        if record.messages:
            prompt = self.template.render(record.messages)
            return TextRequest(request_id, prompt, options, add_special_tokens=False)
        if record.raw:
            return TextRequest(request_id, record.prompt or "", options)
        prompt = self.template.fill(self._variables(record))
        return TextRequest(request_id, prompt, options, self.template.add_special_tokens)

    def _variables(self, record: Record) -> dict[str, str]:
        variables = {**self.template.variables, **record.variables}
        if record.prompt is not None:
            variables[self._place(variables)] = record.prompt
        elif self.template.template.variables == ("prompt",) and "prompt" not in variables and "question" in variables:
            # The usual name of what is asked fits the built-in templates, whichever the model has.
            variables["prompt"] = variables["question"]
        return variables

    def _place(self, variables: Mapping[str, str]) -> str:
        """The variable that a lone prompt stands for."""
        place = self.template.template.prompt_variable(variables)
        if place is None:
            raise TemplateError(f"There is no place for the prompt in {self.template.name}: all of it is given.")
        return place
