"""A line of the input as a record: what it asks, how it is to be answered, or why it cannot be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import Self

from hfpipe.batch import fields
from hfpipe.batch.lines import Line
from hfpipe.errors import ContextLengthError, HFPipeError, MissingVariable, OutOfMemory, UnsupportedOption, UsageError
from hfpipe.types import Completion, GenerationOptions

ErrorType = Literal[
    "invalid_json",
    "invalid_record",
    "unknown_option",
    "missing_variable",
    "context_length",
    "out_of_memory",
    "engine",
]
_LONGEST = 500
_IDS = ("custom_id", "id")


class InvalidJSON(UsageError):
    """A line that is not a JSON text in UTF-8."""


# The first that fits.
_TYPES: tuple[tuple[type[HFPipeError], ErrorType], ...] = (
    (InvalidJSON, "invalid_json"),
    (MissingVariable, "missing_variable"),
    (UnsupportedOption, "unknown_option"),
    (UsageError, "invalid_record"),
    (ContextLengthError, "context_length"),
    (OutOfMemory, "out_of_memory"),
    (HFPipeError, "engine"),
)


@dataclass(frozen=True, slots=True)
class RecordError:
    """Why a record has no answer: a short word that stays the same, and a line that says it."""

    type: ErrorType
    message: str

    @classmethod
    def of(cls, error: HFPipeError) -> Self:
        message = error.message if len(error.message) <= _LONGEST else error.message[: _LONGEST - 1] + "…"
        return cls(next(word for kind, word in _TYPES if isinstance(error, kind)), message)


def outcome_of(completion: Completion) -> Completion | RecordError:
    """A completion, or the error that it ended in."""
    if completion.error is not None:
        return RecordError.of(completion.error)
    if completion.finish_reason == "error":
        return RecordError("engine", "The engine gave no reason.")
    return completion


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
    error: RecordError | None = None

    def options(self, base: GenerationOptions) -> GenerationOptions:
        """`base` with what this record overrides. `"stop": []` overrides too."""
        return dataclasses.replace(base, **self.overrides)


def read_record(line: Line, names: Collection[str] = ()) -> Record:
    """The record of a line. What is wrong with it is its `error`; nothing is raised.

    `names` are the variables of the template: what they name is a variable, whatever else it could be. Of the others,
    `custom_id` and `id` are the id, names of generation options are overrides, and `metadata` is passed over.
    With "messages", any further name is an error, but for those of an OpenAI request that change no text. Else it is
    a variable that the template may use; what looks like an option, and is none, is an error there too. Values of
    variables that are numbers or booleans become text as JSON writes them; a list or an object is an error where the
    template uses it. Null is "not given", and half a character (a lone surrogate) becomes U+FFFD.
    """
    return record_of(line, lambda given: _asked(given, names))


def record_of(line: Line, asked: Callable[[dict[str, Any]], dict[str, Any]]) -> Record:
    """The record of a line, where `asked` tells what its object asks, or raises an HFPipeError."""
    record_id = str(line.number)
    try:
        given = read_object(line)
        record_id = _id(given, line)
        return Record(line.number, record_id, **asked(given))
    except HFPipeError as error:
        return Record(line.number, record_id, error=RecordError.of(error))


def read_id(line: Line) -> str:
    """The id of the record of a line, found quickly."""
    try:
        return _id(read_object(line), line)
    except UsageError:
        return str(line.number)


def read_object(line: Line) -> dict[str, Any]:
    """The JSON object of a line. Raises UsageError where there is none."""
    try:
        value = json.loads(line.content.decode())
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#x} at {error.start:,}"
        raise InvalidJSON(f"Line {line.number} is not UTF-8 text: {byte}.") from error
    except (ValueError, RecursionError) as error:
        # The error's own words say "line 1".
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise InvalidJSON(f"Line {line.number} is not JSON: {reason}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"Line {line.number} is {fields.kind(value)}, not an object.")
    return value


def _id(given: Mapping[str, Any], line: Line) -> str:
    """As it is, half characters and all: it is to be found again."""
    name = next((name for name in _IDS if given.get(name) is not None), None)
    value = line.number if name is None else given[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        raise UsageError(f"{name} must be text or a number, not {fields.kind(value)}.")
    return json.dumps(value)


def _asked(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise UsageError("The record is empty.")
    if "messages" in given and "messages" not in names:
        return _conversation(given)
    return _variables(given, names)


def _conversation(given: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt" in given:
        raise UsageError("A record has a prompt or messages, not both.")
    overrides = fields.request_overrides(given, but=("messages", *_IDS))
    return {"messages": fields.conversation(given["messages"]), "overrides": overrides}


def _variables(given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    variables, overrides = {}, {}
    for name, value in given.items():
        if name in names:
            variables[name] = fields.variable(name, value)
        elif name in fields.OVERRIDES:
            overrides[name] = value
        elif name not in (*_IDS, "metadata", "prompt"):
            fields.refuse_misspelt(name, value)
            if not isinstance(value, list | dict):
                variables[name] = fields.variable(name, value)
    asked: dict[str, Any] = {"variables": variables, "overrides": fields.overrides(overrides)}
    if "prompt" in given:
        asked["prompt"] = fields.text("prompt", given["prompt"])
        variables.pop("prompt", None)
    return asked
