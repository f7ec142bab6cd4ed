"""What a command line asks of a batch: which records, how they are read, and how they are put to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfpipe.batch.formats import Format, HFPipeFormat
from hfpipe.batch.openai_format import OpenAIFormat
from hfpipe.batch.prompts import Prompts
from hfpipe.errors import UsageError, nearest
from hfpipe.generator import prompt_template
from hfpipe.text.templates import PromptTemplate, Template
from hfpipe.text.tokenizer import Tokenizer
from hfpipe.types import GenerationOptions

if TYPE_CHECKING:
    from hfpipe.langchain import HFPipe

_FORMATS = ("hfpipe", "openai")
_USUAL_VARIABLES = ("prompt", "question")


@dataclass(frozen=True)
class Asked:
    """An `input` of None is stdin; a `template` of None is the model's own."""

    input: Path | None
    model: str
    template: Template | None
    variables: Mapping[str, str]
    system: str | None
    chat_template_name: str | None
    format: str
    generation: GenerationOptions

    @property
    def name(self) -> str:
        """What the input is called."""
        return "stdin" if self.input is None else str(self.input)

    @property
    def is_file(self) -> bool:
        """Not a pipe: what is read of one is gone, and its end may be far."""
        return self.input is not None and self.input.is_file()

    def form(self) -> Format:
        """Raises UsageError for a format that there is not."""
        if self.format == "openai":
            return OpenAIFormat(self.model)
        if self.format == "hfpipe":
            return HFPipeFormat(frozenset(self.template.variables if self.template else _USUAL_VARIABLES))
        raise UsageError(
            f"Unknown format {self.format!r}.",
            hint=nearest(self.format, _FORMATS) or f"There are {', '.join(_FORMATS)}.",
        )

    def prompts(self, llm: HFPipe) -> Prompts:
        return Prompts(self.prompt_template(llm.generator.tokenizer, llm.model), self.generation)

    def prompt_template(self, tokenizer: Tokenizer, model: str) -> PromptTemplate:
        return prompt_template(tokenizer, model, self.template, self.system, self.variables, self.chat_template_name)
