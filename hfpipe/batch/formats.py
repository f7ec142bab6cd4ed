"""What a batch reads and writes: hfpipe's own lines, plain text, and the envelope of OpenAI's Batch API."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hfpipe.batch.lines import Line
from hfpipe.batch.records import (
    IDS,
    OVERRIDES,
    InvalidJSON,
    Record,
    conversation,
    described,
    overrides,
    refuse_misspelt,
    request_overrides,
    text,
    variable,
)
from hfpipe.errors import HFPipeError, UnsupportedOption, UsageError
from hfpipe.types import Completion, kind_of

# Beside the newline, what a reader of text might take for the end of a line. JSON has all others escaped.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_TABLES = {".csv": "read_csv", ".parquet": "read_parquet", ".xlsx": "read_excel"}
_AS_LINES = 'orient="records", lines=True'
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_ENVELOPE = ("custom_id", "id", "method", "url", "body")
_OF_THE_ENGINE = ("out_of_memory", "engine")
_Counts = dict[str, int] | None
_Described = dict[str, str] | None


class Result(NamedTuple):
    """A result that is in the output: whose it is, the type of its error where it is one, else its text."""

    id: str
    error: str | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """How lines become records, and answers lines; by itself, hfpipe's own. The id of a record is found again in the
    line of its result.

    `names` are the variables of the template: what they name is a variable, whatever else it could be. `model` is the
    name of what answers.
    """

    names: frozenset[str] = frozenset()
    model: str = ""

    def parse(self, line: Line) -> dict[str, Any]:
        """The JSON object of a line. Raises UsageError where there is none, UnicodeDecodeError where it is not text."""
        content = line.content.decode()
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            # The error's own words say "line 1".
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise InvalidJSON(f"Line {line.number} is not JSON: {reason}.") from error
        if not isinstance(value, dict):
            raise UsageError(f"Line {line.number} is {kind_of(value)}, not an object.")
        return value

    def ask(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the Record of what `parse` gave, but number and id. Raises an HFPipeError.

        `custom_id` and `id` are the id, names of generation options are overrides, and `metadata` is passed over. With
        "messages", any further name is an error, but for those of an OpenAI request that change no text. Else it is a
        variable that the template may use; what looks like an option, and is none, is an error there too. A list or an
        object is an error where the template uses it.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise UsageError("The record is empty.")
        if "messages" in given and "messages" not in self.names:
            if "prompt" in given:
                raise UsageError("A record has a prompt or messages, not both.")
            options = request_overrides(given, but=("messages", *IDS))
            return {"messages": conversation(given["messages"]), "overrides": options}
        asked: dict[str, Any] = {}
        variables, options = {}, {}
        for name, value in given.items():
            if name == "prompt":
                if not isinstance(value, str):
                    raise UsageError(f"prompt must be text, not {kind_of(value)}.")
                asked["prompt"] = value
            elif name in self.names:
                variables[name] = variable(name, value)
            elif name in OVERRIDES:
                options[name] = value
            elif name not in (*IDS, "metadata"):
                refuse_misspelt(name, value)
                if not isinstance(value, list | dict):
                    variables[name] = variable(name, value)
        return {**asked, "variables": variables, "overrides": overrides(options) if options else {}}

    def read_record(self, line: Line) -> Record:
        """The record of a line. What is wrong with it is its `error`; nothing is raised."""
        record_id = str(line.number)
        wrong: HFPipeError
        try:
            given = self.parse(line)
            record_id = _id(given, record_id)
            return Record(line.number, record_id, **self.ask(given))
        except UnicodeDecodeError as error:
            byte = f"byte {line.content[error.start]:#x} at {error.start:,}"
            wrong = InvalidJSON(f"Line {line.number} is not UTF-8 text: {byte}.")
        except HFPipeError as error:
            wrong = error
        return Record(line.number, record_id, error=wrong)

    def id_of(self, line: Line) -> str:
        """The id of the record of a line, which is found sooner than the record."""
        with suppress(UnicodeDecodeError, HFPipeError):
            return _id(self.parse(line), str(line.number))
        return str(line.number)

    def result_line(self, record: Record, answer: Completion) -> bytes:
        """A result as one line of JSON in UTF-8. The same answer is the same bytes."""
        error, usage = described(answer.error) if answer.error else None, None
        if answer.usage and not error:
            usage = {
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
                "total_tokens": answer.usage.total_tokens,
            }
        text = json.dumps(self.result(record, answer, usage, error), ensure_ascii=False)
        text = _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
        # Half characters, which have no UTF-8, are escaped as JSON escapes them.
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def result(self, record: Record, answer: Completion, usage: _Counts, error: _Described) -> dict[str, Any]:
        """What the line of a result holds."""
        said = {"id": record.id, "text": "" if error else answer.text, "finish_reason": answer.finish_reason}
        return {**said, "usage": usage, "error": error}

    def read_result(self, line: bytes) -> Result | None:
        """What a line of the output is the result of; None where it is no result."""
        match read_json(line):
            case {"id": str(record_id), "text": str(text), "error": None}:
                return Result(record_id, None, text)
            case {"id": str(record_id), "error": {"type": str(error)}}:
                return Result(record_id, error)
        return None


def _id(given: Mapping[str, Any], default: str) -> str:
    """The id that a record gives itself, as it is, half characters and all: it is to be found again."""
    name = next((name for name in IDS if given.get(name) is not None), None)
    value = given[name] if name else default
    if isinstance(value, bool | list | dict):
        raise UsageError(f"{name} must be text or a number, not {kind_of(value)}.")
    return value if isinstance(value, str) else json.dumps(value)


class TextFormat(Format):
    """Plain text, each line a prompt, whose id is the number of the line. Results are hfpipe's own lines."""

    def parse(self, line: Line) -> dict[str, Any]:
        return {"prompt": line.content.decode()}


