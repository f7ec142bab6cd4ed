"""The envelope of OpenAI's Batch API: requests in, responses out.

In:  {"custom_id", "method": "POST", "url": "/v1/chat/completions" or "/v1/completions", "body": {...}}
Out: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

OpenAI documents the outer `error` as that of a request that failed without an HTTP status. So a request that is refused
has a response with status 400 (500 where the engine failed), whose body is {"error": {"message", "type", "param",
"code"}}, and `error` is null; a line that is not JSON made no request and has no response: `error` is {"code",
"message"}. `code` is hfpipe's own word for the error.

The ids are derived from the record, and `created` is 0: what is written may not depend on the moment, nor on how often
a run was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfpipe.batch import fields
from hfpipe.batch.formats import Result, counts, encode, error_type, read_json
from hfpipe.batch.lines import Line
from hfpipe.batch.records import Record, RecordError, read_id, record_of
from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.types import Completion

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_ENVELOPE = ("custom_id", "id", "method", "url", "body")
_ROLES = ("system", "developer", "user", "assistant")
_OF_THE_ENGINE = ("out_of_memory", "engine")
_HEX = 24
_BEGIN = b'{"id": "batch_req_'
_CUSTOM_ID = b'", "custom_id": "'
_AFTER_ID = b'", "response": {"status_code": 200, '
_END = b', "error": null}\n'


@dataclass(frozen=True, slots=True)
class OpenAIFormat:
    """Lines as OpenAI has them. `model` is the name of what answers, whatever the requests ask for."""

    model: str

    def read_record(self, line: Line) -> Record:
        """The record of a request. As in OpenAI's own format, but that a missing `custom_id` is the line's number, and
        that the role developer means system, which is what chat templates know."""
        return record_of(line, lambda envelope: _asked(*_request(envelope)))

    def read_id(self, line: Line) -> str:
        return read_id(line)

    def result_line(self, record: Record, outcome: Completion | RecordError) -> bytes:
        """One line of the output file; of the error file too, which here is the same."""
        derived = hashlib.sha256(f"{record.number} {record.id}".encode("utf-8", "surrogatepass")).hexdigest()[:_HEX]
        response, outer = None, None
        if isinstance(outcome, Completion):
            response = _response(200, derived, self._body(record, derived, outcome))
        elif outcome.type == "invalid_json":
            outer = {"code": outcome.type, "message": outcome.message}
        else:
            status = 500 if outcome.type in _OF_THE_ENGINE else 400
            response = _response(status, derived, _error_body(outcome, status))
        return encode({"id": f"batch_req_{derived}", "custom_id": record.id, "response": response, "error": outer})

    def read_result(self, line: bytes) -> Result | None:
        """As of hfpipe's own lines."""
        at = len(_BEGIN) + _HEX
        if line.startswith(_BEGIN) and line.startswith(_CUSTOM_ID, at) and line.endswith(_END):
            start = at + len(_CUSTOM_ID)
            end = line.find(b'"', start)
            custom_id = line[start:end]
            if b"\\" not in custom_id and line.startswith(_AFTER_ID, end) and custom_id.isascii():
                return Result(custom_id.decode())
        return _read_slowly(line)

    def read_text(self, line: bytes) -> str | None:
        match read_json(line):
            case {"response": {"body": {"choices": [{"message": {"content": str(text)}}]}}}:
                return text
            case {"response": {"body": {"choices": [{"text": str(text)}]}}}:
                return text
        return None

    def _body(self, record: Record, derived: str, completion: Completion) -> dict[str, Any]:
        chat = bool(record.messages)
        choice: dict[str, Any] = {"index": 0}
        if chat:
            choice["message"] = {"role": "assistant", "content": completion.text, "refusal": None}
        else:
            choice["text"] = completion.text
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{derived}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": self.model,
            "choices": [{**choice, "logprobs": None, "finish_reason": completion.finish_reason}],
            "usage": completion.usage and counts(completion.usage),
            "system_fingerprint": None,
        }


def _request(envelope: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The url and the body of a request."""
    for name in envelope:
        if name not in _ENVELOPE:
            raise UsageError(f"Unknown field {name} in a batch request; options belong in its body.")
    method, url, body = envelope.get("method", "POST"), envelope.get("url"), envelope.get("body")
    if method != "POST":
        raise UsageError("The method of a request must be POST.")
    if url not in (_CHAT, _TEXT):
        raise UsageError(f"The url of a request must be {_CHAT} or {_TEXT}.")
    if not isinstance(body, dict):
        raise UsageError(f"The body of a request must be an object, not {fields.kind(body)}.")
    return url, {name: value for name, value in body.items() if value is not None}


def _asked(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    needed = "messages" if url == _CHAT else "prompt"
    overrides = fields.request_overrides(body, but=(needed,))
    if needed not in body:
        raise UsageError(f"A request to {url} needs {needed}.")
    if url == _TEXT:
        return {"prompt": _prompt(body["prompt"]), "raw": True, "overrides": overrides}
    messages = fields.conversation(body["messages"], _ROLES)
    return {"messages": tuple(map(_known_role, messages)), "overrides": overrides}


def _prompt(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        (value,) = value
    if isinstance(value, list):
        raise UnsupportedOption("hfpipe takes one prompt a request, as text.")
    return fields.text("prompt", value)


def _known_role(message: Mapping[str, str]) -> Mapping[str, str]:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _response(status: int, derived: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{derived}", "body": body}


def _error_body(error: RecordError, status: int) -> dict[str, Any]:
    kind = "server_error" if status == 500 else "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.type}}


def _read_slowly(line: bytes) -> Result | None:
    result = read_json(line)
    if not isinstance(result, dict) or not isinstance(result.get("custom_id"), str):
        return None
    response, outer = result.get("response"), result.get("error")
    if not isinstance(response, dict):
        return None if outer is None else Result(result["custom_id"], error_type(outer, "code"))
    body = response.get("body")
    inner = body.get("error") if isinstance(body, dict) else None
    fine = response.get("status_code") == 200
    return Result(result["custom_id"], None if fine else error_type(inner or {}, "code"))
