"""A record: what a line asks, how, or why it cannot be answered, and the request that it makes.

The values of a line are checked here; what hfpipe does not take raises a UsageError. Null means "not given".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hfpipe.errors import (
    ContextLengthError,
    HFPipeError,
    MissingVariable,
    OutOfMemory,
    UnsupportedOption,
    UsageError,
)
from hfpipe.text.templates import PromptTemplate
from hfpipe.types import OF_GENERATION, GenerationOptions, TextRequest, kind_of


class InvalidJSON(UsageError):
    """A line that is not a JSON text in UTF-8."""


# What a result calls an error: a word that stays the same.
ERROR_TYPES: Mapping[type, str] = {
    InvalidJSON: "invalid_json",
    UsageError: "invalid_record",
    UnsupportedOption: "unknown_option",
    MissingVariable: "missing_variable",
    ContextLengthError: "context_length",
    OutOfMemory: "out_of_memory",
    HFPipeError: "engine",
}
IDS = ("custom_id", "id")
_LONGEST = 500
_ALIASES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}
_WHOLE = ("max_tokens", "max_length", "top_k", "seed")
OVERRIDES = OF_GENERATION | _ALIASES.keys()
# What other engines take, or hfpipe for a whole batch alone, with the value that asks for nothing.
_ELSEWHERE: Mapping[str, Any] = {
    **dict.fromkeys(("best_of", "length_penalty", "num_beams", "typical_p"), 1),
    **dict.fromkeys(("frequency_penalty", "no_repeat_ngram_size", "presence_penalty"), 0),
    **dict.fromkeys(("source_lang", "target_lang"), None),
    "logit_bias": {},
}
# Of a request to a server. Their names are too common to mean the same among the variables of a template.
_OF_REQUESTS: Mapping[str, Any] = {
    **dict.fromkeys(("echo", "logprobs", "top_logprobs"), 0),
    "functions": [],
    "modalities": ["text"],
    "n": 1,
    "response_format": {"type": "text"},
    "tools": [],
}
# They say who asks, how the answer travels or what it costs, and nothing of its text.
_HARMLESS = frozenset(
    (
        *("metadata", "model", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier"),
        *("store", "stream", "stream_options", "tool_choice", "user"),
    )
)
# Two names that differ by a letter of ten are the same word.
_SAME = 0.9


@dataclass(frozen=True, slots=True)
class Record:
    """One question of a batch. `number` is its line, `id` what its result is found by.

    It asks with `messages`, else with a `prompt`, else with the `variables` of the template; beside a prompt, the
    variables fill what else the template has. A prompt that is `raw` goes past the template. `overrides` are by the
    names of GenerationOptions, and valid. A record with an `error` asks nothing.
    """

    number: int
    id: str
    variables: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    raw: bool = False
    messages: tuple[Mapping[str, str], ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    error: HFPipeError | None = None

    def request(self, template: PromptTemplate, options: GenerationOptions) -> TextRequest:
        """What a generator answers, with the record's own options over those of the run; `"stop": []` is one too.

        Raises the record's error, and TemplateError where the template cannot be filled.
        """
        if self.error:
            raise self.error
        if self.messages:
            prompt, special = template.render(self.messages), False
        elif self.raw:
            prompt, special = self.prompt or "", True
        else:
            try:
                prompt, special = template.fill(self.variables, self.prompt), template.add_special_tokens
            except MissingVariable as error:
                if template.template.variables in (("prompt",), ("question",)):
                    raise MissingVariable(f"{error.message} A record needs prompt, question or messages.") from error
                raise
        options = dataclasses.replace(options, **self.overrides) if self.overrides else options
        return TextRequest("", prompt, options, special)


def described(error: HFPipeError) -> dict[str, str]:
    """The type of an error, and its message in a bounded line."""
    word = next(ERROR_TYPES[kind] for kind in type(error).__mro__ if kind in ERROR_TYPES)
    message = error.message if len(error.message) <= _LONGEST else error.message[: _LONGEST - 1] + "…"
    return {"type": word, "message": message}


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of GenerationOptions, checked for type and range."""
    checked: dict[str, Any] = {}
    for name, value in given.items():
        option = _ALIASES.get(name, name)
        if option == "stop":
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
                raise UsageError("stop must be text or a list of texts.")
            value = tuple(value)
        elif option in _WHOLE and isinstance(value, float) and value.is_integer():
            value = int(value)
        if option in checked and checked[option] != value:
            raise UsageError(f"{option} is given twice, as {checked[option]} and as {value}.")
        checked[option] = value
    if checked:
        GenerationOptions(**checked)
    return checked


def request_overrides(given: Mapping[str, Any], but: Collection[str]) -> dict[str, Any]:
    """The overrides of a request, in which every name `but` some has a meaning: what would change the answer is not
    dropped in silence."""
    known = OVERRIDES | _HARMLESS | set(but)
    for name, value in given.items():
        if name not in known and value != _ELSEWHERE.get(name, _OF_REQUESTS.get(name)):
            raise _not_taken(name, value)
    return overrides({name: value for name, value in given.items() if name in OVERRIDES})


def refuse_misspelt(name: str, value: Any) -> None:
    """Raise UsageError for an unknown name among variables that is probably meant as an option."""
    if value != _ELSEWHERE[name] if name in _ELSEWHERE else _meant(name):
        raise _not_taken(name, value)


def _not_taken(name: str, value: Any) -> UnsupportedOption:
    shown = "" if isinstance(value, list | dict) else f" = {json.dumps(value)}"
    return UnsupportedOption(f"hfpipe does not take {name}{shown}.{_meant(name)}")


@lru_cache(maxsize=1024)
def _meant(name: str) -> str:
    """The option that `name` misspells: maxTokens, max-tokens, max_token."""
    plain = {option.replace("_", ""): option for option in sorted(OVERRIDES)}
    bare = name.lower().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(bare, plain, n=1, cutoff=_SAME)
    return f" Did you mean {plain[close[0]]}?" if close else ""


def conversation(value: Any) -> tuple[Mapping[str, str], ...]:
    """Messages of role and content, and a name where one has it. Parts of text are joined, as LangChain joins them. A
    role is any word: the chat template knows which it takes."""
    if not isinstance(value, list) or not value:
        raise UsageError("messages must be a list of at least one message.")
    return tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value))


def _message(place: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"{place} must be an object, not {kind_of(value)}.")
    given = {name: part for name, part in value.items() if part is not None and part != []}
    if extra := sorted(given.keys() - {"role", "content", "name"}):
        raise UnsupportedOption(f"{place} has {extra[0]}, which hfpipe does not take.")
    content = given.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise UnsupportedOption(f"{place}.content has a part that is not text, and hfpipe takes text alone.")
        content = "".join(text(f"{place}.content", part.get("text")) for part in content)
    given = {"role": given.get("role"), **given, "content": content}
    return {name: text(f"{place}.{name}", part) for name, part in given.items()}


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, not {kind_of(value)}.")
    return value


def variable(name: str, value: Any) -> str:
    """Text as it is; a number or a boolean as JSON writes it."""
    if isinstance(value, list | dict):
        raise UsageError(f"{name} must be text or a number, not {kind_of(value)}.")
    return value if isinstance(value, str) else json.dumps(value)