class OpenAIFormat(Format):
    """Lines as OpenAI's Batch API has them.

    In:  {"custom_id", "method": "POST", "url": "/v1/chat/completions" or "/v1/completions", "body": {...}}
    Out: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

    OpenAI documents the outer `error` as that of a request that failed without an HTTP status. So a request that is
    refused has a response with status 400 (500 where the engine failed), whose body is {"error": {"message", "type",
    "param", "code"}}, and `error` is null; a line that is not JSON made no request and has no response: `error` is
    {"code", "message"}. `code` is hfpipe's own word for the error.

    The ids are derived from the record, and `created` is 0: what is written may not depend on the moment, nor on how
    often a run was interrupted.
    """

    def ask(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As OpenAI has it, but that the role developer means system, which is what chat templates know."""
        for name in given:
            if name not in _ENVELOPE:
                raise UsageError(f"Unknown field {name} in a batch request; options belong in its body.")
        url, body = given.get("url"), given.get("body")
        if given.get("method", "POST") != "POST" or url not in (_CHAT, _TEXT):
            raise UsageError(f"A request must have the method POST, and the url {_CHAT} or {_TEXT}.")
        if not isinstance(body, dict):
            raise UsageError(f"The body of a request must be an object, not {kind_of(body)}.")
        body = {name: value for name, value in body.items() if value is not None}
        needed = "messages" if url == _CHAT else "prompt"
        options = request_overrides(body, but=(needed,))
        if needed not in body:
            raise UsageError(f"A request to {url} needs {needed}.")
        if url == _CHAT:
            messages = conversation(body["messages"])
            system = {"role": "system"}
            messages = tuple({**one, **system} if one["role"] == "developer" else one for one in messages)
            return {"messages": messages, "overrides": options}
        prompt = body["prompt"]
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise UnsupportedOption("hfpipe takes one prompt a request, as text.")
            (prompt,) = prompt
        return {"prompt": text("prompt", prompt), "raw": True, "overrides": options}

    def result(self, record: Record, answer: Completion, usage: _Counts, error: _Described) -> dict[str, Any]:
        """A line of the output file; of the error file too, which here is the same."""
        derived = hashlib.sha256(f"{record.number} {record.id}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
        outer, status = None, 200
        if error is None:
            body = self._body(record, derived, answer, usage)
        else:
            status = 500 if error["type"] in _OF_THE_ENGINE else 400
            word = "server_error" if status == 500 else "invalid_request_error"
            body = {"error": {"message": error["message"], "type": word, "param": None, "code": error["type"]}}
            if error["type"] == "invalid_json":
                outer = {"code": error["type"], "message": error["message"]}
        response = None if outer else {"status_code": status, "request_id": f"req_{derived}", "body": body}
        return {"id": f"batch_req_{derived}", "custom_id": record.id, "response": response, "error": outer}

    def _body(self, record: Record, derived: str, answer: Completion, usage: _Counts) -> dict[str, Any]:
        if record.messages:
            name, prefix = "chat.completion", "chatcmpl"
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        else:
            name, prefix, choice = "text_completion", "cmpl", {"text": answer.text}
        return {
            "id": f"{prefix}-{derived}",
            "object": name,
            "created": 0,
            "model": self.model,
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": usage,
            "system_fingerprint": None,
        }

    def read_result(self, line: bytes) -> Result | None:
        match read_json(line):
            case {"custom_id": str(record_id), "response": {"status_code": 200, "body": {"choices": [choice]}}}:
                match choice:
                    case {"message": {"content": str(text)}} | {"text": str(text)}:
                        return Result(record_id, None, text)
            case {"custom_id": str(record_id), "response": {"body": {"error": {"code": str(error)}}}}:
                return Result(record_id, error)
            case {"custom_id": str(record_id), "response": None, "error": {"code": str(error)}}:
                return Result(record_id, error)
        return None


FORMATS = {"hfpipe": Format, "openai": OpenAIFormat, "text": TextFormat}


def recognized(first: Line | None, name: str) -> str:
    """The format of an input with this first line. Raises UsageError for one that hfpipe does not read: now, and not
    once for each line after a model has been loaded."""
    suffix = Path(name.removesuffix(".gz")).suffix
    content = first.content.strip() if first else b"{}"
    value = read_json(content)
    if isinstance(value, dict):
        is_request = isinstance(value.get("body"), dict) and str(value.get("url")).startswith("/v1/")
        return "openai" if is_request else "hfpipe"
    if suffix == ".txt":
        return "text"
    if content.startswith(b"{") and content != b"{":
        return "hfpipe"
    if content.startswith(b"PAR1") or suffix in _TABLES:
        hint = f"Convert it with pandas: {_TABLES.get(suffix, 'read_parquet')}(...).to_json(..., {_AS_LINES})."
    elif content.startswith(b"["):
        hint = "Convert it: jq -c '.[]' writes an array as JSON lines."
    elif content == b"{":
        hint = "Convert it: jq -c . writes each object in one line."
    else:
        hint = "For plain text with one prompt a line, use --format text."
    raise UsageError(f"{name} is not JSON lines: its first line is not a JSON object.", hint=hint)


def read_json(line: bytes) -> Any:
    """The value of a line; None where it is no JSON."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
